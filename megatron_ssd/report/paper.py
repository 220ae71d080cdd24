"""Compares the settings of a run with those of the paper (arXiv 2604.01193).

The paper does not give every value. ``source`` says where a value is from: the authors' own model cards and code,
readings of the paper that agree, one report, sources that contradict each other, or nowhere.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_ssd.artifacts.manifest import Manifest, flatten
from megatron_ssd.config.dataset import FilterConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.formatting import compact

Source = Literal["authors", "several readings", "one report", "sources conflict", "not published"]

TITLE = "Embarrassingly Simple Self-Distillation Improves Code Generation"
REFERENCE = "arXiv 2604.01193"
DEFAULT_MODEL = "qwen3_30b"  # the paper's main model: runs of any other model are compared with it
NOT_PUBLISHED: Source = "not published"
MODEL_TITLES = {  # public names of the paper's models
    "qwen3_4b_instruct": "Qwen3-4B-Instruct-2507",
    "qwen3_4b_thinking": "Qwen3-4B-Thinking-2507",
    "qwen3_30b": "Qwen3-30B-A3B-Instruct-2507",
    "qwen3_30b_thinking": "Qwen3-30B-A3B-Thinking-2507",
    "llama31_8b": "Llama-3.1-8B-Instruct",
}
WINDOWS = {"v6": ("2025-02-01", "2025-05-31"), "v5": ("2024-08-01", "2025-02-01")}  # contest dates, both included
# What stages found; not keys of the configuration.
COUNTED = ("problems.count", "benchmark.format", "benchmark.window", "benchmark.count")
_FACT_KEYS = ("seed", "minicode.seed", "model.name", "cluster.device")
_DROP_NOTHING = ("filters.loop.", "filters.mask_end_tokens")  # settings that only say how an end is detected
# Stage -> prefix in its manifest -> prefix in the configuration.
_RECORDED_AS = {
    "samples": {"decoding.": "sampling.train.", "max_tokens": "sampling.max_tokens",
                "num_samples": "sampling.num_samples"},
    "eval": {"decodings.": "sampling.", "max_tokens": "evaluation.max_tokens",
             "num_samples": "evaluation.num_samples"},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PaperSetting:
    """One setting of the paper.

    ``keys`` are configuration keys, or keys of ``COUNTED``, whose values are formatted by ``wording``. ``paper`` has
    the paper's values of the same keys (``by_model`` if they differ by model), ``also`` the values of other sources;
    None and no entry for the model mean that nothing was published. ``remark`` replaces the formatted values.
    """

    group: str
    item: str
    keys: tuple[str, ...]
    wording: str
    source: Source
    paper: tuple[Any, ...] | None = None
    by_model: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    also: tuple[tuple[Any, ...], ...] = ()
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """A setting of the paper next to this run's.

    ``same`` says whether this run has the paper's values, or those of one source if sources conflict; None if there is
    nothing to compare with.
    """

    group: str
    item: str
    paper: str
    this_run: str
    same: bool | None
    source: Source


SETTINGS: tuple[PaperSetting, ...] = (
    PaperSetting(group="Problems", item="training problems", source="one report",
                 keys=("problems.name", "problems.count"), wording="{}, {} problems", paper=("rstar_coder", 10168),
                 remark="rStar-Coder seed_sft, about 10,168 after exact deduplication; the count is disputed"),
    PaperSetting(group="Problems", item="benchmark", source="authors",
                 keys=("benchmark.format", "benchmark.window", "benchmark.count"), wording="{}, {}, {} problems",
                 paper=("livecodebench", "v6 window", 131), also=(("livecodebench", "v5 window", 279),),
                 remark="LiveCodeBench v6 (February to May 2025, 131 problems) and v5 (August 2024 to 1 February 2025, "
                        "279 problems)"),
    PaperSetting(group="Sampling", item="decoding of the training data", source="authors",
                 keys=("sampling.train.temperature", "sampling.train.top_k", "sampling.train.top_p"),
                 wording="T {}, top-k {}, top-p {}",
                 by_model={"qwen3_4b_instruct": (1.6, 20, 0.8), "qwen3_4b_thinking": (1.1, 20, 0.95),
                           "qwen3_30b": (1.6, 20, 0.8)}),
    PaperSetting(group="Sampling", item="responses per problem", source="several readings",
                 keys=("sampling.num_samples",), wording="{}", paper=(1,)),
    PaperSetting(group="Sampling", item="longest response", source="sources conflict",
                 keys=("sampling.max_tokens",), wording="{} tokens", paper=(65536,), also=((131072,),),
                 remark="65,536 tokens in code, 128K context in the paper"),
    PaperSetting(group="Sampling", item="prompts: chat template or raw text", source=NOT_PUBLISHED,
                 keys=("prompt.mode",), wording="{}"),
    PaperSetting(group="Sampling", item="dropped: empty responses, one-line stubs, share of the shortest",
                 source="sources conflict",
                 keys=("filters.drop_empty", "filters.drop_one_line_stubs", "filters.drop_shortest_fraction"),
                 wording="{}, {}, {}", paper=(True, True, 0.0), also=((True, False, 0.1),),
                 remark="empty ones and stubs in the paper, empty ones and the shortest tenth in the authors' code"),
    PaperSetting(group="Sampling", item="dropped: by other filters", source="several readings",
                 keys=("filters.further",), wording="{}", paper=("none",)),
    PaperSetting(group="Sampling", item="responses cut at the length limit", source="authors",
                 keys=("filters.length_capped",), wording="{}", paper=("keep",)),
    PaperSetting(group="Training", item="sequence length", source="several readings",
                 keys=("training.seq_length",), wording="{} tokens", paper=(65536,)),
    PaperSetting(group="Training", item="global batch", source="several readings",
                 keys=("training.global_batch_size",), wording="{} sequences", paper=(32,)),
    PaperSetting(group="Training", item="iterations", source="several readings",
                 keys=("training.train_iters", "optimizer.lr_warmup_iters"), wording="{}, {} of them warm-up",
                 paper=(2500, 250), by_model={"qwen3_4b_thinking": (300, 50), "qwen3_30b_thinking": (300, 50)}),
    PaperSetting(group="Training", item="peak learning rate", source="several readings",
                 keys=("optimizer.lr",), wording="{}", paper=(5e-6,)),
    PaperSetting(group="Training", item="lowest learning rate", source="one report",
                 keys=("optimizer.min_lr",), wording="{}", paper=(1e-6,)),
    PaperSetting(group="Training", item="AdamW", source="one report",
                 keys=("optimizer.adam_beta1", "optimizer.adam_beta2", "optimizer.weight_decay"),
                 wording="betas {} and {}, weight decay {}", paper=(0.9, 0.95, 0.1)),
    PaperSetting(group="Training", item="gradient clip", source=NOT_PUBLISHED,
                 keys=("optimizer.clip_grad",), wording="{}"),
    PaperSetting(group="Training", item="packing", source=NOT_PUBLISHED, keys=("training.packing",), wording="{}"),
    PaperSetting(group="Training", item="precision of the weights", source=NOT_PUBLISHED,
                 keys=("precision.params_dtype",), wording="{}"),
    PaperSetting(group="Training", item="layout", source="several readings",
                 keys=("parallel.world_size", "parallel.expert_model_parallel_size"),
                 wording="world size {}, expert parallel size {}", paper=(8, 8)),
    PaperSetting(group="Evaluation", item="decoding of the tuned model", source="authors",
                 keys=("sampling.eval.temperature", "sampling.eval.top_k", "sampling.eval.top_p"),
                 wording="T {}, top-k {}, top-p {}",
                 by_model={"qwen3_4b_instruct": (1.1, 20, 0.8), "qwen3_4b_thinking": (0.7, 20, 0.95),
                           "qwen3_30b": (0.9, 20, 0.8)}),
    PaperSetting(group="Evaluation", item="samples per problem", source="sources conflict",
                 keys=("evaluation.num_samples",), wording="{}", paper=(20,), also=((10,),),
                 remark="20 in the authors' code, 10 in their instructions"),
    PaperSetting(group="Evaluation", item="longest program", source="sources conflict",
                 keys=("evaluation.max_tokens",), wording="{} tokens", paper=(32768,), also=((65536,),),
                 remark="32,768 tokens in the authors' code, 65,536 in their instructions"),
)  # fmt: skip


def window_title(dates: Sequence[str] | None) -> str:
    """The paper's window of LiveCodeBench that contains the first and last of ``dates`` (ISO), else the dates."""
    if dates is None:
        return "undated"
    first, last = dates
    for name, (start, end) in WINDOWS.items():
        if start <= first and last <= end:
            return f"{name} window"
    return first if first == last else f"{first} to {last}"


def shown_settings(config: RunConfig, manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    """Dotted key -> value of every setting that the report names.

    The manifest of a stage takes precedence over ``config``: it records the settings that the stage ran with.
    """
    flat = flatten(dataclasses.asdict(config))
    del flat["minicode.seed"]  # the stages that use it record it
    for stage, manifest in manifests.items():
        recorded = flatten({**manifest.config, "parallel": manifest.facts.get("parallel", {})})
        flat.update({_configuration_key(stage, key): value for key, value in recorded.items()})
    flat["filters.further"] = _further_filters(flat)
    flat |= _counted(manifests)
    wanted = [*_FACT_KEYS, *(key for setting in SETTINGS for key in setting.keys)]
    parameters = config.model.num_parameters() if config.model is not None else None
    return {**{key: flat.get(key) for key in wanted}, "model.num_parameters": parameters}


def _counted(manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    """Actual sizes and dates of training problems and benchmark; None for a stage that is missing."""
    found: dict[str, Any] = dict.fromkeys(COUNTED)
    if "problems" in manifests:
        found["problems.count"] = manifests["problems"].counts["problems"]
    if "eval" in manifests:
        measured = list(manifests["eval"].facts["benchmarks"].values())
        # The paper has LiveCodeBench alone, so other benchmarks are compared only if that is missing.
        one = next((one for one in measured if one["format"] == "livecodebench"), measured[0])
        found["benchmark.format"], found["benchmark.count"] = one["format"], one["problems"]
        found["benchmark.window"] = window_title(one["dates"])
    return found


def _further_filters(flat: Mapping[str, Any]) -> str:
    """The filter settings that differ from their defaults and are not shown one by one in the report."""
    shown = {key for setting in SETTINGS for key in setting.keys}
    defaults = flatten({"filters": dataclasses.asdict(FilterConfig())})
    changed = [
        key.removeprefix("filters.")
        for key, default in defaults.items()
        if key not in shown
        and not key.startswith(_DROP_NOTHING)
        and json.dumps(flat[key]) != json.dumps(default)  # as manifests hold them: a tuple equals a list
    ]
    return ", ".join(changed) or "none"


def _configuration_key(stage: str, recorded: str) -> str:
    """The configuration key of a setting that the manifest of ``stage`` records as ``recorded``."""
    for prefix, key in _RECORDED_AS.get(stage, {}).items():
        if recorded.startswith(prefix):
            return key + recorded.removeprefix(prefix)
    return recorded


def reference_model(settings: Mapping[str, Any]) -> str:
    """Name of the paper's model that a run is compared with."""
    name = settings.get("model.name")
    return name if name in MODEL_TITLES else DEFAULT_MODEL


def deviations(settings: Mapping[str, Any]) -> tuple[Deviation, ...]:
    """Every setting of the paper next to the run's. ``settings`` maps dotted configuration keys to values."""
    model = reference_model(settings)
    return tuple(_compare(setting, settings, model) for setting in SETTINGS)


def _compare(setting: PaperSetting, settings: Mapping[str, Any], model: str) -> Deviation:
    paper = setting.by_model.get(model, setting.paper)
    values = tuple(settings.get(key) for key in setting.keys)
    unknown = any(value is None for value in values)
    if paper is None:
        shown, source = "not published", NOT_PUBLISHED
    else:
        shown, source = setting.remark or setting.wording.format(*map(_written, paper)), setting.source
    return Deviation(
        group=setting.group,
        item=setting.item,
        paper=shown,
        this_run="not set" if unknown else setting.wording.format(*map(_written, values)),
        same=None if paper is None else values in (paper, *setting.also),
        source=source,
    )


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else compact(value) if isinstance(value, float) else str(value)

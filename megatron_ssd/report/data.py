"""Reads what the report shows from the published folders of a run."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from megatron_ssd.artifacts.jsonl import iter_jsonl
from megatron_ssd.artifacts.manifest import Manifest, flatten, read_manifest
from megatron_ssd.artifacts.samples import iter_samples, sample_shards
from megatron_ssd.config.dataset import FilterConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.evaluation.results import EvaluationResults, read_results
from megatron_ssd.general_benchmarks.results import NAME as BENCHMARKS
from megatron_ssd.progress import progress
from megatron_ssd.report.examples import Example, read_examples
from megatron_ssd.report.lineage import STAGES
from megatron_ssd.report.paper import COUNTED, SETTINGS, window_title
from megatron_ssd.report.problems import ProblemFacts, read_problem_facts

MOST_POINTS = 800  # of a curve; a longer one is thinned to means

_FACT_KEYS = ("seed", "minicode.seed", "model.name", "cluster.device")
_HOW_ENDS_ARE_FOUND = (
    "filters.loop.",
    "filters.mask_end_tokens",
)  # they detect, and drop nothing
_RECORDED_AS = {  # stage -> (prefix in its manifest, prefix in the configuration)
    "samples": (
        ("decoding.", "sampling.train."),
        ("max_tokens", "sampling.max_tokens"),
        ("num_samples", "sampling.num_samples"),
    ),
    "eval": (
        ("decodings.", "sampling."),
        ("max_tokens", "evaluation.max_tokens"),
        ("num_samples", "evaluation.num_samples"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class TrainingPoint:
    """One logged iteration that updated the model, with finite numbers."""

    iteration: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float


@dataclass(frozen=True, kw_only=True)
class SamplingFacts:
    """The sampled training data.

    ``lengths`` are the tokens of each response that was generated, ``dropped`` counts the samples that filters removed,
    by reason. ``tokens_per_second`` is None if a resumed stage had nothing left to generate.
    """

    num_samples: int
    finish_reasons: dict[str, int]
    skip_reasons: dict[str, int]
    lengths: tuple[int, ...]
    dropped: dict[str, int]
    num_kept: int
    tokens_per_second: float | None


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything that the page and ``summary.json`` show."""

    run_name: str
    scores: EvaluationResults
    problems: ProblemFacts
    training: tuple[TrainingPoint, ...]
    num_skipped: int  # iterations without a finite loss or gradient, which updated nothing
    sampling: SamplingFacts
    examples: tuple[Example, ...]
    manifests: dict[str, Manifest]  # by stage, in the order in which they ran
    settings: dict[str, Any] = field(default_factory=dict)  # dotted key -> value, as the stages ran with it


def gather(config: RunConfig) -> ReportData:
    """Everything that the page and ``summary.json`` show.

    Raises:
        UserError: a stage was not published or one of its files cannot be read.
    """
    run_dir = Path(config.run_dir)
    manifests = read_manifests(run_dir)
    scores = read_results(run_dir / "eval" / "summary.json")
    training, num_skipped = read_training(run_dir / "checkpoints" / "metrics.jsonl")
    return ReportData(
        run_name=run_dir.resolve().name,
        scores=scores,
        problems=read_problem_facts(run_dir / "problems", manifests["problems"]),
        training=training,
        num_skipped=num_skipped,
        sampling=read_sampling(sample_shards(run_dir), manifests),
        examples=read_examples(run_dir / "eval", scores),
        manifests=manifests,
        settings=shown_settings(config, manifests),
    )


def read_manifests(run_dir: Path) -> dict[str, Manifest]:
    """The manifest of every stage before the report, in the order in which they run."""
    optional = (BENCHMARKS,) if (run_dir / BENCHMARKS).is_dir() else ()
    return {stage: read_manifest(run_dir / stage) for stage in (*STAGES, *optional)}


def shown_settings(config: RunConfig, manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    """Dotted key -> value of every setting that the report names.

    The manifest of a stage takes precedence over ``config``: it records the settings that the stage ran with.
    """
    flat = flatten(dataclasses.asdict(config))
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
        facts = manifests["eval"].facts
        found["benchmark.count"] = manifests["eval"].counts["problems"]
        found["benchmark.window"] = window_title(facts["dates"]) if "dates" in facts else "dates not recorded"
    return found


def _further_filters(flat: Mapping[str, Any]) -> str:
    """The filter settings that differ from their defaults and have no line of their own in the report."""
    shown = {key for setting in SETTINGS for key in setting.keys}
    changed = [
        key.removeprefix("filters.")
        for key, default in flatten({"filters": dataclasses.asdict(FilterConfig())}).items()
        if key not in shown and not key.startswith(_HOW_ENDS_ARE_FOUND) and not _alike(flat[key], default)
    ]
    return ", ".join(changed) or "none"


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are equal as JSON, the format of manifests."""
    return json.dumps(one) == json.dumps(other)


def _configuration_key(stage: str, recorded: str) -> str:
    """The configuration key of a setting that the manifest of ``stage`` records as ``recorded``."""
    for prefix, key in _RECORDED_AS.get(stage, ()):
        if recorded.startswith(prefix):
            return key + recorded.removeprefix(prefix)
    return recorded


def read_training(path: Path) -> tuple[tuple[TrainingPoint, ...], int]:
    """The logged iterations of ``metrics.jsonl`` in order, and the number of skipped ones, which are left out.

    An iteration is skipped if its loss or gradient is not finite (null in the file). If a resume logged an iteration
    twice, the later record is used.
    """
    rows = {row["iteration"]: row for row in iter_jsonl(path)}
    names = [field.name for field in dataclasses.fields(TrainingPoint)]
    values = [{name: row[name] for name in names} for _, row in sorted(rows.items())]
    points = tuple(TrainingPoint(**value) for value in values if None not in value.values())
    return points, len(rows) - len(points)


def thin(points: Sequence[TrainingPoint], limit: int = MOST_POINTS) -> tuple[list[TrainingPoint], int]:
    """At most ``limit`` points, each the mean of as many consecutive ones, and how many those are."""
    size = max(1, math.ceil(len(points) / limit))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        TrainingPoint(
            iteration=group[-1].iteration,
            loss=fmean(p.loss for p in group),
            learning_rate=fmean(p.learning_rate for p in group),
            grad_norm=fmean(p.grad_norm for p in group),
            tokens_per_second=fmean(p.tokens_per_second for p in group),
        )
        for group in groups
    ], size


def read_sampling(shards: Sequence[Path], manifests: Mapping[str, Manifest]) -> SamplingFacts:
    """Finish reasons and lengths over every shard, and the samples that were skipped and dropped."""
    finish, skipped, lengths = Counter[str](), Counter[str](), []
    for shard in progress(shards, desc="reading samples", unit="shard"):
        for sample in iter_samples(shard):
            finish[sample.finish_reason] += 1
            if sample.finish_reason == "skipped":
                skipped[sample.skip_reason or "no reason given"] += 1
            else:
                lengths.append(len(sample.response_token_ids))
    return SamplingFacts(
        num_samples=finish.total(),
        finish_reasons=dict(finish.most_common()),
        skip_reasons=dict(skipped.most_common()),
        lengths=tuple(lengths),
        dropped=manifests["dataset"].dropped,
        num_kept=manifests["dataset"].counts["documents"],
        tokens_per_second=manifests["samples"].facts.get("tokens_per_second"),
    )

"""Writes the cards that the Hugging Face Hub shows for a model or a data set.

A card states what the files of a run hold. It names what they lack, such as a licence, as missing. Paths of this
machine are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCardData, ModelCardData, metadata_load

from megatron_ssd.artifacts.hub import is_hub_id, local_path
from megatron_ssd.artifacts.manifest import FILE_NAME, MADE_BY, Manifest, flatten, format_counts, read_manifest
from megatron_ssd.config.run import RunConfig

CARD = "README.md"
_STAGES = ("problems", "samples", "dataset", "checkpoints")  # those that decide what a model learned
_SETTINGS = {  # keys of a stage's manifest that its card shows
    "samples": ("decoding.temperature", "decoding.top_k", "decoding.top_p", "decoding.min_p",
                "decoding.repetition_penalty", "num_samples", "max_tokens", "seed"),
    "checkpoints": ("training.train_iters", "training.global_batch_size", "training.seq_length", "optimizer.lr",
                    "optimizer.min_lr", "optimizer.lr_warmup_iters", "seed"),
}  # fmt: skip
_LICENCE = ("license", "license_name", "license_link")
_METHOD = (
    "Simple self-distillation ([arXiv 2604.01193](https://arxiv.org/abs/2604.01193)), with megatron-ssd: the base "
    "model samples responses to programming problems, and is then trained on these responses as they are. Their "
    "programs are not run, and no verifier, teacher or reward is used."
)
_USE = (
    "`generation_config.json` has the decode settings that the model is meant to be used with, and every token that "
    "ends a response. vLLM and transformers use it by default:\n\n```\nvllm serve THIS_REPOSITORY_OR_FOLDER\n```"
)
_SAMPLE = (
    "Each line of `shard-*.jsonl` is one response: the problem's id, the messages, the token ids of prompt and "
    "response as they were sampled, the text, why the response ended, and the seed. Responses are raw: wrong programs "
    "are among them."
)


def model_card(config: RunConfig, base: Path, *, exported: Mapping[str, Any]) -> str:
    """The card of the model that ``config`` trained from ``base``, without scores.

    Args:
        config: the run.
        base: folder of the base model, whose own card names its licence.
        exported: facts about the exported weights, by name.

    Raises:
        UserError: a manifest cannot be read.
    """
    licence = _licence(base)
    data = ModelCardData(
        base_model=_hub_id(config.model.path) if config.model else None,
        datasets=_hub_id(config.problems.path) if config.problems else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["self-distillation", "code", "megatron-ssd"],
        **licence,
    )
    weights = "; ".join(f"{name} = {value}" for name, value in exported.items())
    said = "the base's" if licence else "none is named here, because the base's folder names none that can be read"
    sections = {
        "Method": _METHOD,
        "Base model": _base_name(config),
        "How it was made": f"{_stages(Path(config.run_dir))}\n\nExported weights: {weights}.",
        "Use": _USE,
        "Licence": f"Licence: {said}.",
    }
    return _card(data, Path(config.run_dir).resolve().name, sections)


def samples_card(config: RunConfig) -> str:
    """The card of the responses that were sampled for training. Raises ``UserError`` if a manifest cannot be read."""
    data = DatasetCardData(
        task_categories=["text-generation"],
        tags=["self-distillation", "code", "synthetic", "megatron-ssd"],
        configs=[{"config_name": "default", "data_files": "shard-*.jsonl"}],
    )
    run_dir = Path(config.run_dir)
    sections = {
        "Content": _SAMPLE,
        "Sampled from": _base_name(config),
        "How it was made": _stages(run_dir, _STAGES[:2]),
        "Licence": "No licence is named here: the responses depend on the terms of the model and of the problems.",
    }
    return _card(data, f"Samples of {run_dir.resolve().name}", sections)


def _card(data: ModelCardData | DatasetCardData, title: str, sections: Mapping[str, str]) -> str:
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items())
    return f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{body}\n"


def _stages(run_dir: Path, stages: Sequence[str] = _STAGES) -> str:
    """A table of the published stages: command, counts, settings, programs."""
    published = [(stage, run_dir / stage) for stage in stages if (run_dir / stage / FILE_NAME).is_file()]
    rows = [["command", "made", "left out", "settings", "with"], ["---"] * 5]
    rows += [_stage(stage, read_manifest(folder)) for stage, folder in published]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _stage(stage: str, manifest: Manifest) -> list[str]:
    values = flatten(manifest.config)
    counts = [f"{number:,} {what.replace('_', ' ')}" for what, number in manifest.counts.items()]
    engine = " ".join(manifest.engine[key] for key in ("name", "version") if key in manifest.engine)
    return [
        f"`{MADE_BY[stage]}`",
        ", ".join(counts),
        format_counts(manifest.dropped),
        ", ".join(f"{key} = {values[key]}" for key in _SETTINGS.get(stage, ()) if key in values),
        ", ".join(filter(None, [engine, f"megatron-ssd {manifest.code_version}"])),
    ]


def _base_name(config: RunConfig) -> str:
    """The model that was sampled from, or else trained from: its name, and its revision or hash in the manifest."""
    name = config.model.name if config.model else "a model"
    if config.model and (hub_id := _hub_id(config.model.path)):
        name = f"[{hub_id}](https://huggingface.co/{hub_id})"
    for stage in ("samples", "checkpoints"):
        if (Path(config.run_dir) / stage / FILE_NAME).is_file():
            inputs = read_manifest(Path(config.run_dir) / stage).inputs
            return f"{name}, revision or content hash `{inputs['model']}`" if "model" in inputs else name
    return name


def _hub_id(path: str | None) -> str | None:
    return path if path is not None and is_hub_id(path) and not local_path(path).exists() else None


def _licence(base: Path) -> dict[str, Any]:
    """What the base model's own card says about its licence; empty if it has none that can be read."""
    try:
        named = metadata_load(base / CARD) or {}
    except (OSError, ValueError, yaml.YAMLError):  # no card, or one that is not Markdown with YAML
        return {}
    return {key: named[key] for key in _LICENCE if key in named}

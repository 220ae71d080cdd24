"""Gathers what the report shows from the published folders of a run. Reads files, decides nothing, writes nothing."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.jsonl import iter_jsonl
from megatron_ssd.artifacts.manifest import Manifest, flatten, read_manifest
from megatron_ssd.artifacts.samples import iter_samples, sample_shards
from megatron_ssd.config.dataset import FilterConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.evaluation.problem_file import PROBLEMS_FILE, Excerpt, ShortProblem, read_problems
from megatron_ssd.progress import progress
from megatron_ssd.report.benchmarks import FOLDER
from megatron_ssd.report.formatting import visible
from megatron_ssd.report.lineage import STAGES
from megatron_ssd.report.paper import COUNTED, SETTINGS, window_title
from megatron_ssd.report.problems import read_problem_facts
from megatron_ssd.report.records import (
    Example,
    FailedTest,
    Program,
    ReportData,
    SamplingFacts,
    Score,
    Scores,
    TrainingPoint,
)
from megatron_ssd.report.scores import read_scores
from megatron_ssd.schema import Sample, Verdict

_FACT_KEYS = ("seed", "minicode.seed", "model.name", "cluster.device")
_HOW_ENDS_ARE_FOUND = ("filters.loop.", "filters.mask_end_tokens")  # of loops and cut responses; they drop nothing
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
_EXAMPLES = 3
_PROMPT_CHARACTERS = 1500  # a page is to be read; whole prompts stand in eval/generations
_RESPONSE_CHARACTERS = 2500
_INPUT_CHARACTERS = 300


def gather(config: RunConfig) -> ReportData:
    """Everything that page and summary are made from.

    Raises:
        UserError: a stage was not published or one of its files cannot be read.
    """
    run_dir = Path(config.run_dir)
    manifests = read_manifests(run_dir)
    scores = read_scores(run_dir / "eval" / "summary.json")
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
    optional = (FOLDER,) if (run_dir / FOLDER).is_dir() else ()
    return {stage: read_manifest(run_dir / stage) for stage in (*STAGES, *optional)}


def shown_settings(config: RunConfig, manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    """Dotted key -> value of every setting that the report names.

    A stage's manifest outweighs ``config``: it says what the stage ran with, whatever is asked for now.
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
    """What was sampled on and judged by in fact, whatever the names are; null for a stage that is not there."""
    found: dict[str, Any] = dict.fromkeys(COUNTED)
    if "problems" in manifests:
        found["problems.count"] = manifests["problems"].counts["problems"]
    if "eval" in manifests:
        facts = manifests["eval"].facts
        found["benchmark.count"] = manifests["eval"].counts["problems"]
        found["benchmark.window"] = window_title(facts["dates"]) if "dates" in facts else "dates not recorded"
    return found


def _further_filters(flat: Mapping[str, Any]) -> str:
    """The settings of filters that drop more than the defaults and have no line of their own in the report."""
    shown = {key for setting in SETTINGS for key in setting.keys}
    changed = [
        key.removeprefix("filters.")
        for key, default in flatten({"filters": dataclasses.asdict(FilterConfig())}).items()
        if key not in shown and not key.startswith(_HOW_ENDS_ARE_FOUND) and not _alike(flat[key], default)
    ]
    return ", ".join(changed) or "none"


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are one in JSON, which manifests are."""
    return json.dumps(one) == json.dumps(other)


def _configuration_key(stage: str, recorded: str) -> str:
    """The configuration's name of a setting that the manifest of ``stage`` records under ``recorded``."""
    for prefix, key in _RECORDED_AS.get(stage, ()):
        if recorded.startswith(prefix):
            return key + recorded.removeprefix(prefix)
    return recorded


def read_training(path: Path) -> tuple[tuple[TrainingPoint, ...], int]:
    """The logged iterations of ``metrics.jsonl``, in order; of an iteration logged twice (a resume) the later row.

    Those that were skipped, because loss or gradient was not finite (null in the file), are counted and left out.
    """
    rows = {row["iteration"]: row for row in iter_jsonl(path)}
    names = [field.name for field in dataclasses.fields(TrainingPoint)]
    values = [{name: row[name] for name in names} for _, row in sorted(rows.items())]
    points = tuple(TrainingPoint(**value) for value in values if None not in value.values())
    return points, len(rows) - len(points)


def read_sampling(shards: Sequence[Path], manifests: Mapping[str, Manifest]) -> SamplingFacts:
    """Finish reasons and lengths over every shard, and what was left out before and after."""
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


def read_examples(folder: Path, scores: Scores) -> tuple[Example, ...]:
    """The first problem of each difficulty by id, with the first program of either model at its best setting.

    The rule looks at no outcome, so the choice favours neither model.
    """
    rows = (scores.row("base_best"), scores.row("ssd_best"))
    kept = read_problems(folder / PROBLEMS_FILE) if (folder / PROBLEMS_FILE).is_file() else {}
    samples = [_first_samples(folder / "generations" / row.model / f"{row.decoding}.jsonl") for row in rows]
    verdicts = [_first_verdicts(folder / "verdicts" / row.model / f"{row.decoding}.jsonl") for row in rows]
    chosen: dict[str, str] = {}
    order = list(rows[0].by_difficulty)
    for problem_id in sorted(set(scores.difficulties).intersection(*samples, *verdicts)):
        chosen.setdefault(scores.difficulties[problem_id], problem_id)
    ordered = sorted(chosen, key=lambda name: order.index(name) if name in order else len(order))
    return tuple(
        _example(chosen[name], name, rows, samples, verdicts, kept.get(chosen[name])) for name in ordered[:_EXAMPLES]
    )


def _example(
    problem_id: str,
    difficulty: str,
    rows: tuple[Score, Score],
    samples: list[dict[str, Sample]],
    verdicts: list[dict[str, Verdict]],
    kept: ShortProblem | None,
) -> Example:
    prompt = "\n\n".join(message["content"] for message in samples[0][problem_id].messages)
    programs = [
        Program(
            model=row.model,
            decoding=row.decoding,
            response=_cut(own[problem_id].response, _RESPONSE_CHARACTERS),
            verdict=judged[problem_id].status.replace("_", " "),
            detail=_cut(judged[problem_id].detail, 120),
            failed=_failed_test(judged[problem_id], kept),
        )
        for row, own, judged in zip(rows, samples, verdicts, strict=True)
    ]
    return Example(
        problem_id=problem_id, difficulty=difficulty, prompt=_cut(prompt, _PROMPT_CHARACTERS), programs=tuple(programs)
    )


def _failed_test(verdict: Verdict, kept: ShortProblem | None) -> FailedTest | None:
    index = verdict.failed_test
    if kept is None or index is None or index >= len(kept.tests):
        return None
    return FailedTest(
        number=index + 1,
        total=verdict.tests_total,
        input=_whole(kept.tests[index].input.shortened(_INPUT_CHARACTERS)),
        is_check=kept.form == "checks",
    )


def _whole(excerpt: Excerpt) -> str:
    """The text, with what is missing in words."""
    gap = f"\n\u2026 {excerpt.left_out:,} characters \u2026\n" if excerpt.left_out else ""
    return visible(f"{excerpt.head}{gap}{excerpt.tail}")


def _first_samples(path: Path) -> dict[str, Sample]:
    rows = (Sample.from_json(row) for row in iter_jsonl(path))
    return {sample.problem_id: sample for sample in rows if sample.sample_index == 0}


def _first_verdicts(path: Path) -> dict[str, Verdict]:
    rows = (Verdict.from_json(row) for row in iter_jsonl(path))
    return {verdict.problem_id: verdict for verdict in rows if verdict.sample_index == 0}


def _cut(text: str, limit: int) -> str:
    return visible(text if len(text) <= limit else text[:limit] + "\n\u2026")

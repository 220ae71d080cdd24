"""Reads what the report shows from the published folders of a run."""

from __future__ import annotations

import dataclasses
import heapq
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from megatron_ssd.artifacts.jsonl import iter_jsonl
from megatron_ssd.artifacts.manifest import Manifest, read_manifest
from megatron_ssd.artifacts.samples import iter_samples, sample_shards
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from megatron_ssd.evaluation.checkpoints import CheckpointScores, read_checkpoints
from megatron_ssd.evaluation.results import SUMMARY_FILE, EvaluationResults, from_json, read_results
from megatron_ssd.general_benchmarks.results import NAME as BENCHMARKS
from megatron_ssd.general_benchmarks.results import SUMMARY, BenchmarkResults
from megatron_ssd.problems import decontamination
from megatron_ssd.problems.decontamination import HITS_FILE
from megatron_ssd.progress import progress
from megatron_ssd.report.attempts import ProblemPages, read_problem_pages
from megatron_ssd.report.lineage import STAGES, Lineage, trace
from megatron_ssd.report.paper import shown_settings

log = logging.getLogger(__name__)

MOST_POINTS = 800  # of a curve; a longer one is thinned to means
LISTED_HITS = 200  # in summary.json; the file of the problems stage has all
_OLD_BENCHMARKS = "regression"  # the folder of the general benchmarks in earlier versions


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit(decontamination.Hit):
    """A training problem found in an evaluation set; ``kept`` if it was sampled anyway."""

    kept: bool


@dataclass(frozen=True, kw_only=True)
class SetHits:
    """The number of training problems found in one evaluation set: sampled anyway, or left out."""

    name: str
    kept: int
    left_out: int


@dataclass(frozen=True, kw_only=True)
class ProblemFacts:
    """What the problems stage found. ``selection`` identifies its output, ``dropped`` counts rows by reason.

    ``hits`` are at most ``LISTED_HITS`` of ``num_hits``: first those that were kept, then the most certain ones.
    """

    selection: str
    num_rows: int
    num_problems: int
    dropped: dict[str, int]
    sets: tuple[SetHits, ...]
    hits: tuple[Hit, ...]
    num_hits: int


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
    by reason. ``tokens_per_second`` is None if a resumed stage had nothing left to generate. ``model_revision`` is the
    base model as the samples name it.
    """

    num_samples: int
    finish_reasons: dict[str, int]
    skip_reasons: dict[str, int]
    lengths: tuple[int, ...]
    dropped: dict[str, int]
    num_kept: int
    tokens_per_second: float | None
    model_revision: str


@dataclass(frozen=True, kw_only=True)
class EvaluatedBenchmark:
    """The results of one benchmark, and its problems with the attempts of both models.

    ``checkpoints`` is None if only the exported checkpoint was measured.
    """

    scores: EvaluationResults
    pages: ProblemPages
    checkpoints: CheckpointScores | None


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything that the pages and ``summary.json`` show."""

    run_name: str
    benchmarks: tuple[EvaluatedBenchmark, ...]
    problems: ProblemFacts
    training: tuple[TrainingPoint, ...]
    num_skipped: int  # iterations without a finite loss or gradient, which updated nothing
    sampling: SamplingFacts
    general_benchmarks: BenchmarkResults | None  # None if the stage was not run
    lineage: Lineage
    manifests: dict[str, Manifest]  # by stage, in the order in which they ran
    settings: dict[str, Any]  # dotted key -> value, as the stages ran with it


def gather(config: RunConfig) -> ReportData:
    """Everything that the pages and ``summary.json`` show.

    Raises:
        UserError: a stage was not published or one of its files cannot be read.
    """
    run_dir = Path(config.run_dir)
    manifests = read_manifests(run_dir)
    results = read_evaluation(run_dir)
    training, num_skipped = read_training(run_dir / "checkpoints" / "metrics.jsonl")
    sampling = read_sampling(sample_shards(run_dir), manifests)
    base_model = Path(config.model.path) if config.model is not None and config.model.path is not None else None
    return ReportData(
        run_name=run_dir.resolve().name,
        benchmarks=tuple(
            EvaluatedBenchmark(
                scores=scores,
                pages=read_problem_pages(run_dir / "eval" / scores.benchmark, scores),
                checkpoints=read_checkpoints(run_dir, scores),
            )
            for scores in results
        ),
        problems=read_problem_facts(run_dir / "problems", manifests["problems"]),
        training=training,
        num_skipped=num_skipped,
        sampling=sampling,
        general_benchmarks=read_benchmarks(run_dir),
        lineage=trace(run_dir, base_model=base_model, base_revision=sampling.model_revision),
        manifests=manifests,
        settings=shown_settings(config, manifests),
    )


def read_evaluation(run_dir: Path) -> list[EvaluationResults]:
    """The results of every benchmark that the evaluation stage measured, in the order of the configuration.

    Raises:
        UserError: the stage was not published, is from another version, or a file of it cannot be read.
    """
    folder = run_dir / "eval"
    return [read_results(folder / name / SUMMARY_FILE) for name in read_manifest(folder).facts["benchmarks"]]


def read_manifests(run_dir: Path) -> dict[str, Manifest]:
    """The manifest of every stage before the report, in the order in which they run.

    Raises:
        UserError: a stage was not published, or the evaluation is from another version.
    """
    optional = (BENCHMARKS,) if (run_dir / BENCHMARKS).is_dir() else ()
    manifests = {stage: read_manifest(run_dir / stage) for stage in (*STAGES, *optional)}
    if "benchmarks" not in manifests["eval"].facts:
        raise UserError(f"folder {run_dir / 'eval'}", rule="is from a version without a folder for each benchmark",
                        fix="run launch/evaluate.py again with replace=true, which reuses its responses")  # fmt: skip
    return manifests


def read_problem_facts(folder: Path, manifest: Manifest) -> ProblemFacts:
    """The facts of a published ``problems`` folder. Raises ``UserError`` if its hits cannot be read."""
    names = [field.name for field in dataclasses.fields(Hit)]
    hits = [Hit(**{name: record[name] for name in names}) for record in iter_jsonl(folder / HITS_FILE)]
    found: defaultdict[tuple[str, bool], set[str]] = defaultdict(set)
    for hit in hits:
        found[hit.set_name, hit.kept].add(hit.problem_id)
    return ProblemFacts(
        selection=manifest.facts["selection"],
        num_rows=manifest.counts["rows"],
        num_problems=manifest.counts["problems"],
        dropped=manifest.dropped,
        sets=tuple(
            SetHits(name=name, kept=len(found[name, True]), left_out=len(found[name, False]))
            for name in manifest.facts["evaluation_sets"]
        ),
        hits=tuple(heapq.nsmallest(LISTED_HITS, hits, key=lambda hit: (not hit.kept, not hit.exact, -hit.overlap))),
        num_hits=len(hits),
    )


def read_training(path: Path) -> tuple[tuple[TrainingPoint, ...], int]:
    """The logged iterations of ``metrics.jsonl`` in order, and the number of skipped ones, which are left out.

    An iteration is skipped if its loss or gradient is not finite (null in the file). If a resume logged an iteration
    twice, the later record is used.
    """
    records = {record["iteration"]: record for record in iter_jsonl(path)}
    names = [field.name for field in dataclasses.fields(TrainingPoint)]
    values = [{name: record[name] for name in names} for _, record in sorted(records.items())]
    points = tuple(TrainingPoint(**value) for value in values if None not in value.values())
    return points, len(records) - len(points)


def thin(points: Sequence[TrainingPoint]) -> tuple[list[TrainingPoint], int]:
    """At most ``MOST_POINTS`` points, each the mean of as many consecutive ones, and how many those are."""
    size = max(1, math.ceil(len(points) / MOST_POINTS))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    averaged = [field.name for field in dataclasses.fields(TrainingPoint) if field.name != "iteration"]
    return [
        TrainingPoint(
            iteration=group[-1].iteration, **{name: fmean(getattr(point, name) for point in group) for name in averaged}
        )
        for group in groups
    ], size


def read_sampling(shards: Sequence[Path], manifests: Mapping[str, Manifest]) -> SamplingFacts:
    """Finish reasons and lengths over every shard, and the samples that were skipped and dropped."""
    finish, skipped, lengths = Counter[str](), Counter[str](), []
    model_revision = ""
    for shard in progress(shards, desc="reading samples", unit="shard"):
        for sample in iter_samples(shard):
            model_revision = model_revision or sample.model_revision
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
        model_revision=model_revision or "not named: the run has no samples",
    )


def read_benchmarks(run_dir: Path) -> BenchmarkResults | None:
    """The results of the general benchmarks; None if the stage was not run.

    Raises:
        UserError: the file is from another version.
    """
    path, old = run_dir / BENCHMARKS / SUMMARY, run_dir / _OLD_BENCHMARKS
    if old.is_dir():
        log.warning("report: %s is from an older version and is not shown; run launch/general_benchmarks.py to measure "
                    "again, then remove it", old)  # fmt: skip
    if not path.is_file():
        return None
    try:
        return from_json(path.read_text(encoding="utf-8"), BenchmarkResults)
    except ValueError as error:
        raise UserError(
            f"file {path}",
            rule=f"is not a summary of this version ({error})",
            fix=f"rename {path.parent} and run launch/general_benchmarks.py again",
        ) from None

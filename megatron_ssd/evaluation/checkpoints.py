"""Measures how the scores change over the checkpoints of a training run.

The run itself measures the checkpoint that it exports. Each other checkpoint is measured by a run of its own,
``run_dir/by_checkpoint/iter_N``, which shares the checkpoints and publishes ``export`` and ``eval``. So each has a
manifest, resumes, and is skipped when it is up to date, as every stage.

All are decoded at ``sampling.eval``, which was configured before anything was measured. A best setting would favor the
checkpoint that it was chosen for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_ssd.artifacts.jsonl import iter_jsonl
from megatron_ssd.artifacts.manifest import Manifest, read_manifest
from megatron_ssd.config.evaluation import EvaluationConfig
from megatron_ssd.config.generation import SamplingParams
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.errors import UserError, require
from megatron_ssd.evaluation.decode import OpenSampler
from megatron_ssd.evaluation.problem_file import PROBLEMS_FILE, read_problems
from megatron_ssd.evaluation.results import EvaluationResults, ModelName
from megatron_ssd.evaluation.reuse_results import verdict_path
from megatron_ssd.evaluation.stage import evaluation_stage, run_evaluate
from megatron_ssd.export.stage import export_stage
from megatron_ssd.generation.samplers import open_sampler
from megatron_ssd.grading.metrics import Bootstrap, Estimate, problem_scores
from megatron_ssd.process import ChildProcess
from megatron_ssd.prompts.clock import TIME_FILE
from megatron_ssd.schema import Verdict
from megatron_ssd.training.checkpoint_folder import checkpoint_path, list_checkpoints

log = logging.getLogger(__name__)

FOLDER = "by_checkpoint"
BASE = 0  # the iteration of the base model


@dataclass(frozen=True, kw_only=True)
class CheckpointScore:
    """The model after ``iteration``: pass@k of every k on the reporting half, of the smallest on the selection half."""

    iteration: int
    model: ModelName
    selection: Estimate
    report: dict[int, Estimate]


@dataclass(frozen=True, kw_only=True)
class CheckpointScores:
    """Every checkpoint on one benchmark, all at ``decoding``, by iteration.

    The base is the first, as iteration 0, if that setting is a cell of the grid.
    """

    decoding: str
    scores: tuple[CheckpointScore, ...]


@dataclass(frozen=True)
class Evaluations:
    """The evaluation of a run and those of its other checkpoints, for the pipeline."""

    config: RunConfig

    def is_current(self) -> bool:
        """Whether all are published and up to date. Raises as ``Stage.is_current``."""
        return evaluation_stage(self.config).is_current() and all(
            (Path(run.run_dir) / "checkpoints").exists()  # otherwise its first start is still to come
            and export_stage(run).is_current()
            and evaluation_stage(run).is_current()
            for run in checkpoint_runs(self.config).values()
        )


def run_evaluations(config: RunConfig, *, sampler: OpenSampler = open_sampler) -> None:
    """Evaluate the run, and with ``evaluation.checkpoints=all`` each other checkpoint, or resume.

    Args:
        config: the run.
        sampler: starts an engine on a model; tests replace vLLM by another.

    Raises:
        UserError: see ``run_evaluate`` and ``run_export``.
    """
    require(config.worker.is_alone or config.evaluation.checkpoints == "last",
            f"evaluation.checkpoints = {config.evaluation.checkpoints}", rule="is for one worker",
            fix=f"leave worker.world={config.worker.world} out")  # fmt: skip
    run_evaluate(config, sampler=sampler)
    for iteration, run in checkpoint_runs(config).items():
        log.info("eval: the checkpoint of iteration %d, in %s", iteration, run.run_dir)
        _share(Path(config.run_dir), Path(run.run_dir))
        if not export_stage(run).is_current():
            _export(run)
        run_evaluate(run, sampler=sampler)


def checkpoint_runs(config: RunConfig) -> dict[int, RunConfig]:
    """Iteration -> the run that measures it, for each checkpoint that ``config`` asks for but does not export.

    Raises:
        UserError: the run itself has no export yet.
    """
    if config.evaluation.checkpoints == "last":
        return {}
    run_dir, sampling = Path(config.run_dir), needed(config.sampling, "sampling")
    exported = read_manifest(run_dir / "export").facts["iteration"]
    only_eval = dataclasses.replace(sampling, default=sampling.eval, train=sampling.eval)
    evaluation = dataclasses.replace(config.evaluation, models=("ssd",), checkpoints="last", temperatures=(), top_ps=(),
                                     top_ks=EvaluationConfig.top_ks)  # fmt: skip
    return {
        iteration: dataclasses.replace(
            config,
            run_dir=str(checkpoint_path(run_dir / FOLDER, iteration)),
            sampling=only_eval,
            evaluation=evaluation,
            export=dataclasses.replace(config.export, iteration=iteration),
        )
        for iteration, _ in list_checkpoints(run_dir / "checkpoints")
        if iteration != exported
    }


def checkpoint_manifests(run_dir: Path) -> dict[int, Manifest]:
    """Iteration -> manifest of the evaluation, for each checkpoint that was measured in a run of its own."""
    evaluated = [(iteration, path / "eval") for iteration, path in list_checkpoints(run_dir / FOLDER)]
    return {iteration: read_manifest(folder) for iteration, folder in evaluated if folder.is_dir()}


def read_checkpoints(run_dir: Path, results: EvaluationResults) -> CheckpointScores | None:
    """The scores of every checkpoint on the benchmark of ``results``; None if no other checkpoint was measured.

    Raises:
        UserError: a checkpoint was measured with other problems or settings than the run itself.
    """
    others, own = checkpoint_manifests(run_dir), read_manifest(run_dir / "eval")
    if not others:
        return None
    for iteration, manifest in others.items():
        if _measured(manifest, results.benchmark) != _measured(own, results.benchmark):
            raise UserError(
                f"folder {checkpoint_path(run_dir / FOLDER, iteration)}",
                rule="was evaluated with other problems or settings than the run",
                fix="run launch/evaluate.py with evaluation.checkpoints=all replace=true, or move it away",
            )
    setting = SamplingParams(**own.config["decodings"]["eval"])
    folders: dict[int, tuple[ModelName, Path]] = {
        iteration: ("ssd", checkpoint_path(run_dir / FOLDER, iteration) / "eval" / results.benchmark)
        for iteration in others
    }
    of_run = run_dir / "eval" / results.benchmark
    folders[read_manifest(run_dir / "export").facts["iteration"]] = "ssd", of_run
    if verdict_path(of_run, "base", setting).is_file():
        folders[BASE] = "base", of_run
    bootstrap = Bootstrap(
        confidence=results.confidence, num_resamples=results.bootstrap_samples, seed=own.config["seed"]
    )
    problems = read_problems(of_run / PROBLEMS_FILE)
    on_report = np.array([problem.half == "reporting" for problem in problems.values()])
    scores = []
    for iteration, (model, folder) in sorted(folders.items()):
        verdicts = [Verdict.from_json(record) for record in iter_jsonl(verdict_path(folder, model, setting))]
        by_k = {k: problem_scores(verdicts, list(problems), k) for k in results.ks}
        scores.append(
            CheckpointScore(
                iteration=iteration,
                model=model,
                selection=bootstrap.mean(by_k[results.ks[0]][~on_report]),
                report={k: bootstrap.mean(values[on_report]) for k, values in by_k.items()},
            )
        )
    return CheckpointScores(decoding=setting.label, scores=tuple(scores))


def _measured(manifest: Manifest, benchmark: str) -> list[object]:
    """What must be equal for two evaluations to be comparable."""
    config = manifest.config
    return [manifest.inputs.get(f"benchmark {benchmark}"), config["decodings"]["eval"], config["num_samples"],
            config["max_tokens"], config["prompt"], config["seed"]]  # fmt: skip


def _share(run_dir: Path, folder: Path) -> None:
    """Link what the run of a checkpoint has in common with ``run_dir``: the checkpoints, and the time in prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("checkpoints", TIME_FILE):
        if (run_dir / name).exists() and not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("../..") / name)


def _export(run: RunConfig) -> None:
    """Export in a process of its own: evaluation has no other use for torch. Raises ``UserError`` as ``run_export``."""
    with contextlib.closing(ChildProcess("megatron_ssd.export.export")) as child:
        child.send(run)
        child.receive()

"""The evaluation stage, which measures the tuned model beside its base.

It decodes the benchmark with each model under every setting, runs the programs and writes the results to
``run_dir/eval``. Each step resumes what an earlier run of it left. The sandbox is tested before the first response is
generated.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from megatron_ssd.artifacts.hashing import hash_json
from megatron_ssd.artifacts.hub import ModelFolder, open_model
from megatron_ssd.artifacts.jsonl import iter_jsonl
from megatron_ssd.artifacts.manifest import check_outputs, read_manifest
from megatron_ssd.artifacts.stage import SECONDS_BETWEEN_NOTES, Stage
from megatron_ssd.config.generation import SamplingParams
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.errors import UserError
from megatron_ssd.evaluation.decode import DecodeJob, OpenSampler
from megatron_ssd.evaluation.diversity import Diversity, NormalForms
from megatron_ssd.evaluation.grid import Measurements, grid_cells, settings_of, split_halves
from megatron_ssd.evaluation.problem_file import PROBLEMS_FILE, write_problems
from megatron_ssd.evaluation.results import ModelName, write_json
from megatron_ssd.evaluation.reuse_results import reuse_results, verdict_path
from megatron_ssd.evaluation.summary import summarise
from megatron_ssd.evaluation.tables import claim_lines, score_tables
from megatron_ssd.generation.engine import Sampler
from megatron_ssd.generation.samplers import engine_facts, open_sampler
from megatron_ssd.grading.metrics import Bootstrap
from megatron_ssd.grading.pool import Grader
from megatron_ssd.problems.benchmarks import load_benchmarks
from megatron_ssd.problems.errata import Errata
from megatron_ssd.process import report_follows
from megatron_ssd.progress import progress
from megatron_ssd.prompts.prompt import prompts_open_thinking, template_hash
from megatron_ssd.prompts.tokenizer import ChatTokenizer
from megatron_ssd.schema import Problem, Sample, Verdict

log = logging.getLogger(__name__)


def run_evaluate(config: RunConfig, *, sampler: OpenSampler = open_sampler) -> None:
    """Evaluate what ``config.evaluation.models`` names, or resume.

    Args:
        config: the run.
        sampler: starts an engine on a model; tests replace vLLM by another.

    Raises:
        UserError: a section, a model, the benchmark or the sandbox is missing or cannot be used.
    """
    sampling, (problems, errata), models = needed(config.sampling, "sampling"), _benchmark(config), _models(config)
    stage = _stage(config, problems, models)
    if stage.is_current():
        return
    if errata.line:
        log.info("eval: %s", errata.line)
    split_halves(problems)  # raises errors now, not after hours of decoding
    engine = engine_facts(config.engine)
    tokenizer = ChatTokenizer(next(iter(models.values())).path)
    opens_thinking = prompts_open_thinking(problems, config.prompt, tokenizer)
    with Grader(problems, config.evaluation.sandbox, prompt_opens_thinking=opens_thinking) as grader:
        work = stage.begin()
        jobs = {
            name: DecodeJob(
                name=name,
                model=model,
                problems=problems,
                settings=settings_of(name, config.evaluation, sampling),
                folder=work / "generations" / name,
                evaluation=config.evaluation,
                prompt=config.prompt,
                max_model_len=config.engine.max_model_len,
                stop_token_ids=sampling.stop_token_ids,
                seed=config.seed,
            )
            for name, model in models.items()
        }

        def start_sampler(model: ModelFolder) -> AbstractContextManager[Sampler]:
            return sampler(
                config.engine,
                model,
                device=config.cluster.device,
                stop_token_ids=sampling.stop_token_ids,
                worker=config.worker,
            )

        reuse_results(stage, jobs)
        for job in jobs.values():
            job.run(start_sampler, lambda: stage.note_time(every=SECONDS_BETWEEN_NOTES))
        verdicts, finish_reasons, diversity = _grade(grader, jobs, work, stage)
    found = Measurements(
        problems=problems,
        cells=grid_cells(config.evaluation, sampling),
        verdicts=verdicts,
        ks=config.evaluation.measured_ks,
        num_samples=config.evaluation.num_samples,
        bootstrap=Bootstrap.of(config.evaluation, seed=config.seed),
    )
    results = summarise(
        found,
        sampling,
        finish_reasons=finish_reasons,
        diversity=diversity,
        engine=engine,
        sandbox=config.evaluation.sandbox.kind,
        prompt_opens_thinking=opens_thinking,
        errata=errata,
    )
    write_json(work / "summary.json", results)
    write_problems(work / PROBLEMS_FILE, problems, found.halves)
    facts = {"engine": engine, "sandbox": results.sandbox, "prompt_opens_thinking": opens_thinking}
    _publish(stage, problems, verdicts, engine, {**facts, "dates": date_range(problems)})
    # The report prints the same tables, without the claims.
    tables = "" if report_follows() else score_tables(results)
    log.info("eval:\n%s", "\n\n".join(filter(None, [tables, claim_lines(results)])))


def evaluation_stage(config: RunConfig) -> Stage:
    """The stage, identified by models, problems, prompts, settings, seed and limits of ``config``.

    Raises:
        UserError: a section that evaluation needs is missing, or benchmark or models cannot be read.
    """
    return _stage(config, _benchmark(config)[0], _models(config))


def _stage(config: RunConfig, problems: Sequence[Problem], models: dict[ModelName, ModelFolder]) -> Stage:
    evaluation, sampling = config.evaluation, needed(config.sampling, "sampling")
    inputs = {"benchmark": hash_json([problem.to_json() for problem in problems]),
              "template": template_hash(config.prompt), **model_inputs(config, models)}  # fmt: skip
    return Stage(
        name="eval",
        run_dir=Path(config.run_dir),
        config={
            **dataclasses.asdict(evaluation),
            "ks": list(evaluation.measured_ks),
            "sandbox": evaluation.sandbox.identity,
            "decodings": {name: dataclasses.asdict(getattr(sampling, name)) for name in ("default", "train", "eval")},
            "stop_token_ids": list(sampling.stop_token_ids),
            "seed": config.seed,
            "prompt": dataclasses.asdict(config.prompt),
            "engine": config.engine.identity,
        },
        inputs=inputs,
        replace=config.replace,
    )


def _grade(
    grader: Grader, jobs: dict[ModelName, DecodeJob], work: Path, stage: Stage
) -> tuple[
    dict[ModelName, dict[str, list[Verdict]]],
    dict[ModelName, dict[str, Counter[str]]],
    dict[ModelName, dict[str, Diversity]],
]:
    """Verdicts, finish reasons and diversity, each as model -> label of the setting -> value."""
    verdicts: dict[ModelName, dict[str, list[Verdict]]] = {name: {} for name in jobs}
    reasons: dict[ModelName, dict[str, Counter[str]]] = {name: {} for name in jobs}
    diversity: dict[ModelName, dict[str, Diversity]] = {name: {} for name in jobs}
    forms = NormalForms()
    settings: list[tuple[ModelName, SamplingParams]] = [
        (name, setting) for name, job in jobs.items() for setting in job.settings
    ]
    responses = sum(len(job.problems) * job.evaluation.num_samples * len(job.settings) for job in jobs.values())
    bar: tqdm[None] = progress(total=responses, desc="grading", unit="program")
    with bar:
        for name, setting in settings:
            samples = [Sample.from_json(record) for record in iter_jsonl(jobs[name].path(setting))]
            path = verdict_path(work, name, setting)
            graded = verdicts[name][setting.label] = grader.grade(samples, path, bar.update)
            diversity[name][setting.label] = forms.diversity(zip(graded, map(grader.source_of, samples), strict=True))
            reasons[name][setting.label] = Counter(sample.finish_reason for sample in samples)
            stage.note_time()
    return verdicts, reasons, diversity


def _publish(
    stage: Stage,
    problems: Sequence[Problem],
    verdicts: dict[ModelName, dict[str, list[Verdict]]],
    engine: dict[str, str],
    facts: dict[str, Any],
) -> None:
    outcomes = Counter(
        verdict.status for by_label in verdicts.values() for of_setting in by_label.values() for verdict in of_setting
    )
    failures = outcomes["infrastructure_error"]
    if failures:
        log.warning(
            "eval: the checker itself failed on %d of %d programs, which are left out", failures, outcomes.total()
        )
    stage.publish(
        engine=engine,
        counts={"problems": len(problems), "programs": outcomes.total(), **dict(sorted(outcomes.items()))},
        dropped={"infrastructure_error": failures} if failures else {},
        facts=facts,
    )


def date_range(problems: Sequence[Problem]) -> list[str] | None:
    """The first and the last date (ISO); None if no problem has one."""
    dates = sorted(problem.date for problem in problems if problem.date is not None)
    return [dates[0], dates[-1]] if dates else None


def _benchmark(config: RunConfig) -> tuple[list[Problem], Errata]:
    """The problems that are evaluated, and the errata of the benchmark."""
    section = needed(config.benchmark, "benchmark")
    if len(section.sets) > 1:
        raise UserError(f"benchmark.sets = {', '.join(section.sets)}", rule="one at a time can be evaluated so far",
                        fix="choose one with benchmark=NAME")  # fmt: skip
    (benchmark,) = load_benchmarks(section, config.minicode)
    return benchmark.problems, benchmark.errata


def _models(config: RunConfig) -> dict[ModelName, ModelFolder]:
    return {name: evaluated_model(config, name) for name in config.evaluation.models}


def model_inputs(config: RunConfig, models: Mapping[ModelName, ModelFolder]) -> dict[str, str]:
    """Role -> content hash of each model, for the identity of a stage that measures them."""
    inputs = {"model": models["base"].revision} if "base" in models else {}
    if "ssd" in models:
        inputs["export"] = read_manifest(Path(config.run_dir) / "export").content_hash
    return inputs


def evaluated_model(config: RunConfig, name: ModelName) -> ModelFolder:
    """The base or tuned model of the run. Raises ``UserError`` if it is not named or not exported."""
    if name == "base":
        model = needed(config.model, "model")
        return open_model(model.path, model.revision)
    folder = Path(config.run_dir) / "export"
    if not folder.is_dir():
        raise UserError(
            f"folder {folder}",
            rule="is the tuned model to evaluate, and does not exist",
            fix="run launch/export.py, or measure only the base with evaluation.models=[base]",
        )
    check_outputs(folder, read_manifest(folder), fix=f"restore it, or remove {folder} and export again")
    return open_model(str(folder))

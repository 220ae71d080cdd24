"""The evaluation stage, which measures the tuned model beside its base.

It decodes every benchmark with each model under every setting, runs the programs and writes the results to
``run_dir/eval/NAME``, a folder for each benchmark. Each step resumes what an earlier run of it left. The sandbox is
tested before the first response is generated.

Several workers (``config.worker``) can decode a run, each a part of the problems. The last one to end grades.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.artifacts.hub import ModelFolder, open_model
from megatron_ssd.artifacts.jsonl import iter_jsonl
from megatron_ssd.artifacts.manifest import check_outputs, read_manifest
from megatron_ssd.artifacts.spans import SpanNotes, read_spans, seconds_covered
from megatron_ssd.artifacts.stage import SECONDS_BETWEEN_NOTES, Stage
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.errors import UserError
from megatron_ssd.evaluation.decode import DecodeJob, OpenSampler, decode, merge
from megatron_ssd.evaluation.diversity import Diversity, NormalForms
from megatron_ssd.evaluation.grid import Measurements, grid_cells, settings_of, split_halves
from megatron_ssd.evaluation.problem_file import PROBLEMS_FILE, write_problems
from megatron_ssd.evaluation.results import SUMMARY_FILE, EvaluationResults, ModelName, write_json
from megatron_ssd.evaluation.reuse_results import reuse_results, verdict_path
from megatron_ssd.evaluation.summary import summarise
from megatron_ssd.evaluation.tables import claim_lines, score_tables
from megatron_ssd.generation.samplers import engine_facts, open_sampler
from megatron_ssd.generation.store import AT_WORK, is_work, remove_worker_files, span_files, worker_at_work
from megatron_ssd.grading.metrics import Bootstrap
from megatron_ssd.grading.pool import Grader
from megatron_ssd.grading.references import is_flawed
from megatron_ssd.grading.rules import configured_rules
from megatron_ssd.problems.benchmarks import Benchmark, load_benchmarks
from megatron_ssd.process import report_follows
from megatron_ssd.progress import progress
from megatron_ssd.prompts.clock import RunClock
from megatron_ssd.prompts.prompt import prompts_open_thinking, template_hash
from megatron_ssd.prompts.tokenizer import ChatTokenizer
from megatron_ssd.sandbox.sandbox import Sandbox
from megatron_ssd.schema import Problem, Sample, Verdict

log = logging.getLogger(__name__)

# Format -> how evalplus's ids of its tasks begin.
_EVALPLUS_IDS = {"humaneval": "HumanEval/", "humaneval_plus": "HumanEval/", "mbpp_plus": "Mbpp/"}


def run_evaluate(config: RunConfig, *, sampler: OpenSampler = open_sampler) -> None:
    """Evaluate what ``config.evaluation.models`` names, or resume.

    Args:
        config: the run.
        sampler: starts an engine on a model; tests replace vLLM by another.

    Raises:
        UserError: a section, a model, a benchmark or the sandbox is missing or cannot be used.
    """
    sampling, benchmarks, models = needed(config.sampling, "sampling"), _benchmarks(config), _models(config)
    stage = _stage(config, benchmarks, models)
    if stage.is_current():
        return
    for benchmark in benchmarks:
        if benchmark.errata.line:
            log.info("eval: %s: %s", benchmark.name, benchmark.errata.line)
        split_halves(benchmark.problems)  # raises errors now, not after hours of decoding
    log.info("eval: sampling: %s", sampling.label)
    engine = engine_facts(config.engine)
    clock = RunClock(Path(config.run_dir))
    tokenizer = ChatTokenizer(next(iter(models.values())).path, clock)
    opens_thinking = prompts_open_thinking(benchmarks[0].problems, config.prompt, tokenizer)
    with Sandbox(config.evaluation.sandbox) as sandbox:
        sandbox.start()  # raises errors now as well
    start_sampler = functools.partial(
        sampler, config.engine, device=config.cluster.device, stop_token_ids=sampling.stop_token_ids,
        worker=config.worker,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        with stage.lock():
            if stage.is_current():
                return
            spans = stack.enter_context(worker_at_work(stage, config.worker))
            jobs = [_jobs(config, benchmark, models, stage.work, clock) for benchmark in benchmarks]
            reuse_results(
                stage, {benchmark.name: by_model for benchmark, by_model in zip(benchmarks, jobs, strict=True)}
            )
            opened = {name: [(by_model[name], by_model[name].open_stores()) for by_model in jobs] for name in models}
        for of_model in opened.values():
            decode(of_model, start_sampler, lambda: spans.note(every=SECONDS_BETWEEN_NOTES))
        with stage.lock():
            if stage.is_current():  # another worker found every response and published
                return
            spans.note()
            if missing := merge([job for by_model in jobs for job in by_model.values()]):
                log.info("eval: %s has finished its part; %d responses are still missing; the last worker to end "
                         "grades and publishes", config.worker.label, missing)  # fmt: skip
                return
            results, failures = [], 0
            for benchmark, by_model in zip(benchmarks, jobs, strict=True):
                found, failed = _measure(
                    config, benchmark, by_model, stage, spans, engine=engine, prompt_opens_thinking=opens_thinking
                )
                failures += failed
                results.append(found)
                folder = stage.work / benchmark.name
                write_json(folder / SUMMARY_FILE, found)
                write_problems(folder / PROBLEMS_FILE, benchmark.problems, split_halves(benchmark.problems))
            ends = {name: sorted({*model.end_token_ids, *sampling.stop_token_ids}) for name, model in models.items()}
            _publish(stage, benchmarks, results, failures, {"end_token_ids": ends, **clock.facts})
    # The report prints the same tables, without the claims.
    tables = "" if report_follows() else "\n\n".join(map(score_tables, results))
    log.info("eval:\n%s", "\n\n".join(filter(None, [tables, *map(claim_lines, results)])))


def evaluation_stage(config: RunConfig) -> Stage:
    """The stage, identified by models, problems, prompts, settings, seed and limits of ``config``.

    Raises:
        UserError: a section that evaluation needs is missing, or a benchmark or the models cannot be read.
    """
    return _stage(config, _benchmarks(config), _models(config))


def _stage(config: RunConfig, benchmarks: Sequence[Benchmark], models: dict[ModelName, ModelFolder]) -> Stage:
    evaluation, sampling = config.evaluation, needed(config.sampling, "sampling")
    hashes = {f"benchmark {benchmark.name}": benchmark.identity for benchmark in benchmarks}
    settings = dataclasses.asdict(evaluation)
    del settings["checkpoints"]  # the other checkpoints are evaluated in runs of their own
    return Stage(
        name="eval",
        run_dir=Path(config.run_dir),
        config={
            **settings,
            "ks": list(evaluation.measured_ks),
            "sandbox": evaluation.sandbox.identity,
            "rules": {
                benchmark.name: dataclasses.asdict(configured_rules(benchmark.format, evaluation.sandbox))
                for benchmark in benchmarks
            },
            "decodings": {name: dataclasses.asdict(getattr(sampling, name)) for name in ("default", "train", "eval")},
            "stop_token_ids": list(sampling.stop_token_ids),
            "seed": config.seed,
            "prompt": dataclasses.asdict(config.prompt),
            "engine": config.engine.identity,
        },
        inputs={**hashes, "template": template_hash(config.prompt), **model_inputs(config, models)},
        replace=config.replace,
        is_work=is_work,
    )


def _jobs(
    config: RunConfig, benchmark: Benchmark, models: Mapping[ModelName, ModelFolder], work: Path, clock: RunClock
) -> dict[ModelName, DecodeJob]:
    sampling = needed(config.sampling, "sampling")
    return {
        name: DecodeJob(
            model_name=name,
            model=model,
            problems=benchmark.problems,
            settings=settings_of(name, config.evaluation, sampling),
            folder=work / benchmark.name / "generations" / name,
            evaluation=config.evaluation,
            prompt=config.prompt,
            max_model_len=config.engine.max_model_len,
            stop_token_ids=sampling.stop_token_ids,
            seed=config.seed,
            clock=clock,
            worker=config.worker,
        )
        for name, model in models.items()
    }


def _measure(
    config: RunConfig,
    benchmark: Benchmark,
    jobs: Mapping[ModelName, DecodeJob],
    stage: Stage,
    spans: SpanNotes,
    *,
    engine: dict[str, str],
    prompt_opens_thinking: bool,
) -> tuple[EvaluationResults, int]:
    """Grade a benchmark. Returns its results, and the number of programs on which the checker itself failed."""
    verdicts: dict[ModelName, dict[str, list[Verdict]]] = {name: {} for name in jobs}
    finish_reasons: dict[ModelName, dict[str, Counter[str]]] = {name: {} for name in jobs}
    diversity: dict[ModelName, dict[str, Diversity]] = {name: {} for name in jobs}
    forms, failures = NormalForms(), 0
    settings = [(name, setting) for name, job in jobs.items() for setting in job.settings]
    responses = len(benchmark.problems) * config.evaluation.num_samples * len(settings)
    bar: tqdm[None] = progress(total=responses, desc=f"grading {benchmark.name}", unit="program")
    sandbox = config.evaluation.sandbox
    with Grader(benchmark.problems, sandbox, prompt_opens_thinking=prompt_opens_thinking) as grader, bar:
        for name, setting in settings:
            samples = [Sample.from_json(record) for record in iter_jsonl(jobs[name].path(setting))]
            submissions = [grader.submission(sample) for sample in samples]
            path = verdict_path(stage.work / benchmark.name, name, setting)
            found = grader.grade_programs(submissions, path, bar.update)
            failures += sum(one.status == "infrastructure_error" and not is_flawed(one) for one in found)
            programs = [submission.source for submission in submissions]
            if benchmark.format in _EVALPLUS_IDS:
                solutions = stage.work / benchmark.name / "solutions" / name / f"{setting.label}.jsonl"
                _write_solutions(solutions, benchmark.format, samples, programs)
            verdicts[name][setting.label] = found
            diversity[name][setting.label] = forms.diversity(zip(found, programs, strict=True))
            finish_reasons[name][setting.label] = Counter(sample.finish_reason for sample in samples)
            spans.note()
    sampling = needed(config.sampling, "sampling")
    measured = Measurements(
        problems=benchmark.problems,
        cells=grid_cells(config.evaluation, sampling),
        verdicts=verdicts,
        ks=config.evaluation.measured_ks,
        num_samples=config.evaluation.num_samples,
        bootstrap=Bootstrap.of(config.evaluation, seed=config.seed),
    )
    results = summarise(
        measured,
        sampling,
        benchmark=benchmark,
        finish_reasons=finish_reasons,
        diversity=diversity,
        engine=engine,
        sandbox=sandbox.kind,
        prompt_opens_thinking=prompt_opens_thinking,
    )
    return results, failures


def _write_solutions(path: Path, format_: str, samples: Sequence[Sample], programs: Sequence[str | None]) -> None:
    """Write programs in evalplus's format, so that anybody can grade them with evalplus itself.

    Several lines of a task are its samples in their order. A response without a program has an empty solution, since
    evalplus asks for every task.
    """
    start = _EVALPLUS_IDS[format_]
    lines = [
        json.dumps({"task_id": start + sample.problem_id.removeprefix(start), "solution": program or ""}) + "\n"
        for sample, program in zip(samples, programs, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(lines))


def _publish(
    stage: Stage,
    benchmarks: Sequence[Benchmark],
    results: Sequence[EvaluationResults],
    failures: int,
    facts: dict[str, Any],
) -> None:
    settings = (setting for one in results for by_label in one.settings.values() for setting in by_label.values())
    outcomes = sum((Counter(setting.outcomes) for setting in settings), Counter[str]())
    if failures:
        log.warning(
            "eval: the checker itself failed on %d of %d programs, which are left out", failures, outcomes.total()
        )
    facts = {
        **facts,
        "engine": results[0].engine,
        "sandbox": results[0].sandbox,
        "prompt_opens_thinking": results[0].prompt_opens_thinking,
        "benchmarks": {
            benchmark.name: {
                "format": benchmark.format,
                "problems": len(benchmark.problems),
                "dates": date_range(benchmark.problems),
            }
            for benchmark in benchmarks
        },
    }
    notes = span_files(stage.work)
    seconds = seconds_covered(read_spans(notes)[AT_WORK])
    remove_worker_files(stage.work)
    stage.publish(
        engine=results[0].engine,
        counts={
            "problems": sum(len(benchmark.problems) for benchmark in benchmarks),
            "programs": outcomes.total(),
            **dict(sorted(outcomes.items())),
        },
        dropped={"infrastructure_error": failures} if failures else {},
        facts=facts,
        notes=notes,
        seconds=seconds,
    )


def date_range(problems: Sequence[Problem]) -> list[str] | None:
    """The first and the last date (ISO); None if no problem has one."""
    dates = sorted(problem.date for problem in problems if problem.date is not None)
    return [dates[0], dates[-1]] if dates else None


def _benchmarks(config: RunConfig) -> list[Benchmark]:
    return load_benchmarks(needed(config.benchmark, "benchmark"), config.minicode)


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

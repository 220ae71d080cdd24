"""The general-benchmarks stage, which measures the tuned model beside its base on tasks of lm-eval.

For each model, lm-eval runs in its own processes (``harness``), one per engine, which share the documents. Programs
that the models wrote then run in the sandbox. The stage publishes ``summary.json``, ``samples/MODEL/TASK.jsonl`` and,
for code tasks, ``verdicts/MODEL/TASK.jsonl`` in ``run_dir/general_benchmarks``.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.artifacts.hub import ModelFolder
from megatron_ssd.artifacts.jsonl import iter_jsonl
from megatron_ssd.artifacts.stage import SECONDS_BETWEEN_NOTES, Stage
from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import ConfigError
from megatron_ssd.evaluation.results import ModelName, write_json
from megatron_ssd.evaluation.stage import evaluated_model, model_inputs
from megatron_ssd.general_benchmarks.code_tasks import CODE_TASKS, problems_of, submissions_of, with_scores
from megatron_ssd.general_benchmarks.local_data import check_data, data_identity
from megatron_ssd.general_benchmarks.processes import HarnessSpec, lm_eval_version, part_path, run_harness
from megatron_ssd.general_benchmarks.results import (
    NAME,
    SUMMARY,
    BenchmarkResults,
    DocumentResult,
    MetricResult,
    results_of,
    table,
)
from megatron_ssd.generation.samplers import engine_devices, engine_facts, vllm_spec
from megatron_ssd.grading.metrics import Bootstrap
from megatron_ssd.grading.pool import Grader
from megatron_ssd.progress import progress
from megatron_ssd.prompts.clock import RunClock
from megatron_ssd.sandbox.sandbox import Sandbox

log = logging.getLogger(__name__)

_PARTS = "parts"
_MODELS: tuple[ModelName, ...] = ("base", "ssd")
Documents = dict[ModelName, list[DocumentResult]]


def general_benchmarks_stage(config: RunConfig) -> Stage:
    """The stage, identified by models, tasks, data, settings and seed of ``config``.

    Raises:
        UserError: no task is named, lm-eval is not installed, or a model or data file is missing.
    """
    return _stage(config, _models(config))


def run_general_benchmarks(config: RunConfig) -> None:
    """Run ``config.general_benchmarks.tasks`` on the models of ``config.evaluation.models``, or resume.

    Raises:
        UserError: see ``general_benchmarks_stage``; or a task, its data, the sandbox or an engine cannot be used.
    """
    models, section = _models(config), config.general_benchmarks
    stage = _stage(config, models)
    if stage.is_current():
        return
    for task, path in section.data.items():
        check_data(task, path)
    if CODE_TASKS.intersection(section.tasks):
        with Sandbox(config.evaluation.sandbox) as sandbox:
            sandbox.start()  # raises errors now, not after hours of decoding
    work = stage.begin()
    world = len(engine_devices(config.engine, config.cluster.device))
    for name, model in models.items():
        run_harness(_specs(config, name, model, work, world), note=lambda: stage.note_time(every=SECONDS_BETWEEN_NOTES))
    results, num_rows, failures = list[MetricResult](), 0, Counter[str]()
    bootstrap = Bootstrap.of(config.evaluation, seed=config.seed)
    for task in section.tasks:
        documents: Documents = {name: _read_parts(work / _PARTS / name, task, world) for name in models}
        first = next(iter(documents.values()))
        num_rows += len({document.key for document in first})
        if task in CODE_TASKS:
            documents = _grade(config.evaluation.sandbox, task, documents, work, failures)
        results += results_of(task, documents, bootstrap)
        for name, of_model in documents.items():
            _write_samples(work / "samples" / name / f"{task}.jsonl", of_model, with_text=section.log_samples)
        stage.note_time()
    _warn(results)
    summary = BenchmarkResults(
        confidence=bootstrap.confidence, chat_template=section.chat_template, results=tuple(results)
    )
    write_json(work / SUMMARY, summary)
    shutil.rmtree(work / _PARTS)
    stage.publish(
        engine={
            "name": "lm_eval",
            "version": lm_eval_version(),
            "on": f"vllm {engine_facts(config.engine)['version']}",
        },
        counts={"tasks": len(section.tasks), "rows": num_rows},
        dropped={f"infrastructure_error in {where}": count for where, count in failures.items() if count},
        facts=RunClock(Path(config.run_dir)).facts,
    )
    log.info("%s:\n%s", NAME, table(summary))


def _stage(config: RunConfig, models: dict[ModelName, ModelFolder]) -> Stage:
    section = config.general_benchmarks
    data = {f"data.{task}": data_identity(task, path) for task, path in section.data.items()}
    settings = {key: value for key, value in dataclasses.asdict(section).items() if key != "data"}
    return Stage(
        name=NAME,
        run_dir=Path(config.run_dir),
        config={  # nested, so that the report does not mix it up with the settings of the evaluation
            NAME: {
                **settings,
                "lm_eval": lm_eval_version(),
                "models": list(models),
                "seed": config.seed,
                "enable_thinking": config.prompt.enable_thinking,
                "engine": config.engine.identity,
                "engines": config.engine.num_engines(config.cluster.device),
                "confidence": config.evaluation.confidence,
                "bootstrap_samples": config.evaluation.bootstrap_samples,
                "sandbox": config.evaluation.sandbox.identity,
            }
        },
        inputs={**data, **model_inputs(config, models)},
        replace=config.replace,
    )


def _models(config: RunConfig) -> dict[ModelName, ModelFolder]:
    """The models to measure. Raises ``UserError`` if no task is named or a model is missing."""
    if not config.general_benchmarks.tasks:
        raise ConfigError("general_benchmarks.tasks = []", rule="this stage needs names of lm-eval tasks",
                          fix="for example general_benchmarks.tasks=[cruxeval_output,mmlu]")  # fmt: skip
    return {name: evaluated_model(config, name) for name in _MODELS if name in config.evaluation.models}


def _specs(config: RunConfig, name: ModelName, model: ModelFolder, work: Path, world: int) -> list[HarnessSpec]:
    """The spec of each of ``world`` processes that has a missing part."""
    engine = vllm_spec(config.engine, model, device=config.cluster.device, end_token_ids=model.end_token_ids)
    specs = [
        HarnessSpec(
            engine=engine,
            index=index,
            world=world,
            config=config.general_benchmarks,
            seed=config.seed,
            enable_thinking=config.prompt.enable_thinking,
            clock=RunClock(Path(config.run_dir)),
            out=work / _PARTS / name,
        )
        for index in range(world)
    ]
    missing = [spec for spec in specs if not all(spec.part(task).exists() for task in spec.config.tasks)]
    (work / _PARTS / name).mkdir(parents=True, exist_ok=True)
    if missing:
        log.info("%s: %s of the %s model", NAME, ", ".join(config.general_benchmarks.tasks), name)
    return missing


def _read_parts(out: Path, task: str, world: int) -> list[DocumentResult]:
    """All documents of a task and model, in lm-eval's order."""
    parts = [part_path(out, task, index, world) for index in range(world)]
    documents = [DocumentResult(**values) for part in parts for values in iter_jsonl(part)]
    return sorted(documents, key=lambda document: document.key)


def _grade(sandbox: SandboxConfig, task: str, documents: Documents, work: Path, failures: Counter[str]) -> Documents:
    """``documents`` with the scores of their programs, which run in the sandbox unless they have a verdict already.

    ``failures`` receives the number of programs on which the checker itself failed.
    """
    first = next(iter(documents.values()))
    problems = problems_of(first)
    scored: Documents = {}
    with Grader(problems, sandbox) as grader:
        for name, of_model in documents.items():
            programs = submissions_of(of_model)
            bar: tqdm[None] = progress(total=len(programs), desc=f"grading {task}, {name}", unit="program")
            with bar:
                verdicts = grader.grade_programs(programs, work / "verdicts" / name / f"{task}.jsonl", bar.update)
            scored[name] = with_scores(of_model, verdicts)
            failures[f"{task}, {name}"] = sum(verdict.status == "infrastructure_error" for verdict in verdicts)
    return scored


def _write_samples(path: Path, documents: Sequence[DocumentResult], *, with_text: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [dataclasses.asdict(document) for document in documents]
    if not with_text:
        records = [{key: record[key] for key in ("task", "doc_id", "filter", "scores")} for record in records]
    write_atomically(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def _warn(results: Sequence[MetricResult]) -> None:
    """Log each result that covers another number of documents than published numbers do."""
    for one in results:
        if one.rows_on_hub is not None and one.rows != one.rows_on_hub:
            log.warning("%s: %s covers %d rows, and published numbers cover %d", NAME, one.task, one.rows,
                        one.rows_on_hub)  # fmt: skip

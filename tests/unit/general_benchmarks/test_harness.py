"""Tests for running lm-eval's tasks on local data with vLLM."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_ssd.artifacts.jsonl import read_jsonl
from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.evaluation import GeneralBenchmarksConfig
from megatron_ssd.config.generation import EngineConfig
from megatron_ssd.errors import UserError
from megatron_ssd.general_benchmarks import processes
from megatron_ssd.general_benchmarks.processes import HarnessSpec
from megatron_ssd.generation.vllm_engine import VllmSpec
from megatron_ssd.prompts.clock import RunClock
from tests.helpers.benchmark_rows import FILES, needs_data, rows_of
from tests.helpers.jsonl import write_jsonl
from tests.helpers.killed import kill_when
from tests.helpers.paths import ROOT
from tests.helpers.preloaded import fresh_interpreters

pytestmark = [
    needs_data,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("lm_eval", "vllm")),
        reason="needs lm-eval and vLLM (make venv)",
    ),
]
CONTEXT = 4096
SUBJECTS = ("anatomy", "virology")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A few rows of each benchmark."""
    folder = tmp_path_factory.mktemp("data")
    rows = {task: rows_of(task, 2) for task in FILES if task not in ("humaneval", "mbpp")}
    rows["mmlu"] = [row for name in SUBJECTS for row in rows_of("mmlu", 2, keep=lambda r, n=name: r["subject"] == n)]
    return {task: str(write_jsonl(folder / f"{task}.jsonl", of_task)) for task, of_task in rows.items()}


def spec_of(data: dict[str, str], **settings: Any) -> HarnessSpec:
    """What a process of lm-eval is started with. The tests here start no engine with it."""
    engine = VllmSpec(
        model="none", end_token_ids=(), device="cpu", devices=(("0",),),
        settings=EngineConfig(max_model_len=settings.pop("max_model_len", 65536)),
    )  # fmt: skip
    config = GeneralBenchmarksConfig(tasks=settings.pop("tasks", tuple(data)), data=data, **settings)
    return HarnessSpec(engine=engine, index=0, world=1, config=config,
                       seed=0, enable_thinking=None, clock=RunClock(Path("none")), out=Path("none"))  # fmt: skip


def load(spec: HarnessSpec, scratch: Path) -> dict[str, dict[str, Any]]:
    from megatron_ssd.general_benchmarks.harness import load_tasks

    return load_tasks(spec, spec.config.tasks, scratch)


def test_tasks_differ_from_lm_evals_only_in_their_data(data: dict[str, str], tmp_path: Path) -> None:
    loaded = load(spec_of(data), tmp_path)
    cruxeval = loaded["cruxeval_output"]["cruxeval_output"]
    (doc,) = list(cruxeval.eval_docs)[:1]
    assert rows_of("cruxeval_output", 1)[0]["code"] in cruxeval.doc_to_text(doc)
    assert (cruxeval.get_config("num_fewshot"), cruxeval.config.repeats) == (2, 10)
    assert list(loaded["mmlu"]) == [f"mmlu_{name}" for name in SUBJECTS]
    assert "about virology" in loaded["mmlu"]["mmlu_virology"].get_config("description")


def test_other_tasks_that_run_programs_are_refused(data: dict[str, str]) -> None:
    from megatron_ssd.general_benchmarks.harness import _set_up

    task = SimpleNamespace(UNSAFE_CODE=True)
    with pytest.raises(UserError, match="infilling: runs programs that the model wrote, and is not one of the tasks"):
        _set_up(spec_of(data), "infilling", "infilling", task)


def test_few_shot_examples_need_rows_that_are_not_evaluated(data: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.mmlu = .* 5 examples must come from others; name a folder"):
        load(spec_of({"mmlu": data["mmlu"]}, num_fewshot={"mmlu": 5}), tmp_path)
    folder = tmp_path / "rows"
    folder.mkdir()
    shutil.copy(data["mmlu"], folder / "test.jsonl")
    shutil.copy(data["mmlu"], folder / "dev.jsonl")
    task = load(spec_of({"mmlu": str(folder)}, num_fewshot={"mmlu": 2}), tmp_path)["mmlu"]["mmlu_anatomy"]
    context = task.fewshot_context(task.eval_docs[0], task.get_config("num_fewshot"))
    assert context.count("\nAnswer:") == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ("cruxevil",), "data": ""}, "cruxevil: is not a task or group of lm-eval"),
        (
            {"data": "aime25", "num_fewshot": {"aime25": 1}},
            r"num_fewshot.aime25 = 1: lm-eval defines this task without",
        ),
        ({"num_fewshot": {"cruxeval_output": 5}}, r"num_fewshot.cruxeval_output = 5: the task has 2 ex"),
        ({"max_model_len": 1024}, r"engine.max_model_len = 1024: leaves no room .* the 1024 tokens .* of cruxeval"),
    ],
)
def test_invalid_tasks_are_one_line(
    data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any, message: str
) -> None:
    from lm_eval import tasks

    from megatron_ssd.general_benchmarks import harness

    # Indexing all tasks takes ten seconds. One folder is enough here.
    folder = Path(tasks.__file__).parent / "cruxeval"
    monkeypatch.setattr(
        harness, "TaskManager",
        lambda include_defaults=False, include_path=(folder,): tasks.TaskManager(
            include_defaults=include_defaults, include_path=[str(path) for path in include_path]
        ),
    )  # fmt: skip
    settings = {**settings}
    name = settings.pop("data", "cruxeval_output")
    chosen = {name: data[name]} if name else {}
    with pytest.raises(UserError, match=message):
        load(spec_of(chosen, **settings), tmp_path)


def test_a_task_without_data_says_how_to_name_local_files(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"aime25: lm-eval cannot load it .*data.aime25 to local files"):
        load(spec_of({}, tasks=("aime25",)), tmp_path)


def test_a_missing_lm_eval_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise processes.PackageNotFoundError(name)

    monkeypatch.setattr(processes, "version", absent)
    with pytest.raises(UserError, match=r"package lm_eval: is not installed, .*pip install -e '\.\[lm-eval\]'"):
        processes.lm_eval_version()


# With vLLM.


@pytest.fixture(scope="module")
def model(tiny_hf_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with room for few-shot prompts."""
    folder = tmp_path_factory.mktemp("long") / "model"
    shutil.copytree(tiny_hf_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": CONTEXT}))
    return folder


def command(run_dir: Path, model: Path, data: dict[str, str], *extra: str) -> list[str]:
    return [
        sys.executable, str(ROOT / "launch" / "general_benchmarks.py"), "+model=tiny", "cluster=cpu", "precision=cpu",
        f"model.path={model}", f"run_dir={run_dir}", "training.seq_length=128", "engine.dtype=float32",
        "engine.enforce_eager=true", "engine.max_num_seqs=16", f"engine.max_model_len={CONTEXT}",
        f"general_benchmarks.tasks=[{','.join(data)}]",
        *(f"general_benchmarks.data.{task}={path}" for task, path in data.items()),
        "general_benchmarks.max_gen_toks=16", *extra,
    ]  # fmt: skip


def publish_export(run_dir: Path, model: Path) -> None:
    """Publish the base as the tuned model, so that every difference is 0."""
    stage = Stage(name="export", run_dir=run_dir, config={}, inputs={})
    shutil.copytree(model, stage.begin(), dirs_exist_ok=True)
    stage.publish()


def run(line: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line, capture_output=True, text=True, timeout=800, check=False)


def test_equal_models_have_no_difference_after_a_kill(data: dict[str, str], model: Path, tmp_path: Path) -> None:
    publish_export(tmp_path, model)
    line = command(tmp_path, model, data)
    part = tmp_path / "general_benchmarks.partial" / "parts" / "base" / "cruxeval_output.0-of-1.jsonl"
    with fresh_interpreters():
        kill_when(line, part.exists, tmp_path / "killed.log")
    # A prompt that is in the results only if the finished part is reused.
    write_jsonl(part, [{**record, "prompt": "reused"} for record in read_jsonl(part)])
    done = run(line)
    assert done.returncode == 0, done.stderr[-4000:]

    folder = tmp_path / "general_benchmarks"
    samples = {name: {task: read_jsonl(folder / "samples" / name / f"{task}.jsonl") for task in data}
               for name in ("base", "ssd")}  # fmt: skip
    assert {sample["prompt"] for sample in samples["base"]["cruxeval_output"]} == {"reused"}
    for task in data:
        base, ssd = samples["base"][task], samples["ssd"][task]
        assert [sample["answers"] for sample in base] == [sample["answers"] for sample in ssd], task
        assert len(base) == (4 if task == "mmlu" else 2)
    assert len(set(samples["base"]["cruxeval_output"][0]["answers"])) > 5  # of ten sampled answers

    results = json.loads((folder / "summary.json").read_text())["results"]
    assert [(result["task"], result["metric"], result["num_fewshot"]) for result in results] == [
        ("cruxeval_output", "pass@1", 2), ("aime25", "exact_match", 0), ("mmlu", "acc", 0),
    ]  # fmt: skip
    assert all(result["difference"][key] == 0.0 for result in results for key in ("value", "low", "high"))
    assert all(result["base"] == result["ssd"] for result in results)
    assert "published numbers cover 800" in done.stderr
    manifest = read_manifest(folder)
    assert manifest.engine["name"] == "lm_eval"
    assert set(manifest.inputs) == {*(f"data.{task}" for task in data), "model", "export"}
    assert manifest.dropped == {}
    assert "up to date" in run(line).stderr


@pytest.mark.slow
def test_several_engines_give_the_same_answers(data: dict[str, str], model: Path, tmp_path: Path) -> None:
    answers = []
    for engines in (1, 2):
        run_dir = tmp_path / str(engines)
        extra = (f"engine.data_parallel_size={engines}", "evaluation.models=[base]")
        done = run(command(run_dir, model, data, *extra))
        assert done.returncode == 0, done.stderr[-4000:]
        answers.append(
            [read_jsonl(run_dir / "general_benchmarks" / "samples" / "base" / f"{task}.jsonl") for task in data]
        )
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_a_failed_engine_and_an_overlong_prompt_are_one_line(data: dict[str, str], model: Path, tmp_path: Path) -> None:
    cruxeval = {"cruxeval_output": data["cruxeval_output"]}
    for extra, message in (
        ("engine.max_model_len=300", "a prompt of "),
        (f"engine.max_model_len={4 * CONTEXT}", "did not start"),
        ("engine.options.no_such=1", "is not an argument of the EngineArgs"),
    ):
        done = run(command(tmp_path, model, cruxeval, "evaluation.models=[base]", "replace=true", extra))
        assert done.returncode == 2, done.stderr[-4000:]
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("error: ")
        assert message in last

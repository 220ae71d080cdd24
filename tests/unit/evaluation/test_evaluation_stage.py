"""Tests for the evaluation stage, with an engine that returns correct programs."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import pytest
from msgspec.structs import replace

from megatron_ssd.artifacts.hub import model_hash, open_model
from megatron_ssd.artifacts.jsonl import read_jsonl
from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.config.build import build
from megatron_ssd.config.generation import EngineConfig, PromptConfig, SamplingParams, WorkerConfig
from megatron_ssd.config.problems import BenchmarkConfig, BenchmarkSetConfig
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.errors import UserError
from megatron_ssd.evaluation.decode import DecodeJob, decode
from megatron_ssd.evaluation.grid import split_halves
from megatron_ssd.evaluation.problem_file import PROBLEMS_FILE, read_problems
from megatron_ssd.evaluation.stage import date_range, evaluation_stage, run_evaluate
from megatron_ssd.problems import minicode
from megatron_ssd.process import REPORT_FOLLOWS
from megatron_ssd.prompts.clock import RunClock
from megatron_ssd.prompts.tokenizer import ChatTokenizer
from megatron_ssd.sandbox.sandbox import Sandbox
from tests.helpers.jsonl import write_jsonl
from tests.helpers.lcb_rows import lcb_row, lcb_section
from tests.helpers.oracle import MINICODE, N, Oracle, sampler_of, summary_of
from tests.helpers.programs import function_problem
from tests.helpers.sandboxed import record_executions
from tests.helpers.tokenizer_folders import with_template


def test_the_stage_publishes_scores_samples_and_verdicts(config: RunConfig, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    oracle = Oracle(config)
    run_evaluate(config, sampler=sampler_of(oracle))
    summary, folder = summary_of(config), Path(config.run_dir) / "eval" / "minicode"
    scores = {score["key"]: score["overall"] for score in summary["headline"]}
    assert scores["base_default"]["1"]["value"] == pytest.approx(1 / N)
    assert scores["ssd_best"]["1"]["value"] == pytest.approx(3 / N)
    assert scores["ssd_best"]["3"]["value"] == pytest.approx(1.0)
    assert set(summary["settings"]["base"]) == {"T1-k20-p0.8", "T1.5-k20-p0.8", "T0.7-k20-p0.8", "T1.5-k20-p0.6"}
    assert set(summary["settings"]["ssd"]) == {"T1-k20-p0.8", "T1.5-k20-p0.8"}
    assert summary["settings"]["ssd"]["T1-k20-p0.8"]["diversity"] == {
        "distinct": 2.0, "distinct_passing": 1.0, "num_solved": 6,
    }  # fmt: skip
    assert summary["errata"] == {"flaws": {}, "num_problems": 6, "kept": True}
    assert oracle.starts == [Path(str(config.model.path)).name, "export"]  # type: ignore[union-attr]
    samples = read_jsonl(folder / "generations/base/T1-k20-p0.8.jsonl")
    keys = [(sample["problem_id"], sample["sample_index"]) for sample in samples]
    assert keys == [(p.id, i) for p in minicode.test_problems(MINICODE) for i in range(N)]
    assert len(read_jsonl(folder / "verdicts/ssd/T1-k20-p0.8.jsonl")) == 6 * N
    manifest = read_manifest(folder.parent)
    assert manifest.engine["name"] == "vllm"
    assert manifest.counts["programs"] == 6 * N * 6
    assert manifest.facts["sandbox"] == "bubblewrap"
    assert manifest.facts["end_token_ids"] == {"base": [2], "ssd": [2]}
    assert manifest.facts["benchmarks"] == {"minicode": {"format": "minicode", "problems": 6, "dates": None}}
    assert manifest.inputs["model"] == model_hash(Path(str(config.model.path)))  # type: ignore[union-attr]
    assert manifest.inputs["export"] == read_manifest(Path(config.run_dir) / "export").content_hash
    assert "SSD at its best is ahead of" in caplog.text


def test_several_benchmarks_are_decoded_with_one_start_of_each_engine(config: RunConfig, tmp_path: Path):
    benchmarks = {"other": BenchmarkSetConfig(format="minicode", limit=2), **needed(config.benchmark, "benchmark").sets}
    both = dataclasses.replace(config, benchmark=BenchmarkConfig(sets=benchmarks))
    first, second = Oracle(config, lives=50), Oracle(config)
    with pytest.raises(UserError, match="died"):
        run_evaluate(both, sampler=sampler_of(first))
    run_evaluate(both, sampler=sampler_of(second))
    assert len(first.requests) + len(second.requests) == (6 + 2) * N * 6, "no response is drawn twice"
    assert [len(oracle.starts) for oracle in (first, second)] == [1, 2]
    folder = Path(config.run_dir) / "eval"
    assert list(read_manifest(folder).facts["benchmarks"]) == ["other", "minicode"]
    alone = dataclasses.replace(config, run_dir=str(tmp_path / "alone"))
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "export").symlink_to(tmp_path / "export")
    run_evaluate(alone, sampler=sampler_of(Oracle(config)))
    assert summary_of(both) == summary_of(alone), "a benchmark has the results that it has alone"
    ids = [problem.id for problem in minicode.test_problems(MINICODE)]
    assert set(read_problems(folder / "other" / PROBLEMS_FILE)) == set(ids[:2])


def test_scores_are_not_logged_if_a_report_follows(
    config: RunConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(REPORT_FOLLOWS, "1")
    caplog.set_level("INFO")
    run_evaluate(config, sampler=sampler_of(Oracle(config)))
    assert "SSD at its best is ahead of" not in caplog.text
    assert "base at its default decode" not in caplog.text
    for claim in summary_of(config)["claims"]:
        assert caplog.text.count(claim["text"]) == 1
        assert claim["evidence"] in caplog.text


def test_descriptions_of_the_problems_are_published(config: RunConfig):
    run_evaluate(config, sampler=sampler_of(Oracle(config)))
    problems = minicode.test_problems(MINICODE)
    kept = read_problems(Path(config.run_dir) / "eval" / "minicode" / PROBLEMS_FILE)
    assert list(kept) == [problem.id for problem in problems]
    halves = ["reporting" if is_report else "selection" for is_report in split_halves(problems).report]
    for problem, half in zip(problems, halves, strict=True):
        found = kept[problem.id]
        assert (found.statement.head, found.difficulty, found.half) == (problem.statement, problem.difficulty, half)
        assert [(test.input.head, test.output.head) for test in found.tests] == [
            (test.input, test.output) for test in problem.tests
        ]


def test_samples_share_their_seed_across_settings_and_models(config: RunConfig):
    oracle = Oracle(config)
    run_evaluate(config, sampler=sampler_of(oracle))
    seeds: dict[tuple[object, object], set[int]] = {}
    for request in oracle.requests:
        seeds.setdefault(request.key, set()).add(request.seed)
    assert len(seeds) == 6 * N
    assert all(len(values) == 1 for values in seeds.values())
    assert len(set.union(*seeds.values())) == 6 * N


@pytest.mark.parametrize("lives", [1, 30, 100])
def test_a_killed_run_resumes_and_samples_nothing_twice(config: RunConfig, tmp_path: Path, lives: int):
    first = Oracle(config, lives=lives)
    with pytest.raises(UserError, match="died"):
        run_evaluate(config, sampler=sampler_of(first))
    second = Oracle(config)
    run_evaluate(config, sampler=sampler_of(second))
    assert len(first.requests) + len(second.requests) == 6 * N * 6
    uninterrupted = dataclasses.replace(config, run_dir=str(tmp_path / "uninterrupted"))
    (tmp_path / "uninterrupted").mkdir()
    (tmp_path / "uninterrupted" / "export").symlink_to(tmp_path / "export")
    run_evaluate(uninterrupted, sampler=sampler_of(Oracle(config)))
    left, right = ({**summary_of(run)} for run in (config, uninterrupted))
    assert left == right


@pytest.mark.parametrize("lives", [30, 10**9])
def test_workers_that_share_a_run_publish_what_one_process_publishes(config: RunConfig, tmp_path: Path, lives: int):
    workers = [dataclasses.replace(config, worker=WorkerConfig(rank=rank, world=2)) for rank in range(2)]
    oracles = [Oracle(config, lives=lives), Oracle(config), Oracle(config)]
    with contextlib.suppress(UserError):
        run_evaluate(workers[0], sampler=sampler_of(oracles[0]))
    run_evaluate(workers[1], sampler=sampler_of(oracles[1]))
    if lives == 30:
        assert not (Path(config.run_dir) / "eval").exists()
        run_evaluate(workers[0], sampler=sampler_of(oracles[2]))
    assert sum(len(oracle.requests) for oracle in oracles) == 6 * N * 6, "a response was drawn twice"
    alone = dataclasses.replace(config, run_dir=str(tmp_path / "alone"))
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "export").symlink_to(tmp_path / "export")
    run_evaluate(alone, sampler=sampler_of(Oracle(config)))
    assert summary_of(config) == summary_of(alone)
    generations = [
        {path.relative_to(run.run_dir): path.read_bytes() for path in Path(run.run_dir).glob("eval/*/generations/*/*")}
        for run in (config, alone)
    ]
    assert generations[0] == generations[1]


def test_a_process_resumes_what_workers_left(config: RunConfig):
    workers = [dataclasses.replace(config, worker=WorkerConfig(rank=rank, world=3)) for rank in range(2)]
    drawn = []
    for worker in workers:
        oracle = Oracle(config, lives=40)
        with contextlib.suppress(UserError):
            run_evaluate(worker, sampler=sampler_of(oracle))
        drawn += oracle.requests
    last = Oracle(config)
    run_evaluate(config, sampler=sampler_of(last))
    assert len(drawn) + len(last.requests) == 6 * N * 6


def test_a_worker_that_was_killed_between_merging_and_removing_its_files_resumes(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
):
    workers = [dataclasses.replace(config, worker=WorkerConfig(rank=rank, world=2)) for rank in range(2)]
    run_evaluate(workers[0], sampler=sampler_of(Oracle(config)))
    with monkeypatch.context() as patch:
        patch.setattr(DecodeJob, "remove_worker_files", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_evaluate(workers[1], sampler=sampler_of(Oracle(config)))
    last = Oracle(config)
    run_evaluate(workers[1], sampler=sampler_of(last))
    assert last.requests == []
    assert not list(Path(config.run_dir).rglob("*worker-*"))


def _interrupted(job: DecodeJob, setting: SamplingParams) -> None:
    raise KeyboardInterrupt


def test_a_run_killed_in_grading_grades_nothing_twice(config: RunConfig, monkeypatch: pytest.MonkeyPatch):
    original, executed = Sandbox.execute, list[str]()

    def failing(self, program, inputs, limits, **options):
        if len(executed) == 3:
            raise KeyboardInterrupt
        executed.append(program.source)
        return original(self, program, inputs, limits, **options)

    serial = dataclasses.replace(config, evaluation=dataclasses.replace(
        config.evaluation, sandbox=dataclasses.replace(config.evaluation.sandbox, workers=1)))  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(Sandbox, "execute", failing)
        with pytest.raises(KeyboardInterrupt):
            run_evaluate(serial, sampler=sampler_of(Oracle(config)))
    executions = record_executions(monkeypatch)
    oracle = Oracle(config)
    run_evaluate(serial, sampler=sampler_of(oracle))
    assert oracle.requests == []
    again = [(program.source, inputs[1]) for program, inputs in executions]
    assert len(set(again)) == len(again), "a program ran twice for the same problem"
    assert len(again) == 6 * 2 - 3


def test_an_up_to_date_stage_is_left_unchanged(config: RunConfig):
    run_evaluate(config, sampler=sampler_of(Oracle(config)))
    before = (Path(config.run_dir) / "eval" / "manifest.json").read_bytes()
    oracle = Oracle(config)
    run_evaluate(config, sampler=sampler_of(oracle))
    assert oracle.starts == []
    assert (Path(config.run_dir) / "eval" / "manifest.json").read_bytes() == before


def test_a_base_is_evaluated_without_a_tuned_model(config: RunConfig, tmp_path: Path):
    alone = dataclasses.replace(
        config, run_dir=str(tmp_path / "alone"), evaluation=dataclasses.replace(config.evaluation, models=("base",))
    )
    run_evaluate(alone, sampler=sampler_of(Oracle(config)))
    assert [score["key"] for score in summary_of(alone)["headline"]] == ["base_default", "base_train", "base_best"]


def test_a_missing_export_is_an_error_with_the_fix(config: RunConfig, tmp_path: Path):
    with pytest.raises(UserError, match=r"launch/export.py, or .*evaluation.models=\[base\]"):
        run_evaluate(dataclasses.replace(config, run_dir=str(tmp_path / "none")))


def test_a_missing_bubblewrap_is_reported_before_sampling(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("PATH", str(tmp_path))
    oracle = Oracle(config)
    with pytest.raises(UserError, match="apt-get install bubblewrap"):
        run_evaluate(config, sampler=sampler_of(oracle))
    assert oracle.starts == []


def test_overlong_prompts_are_recorded_with_the_reason(config: RunConfig):
    narrow = dataclasses.replace(config, engine=EngineConfig(max_model_len=8))
    oracle = Oracle(config)
    run_evaluate(narrow, sampler=sampler_of(oracle))
    assert oracle.requests == []
    setting = summary_of(narrow)["settings"]["base"]["T1-k20-p0.8"]
    assert setting["finish_reasons"] == {"skipped": 6 * N}
    verdict = read_jsonl(Path(narrow.run_dir) / "eval/minicode/verdicts/base/T1-k20-p0.8.jsonl")[0]
    assert verdict["status"] == "no_code"
    assert "max_model_len" in verdict["detail"]


def test_raw_prompts_are_decoded_without_a_chat_template(config: RunConfig, tmp_path: Path):
    folder = with_template(Path(str(config.model.path)), tmp_path / "no_template", None)  # type: ignore[union-attr]
    config = dataclasses.replace(config, prompt=PromptConfig(template="minicode", mode="raw"))
    problems, oracle = minicode.test_problems(config.minicode), Oracle(config)
    job = DecodeJob(model_name="base", model=open_model(str(folder)), problems=problems, seed=config.seed,
                    settings=[SamplingParams(temperature=1.0)], folder=tmp_path / "drawn", stop_token_ids=(),
                    evaluation=config.evaluation, prompt=config.prompt,
                    max_model_len=config.engine.max_model_len, clock=RunClock(tmp_path),
                    worker=WorkerConfig())  # fmt: skip
    decode([(job, job.open_stores())], lambda model: oracle.open(config.engine, model, device="cpu"), lambda: None)
    tokenizer = ChatTokenizer(folder)
    prompts = {request.key[0]: request.prompt_token_ids for request in oracle.requests}
    assert prompts == {problem.id: tokenizer.text_ids(problem.statement) for problem in problems}


def test_problems_in_the_errata_are_graded_unless_dropped(config: RunConfig, tmp_path: Path):
    rows = [lcb_row(1), lcb_row(2, question_id="arc185_c"), lcb_row(3)]
    complete = write_jsonl(tmp_path / "complete.jsonl", rows)
    sound = write_jsonl(tmp_path / "sound.jsonl", [rows[0], rows[2]])

    def benchmark_hash(path: Path, **settings: str) -> str:
        section = build(BenchmarkConfig, lcb_section(path, **settings))
        return evaluation_stage(dataclasses.replace(config, benchmark=section)).inputs["benchmark livecodebench"]

    assert benchmark_hash(complete, errata="drop") == benchmark_hash(sound) == benchmark_hash(sound, errata="drop")
    assert benchmark_hash(complete) == benchmark_hash(complete, errata="keep") != benchmark_hash(sound)


def test_the_date_range_has_the_first_and_the_last_date_of_the_problems():
    dates = ("2025-03-01", None, "2025-02-09", "2025-04-06")
    problems = [replace(function_problem(f"p{i}"), date=date) for i, date in enumerate(dates)]
    assert date_range(problems) == ["2025-02-09", "2025-04-06"]
    assert date_range(problems[1:2]) is None

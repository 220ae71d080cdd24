"""Tests for tools/grade.py, which grades a file of programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.artifacts.jsonl import read_jsonl
from megatron_ssd.config.tools import GradeConfig
from megatron_ssd.errors import UserError
from megatron_ssd.grading.grade_file import run_grade
from megatron_ssd.sandbox.sandbox import Sandbox
from tests.helpers.jsonl import write_jsonl
from tests.helpers.paths import ROOT

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
PROMPT = 'def inc(x):\n    """One more."""\n'
HUMANEVAL = {"task_id": "t/0", "entry_point": "inc", "prompt": PROMPT,
             "test": "def check(candidate):\n    assert candidate(1) == 2\n"}  # fmt: skip
LCB = {
    "question_title": "Sum", "question_content": "Add.", "platform": "x", "question_id": "q1", "contest_id": "c",
    "contest_date": "2025-03-01T00:00:00", "starter_code": "", "difficulty": "easy", "metadata": "{}",
    "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]),
    "private_test_cases": json.dumps([{"input": "2 2\n", "output": "4\n", "testtype": "stdin"}]),
}  # fmt: skip


def config(folder: Path, samples: list[dict[str, Any]], **changes: Any) -> GradeConfig:
    """A configuration that grades ``samples``, by default of two problems of HumanEval."""
    values: dict[str, Any] = {
        "problems": str(write_jsonl(folder / "problems.jsonl", [HUMANEVAL, {**HUMANEVAL, "task_id": "t/1"}])),
        "format": "humaneval", "samples": str(write_jsonl(folder / "samples.jsonl", samples)),
        "out": str(folder / "out"),
    }  # fmt: skip
    return GradeConfig(**{**values, **changes})


def test_verdicts_summary_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bodies = ["    return x + 1", "    return x", "    return 1 / 0", "    return 2"]
    run_grade(config(tmp_path, [{"task_id": "t/0", "completion": body} for body in bodies]))
    verdicts = read_jsonl(tmp_path / "out" / "verdicts.jsonl")
    assert {verdict["sample_index"]: verdict["status"] for verdict in verdicts} == {
        0: "passed", 1: "wrong_answer", 2: "runtime_error", 3: "passed",
    }  # fmt: skip
    assert [verdict["detail"] for verdict in verdicts if verdict["sample_index"] == 1] == ["assert candidate(1) == 2"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["statuses"] == {"passed": 2, "runtime_error": 1, "wrong_answer": 1}
    assert summary["problems_without_samples"] == 1
    assert list(summary["pass_at_k"]["all"]) == ["1"]
    assert summary["pass_at_k"]["all"]["1"]["value"] == 0.5
    out = capsys.readouterr().out
    assert "pass@1" in out
    assert "50.0" in out
    assert "1 problems have no sample and are not in the scores" in out


def test_livecodebench_problems_with_a_result_for_every_test(tmp_path: Path):
    older = {**LCB, "question_id": "q2", "contest_date": "2024-01-01"}
    problems = str(write_jsonl(tmp_path / "lcb.jsonl", [LCB, older]))
    wrong_first = "a, b = map(int, input().split())\nprint(a * b if a < 2 else 4)"
    run_grade(config(tmp_path, [{"question_id": "q1", "code": wrong_first}], problems=problems, format="lcb",
                     start_date="2025-01-01", stop_at_first_failure=False))  # fmt: skip
    (verdict,) = read_jsonl(tmp_path / "out" / "verdicts.jsonl")
    assert (verdict["status"], verdict["by_test"]) == ("wrong_answer", "W.")
    assert (verdict["tests_passed"], verdict["failed_test"]) == (1, 0)
    assert list(json.loads((tmp_path / "out" / "summary.json").read_text())["pass_at_k"]) == ["all", "easy"]


@pytest.mark.parametrize(("errata", "scored"), [("keep", 2), ("drop", 1)])
def test_problems_in_livecodebenchs_errata(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], errata: str, scored: int
):
    problems = str(write_jsonl(tmp_path / "lcb.jsonl", [LCB, {**LCB, "question_id": "abc362_c"}]))
    samples = [{"question_id": id_, "code": "print(sum(map(int, input().split())))"} for id_ in ("abc362_c", "q1")]
    run_grade(config(tmp_path, samples, problems=problems, format="lcb", errata=errata))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["problems"], summary["programs"]) == (scored, scored)
    assert list(summary["errata"]["flaws"]) == ["abc362_c"]
    fate = "kept, as the official evaluation counts them" if errata == "keep" else "left out"
    assert f"1 of 2 problems are in LiveCodeBench's errata; {fate}" in capsys.readouterr().out


def test_it_is_an_error_if_all_samples_are_of_dropped_problems(tmp_path: Path):
    problems = str(write_jsonl(tmp_path / "lcb.jsonl", [LCB, {**LCB, "question_id": "abc362_c"}]))
    samples = [{"question_id": "abc362_c", "code": "x"}]
    with pytest.raises(UserError, match=r"all of their problems are in LiveCodeBench's errata; .*errata=keep"):
        run_grade(config(tmp_path, samples, problems=problems, format="lcb", errata="drop"))


def test_pass_at_k_is_measured_for_every_possible_k(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run_grade(config(tmp_path, [{"task_id": "t/0", "completion": "    return 2"}] * 20))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["pass_at_k"]["all"]) == ["1", "5", "10", "20"]
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 125


def test_up_to_date_results_are_printed_and_not_graded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    settings = config(tmp_path, [{"task_id": "t/0", "completion": "    return 2"}])
    run_grade(settings)
    first = capsys.readouterr().out
    monkeypatch.setattr(Sandbox, "execute", lambda *arguments: pytest.fail("graded again"))
    run_grade(settings)
    assert capsys.readouterr().out == first


def grade(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "tools/grade.py", *arguments], cwd=ROOT, capture_output=True, text=True,
                          env=ENVIRONMENT, check=False)  # fmt: skip


def arguments_of(settings: GradeConfig) -> list[str]:
    return [f"{key}={getattr(settings, key)}" for key in ("problems", "format", "samples", "out")]


def test_a_killed_command_resumes_and_grades_nothing_twice(tmp_path: Path):
    slow = "    import time\n    while time.process_time() < 0.03: pass\n    return x + {}"
    settings = config(tmp_path, [{"task_id": "t/0", "completion": slow.format(n)} for n in range(120)])
    command = [sys.executable, "tools/grade.py", *arguments_of(settings)]
    verdicts = tmp_path / "out.partial" / "verdicts.jsonl"
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, env=ENVIRONMENT) as process:
        deadline = time.monotonic() + 60
        while (not verdicts.exists() or verdicts.read_bytes().count(b"\n") < 5) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    before = verdicts.read_bytes()
    complete = before[: before.rfind(b"\n") + 1]
    graded = complete.count(b"\n")
    assert 5 <= graded < 120
    done = grade(*arguments_of(settings))
    assert done.returncode == 0, done.stderr
    assert f"{graded} of 120 programs are already graded" in done.stderr
    after = (tmp_path / "out" / "verdicts.jsonl").read_bytes()
    assert after.startswith(complete), "a finished verdict was changed"
    assert sorted(json.loads(line)["sample_index"] for line in after.splitlines()) == list(range(120))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"completion": "x"}, "samples.jsonl:1: a record with completion: needs an id under one of question_id"),
        ({"task_id": "t/0"}, "needs a text under one of completion, response, code"),
        ({"task_id": "t/0", "completion": "x", "code": "y"}, "has a text under completion and code, and only one"),
        ({"task_id": "t/0", "completion": ["x"]}, "must be text"),
        ({"task_id": "t/9", "completion": "x"}, "t/9: is not a problem of the benchmark's file"),
    ],
)
def test_an_invalid_record_is_reported_before_anything_runs(tmp_path: Path, record: dict[str, Any], message: str):
    done = grade(*arguments_of(config(tmp_path, [record])))
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "problems is not set"),
        (["formt=lcb"], "did you mean format?"),
        (["problems=a", "format=x", "samples=b", "out=c"], "must be lcb, humaneval, mbpp, leetcode"),
        (["problems=a", "format=mbpp", "samples=b", "out=c"], "problems = a: is not a file"),
        (["problems=a", "format=mbpp", "samples=b", "out=c", "start_date=2025-01-01"], "only format=lcb has"),
        (["problems=a", "format=mbpp", "samples=b", "out=c", "cpu_seconds=fast"], "must be a number"),
        (["problems=a", "format=mbpp", "samples=b", "out=c", "errata=drop"], "only format=lcb has errata"),
        (["problems=a", "format=lcb", "samples=b", "out=c", "errata=no"], "must be keep or drop"),
        (["problems=/nope", "format=lcb", "samples=b", "out=c"], "error: problems = /nope: does not exist"),
        (
            ["problems=/", "format=lcb", "samples=b", "out=c", "start_date=soon"],
            "error: start_date = soon: is not an",
        ),
    ],
)
def test_invalid_arguments_are_one_line(arguments: list[str], message: str):
    done = grade(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("out", ["FILE/x", "/proc/foo"])
def test_an_output_folder_that_cannot_be_created_is_one_line(tmp_path: Path, out: str):
    (tmp_path / "FILE").write_text("mine")
    settings = config(tmp_path, [{"task_id": "t/0", "completion": "    return x + 1"}], out=str(tmp_path / out))
    done = grade(*arguments_of(settings))
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    assert len(errors) == 1
    assert "cannot be created" in errors[0]
    assert "use another out" in errors[0]


def test_an_output_folder_that_exists_already(tmp_path: Path):
    settings = config(tmp_path, [{"task_id": "t/0", "completion": "    return x + 1"}])
    out = Path(settings.out)
    out.mkdir()
    run_grade(settings)  # an empty folder is used
    (out / "manifest.json").unlink()
    with pytest.raises(
        UserError, match=r"exists and was not made by tools/grade\.py; use another out, or set replace=true"
    ):
        run_grade(settings)

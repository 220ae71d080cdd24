"""Tests the script that tests and measures on a GPU, on a CPU with tiny models."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import gpu_run, gpu_table
from benchmarks.gpu_cases import MEASURED_PARTS, Case, Settings, cases
from benchmarks.gpu_measure import case_config, predicted_bytes
from benchmarks.gpu_results import Record, Results
from benchmarks.gpu_run import PARTS, Budget, Item, Measurer, items, run_all
from megatron_ssd.cli.compose import compose_config
from megatron_ssd.config.cluster import Device
from megatron_ssd.config.run import needed
from megatron_ssd.errors import UserError
from tests.gpu.demo import base_overrides, loop_overrides
from tests.helpers.devices import without_gpu
from tests.helpers.executables import write_executable
from tests.helpers.paths import ROOT
from tests.helpers.tiny_hf import write_hf_config

REAL = cases(tiny=False, device="cuda")


@without_gpu
def test_the_measurements_are_rehearsed_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    endless = ["--minutes=1000", "--limit=10000"]  # the machine may be busy
    monkeypatch.setattr(
        sys, "argv", ["gpu_run", "--device=cpu", "--tiny", f"--out={tmp_path}", *endless, "--parts", "speed"]
    )
    with pytest.raises(SystemExit) as end:
        gpu_run.main()
    assert end.value.code == 0, capsys.readouterr().out
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["device"] == "cpu"
    assert [part for part in content if part in PARTS] == ["speed"]
    rows = {row["case"]: row for row in content["speed"]}
    assert rows.keys() == {case.name for case in cases(tiny=True, device="cpu") if case.part == "speed"}
    assert rows["qwen3_1.7b bf16 [local]"]["losses"] == rows["qwen3_1.7b bf16, unfused [local]"]["losses"]
    assert "on a GPU only" in rows["qwen3_1.7b FP8 blockwise"]["skipped"]
    assert rows["qwen3_1.7b Transformers, SDPA"]["tokens_per_second"] > 0
    assert "aten::" in (tmp_path / "profile-qwen3_1.7b-bf16-[local].txt").read_text()


@without_gpu
def test_a_case_without_an_answer_fails_and_the_next_one_is_measured(tmp_path: Path) -> None:
    fp8 = next(case for case in REAL if case.precision.fp8)
    with contextlib.closing(
        Measurer(Settings(device="cpu", out=tmp_path), Budget(end=10_000, clock=lambda: 0))
    ) as measurer:
        assert measurer.start()["device"] == "cpu"
        assert measurer.measure(fp8, 0)["failed"] == "no answer within 0 s"
        assert "on a GPU only" in measurer.measure(fp8, 10_000)["skipped"]


@pytest.mark.parametrize("case", [case for case in REAL if not case.reference], ids=lambda case: case.name)
def test_every_case_is_a_valid_configuration(case: Case, tmp_path: Path) -> None:
    config = case_config(case, tmp_path, "cuda")
    assert config.model == case.model
    assert 1e9 < predicted_bytes(config) < 140e9


def test_names_of_cases_tell_them_apart() -> None:
    for part in MEASURED_PARTS:
        names = [case.name for case in REAL if case.part == part]
        assert len(set(names)) == len(names) > 0


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_loop_has_valid_configurations(device: Device, tmp_path: Path) -> None:
    base = compose_config(base_overrides(tmp_path, device))
    (tmp_path / "base").mkdir()
    write_hf_config(tmp_path / "base" / "export", needed(base.model, "model"))
    loop = compose_config(loop_overrides(tmp_path, device))
    assert {base.cluster.device, loop.cluster.device} == {device}
    assert base.precision.transformer_engine == loop.precision.transformer_engine == (device == "cuda")
    assert base.parallel.world_size == loop.parallel.world_size == 1


class Call:
    """A call whose items take as long as they are told to, or all that they get."""

    def __init__(self, path: Path, minutes: float) -> None:
        self.now = 0.0
        self.results = Results(path / "gpu.json")
        self.budget = Budget(end=60 * minutes, clock=lambda: self.now)
        self.ran: list[str] = []

    def item(self, name: str, least: float, limit: float, needs: float, *, fails: bool = False) -> Item:
        def run(seconds: float) -> Record:
            assert seconds <= limit
            self.ran.append(name)
            self.now += min(seconds, needs)
            return {"case": name, "failed" if fails else "skipped": "in a test"}

        return Item(part="speed", case=name, least=least, limit=limit, run=run)


SECONDS = st.floats(0.5, 100)


@settings(max_examples=25)
@given(minutes=st.floats(0, 5), sizes=st.lists(st.tuples(SECONDS, SECONDS, SECONDS, st.booleans()), max_size=12))
def test_a_call_never_takes_longer_than_its_time(
    tmp_path_factory: pytest.TempPathFactory, minutes: float, sizes: list[tuple[float, float, float, bool]]
) -> None:
    call = Call(tmp_path_factory.mktemp("call"), minutes)
    plan = [
        call.item(f"{number}", min(a, b), max(a, b), needs, fails=fails)
        for number, (a, b, needs, fails) in enumerate(sizes)
    ]
    too_late = run_all(plan, call.budget, call.results)
    assert call.now <= call.budget.end + 1e-6
    left_out = [item.case for item in too_late]
    # Each item runs or is named, in order; a smaller one may run after one that did not fit.
    assert sorted([*call.ran, *left_out]) == sorted(item.case for item in plan)
    assert call.ran == [item.case for item in plan if item.case in call.ran]
    assert all(item.least > call.budget.left() for item in too_late)

    # The next call runs what was not reached or failed, and nothing else.
    call.budget = Budget(end=call.now + 10_000, clock=lambda: call.now)
    call.ran.clear()
    assert run_all(plan, call.budget, call.results) == []
    failed = {item.case for item, (*_, fails) in zip(plan, sizes, strict=True) if fails}
    assert call.ran == [item.case for item in plan if item.case in failed or item.case in left_out]


def test_parts_run_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    parts = ["compile", "loop", "fp32", "speed"]
    measurer = Measurer(Settings(device="cuda", out=tmp_path), Budget(end=0))
    plan = list(items(parts, measurer, tmp_path / "gpu.json", device="cuda", tiny=False, limit=40))
    assert list(dict.fromkeys(item.part for item in plan)) == parts
    assert all(item.limit == 40 for item in plan if item.part in MEASURED_PARTS)


def test_results_grow_and_belong_to_one_device(tmp_path: Path) -> None:
    results = Results(tmp_path / "gpu.json")
    results.describe({"device": "NVIDIA H100"})
    results.add("fp8", {"case": "a", "failed": "no"})
    results.add("fp8", {"case": "b", "skipped": "no"})
    assert not results.is_done("fp8", "a")
    results.add("fp8", {"case": "a", "skipped": "no"})
    assert [record["case"] for record in results.records("fp8")] == ["a", "b"]
    assert results.is_done("fp8", "a")
    with pytest.raises(UserError, match="has results of NVIDIA H100, and this is NVIDIA H200"):
        results.describe({"device": "NVIDIA H200"})
    results.forget(["fp8"])
    assert results.content() == {"device": "NVIDIA H100"}


TESTS = """
import pathlib, pytest
class TestChain:
    def test_first(self):
        pass
    def test_second(self, record_property):
        record_property("count", 3)
        assert pathlib.Path(__file__).with_name("fixed").exists(), "the reason"
def test_alone():
    pass
def test_skipped():
    pytest.skip("no GPU")
"""


def test_outcomes_are_written_and_finished_tests_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, results = tmp_path / "test_of_gpu_script.py", Results(tmp_path / "gpu.json")
    file.write_text(TESTS)
    command = ["-v", "--no-summary", "-p", "benchmarks.gpu_tests", "-p", "no:cacheprovider", f"--rootdir={tmp_path}",
               f"--gpu-results={tmp_path / 'gpu.json'}", "--gpu-part=tests", str(file)]  # fmt: skip
    assert pytest.main(command) == pytest.ExitCode.TESTS_FAILED
    text = capsys.readouterr().out
    assert text.index("the reason") < text.index("test_alone"), "a failure is printed when it happens"
    records = {record["case"].rpartition("::")[2]: record for record in results.records("tests")}
    outcomes = {
        name: next(key for key in ("passed", "failed", "skipped") if key in one) for name, one in records.items()
    }
    assert outcomes == {
        "test_first": "passed", "test_second": "failed", "test_alone": "passed", "test_skipped": "skipped",
    }  # fmt: skip
    assert "the reason" in records["test_second"]["failed"]
    assert records["test_second"]["facts"] == {"count": 3}
    assert records["test_skipped"]["skipped"] == "Skipped: no GPU"

    (tmp_path / "fixed").touch()
    assert pytest.main(command) == pytest.ExitCode.OK
    text = capsys.readouterr().out
    assert [name in text for name in ("test_first", "test_second", "test_alone")] == [True, True, False]
    assert all("failed" not in record for record in results.records("tests"))
    assert pytest.main(command) == pytest.ExitCode.NO_TESTS_COLLECTED


def test_archives_come_first_on_the_path(tmp_path: Path) -> None:
    for name, inner in (("flat", "a.py"), ("nested", "site/b.py")):
        source = tmp_path / name / inner
        source.parent.mkdir(parents=True)
        source.write_text("")
        (tmp_path / "site").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "site" / f"{name}.tar.xz", "w:xz") as archive:
            archive.add(tmp_path / name, ".")
    python = tmp_path / "python"
    write_executable(
        python,
        '[ "$1" = -m ] || exit 0; echo "$@"; echo "$PYTHONPATH" | tr : "\\n" | while read d; do ls "$d"; done; exit 3',
    )
    done = subprocess.run(
        [str(ROOT / "benchmarks" / "gpu.sh"), "--minutes", "2", "--site", str(tmp_path / "site"), "--again"],
        env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    arguments, *names = done.stdout.splitlines()
    assert arguments.startswith("-m benchmarks.gpu_run --began ")
    assert arguments.endswith(" --minutes 2 --again")
    assert {"a.py", "b.py", "benchmarks"} <= set(names)


@pytest.mark.parametrize(
    ("arguments", "python", "message"),
    [
        (["--site", "nowhere"], sys.executable, "error: --site nowhere: there is no archive"),
        ([], "nowhere", "error: PYTHON=nowhere: lacks packages"),
        (["--minutes", "0"], sys.executable, "0 is not a number above 0"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments: list[str], python: str, message: str) -> None:
    done = subprocess.run(
        [str(ROOT / "benchmarks" / "gpu.sh"), *arguments],
        env={**os.environ, "PYTHON": python}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr


def test_the_document_has_the_raw_results() -> None:
    document = gpu_table.DOCUMENT.read_text(encoding="utf-8")
    assert gpu_table.with_tables(document) == document, "run: python -m benchmarks.gpu_table"


def test_a_table_shows_measurements_reasons_and_tests() -> None:
    fast = {
        "case": "m bf16",
        "tokens_per_second": 3000.0,
        "tflops": 2.0,
        "mfu": 0.5,
        "peak_gb": 1.0,
        "predicted_gb": 1.1,
    }
    slow = {"case": "m Transformers", "tokens_per_second": 2000.0, "tflops": 1.0, "mfu": 0.4, "peak_gb": 1.0}
    content = {
        "device": "NVIDIA H100",
        "fp32": [
            {"case": "one", "passed": "1 test"},
            {"case": "two", "failed": "x"},
            {"case": "all tests", "failed": "2"},
        ],
        "speed": [fast, slow, {"case": "m mxfp8", "skipped": "not here"}],
    }
    text = gpu_table.table("raw.json", content)
    assert "| speed | m bf16 | 3,000 | 2 | 50.0% | 1.0 | 1.1 | 1.50 x |  |" in text
    assert "| speed | m Transformers | 2,000 | 1 | 40.0% | 1.0 |  |  |  |" in text
    assert "| speed | m mxfp8 |  |  |  |  |  |  | skipped: not here |" in text
    assert "| fp32 | two |  |  |  |  |  |  | failed: x |" in text
    assert "one" not in text

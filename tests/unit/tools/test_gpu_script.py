"""Tests the GPU measurement script on a CPU with tiny models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_measure
from benchmarks.gpu_cases import PARTS, cases
from benchmarks.gpu_measure import case_config
from tests.helpers.devices import without_gpu
from tests.helpers.executables import write_executable
from tests.helpers.paths import ROOT


@without_gpu
def test_the_script_prints_its_table_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done, commands = run_gpu_script(tmp_path, parts="specs recompute speed")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(commands) == 4, "three parts and the table"
    for dash_m, module, *arguments in commands:
        assert [dash_m, module] == ["-m", "benchmarks.gpu_measure"]
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        gpu_measure.main()
    assert "speed (cpu)" in capsys.readouterr().out
    rows = {row["case"]: row for part in ("specs", "recompute", "speed")
            for row in json.loads((tmp_path / f"gpu-{part}.json").read_text())}  # fmt: skip
    assert not [row for row in rows.values() if "failed" in row]
    assert rows["tiny TransformerEngine [local]"]["losses"] == rows["tiny local"]["losses"]
    assert rows["tiny_moe full [local]"]["predicted_gb"] < rows["tiny_moe none [local]"]["predicted_gb"]
    assert rows["tiny this trainer, FP8 blockwise"]["skipped"] == "TransformerEngine's layers need CUDA"
    assert rows["tiny Transformers, SDPA"]["tokens_per_second"] > 0


def test_a_part_that_fails_is_named_and_the_others_still_run(tmp_path: Path) -> None:
    done, commands = run_gpu_script(tmp_path, parts="specs broken speed")
    assert done.returncode == 1
    assert "failed: broken (status 3)" in done.stdout
    assert len(commands) == 4


def run_gpu_script(out: Path, *, parts: str) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """Run the script with an interpreter that only records its arguments, and fails for the part ``broken``."""
    python, record = out / "python", out / "commands"
    write_executable(python, f'echo "$*" >> "{record}"\ncase "$*" in *broken*) exit 3;; esac')
    environment = {**os.environ, "SMOKE": "1", "PYTHON": str(python), "PARTS": parts}
    done = subprocess.run(["benchmarks/gpu.sh", "-", str(out)], cwd=ROOT, env=environment, capture_output=True,
                          text=True, timeout=60, check=False)  # fmt: skip
    return done, [line.split() for line in record.read_text().splitlines()]


@pytest.mark.parametrize("part", PARTS)
def test_every_gpu_case_is_a_valid_configuration(part: str, tmp_path: Path) -> None:
    names = [case.name for case in cases(part, tiny=False)]
    assert len(set(names)) == len(names)
    for case in cases(part, tiny=False):
        if case.reference is None:
            assert case_config(case, tmp_path, "cuda").model == case.model

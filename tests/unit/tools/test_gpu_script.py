"""The GPU script on a CPU with tiny models: it prints its table and lists the skipped cases."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_cases import PARTS, cases
from benchmarks.gpu_measure import case_config
from tests.helpers.paths import ROOT


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what the script does without a GPU")
def test_the_script_prints_its_table_without_a_gpu(tmp_path: Path) -> None:
    environment = {**os.environ, "SMOKE": "1", "PYTHON": sys.executable, "PARTS": "specs recompute speed",
                   "OMP_NUM_THREADS": "1"}  # fmt: skip
    done = subprocess.run(
        ["benchmarks/gpu.sh", "-", str(tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "speed (cpu)" in done.stdout
    rows = {row["case"]: row for part in ("specs", "recompute", "speed")
            for row in json.loads((tmp_path / f"gpu-{part}.json").read_text())}  # fmt: skip
    assert not [row for row in rows.values() if "failed" in row]
    assert rows["tiny TransformerEngine [local]"]["losses"] == rows["tiny local"]["losses"]
    assert rows["tiny_moe full [local]"]["predicted_gb"] < rows["tiny_moe none [local]"]["predicted_gb"]
    assert rows["tiny this trainer, FP8 blockwise"]["skipped"] == "TransformerEngine's layers need CUDA"
    assert rows["tiny Transformers, SDPA"]["tokens_per_second"] > 0


@pytest.mark.parametrize("part", PARTS)
def test_every_gpu_case_is_a_valid_configuration(part: str, tmp_path: Path) -> None:
    names = [case.name for case in cases(part, tiny=False)]
    assert len(set(names)) == len(names)
    for case in cases(part, tiny=False):
        if case.reference is None:
            assert case_config(case, tmp_path, "cuda").model == case.model

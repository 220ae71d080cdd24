"""Tests that top-k with top-p masks what vLLM masks; the checks are in ``tests.helpers.truncations``."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM (make venv)")
@pytest.mark.parametrize("check", ["many_ties", "real_vocabularies", "no_sort"])
def test_masked_logits_equal_those_of_vllm(check: str) -> None:
    command = [sys.executable, "-m", "tests.helpers.truncations", check]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]

"""Fixtures of the tests of sampling."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from megatron_ssd.config.run import RunConfig
from tests.helpers.sampling_run import run_config


@pytest.fixture
def config(tiny_hf_model: Path, tmp_path: Path) -> RunConfig:
    """The configuration of a small run of the sampling stage."""
    return run_config(tiny_hf_model, tmp_path / "run")


@pytest.fixture
def engine_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the output of engines that died in the folder of the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

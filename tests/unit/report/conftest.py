"""Runs that several tests of the report read; nobody writes to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright import sync_api as playwright

from megatron_ssd.report.stage import run_report
from tests.unit.report.browsing import FLAGS, chromium
from tests.unit.report.report_run import build_run, run_config


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run on minicode with its report."""
    run_dir = tmp_path_factory.mktemp("minicode") / "demo"
    build_run(run_dir)
    run_report(run_config(run_dir))
    return run_dir


@pytest.fixture(scope="session")
def published_real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on real problems, where the tiny model solves nothing: every score is zero."""
    run_dir = tmp_path_factory.mktemp("real") / "demo-real"
    build_run(run_dir, scale=0.0)
    run_report(run_config(run_dir, benchmark="livecodebench"))
    return run_dir


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, with a profile of its own that goes when it closes."""
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        yield running
        running.close()

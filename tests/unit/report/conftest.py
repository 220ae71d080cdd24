"""Fixtures of the report's tests. Runs whose fixture has session scope are only read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright import sync_api as playwright

from megatron_ssd.report.render import run_report
from tests.helpers.browsing import FLAGS, chromium
from tests.helpers.report_run import build_run, change_summary, run_config
from tests.helpers.sweep_summary import cells_of, sweep_summary


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run on minicode without a report, which the test may change."""
    build_run(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run on minicode with its report."""
    run_dir = tmp_path_factory.mktemp("minicode") / "demo"
    build_run(run_dir)
    run_report(run_config(run_dir))
    return run_dir


@pytest.fixture(scope="session")
def published_real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on real problems, where the tiny model solves nothing: every score is zero."""
    run_dir = tmp_path_factory.mktemp("real") / "demo-real"
    build_run(run_dir, scale=0.0, benchmarks=["livecodebench"])
    run_report(run_config(run_dir, benchmark="livecodebench"))
    return run_dir


@pytest.fixture(scope="session")
def published_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the largest grid that the page is made for. The training decode is not one of its cells."""
    run_dir = tmp_path_factory.mktemp("sweep") / "demo-sweep"
    build_run(run_dir)
    cells = cells_of((0.6, 0.7, 0.9, 1.1, 1.4, 2.0), (10, 20, -1), (0.7, 0.8, 0.9, 0.95, 1.0))
    change_summary(run_dir, lambda summary: summary.update(sweep_summary(cells)))
    run_report(run_config(run_dir))
    return run_dir


@pytest.fixture(scope="session")
def published_curves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over two top-ks and three top-ps, for which the page draws curves over T_eff."""
    run_dir = tmp_path_factory.mktemp("curves") / "demo-curves"
    build_run(run_dir)
    cells = cells_of((0.7, 0.9, 1.1, 1.6), (20, -1), (0.8, 0.95, 1.0))
    change_summary(run_dir, lambda summary: summary.update(sweep_summary(cells)))
    run_report(run_config(run_dir))
    return run_dir


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium, with its own temporary profile."""
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        yield running
        running.close()

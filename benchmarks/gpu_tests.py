"""A pytest plugin that writes the outcome of each test to the results of ``gpu_run`` when it is known.

A failure is printed at once, with its traceback: what pytest prints at its end is lost if the time is over. Tests that
have an outcome already are left out, but for those of a class, which build on each other and run together.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu_results import Record, Results

_FOLDER = "tests/gpu/"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The file of the results, and the part that the tests are."""
    group = parser.getgroup("gpu")
    group.addoption("--gpu-results", type=Path, required=True)
    group.addoption("--gpu-part", required=True)


def pytest_configure(config: pytest.Config) -> None:
    """Record in the process that prints, not in those of xdist, which report to it."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Results(config.option.gpu_results), config.option.gpu_part))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that are done."""
    results = Results(config.option.gpu_results)
    done = {item for item in items if results.is_done(config.option.gpu_part, case_name(item.nodeid))}
    unfinished = {item.parent for item in items if item not in done}
    left_out = [item for item in items if item in done and not (_of_class(item) and item.parent in unfinished)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _of_class(item: pytest.Item) -> bool:
    return isinstance(item.parent, pytest.Class)


def case_name(nodeid: str) -> str:
    """The name of a test in the results."""
    return nodeid.removeprefix(_FOLDER)


class Recorder:
    """Writes outcomes and prints failures."""

    def __init__(self, results: Results, part: str) -> None:
        self._results, self._part = results, part

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase of a test has ended. Preparing and cleaning up count if they fail, or skip the test."""
        record: Record = {"case": case_name(report.nodeid), "seconds": round(report.duration, 1)}
        if report.failed:
            print(f"\n{report.longreprtext}\n", flush=True)
            record["failed"] = _last_line(report)
        elif report.skipped:
            reason = report.longrepr
            record["skipped"] = str(reason[2]) if isinstance(reason, tuple) else str(reason)
        elif report.when == "call":
            record["passed"] = "1 test"
        else:
            return
        self._results.add(self._part, record | {"facts": dict(report.user_properties)})


def _last_line(report: pytest.TestReport) -> str:
    """What was raised, in one line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else report.longreprtext
    return str(next(iter(text.strip().splitlines()), "no reason"))[:300]

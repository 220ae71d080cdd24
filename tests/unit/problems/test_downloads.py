"""Tests for the download of published benchmark files, from a server on this machine."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from megatron_ssd.config.build import build
from megatron_ssd.config.problems import BenchmarkConfig, MinicodeConfig
from megatron_ssd.problems import downloads
from megatron_ssd.problems.benchmarks import load_benchmarks, source_hashes
from megatron_ssd.problems.downloads import RELEASES, Release
from tests.helpers.errors import one_line_error
from tests.helpers.jsonl import write_jsonl
from tests.helpers.paths import DATA, HUMANEVAL, MBPP, needs

ROW = {"task_id": "HumanEval/0", "prompt": 'def f(x):\n    """x."""\n', "entry_point": "f",
       "test": "def check(f):\n    assert f(1) == 1\n"}  # fmt: skip
KEY = "benchmark.sets.humaneval.path"
CONFIG = build(BenchmarkConfig, {"sets": {"humaneval": {"format": "humaneval"}}})
WORLD = MinicodeConfig()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that stands for HumanEval's published one. It can be downloaded until the server ends."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "www").mkdir()
    path = write_jsonl(tmp_path / "www" / "HumanEval.jsonl", [ROW])
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=tmp_path / "www"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    release = Release(
        url=f"http://127.0.0.1:{server.server_port}/HumanEval.jsonl",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    monkeypatch.setitem(downloads.RELEASES, "humaneval", release)
    yield path
    server.shutdown()
    server.server_close()


def test_a_published_file_is_downloaded_once(served: Path) -> None:
    (found,) = load_benchmarks(CONFIG, WORLD)
    served.unlink()
    (again,) = load_benchmarks(CONFIG, WORLD)
    assert [problem.id for problem in found.problems] == ["HumanEval/0"]
    assert found.identity == again.identity


def test_a_copy_of_the_published_file_is_the_same_evaluation_set(served: Path) -> None:
    named = build(BenchmarkConfig, {"sets": {"humaneval": {"format": "humaneval", "path": str(served)}}})
    assert list(source_hashes(CONFIG, WORLD)) == list(source_hashes(named, WORLD))


def test_another_content_than_the_published_one_is_refused(served: Path) -> None:
    served.write_text(json.dumps({**ROW, "prompt": "changed"}))
    with one_line_error(f"{KEY} = null: what http://.* serves has the SHA-256 .*download it .*set {KEY} to the file"):
        load_benchmarks(CONFIG, WORLD)


def test_a_file_that_cannot_be_downloaded_says_what_to_do(served: Path) -> None:
    served.unlink()
    with one_line_error(rf"{KEY} = null: http://.*HumanEval.jsonl could not be downloaded .*set {KEY} to the file"):
        load_benchmarks(CONFIG, WORLD)


def test_a_named_file_that_does_not_exist_is_one_line() -> None:
    named = build(BenchmarkConfig, {"sets": {"mine": {"format": "humaneval", "path": "none.jsonl"}}})
    with one_line_error(r"benchmark\.sets\.mine\.path = none\.jsonl: is not a file"):
        load_benchmarks(named, WORLD)


@needs(HUMANEVAL, MBPP, DATA / "evalplus" / "MbppPlus.jsonl.gz", DATA / "evalplus" / "HumanEvalPlus.jsonl.gz")
def test_the_pinned_hashes_are_those_of_the_published_files() -> None:
    files = {"humaneval": HUMANEVAL, "mbpp": MBPP, "humaneval_plus": DATA / "evalplus" / "HumanEvalPlus.jsonl.gz",
             "mbpp_plus": DATA / "evalplus" / "MbppPlus.jsonl.gz"}  # fmt: skip
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()} == {
        name: release.sha256 for name, release in RELEASES.items()
    }


@needs(MBPP)
@pytest.mark.parametrize(("split", "first", "count"), [("test", "11", 500), ("all", "1", 974)])
def test_mbpps_test_split_are_tasks_11_to_510(split: str, first: str, count: int) -> None:
    section = {"format": "mbpp", "path": str(MBPP), "split": split}
    (found,) = load_benchmarks(build(BenchmarkConfig, {"sets": {"mbpp": section}}), WORLD)
    assert (found.problems[0].id, len(found.problems)) == (first, count)

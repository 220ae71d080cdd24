"""Tests that a stage is published atomically, reused while it is current, and never overwritten silently."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import megatron_ssd
from megatron_ssd.artifacts.atomic import atomic_folder
from megatron_ssd.artifacts.manifest import code_version, read_manifest
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.errors import UserError
from tests.helpers.errors import one_line_error
from tests.helpers.paths import ROOT


def make(run_dir: Path, config: dict[str, Any] | None = None, replace: bool = False) -> Stage:
    return Stage(name="samples", run_dir=run_dir, config=config or {"t": 1.5}, inputs={"model": "abc"}, replace=replace)


def publish(run_dir: Path, text: str = "data") -> Stage:
    stage = make(run_dir)
    (stage.begin() / "part.txt").write_text(text)
    stage.publish(engine={"name": "vllm", "version": "1"}, counts={"rows": 1}, dropped={"empty": 2})
    return stage


def test_the_final_name_does_not_exist_before_publish(tmp_path: Path) -> None:
    stage = make(tmp_path)
    stage.begin()
    assert not (tmp_path / "samples").exists()
    assert (tmp_path / "samples.partial").is_dir()


def test_publish_writes_a_manifest_with_hashes_and_counts(tmp_path: Path) -> None:
    publish(tmp_path)
    manifest = read_manifest(tmp_path / "samples")
    assert [output["path"] for output in manifest.outputs] == ["part.txt"]
    assert manifest.outputs[0]["bytes"] == 4
    assert manifest.outputs[0]["sha256"] == "3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7"
    assert (manifest.counts, manifest.dropped, manifest.engine["name"]) == ({"rows": 1}, {"empty": 2}, "vllm")
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["manifest.json", "part.txt"]
    assert not (tmp_path / "samples.partial").exists()


def test_the_same_configuration_is_current_and_tuples_equal_lists(tmp_path: Path) -> None:
    publish(tmp_path)
    assert make(tmp_path).is_current()
    assert make(tmp_path, {"t": (1, 2)}).identity == make(tmp_path, {"t": [1, 2]}).identity


def test_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    publish(tmp_path)
    with pytest.raises(UserError, match=r"t: 1\.5 then, 2\.0 now.*replace=true"):
        make(tmp_path, {"t": 2.0}).is_current()


def test_replace_moves_the_folder_aside_and_deletes_nothing(tmp_path: Path) -> None:
    publish(tmp_path, "old")
    assert not make(tmp_path, {"t": 2.0}, replace=True).is_current()
    assert (tmp_path / "samples.replaced-1" / "part.txt").read_text() == "old"


def test_begin_resumes_the_same_configuration_and_refuses_another(tmp_path: Path) -> None:
    (make(tmp_path).begin() / "half.txt").write_text("1")
    assert (make(tmp_path).begin() / "half.txt").read_text() == "1"
    with pytest.raises(UserError, match="another configuration"):
        make(tmp_path, {"t": 2.0}).begin()


def begin_and_leave(run_dir: Path, *files: str, text: str = "1", **settings: Any) -> None:
    """Begin the stage and write ``files``, as a process that is killed before it publishes."""
    work = make(run_dir, **settings).begin()
    for name in files:
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_text(text)


def test_an_empty_start_is_replaced_by_another_configuration(tmp_path: Path) -> None:
    begin_and_leave(tmp_path)
    begin_and_leave(tmp_path, "worker-0-of-1.jsonl", text="", config={"t": 2.0})
    work = make(tmp_path, {"t": 3.0}).begin()
    assert [path.name for path in work.iterdir()] == ["stage.json"]
    assert not list(tmp_path.glob("*.replaced-*"))


def test_a_stage_may_define_what_counts_as_started(tmp_path: Path) -> None:
    for kept in ("model.safetensors", "below/model.safetensors"):
        begin_and_leave(tmp_path / kept.replace("/", "-"), "config.json", kept, config={"t": 0})
    for folder, refused in (("model.safetensors", True), ("below-model.safetensors", True), ("neither", False)):
        if not refused:
            begin_and_leave(tmp_path / folder, "config.json", config={"t": 0})
        stage = Stage(name="samples", run_dir=tmp_path / folder, config={"t": 1}, inputs={"model": "abc"},
                      is_work=lambda path: path.suffix == ".safetensors")  # fmt: skip
        if refused:
            with pytest.raises(UserError, match="another configuration"):
                stage.begin()
        else:
            assert not (stage.begin() / "config.json").exists()


def test_an_empty_start_is_kept_while_another_process_uses_it(tmp_path: Path) -> None:
    with make(tmp_path).lock():
        make(tmp_path).open_work()
    with pytest.raises(UserError, match="another process is working on it"):
        make(tmp_path, {"t": 2.0}).open_work(in_use=True)
    assert (tmp_path / "samples.partial" / "stage.json").is_file()
    held = make(tmp_path)
    held.begin()
    with pytest.raises(UserError, match="another process is working on it"):
        make(tmp_path, {"t": 2.0}).begin()


def test_an_empty_folder_is_used_and_a_non_empty_one_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    assert not make(tmp_path).is_current()
    publish(tmp_path)
    assert make(tmp_path).is_current()
    (folder / "manifest.json").unlink()
    rule = r"samples: exists and was not made by launch/generate\.py; use another run_dir, or set replace=true"
    with pytest.raises(UserError, match=rule):
        make(tmp_path).is_current()
    assert not make(tmp_path, replace=True).is_current()
    assert (tmp_path / "samples.replaced-1" / "part.txt").is_file()
    assert make(tmp_path).replaced() == []  # without a manifest its configuration is not known


@pytest.mark.parametrize("below", ["FILE", "FILE/x", "/proc/nope", "x" * 300])
def test_an_impossible_run_dir_is_one_line(tmp_path: Path, below: str) -> None:
    (tmp_path / "FILE").write_text("mine")
    stage = make(tmp_path / below)
    with pytest.raises(UserError, match=r"^folder .*samples: cannot be created \(.*\); use another run_dir$"):
        assert stage.is_current() or stage.begin()
    assert (tmp_path / "FILE").read_text() == "mine"


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    stage = make(tmp_path)
    stage.begin()
    program = (
        "import sys; from pathlib import Path; from megatron_ssd.artifacts.stage import Stage\n"
        "Stage(name='samples', run_dir=Path(sys.argv[1]), config={'t': 1.5}, inputs={'model': 'abc'}).begin()"
    )
    second = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert second.returncode != 0
    assert "another process is working on it" in second.stderr


def test_the_lock_is_exclusive_and_released_by_a_killed_process(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from megatron_ssd.artifacts.stage import Stage\n"
        "with Stage(name='samples', run_dir=Path(sys.argv[1]), config={'t': 1.5}, inputs={}).lock():\n"
        "    print('locked', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="another process is working on it"):
            make(tmp_path).begin()
        threading.Timer(0.3, other.kill).start()
        with make(tmp_path).lock():
            assert other.wait() == -signal.SIGKILL


def test_unfinished_work_in_use_is_joined_only_by_the_same_identity(tmp_path: Path) -> None:
    with make(tmp_path).lock():
        make(tmp_path).open_work()
    assert make(tmp_path).open_work(in_use=True).is_dir()
    with pytest.raises(UserError, match="another process is working on it"):
        make(tmp_path, {"t": 2.0}, replace=True).open_work(in_use=True)
    assert not list(tmp_path.glob("*.replaced-*"))


def test_internal_files_are_not_outputs(tmp_path: Path) -> None:
    stage = make(tmp_path)
    work = stage.begin()
    (work / "part.txt").write_text("data")
    (work / "note.json").write_text("{}")
    (work / ".manifest.json.tmp").write_text("{")  # left by a process killed while writing it
    manifest = stage.publish(notes=[work / "note.json"], seconds=12.5)
    assert [output["path"] for output in manifest.outputs] == ["part.txt"]
    assert manifest.seconds == 12.5
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["manifest.json", "part.txt"]


def test_the_durations_of_all_starts_are_added(tmp_path: Path) -> None:
    stage = make(tmp_path)
    stage.begin()
    stage._seconds_before = 100.0
    stage.note_time()
    del stage  # releases the lock, like the end of a process
    again = make(tmp_path)
    again.begin()
    assert again.publish().seconds >= 100.0


def test_a_folder_without_manifest_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        read_manifest(tmp_path)


def test_a_key_that_is_null_or_unused_does_not_matter(tmp_path: Path) -> None:
    stage = make(tmp_path, {"t": 1.5, "limit": None, "old": 3})
    stage.begin()
    stage.publish()
    for config, unused in (({"t": 1.5, "old": 3}, ()), ({"t": 1.5, "old": 3, "new": {"key": None}}, ()),
                           ({"t": 1.5}, ("old",))):  # fmt: skip
        again = Stage(name="samples", run_dir=tmp_path, config=config, inputs={"model": "abc"}, unused=unused)
        assert again.is_current()
    for config, unused in (({"t": 1.5}, ()), ({"t": 1.5, "old": 3, "limit": 0}, ()), ({"old": 3}, ("old",))):
        again = Stage(name="samples", run_dir=tmp_path, config=config, inputs={"model": "abc"}, unused=unused)
        with pytest.raises(UserError, match="was made with another configuration"):
            again.is_current()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for start in (make(tmp_path).begin, make(tmp_path).lock().__enter__,
                  atomic_folder(tmp_path / "out", key="out").__enter__):  # fmt: skip
        with one_line_error(f"does not lock it .{os.strerror(number)}.; mount it with locks"):
            start()


def test_a_stage_publishes_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code_version.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    stage = make(tmp_path)
    stage.begin()
    in_checkout = (ROOT / ".git").exists()
    assert stage.publish().code_version == megatron_ssd.__version__ + ("+unknown" if in_checkout else "")
    code_version.cache_clear()


@pytest.mark.parametrize("script", ["printf '\\351'", "true", "exit 128"])
def test_a_git_with_an_odd_answer_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (tmp_path / "git").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    code_version.cache_clear()
    assert code_version().startswith(megatron_ssd.__version__)
    code_version.cache_clear()


def test_the_code_version_is_that_of_this_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code_version.cache_clear()
    expected = code_version()
    code_version.cache_clear()
    monkeypatch.setenv("GIT_DIR", str(tmp_path))  # as in a hook of another repository
    assert code_version() == expected
    code_version.cache_clear()

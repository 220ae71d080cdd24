"""Tests output to terminals without some characters, and to pipes whose reader has left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from megatron_ssd.cli.terminal import EXIT_READER_LEFT
from tests.helpers.paths import ROOT

_BUFFERED = {"PYTHONUNBUFFERED": ""}
_START = "import sys, os\nfrom megatron_ssd.cli.terminal import any_output\n"


def run(body: str, *, stdout: int = subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run ``body`` as a command's main function."""
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    code = f"{_START}@any_output()\ndef main():\n{indented}main()\n"
    return subprocess.run(
        [sys.executable, "-c", code], stdout=stdout, stderr=subprocess.PIPE, check=False, cwd=ROOT,
        env={**os.environ, **_BUFFERED, **environment},
    )  # fmt: skip


def without_reader() -> int:
    """The end to write to of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk", "cp1252"])
def test_characters_that_the_terminal_lacks_are_escaped(encoding: str) -> None:
    done = run("print('a \u2212 b \U0001f600')", PYTHONIOENCODING=f"{encoding}:strict")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"a ")
    assert done.stdout.endswith(b" b \\U0001f600\n")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("print('x')", EXIT_READER_LEFT),  # in the buffer until the end
        ("for _ in range(99999): print('x')", EXIT_READER_LEFT),
        ("print('x', flush=True); sys.exit(2)", EXIT_READER_LEFT),
        ("print('x'); sys.exit(0)", EXIT_READER_LEFT),  # --help
        ("print('x'); sys.exit(2)", 2),
    ],
)
def test_a_command_ends_quietly_if_its_reader_has_left(body: str, status: int) -> None:
    done = run(body, stdout=without_reader())
    assert (done.returncode, done.stderr) == (status, b"")


def test_another_broken_pipe_is_an_error() -> None:
    done = run("reader, writer = os.pipe()\nos.close(reader)\nos.write(writer, b'x')")
    assert done.returncode == 1
    assert b"BrokenPipeError" in done.stderr


def test_a_command_runs_without_standard_output() -> None:
    command = f"{sys.executable} -c '{_START}any_output()(lambda: print(1))()' >&-"
    assert subprocess.run(["bash", "-c", command], cwd=ROOT, check=False).returncode == 0


def test_help_of_a_script_may_be_cut() -> None:
    for script, status in (("launch/report.py", EXIT_READER_LEFT), ("tools/grade.py", EXIT_READER_LEFT),
                           ("tools/doctor.py", -signal.SIGPIPE)):  # fmt: skip
        done = subprocess.run([sys.executable, str(ROOT / script), "--help"], stdout=without_reader(),
                              stderr=subprocess.PIPE, check=False, env={**os.environ, **_BUFFERED})  # fmt: skip
        assert (done.returncode, done.stderr) == (status, b""), script

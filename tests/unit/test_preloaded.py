"""Tests that a fork which replaces a fresh interpreter is the same process to all that can see it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_ssd.process import die_with_parent
from tests.helpers.preloaded import fresh_interpreters

DESCRIBE = """
import atexit, os, signal, sys, threading
assert sys.modules["__main__"].__dict__ is globals()
atexit.register(print, "at exit")
handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD)]
print(__name__, __file__, sys.argv, sys.path[:2], os.getcwd(), sorted(os.environ.items()))
print(handlers, threading.active_count())
for stream in (sys.stdin, sys.stdout, sys.stderr):
    print(stream.encoding, stream.errors, stream.seekable(), stream.isatty(), stream.line_buffering)
    print(stream.write_through, type(stream.buffer).__name__)
sys.stdout.reconfigure(errors="backslashreplace")
print(os.getpgid(0) == os.getpid(), os.getsid(0) == os.getpid(), sorted(map(int, os.listdir("/proc/self/fd")))[:4])
print(sys.stdin.read(), file=sys.stderr)
"""


def script(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "script.py").write_text(text)
    return [sys.executable, str(tmp_path / "script.py")]


@pytest.mark.parametrize("variables", [{}, {"PYTHONSAFEPATH": "1"}, {"PYTHONUNBUFFERED": ""}])
@pytest.mark.parametrize("options", [{}, {"start_new_session": True}, {"process_group": 0}])
def test_arguments_environment_folder_and_streams(
    tmp_path: Path, options: dict[str, Any], variables: dict[str, str]
) -> None:
    command = [*script(tmp_path, DESCRIBE), "first", "--second=ä"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "packages"), "MINE": "1", **variables}

    def run() -> tuple[int, str, str]:
        done = subprocess.run(command, input="typed", capture_output=True, text=True, cwd=tmp_path, env=environment,
                              check=False, **options)  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    with fresh_interpreters():
        expected = run()
    assert "--second=ä" in expected[1]
    assert run() == expected


def test_a_process_that_replaces_itself(tmp_path: Path) -> None:
    replace = """
import os, signal, sys
if "PID" not in os.environ:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    environment = {**os.environ, "PID": str(os.getpid())}
    os.execve(sys.executable, [sys.executable, __file__, "replaced"], environment)
assert os.environ["PID"] == str(os.getpid())
"""
    command = script(tmp_path, replace + DESCRIBE.replace("sorted(os.environ.items())", ""))

    def run() -> tuple[int, str, str]:
        done = subprocess.run(command, input="typed", capture_output=True, text=True, cwd=tmp_path, check=False)
        return done.returncode, done.stdout, done.stderr

    with fresh_interpreters():
        expected = run()
    assert "replaced" in expected[1]
    assert run() == expected


@pytest.mark.parametrize("variables", [{}, {"PYTHONSAFEPATH": "1"}])
def test_a_program_text(tmp_path: Path, variables: dict[str, str]) -> None:
    text = "import sys; print(sys.argv, sys.path[:2], __name__, '__file__' in globals(), sys.stdin.read())"

    def run() -> str:
        return subprocess.check_output([sys.executable, "-u", "-c", text, "first"], input="typed", text=True,
                                       cwd=tmp_path, env={**os.environ, **variables})  # fmt: skip

    with fresh_interpreters():
        expected = run()
    assert "first" in expected
    assert run() == expected


SPAWNS = """
import multiprocessing, os, sys

def work(connection):
    connection.send((__name__, os.getppid(), sys.argv[1:]))
    sys.exit(3)

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=work, args=(theirs,))
    process.start()
    name, parent, arguments = ours.recv()
    process.join()
    print(name, parent == os.getpid(), arguments, process.exitcode)
"""


def test_a_process_that_multiprocessing_spawns(tmp_path: Path) -> None:
    command = [*script(tmp_path, SPAWNS), "first"]
    with fresh_interpreters():
        expected = subprocess.check_output(command, text=True)
    assert expected == "__mp_main__ True ['first'] 3\n"
    assert subprocess.check_output(command, text=True) == expected


@pytest.mark.parametrize(
    "end",
    ["pass", "sys.stderr.reconfigure(errors='replace')",
     "sys.exit(75)", "sys.exit()", "sys.exit('message')", "os._exit(3)", "os.abort()",
     "raise KeyboardInterrupt", "raise ValueError('message')",
     "os.kill(os.getpid(), signal.SIGTERM)", "os.kill(os.getpid(), signal.SIGINT)"],
)  # fmt: skip
def test_exit_statuses(tmp_path: Path, end: str) -> None:
    command = script(tmp_path, f"import os, signal, sys\nprint('printed', flush=True)\n{end}\n")

    def run() -> tuple[int, str, list[str]]:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr.splitlines()[-1:]

    with fresh_interpreters():
        expected = run()
    assert run() == expected


def test_a_fork_is_a_child_that_signals_reach(tmp_path: Path) -> None:
    command = script(tmp_path, "import time\nprint('ready', flush=True)\ntime.sleep(600)\n")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert psutil.Process(process.pid).ppid() == os.getpid()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == -signal.SIGTERM


def test_forks_of_a_killed_fork_die_with_it_if_they_asked_for_that(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(600)\n")
    parent = f"""
        import subprocess, sys
        from megatron_ssd.process import die_with_parent
        child = subprocess.Popen([sys.executable, {str(tmp_path / "child.py")!r}], preexec_fn=die_with_parent)
        print(child.pid, flush=True)
        child.wait()
    """
    command = script(tmp_path, "\n".join(line.strip() for line in parent.splitlines()))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent) as process:
        assert process.stdout is not None
        lines = {process.stdout.readline(), process.stdout.readline()}
        child = psutil.Process(int((lines - {"ready\n"}).pop()))
        assert child.ppid() == process.pid
        process.kill()
    psutil.wait_procs([child], timeout=60)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def has_libraries(tmp_path: Path, **variables: str) -> str:
    command = script(tmp_path, "import sys\nprint('megatron.core' in sys.modules)\n")
    return subprocess.check_output(command, text=True, env={**os.environ, **variables}).strip()


def test_libraries_are_there_already(tmp_path: Path) -> None:
    assert has_libraries(tmp_path) == "True"
    with fresh_interpreters():
        assert has_libraries(tmp_path) == "False"


@pytest.mark.parametrize("variable", ["PYTHONHASHSEED", "LC_ALL", "LD_LIBRARY_PATH"])
def test_another_start_of_the_interpreter_is_a_fresh_one(tmp_path: Path, variable: str) -> None:
    assert has_libraries(tmp_path, **{variable: "1"}) == "False"

"""Tests the shell scripts that install Python packages and system packages."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.executables import write_executable
from tests.helpers.paths import ROOT


@pytest.fixture
def programs(tmp_path):
    """``programs(name, body)`` writes a fake program; returns its folder, which also contains a few basic tools."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("bash", "grep", "tail", "id", "cat", "sh", "dirname"):
        (folder / tool).symlink_to(shutil.which(tool))

    def write(name: str, body: str) -> Path:
        write_executable(folder / name, body)
        return folder

    return write


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run in the checkout with ``folder`` as PATH."""
    return subprocess.run(
        command, cwd=ROOT, env={"PATH": str(folder), "LOG": str(folder / "log")}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip


def test_a_python_without_an_interpreter_is_skipped(programs):
    programs("python3.11", "exit 127")  # a shim without an interpreter
    folder = programs("python3", f'exec {sys.executable} "$@"')
    found = run(["bash", "-c", ". tools/python.sh; find_python"], folder)
    assert (found.returncode, found.stdout.strip()) == (0, str(folder / "python3"))


def test_a_missing_python_is_one_line_with_the_fix(programs):
    folder = programs("python3", "exit 1")
    done = run(["bash", "-c", ". tools/python.sh; find_python"], folder)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "make venv PYTHON=" in done.stderr


def test_the_second_environment_uses_its_own_python(programs):
    folder = programs("python3.12", "exit 127")
    done = run(["bash", "-c", ". tools/python.sh; find_python_next"], folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no Python 3.12 ")
    assert done.stderr.count("\n") == 1
    assert "make test-next PYTHON_NEXT=" in done.stderr
    programs("python3.12", "exit 0")
    assert run(["bash", "-c", ". tools/python.sh; find_python_next"], folder).stdout == f"{folder / 'python3.12'}\n"


def test_torch_comes_from_the_cpu_index_if_the_configured_ones_lack_it(programs):
    folder = programs(
        "fakepython",
        'echo "$@" >>"$LOG"; case "$*" in *--index-url*) exit 0;; esac; '
        'echo "ERROR: No matching distribution found for torch"; exit 1',
    )
    done = run(["bash", "-c", ". tools/python.sh; install_torch fakepython"], folder)
    assert done.returncode == 0
    first, second = (folder / "log").read_text().splitlines()
    assert "--index-url" not in first
    assert second.endswith("--index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu")
    assert "--no-deps" in first
    assert "--no-deps" in second


def test_other_failures_of_pip_are_shown(programs):
    folder = programs("fakepython", 'echo "$@" >>"$LOG"; echo "ERROR: No space left on device"; exit 1')
    done = run(["bash", "-c", ". tools/python.sh; install_torch fakepython"], folder)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert len((folder / "log").read_text().splitlines()) == 1


def test_missing_programs_without_apt_are_named_in_one_line(programs):
    folder = programs("bwrap", "exit 0")
    done = run(["bash", "tools/system_packages.sh", "test"], folder)
    assert done.returncode == 1
    assert done.stderr.startswith("error: not installed: g++ chromium;")
    assert done.stderr.count("\n") == 1


def test_missing_programs_are_installed_with_apt_as_root(programs):
    programs("bwrap", "exit 0")
    programs("g++", "exit 0")
    programs("id", "echo 0")
    programs("true", "exit 0")
    folder = programs("apt-get", 'echo "$@" >>"$LOG"')
    assert run(["bash", "tools/system_packages.sh", "demo"], folder).returncode == 0
    assert not (folder / "log").exists()  # nothing is missing
    assert run(["bash", "tools/system_packages.sh", "test"], folder).returncode == 0
    update, install = (folder / "log").read_text().splitlines()
    assert update.startswith("update")
    assert install == "install --yes --no-install-recommends chromium"


@pytest.mark.parametrize("script", ["make_venv.sh", "system_packages.sh", "lock.sh"])
def test_an_unknown_argument_is_refused(script):
    done = subprocess.run(
        ["bash", str(ROOT / "tools" / script), "everything"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


def test_make_lists_its_commands():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60, env=os.environ)
    listed = {line.split()[0] for line in done.stdout.splitlines()}
    assert {"demo", "test", "test-next", "check", "doctor", "venv", "venv-next", "clean", "help"} <= listed

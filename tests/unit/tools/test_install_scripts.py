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


def run(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run in the checkout with ``folder`` as PATH."""
    environment = {"PATH": str(folder), "LOG": str(folder / "log"), **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


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


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "TE_SITE is not set and there is no nvcc"),
        (["torch/__init__.py"], "no transformer_engine* is at its top"),
        (["site/transformer_engine/__init__.py"], "no transformer_engine* is at its top"),
    ],
    ids=["not named", "another package", "a folder further down"],
)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
def test_a_missing_transformer_engine_is_one_line_before_anything_is_installed(
    programs, tmp_path, files, message, packed
):
    folder = programs("python3.12", 'echo "$@" >>"$LOG"; exit 1')
    for tool in ("mktemp", "rm", "tar", "sha256sum", "cut"):
        (folder / tool).symlink_to(shutil.which(tool))
    where = ""
    for name in files or ():
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True)
        path.touch()
        where = str(tmp_path / "site")
    if packed and where:
        where = shutil.make_archive(str(tmp_path / "packed"), "tar", where)
    for name in ("tools", "requirements"):  # of a checkout in which the environment has not been made
        shutil.copytree(ROOT / name, tmp_path / "checkout" / name)
    shutil.copy(ROOT / "setup.py", tmp_path / "checkout")
    done = run(["bash", str(tmp_path / "checkout" / "tools" / "make_venv_312.sh"), "te"], folder, TE_SITE=where)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: TE_SITE")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder / "log").exists()


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


@pytest.mark.parametrize("script", ["make_venv.sh", "make_venv_312.sh", "system_packages.sh", "lock.sh"])
def test_an_unknown_argument_is_refused(script):
    done = subprocess.run(
        ["bash", str(ROOT / "tools" / script), "everything"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


def test_make_lists_its_commands():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60, env=os.environ)
    listed = {line.split()[0] for line in done.stdout.splitlines()}
    assert {"demo", "test", "test-next", "test-te", "check", "doctor", "venv", "venv-next", "clean", "help"} <= listed


IMAGE = ["flash_attn==2.7.4", "numpy==1.26.4", "torch==2.10.0a0+nv26.1", "transformer-engine==2.11.0+abc"]


@pytest.mark.parametrize(
    ("before", "after", "status", "message"),
    [
        (IMAGE, [*IMAGE, "tqdm==4.1"], 0, ""),
        (IMAGE, [line.replace("1.26.4", "2.3.5") for line in IMAGE], 0, ""),
        (IMAGE, [line.replace("2.10.0a0+nv26.1", "2.13.0") for line in IMAGE], 1, "has replaced a package"),
        (IMAGE, IMAGE[:-1], 1, "has replaced a package"),
        (IMAGE[:2], IMAGE[:2], 2, "has no torch"),
    ],
    ids=["adds", "replaces another", "replaces torch", "removes TransformerEngine", "no torch"],
)
def test_an_image_keeps_what_was_built_for_its_torch(programs, tmp_path, before, after, status, message):
    folder = programs("python", f"""
        case "$*" in
            *" list "*) cat {tmp_path}/packages ;;
            *" install "*)
                cp {tmp_path}/after {tmp_path}/packages
                echo "$*" >>"$LOG"
                cat "$PIP_CONSTRAINT" >>"$LOG" ;;
        esac""")  # fmt: skip
    for tool in ("mktemp", "rm", "sort", "diff", "paste", "cp"):
        (folder / tool).symlink_to(shutil.which(tool))
    (tmp_path / "packages").write_text("\n".join(before) + "\n")
    (tmp_path / "after").write_text("\n".join(after) + "\n")
    done = run(["bash", "tools/install_beside_torch.sh", "requirements/train.txt"], folder)
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    if status < 2:
        command, *constraints = (folder / "log").read_text().splitlines()
        assert command.endswith("-r requirements/train.txt")
        assert "--no-deps" in command
        assert constraints == [line for line in IMAGE if not line.startswith("numpy")]

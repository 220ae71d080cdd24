"""Tests that a minimal Debian with the packages of the image ``cpu`` has every library that the locked wheels need."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mmdebstrap") is None,
    reason="needs root and mmdebstrap (tools/system_packages.sh cluster); .ci/run has both",
)

SITE_PACKAGES = Path(sysconfig.get_path("platlib"))
NOT_LOADED = {"libtbb.so.12"}  # one of numba's thread pools; it takes another where TBB is not installed


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with Debian 12, Python 3.11 and what the Dockerfile installs into the image."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").partition(" AS cpu\n")[2]
    installed = re.search(r"--no-install-recommends ([^\\]+)", text)
    assert installed is not None
    folder = tmp_path_factory.mktemp("image") / "root"
    command = ["mmdebstrap", "--mode=root", "--variant=minbase", "--dpkgopt=force-unsafe-io", "--quiet",
               f"--include=python3.11,{','.join(installed[1].split())}", "bookworm", str(folder)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    yield folder
    shutil.rmtree(folder)


def test_every_library_of_the_wheels_is_found(root: Path) -> None:
    shared = sorted(str(path) for path in SITE_PACKAGES.rglob("*.so*") if path.is_file() and not path.is_symlink())
    assert len(shared) > 300
    inside = ["bwrap", "--bind", str(root), "/", "--proc", "/proc", "--dev", "/dev", "--ro-bind", str(SITE_PACKAGES),
              str(SITE_PACKAGES), "xargs", "--null", "ldd"]  # fmt: skip
    done = subprocess.run(inside, input="\0".join(shared), capture_output=True, text=True, check=False)
    provided = {path.name for path in SITE_PACKAGES.rglob("*.so*")}  # Python loads them before those that need them
    missing: dict[str, set[str]] = {}
    examined, file = set[str](), ""
    for line in done.stdout.splitlines():
        if not line.startswith("\t"):
            file = line.rstrip(":")
            examined.add(file)
        elif " => not found" in line:
            missing.setdefault(line.split()[0], set()).add(Path(file).relative_to(SITE_PACKAGES).as_posix())
    assert examined == set(shared), done.stderr[-3000:]
    assert {name: files for name, files in missing.items() if name not in provided | NOT_LOADED} == {}

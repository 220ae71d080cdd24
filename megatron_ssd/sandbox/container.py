"""The command lines that start a sandbox: what a container holds, and whose rights its processes have.

Programs shall have nobody's rights, on this machine as well as inside. Who may arrange that differs between machines,
so there are several ways, and the first that starts is taken (``launch_modes``):

- Started by root, bubblewrap itself runs as nobody; needs user namespaces for every user, and Python and this code
  where every user may read them.
- Else root makes the container without a user namespace. Its server stays root, with no more capabilities than it takes
  to start and to end nobody's processes, and each child becomes nobody first of all. Needs CAP_SYS_ADMIN.
- Else programs are nobody inside, without any capability, but the owner of root's files outside. Of those a container
  holds what it shows of the system and of Python, read-only. This way is logged as a warning.
- Started by another user, programs are nobody inside, and that user outside.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.errors import UserError
from megatron_ssd.sandbox.packages import Package, find_packages

NOBODY = 65534
ENVIRONMENT = {
    "PATH": "/usr/bin",
    # A program that prints a set does so alike in every run.
    "PYTHONHASHSEED": "0",
    # Forks need not bind symbols.
    "LD_BIND_NOW": "1",
    # A pool of threads would not fit the limits, and CPU time is counted over all of them.
    **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
}

_PACKAGE_ROOT = Path(__file__).parents[2]
_RUNNER = Path(__file__).with_name("inside").relative_to(_PACKAGE_ROOT)
_ROOT_INSIDE = Path("/runner")
_LOADER_CACHE = Path("/etc/ld.so.cache")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_SYSTEM_FOLDERS = ("/bin", "/lib", "/lib32", "/lib64", "/sbin")
_THREADS = 256  # of a program and its checks together, the server included
_COUNTED_APART_SINCE = (5, 14)  # Linux counts RLIMIT_NPROC of each user namespace by itself
_NAMESPACES = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
_NOBODY_INSIDE = ("--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY))
_FIX_MISSING = (
    "install it (apt-get install bubblewrap), or name evaluation.sandbox.kind=rlimit_only, which limits programs and "
    "isolates nothing"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the server is told, as its one argument; see ``inside.server``."""

    prelude: str
    packages: dict[str, str]
    become: int | None = None
    max_threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchMode:
    """One way to start a server: its command line and the user that this runs as, None for the caller.

    ``weakness`` says in which way programs have more rights than nobody.
    """

    command: tuple[str, ...]
    user: int | None = None
    weakness: str = ""


def launch_modes(config: SandboxConfig) -> tuple[LaunchMode, ...]:
    """Every way that may work for this user, the strictest first.

    Raises:
        UserError: bubblewrap is asked for and missing, or a package is not installed.
    """
    packages = find_packages(config.packages)
    settings = Settings(prelude=config.prelude, packages={package.name: str(package.folder) for package in packages})
    if config.kind == "rlimit_only":
        return (LaunchMode(command=_server(_PACKAGE_ROOT, settings)),)
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise UserError(
            f"evaluation.sandbox.kind = {config.kind}",
            rule="untrusted programs run under bubblewrap, and no bwrap is on PATH",
            fix=_FIX_MISSING,
        )
    content = (*_content(packages), "--")
    apart = dataclasses.replace(settings, max_threads=_THREADS if _counts_apart() else None)
    start = (bwrap, "--die-with-parent", "--new-session", "--as-pid-1", "--clearenv", "--hostname", "sandbox",
             *_NAMESPACES, "--cap-drop", "ALL")  # fmt: skip
    as_nobody = tuple(
        (*start, *_NOBODY_INSIDE, *more, *content, *_server(_ROOT_INSIDE, apart))
        for more in ((("--disable-userns",),) if _knows_disable_userns(bwrap) else ()) + ((),)
    )
    if os.geteuid() != 0:
        return tuple(LaunchMode(command=command) for command in as_nobody)
    given_up = dataclasses.replace(settings, become=NOBODY)
    may_become = ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_KILL")
    return (
        *(LaunchMode(command=command, user=NOBODY) for command in as_nobody),
        LaunchMode(command=(*start, *may_become, *content, *_server(_ROOT_INSIDE, given_up))),
        *(LaunchMode(command=command, weakness="own root's files outside of it") for command in as_nobody),
    )


def _server(root: Path, settings: Settings) -> tuple[str, ...]:
    # Without site packages or the script's folder on its path.
    options = ("-P", "-s", "-S", "-B", "-X", "utf8")
    main = str(root / _RUNNER / "__main__.py")
    return (str(_python()), *options, main, json.dumps(dataclasses.asdict(settings)))


def _python() -> Path:
    """The interpreter below any virtual environment."""
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def _content(packages: Iterable[Package]) -> Iterator[str]:
    """Arguments that fill the container: the system, Python, the packages that are named, and the server; no more."""
    for pair in ENVIRONMENT.items():
        yield from ("--setenv", *pair)
    shown = [Path("/usr")]
    for needed in (Path(sys.base_prefix).resolve(), _python().parent):
        if not any(needed.is_relative_to(folder) for folder in shown):
            shown.append(needed)
    hidden = list(dict.fromkeys(_installed_in(shown)))
    parts = [path for package in packages for path in package.paths]
    server = (_PACKAGE_ROOT / _RUNNER, _ROOT_INSIDE / _RUNNER)
    # Bubblewrap would make folders on the way for its own user alone.
    on_the_way = dict.fromkeys(
        p for path in (*shown, *parts, server[1], Path("/dev/null"), _LOADER_CACHE) for p in path.parents[-2::-1]
    )
    for folder in on_the_way:
        if not any(folder.is_relative_to(other) for other in shown):
            yield from ("--dir", str(folder))
    for folder in shown:
        yield from ("--ro-bind", str(folder), str(folder))
    yield from ("--ro-bind-try", str(_LOADER_CACHE), str(_LOADER_CACHE))
    for folder in map(Path, _SYSTEM_FOLDERS):
        if folder.is_symlink():
            yield from ("--symlink", str(folder.readlink()), str(folder))
        elif folder.is_dir():
            yield from ("--ro-bind", str(folder), str(folder))
    for folder in hidden:
        yield from ("--perms", "0755", "--tmpfs", str(folder))
    for path in parts:
        yield from ("--ro-bind", str(path), str(path))
    for folder in hidden:
        yield from ("--remount-ro", str(folder))
    for device in _DEVICES:
        yield from ("--dev-bind", device, device)
    yield from ("--ro-bind", *map(str, server))
    yield from ("--dir", "/tmp", "--remount-ro", "/", "--chdir", "/")


def _installed_in(folders: Iterable[Path]) -> Iterator[Path]:
    """Folders of packages that stand below ``folders``, which programs must not find."""
    for folder in folders:
        for pattern in ("lib", "lib64", "local/lib", "local/lib64"):
            for kind in ("site-packages", "dist-packages"):
                yield from sorted({p.resolve() for p in folder.glob(f"{pattern}/python3*/{kind}")})


def _counts_apart() -> bool:
    major, minor = platform.release().split(".")[:2]
    return (int(major), int("".join(c for c in minor if c.isdigit()))) >= _COUNTED_APART_SINCE


@functools.cache
def _knows_disable_userns(bwrap: str) -> bool:
    """Bubblewrap 0.8 and later do."""
    words = subprocess.run([bwrap, "--help"], capture_output=True, text=True, check=False)
    return "--disable-userns" in words.stdout + words.stderr

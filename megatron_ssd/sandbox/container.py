"""Builds the command lines that start a container.

Programs run as the user ``nobody``, inside the container and, if the machine allows it, outside as well. Machines
differ in what they allow, so there are several launch modes, and the first that starts is used (``launch_modes``):

- If root starts it, bubblewrap itself runs as nobody. This needs user namespaces for every user, and Python and this
  code must be readable by every user.
- Otherwise root makes the container without a user namespace. Its server stays root, with the capabilities that it
  needs to start and to kill processes of nobody, and each child first becomes nobody. This needs CAP_SYS_ADMIN.
- Otherwise programs are nobody inside, without any capability, but they are root outside. Of root's files, the
  container shows only the system's and Python's, read-only. A warning is logged.
- If another user starts it, programs are nobody inside and that user outside.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
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

NOBODY = 65534
ENVIRONMENT = {
    "PATH": "/usr/bin",
    # A program that prints a set prints the same text in every run.
    "PYTHONHASHSEED": "0",
    # Symbols are bound before the forks.
    "LD_BIND_NOW": "1",
    # A thread pool would exceed the limits, and CPU time is counted over all threads.
    **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
}

_PACKAGE_ROOT = Path(__file__).parents[2]
_RUNNER = Path(__file__).with_name("inside").relative_to(_PACKAGE_ROOT)
_ROOT_INSIDE = Path("/runner")
_LOADER_CACHE = Path("/etc/ld.so.cache")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_STDIN, _STDIN_LINKS = "/dev/stdin", ("/dev/fd/0", "/proc/self/fd/0")
_SYSTEM_FOLDERS = ("/bin", "/lib", "/lib32", "/lib64", "/sbin")
_THREADS = 256  # of a program and its checks together, the server included
_NPROC_PER_NAMESPACE_SINCE = (5, 14)  # the Linux version that counts RLIMIT_NPROC per user namespace
_NAMESPACES = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
_NOBODY_INSIDE = ("--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY))
_FIX_MISSING = (
    "install it (apt-get install bubblewrap), or set evaluation.sandbox.kind=rlimit_only, which limits programs and "
    "isolates nothing"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchMode:
    """How to start a server: its command line, and the user that runs it (None for the caller).

    ``weakness`` says what programs may do that the user ``nobody`` may not.
    """

    command: tuple[str, ...]
    user: int | None = None
    weakness: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A top-level package: ``paths`` are its folder or file and its shared libraries, all of them in ``folder``."""

    name: str
    folder: Path
    paths: tuple[Path, ...]


def launch_modes(config: SandboxConfig, stdin: Path) -> tuple[LaunchMode, ...]:
    """Every mode that may work for this user, the strictest first.

    Args:
        config: kind of sandbox, and packages.
        stdin: the file that will have each program's standard input. Programs see it as ``/dev/stdin``, read-only.

    Raises:
        UserError: bubblewrap is configured but missing, or a package is not installed.
    """
    packages = [find_package(name) for name in config.packages]
    folders = {package.name: str(package.folder) for package in packages}
    if config.kind == "rlimit_only":
        return (LaunchMode(command=_server(_PACKAGE_ROOT, packages=folders, stdin_path=str(stdin))),)
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise UserError(
            f"evaluation.sandbox.kind = {config.kind}",
            rule="untrusted programs run under bubblewrap, and bwrap is not on PATH",
            fix=_FIX_MISSING,
        )
    content = (*_content(packages, stdin), "--")
    max_threads = _THREADS if _counts_threads_per_namespace() else None
    server = functools.partial(_server, _ROOT_INSIDE, packages=folders, stdin_path=_STDIN)
    start = (bwrap, "--die-with-parent", "--new-session", "--as-pid-1", "--clearenv", "--hostname", "sandbox",
             *_NAMESPACES, "--cap-drop", "ALL")  # fmt: skip
    as_nobody = tuple(
        (*start, *_NOBODY_INSIDE, *more, *content, *server(max_threads=max_threads))
        for more in ((("--disable-userns",),) if _knows_disable_userns(bwrap) else ()) + ((),)
    )
    if os.geteuid() != 0:
        return tuple(LaunchMode(command=command) for command in as_nobody)
    capabilities = ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_KILL")
    return (
        *(LaunchMode(command=command, user=NOBODY) for command in as_nobody),
        LaunchMode(command=(*start, *capabilities, *content, *server(become=NOBODY))),
        *(LaunchMode(command=command, weakness="own root's files outside of it") for command in as_nobody),
    )


def _server(
    root: Path, *, packages: dict[str, str], stdin_path: str, become: int | None = None, max_threads: int | None = None
) -> tuple[str, ...]:
    """The command of a server with its one argument; see ``inside.server.serve``."""
    settings = {"packages": packages, "stdin_path": stdin_path, "become": become, "max_threads": max_threads}
    # sys.path has neither site packages nor the script's folder.
    options = ("-P", "-s", "-S", "-B", "-X", "utf8")
    main = str(root / _RUNNER / "__main__.py")
    return (str(_python()), *options, main, json.dumps(settings))


def _python() -> Path:
    """The interpreter on which a virtual environment is built."""
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def _content(packages: Iterable[Package], stdin: Path) -> Iterator[str]:
    """Arguments that show the container the system, Python, the named packages and the server, and nothing else.

    There is no process file system. The links are for programs that open their standard input by its usual names.
    """
    for pair in ENVIRONMENT.items():
        yield from ("--setenv", *pair)
    shown = [Path("/usr")]
    for needed in (Path(sys.base_prefix).resolve(), _python().parent):
        if not any(needed.is_relative_to(folder) for folder in shown):
            shown.append(needed)
    hidden = list(dict.fromkeys(_installed_in(shown)))
    parts = [path for package in packages for path in package.paths]
    server = (_PACKAGE_ROOT / _RUNNER, _ROOT_INSIDE / _RUNNER)
    # Bubblewrap would make parent folders readable only for its own user.
    others = (server[1], Path(_STDIN), *map(Path, _STDIN_LINKS), _LOADER_CACHE)
    parents = dict.fromkeys(p for path in (*shown, *parts, *others) for p in path.parents[-2::-1])
    for folder in parents:
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
    yield from ("--ro-bind", str(stdin), _STDIN)
    for link in _STDIN_LINKS:
        yield from ("--symlink", _STDIN, link)
    yield from ("--ro-bind", *map(str, server))
    yield from ("--dir", "/tmp", "--remount-ro", "/", "--chdir", "/")


def _installed_in(folders: Iterable[Path]) -> Iterator[Path]:
    """Folders of installed packages below ``folders``, which programs must not find."""
    for folder in folders:
        for pattern in ("lib", "lib64", "local/lib", "local/lib64"):
            for kind in ("site-packages", "dist-packages"):
                yield from sorted({p.resolve() for p in folder.glob(f"{pattern}/python3*/{kind}")})


def _counts_threads_per_namespace() -> bool:
    major, minor = platform.release().split(".")[:2]
    return (int(major), int("".join(c for c in minor if c.isdigit()))) >= _NPROC_PER_NAMESPACE_SINCE


@functools.cache
def _knows_disable_userns(bwrap: str) -> bool:
    """Whether this is bubblewrap 0.8 or later."""
    text = subprocess.run([bwrap, "--help"], capture_output=True, text=True, check=False)
    return "--disable-userns" in text.stdout + text.stderr


def find_package(name: str) -> Package:
    """Where a top-level package is installed. It is not imported.

    Raises:
        UserError: it is not installed, or is part of Python itself.
    """
    spec = None if name in sys.stdlib_module_names else importlib.util.find_spec(name)
    if spec is None or not (spec.origin or spec.submodule_search_locations):
        reason = (
            "is part of Python itself" if name in sys.stdlib_module_names else "is not installed in this environment"
        )
        raise UserError(
            f"evaluation.sandbox.packages: {name}", rule=reason, fix="install it, or leave it out of the list"
        )
    path = Path(str(next(iter(spec.submodule_search_locations or ()), spec.origin))).absolute()
    return Package(name=name, folder=path.parent, paths=(path, *_libraries(path)))


def _libraries(package: Path) -> list[Path]:
    """Folders next to ``package`` with its shared libraries. Wheels name them after the distribution."""
    named = package.with_name(f"{package.name}.libs")
    if named.is_dir():
        return [named]
    return sorted(folder for folder in package.parent.glob("*.libs") if _installs(folder.stem, package.name))


def _installs(distribution: str, name: str) -> bool:
    """Whether the installed files of ``distribution`` have the top-level ``name``."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return any(file.parts[0] == name for file in importlib.metadata.files(distribution) or ())
    return False

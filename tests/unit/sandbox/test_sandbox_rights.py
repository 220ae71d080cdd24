"""Tests that programs have the rights of the user ``nobody``, in every launch mode that this machine allows.

They need bubblewrap.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.errors import UserError
from megatron_ssd.sandbox import container
from megatron_ssd.sandbox.container import NOBODY, LaunchMode
from megatron_ssd.sandbox.sandbox import Sandbox
from tests.helpers.sandboxed import run

IS_ROOT = os.geteuid() == 0
# A Python of this version that every user may read. The one that runs this test may be in a home directory.
OPEN_PYTHON = Path(f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}")


def kind_of(mode: LaunchMode) -> str:
    """Which of the launch modes in ``container``'s docstring it is."""
    if mode.user == NOBODY:
        return "bubblewrap runs as nobody"
    if mode.weakness:
        return "root without rights"
    return "children give up root" if IS_ROOT else "another user"


KINDS = ("bubblewrap runs as nobody", "children give up root", "root without rights") if IS_ROOT else ("another user",)


@pytest.fixture(scope="module", params=KINDS)
def started(request: pytest.FixtureRequest) -> Iterator[tuple[Sandbox, str]]:
    """A container of each kind. Its package ``lent`` has a file that only its owner may read."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        package = Path(folder) / "lent"
        package.mkdir()
        (package / "__init__.py").write_text("secret = __file__.replace('__init__.py', 'secret')")
        (package / "secret").write_text("s3cret")
        (package / "secret").chmod(0o600)
        patch.syspath_prepend(folder)
        if request.param == KINDS[0] and IS_ROOT:
            if not OPEN_PYTHON.exists():
                pytest.skip(f"needs {OPEN_PYTHON}, which every user may read")
            patch.setattr(container, "_python", lambda: OPEN_PYTHON)
            patch.setattr(sys, "base_prefix", "/usr")
        config = SandboxConfig(packages=("lent",))
        with Sandbox(config) as created:
            created._modes = tuple(mode for mode in created._modes if kind_of(mode) == request.param)
            try:
                created.start()
            except UserError as error:
                if not re.search("ermission|permitted", str(error)):
                    raise
                pytest.skip(f"this machine does not allow it: {error}")
            yield created, request.param


@pytest.fixture
def box(started: tuple[Sandbox, str]) -> Sandbox:
    return started[0]


def test_the_user_is_nobody_without_groups(box: Sandbox):
    source = "import os\nprint(os.getresuid(), os.getresgid(), os.getgroups())"
    assert run(box, source).outputs == (f"{(NOBODY,) * 3} {(NOBODY,) * 3} []\n",)


def test_programs_have_no_capabilities(box: Sandbox):
    source = (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()\n"
        "assert libc.capget(header, data) == 0\n"
        "ambient = [n for n in range(41) if libc.prctl(47, 1, n, 0, 0) > 0]\n"
        "print(list(data), ambient, libc.prctl(39, 0, 0, 0, 0))"
    )
    # Effective, permitted, inheritable and ambient capabilities, then NoNewPrivs, which prevents new ones.
    assert run(box, source).outputs == ("[0, 0, 0, 0, 0, 0] [] 1\n",)


@pytest.mark.parametrize(
    "source",
    [
        "os.setuid(0)",
        "os.setgid(0)",
        "os.setgroups([0])",
        "os.chown('/tmp', 65534, 65534)",
        "os.chown('/tmp', 0, 0)",
        "os.chmod('/usr', 0o777)",
        "os.chroot('/tmp')",
        "call('mount', b'none', b'/tmp', b'tmpfs', 0, None)",
        "call('umount2', b'/tmp', 0)",
        "call('syscall', {'x86_64': 155, 'aarch64': 41}[os.uname().machine], b'/', b'/tmp')",  # pivot_root
        "call('ptrace', 16, 1, 0, 0)",
        "call('unshare', 0x10000000)",  # a user namespace, in which it would be root
        "call('setns', 3, 0)",
        "call('sethostname', b'x', 1)",
        "os.mknod('/tmp/x', 0o20666, os.makedev(1, 1))",
        "os.setpriority(os.PRIO_PROCESS, 0, -5)",
        "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
        "open('/etc/shadow')",
        "open('/root/.bashrc')",
    ],
)
def test_operations_of_root_fail(box: Sandbox, source: str):
    helper = (
        "import ctypes, os, socket\n"
        "def call(name, *arguments):\n"
        "    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) == -1:\n"
        "        raise OSError(ctypes.get_errno(), 'refused')\n"
    )
    execution = run(box, helper + source)
    assert execution.ending == "runtime_error"
    assert execution.detail.startswith(("PermissionError", "OSError", "FileNotFoundError")), execution.detail


def test_a_file_that_only_root_may_read(box: Sandbox, started: tuple[Sandbox, str]):
    execution = run(box, "import lent\nprint(open(lent.secret).read())")
    if started[1] in ("bubblewrap runs as nobody", "children give up root"):
        assert "PermissionError" in execution.detail
    else:  # what this launch mode's warning says
        assert execution.outputs == ("s3cret\n",)


def test_ids_and_capabilities_seen_from_outside(box: Sandbox, started: tuple[Sandbox, str]):
    assert box._process is not None
    (server,) = psutil.Process(box._process.pid).children(recursive=True)
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{server.pid}/status").read_text().splitlines())
    user = str(NOBODY) if started[1] == "bubblewrap runs as nobody" else str(os.geteuid())
    assert set(status["Uid"].split()) == {user}
    of_the_server = 1 << 5 | 1 << 6 | 1 << 7 if started[1] == "children give up root" else 0  # KILL, SETGID, SETUID
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == of_the_server
    assert status["NoNewPrivs"] == "1"


def test_processes_outside_cannot_be_signalled(box: Sandbox):
    for pid in (os.getpid(), os.getppid()):
        assert run(box, f"import os\nos.kill({pid}, 0)").ending == "runtime_error"


def test_a_fork_bomb_and_a_thread_bomb_are_limited(box: Sandbox, started: tuple[Sandbox, str]):
    assert "PermissionError" in run(box, "import os\nwhile True:\n    os.fork()").detail
    source = (
        "import threading, time\nthreading.stack_size(1 << 16)\nn = 0\ntry:\n    while n < 600:\n"
        "        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n        n += 1\n"
        "except RuntimeError:\n    pass\nprint(n)"
    )
    # Enough memory for all threads: one that finds none as it starts keeps Thread.start waiting for it.
    limits = {"cpu_seconds": 20.0, "wall_seconds": 100.0, "memory_bytes": 4 << 30}
    (count,) = run(box, source, **limits).outputs
    if started[1] in ("bubblewrap runs as nobody", "another user"):  # RLIMIT_NPROC does not bind root
        assert 0 < int(count) < container._THREADS
    few = source.replace("600", "20")
    assert run(box, few, **limits).outputs == ("20\n",)


@pytest.mark.skipif(not IS_ROOT, reason="only root has several launch modes")
def test_the_first_launch_mode_that_starts_is_used_and_a_weak_one_is_logged(caplog: pytest.LogCaptureFixture):
    broken = LaunchMode(command=("/bin/sh", "-c", "echo no namespaces >&2; exit 1"))
    with caplog.at_level(logging.WARNING), Sandbox(SandboxConfig()) as created:
        weak = tuple(mode for mode in created._modes if mode.weakness)
        created._modes = (broken, *weak)
        created.start()
        assert created._modes[0] in weak
    assert "own root's files outside of it; stricter modes fail (no namespaces)" in caplog.text


def test_packages_of_the_systems_python_are_hidden(box: Sandbox):
    source = (
        "import glob\n"
        "tops = [f'/usr/{top}lib/python3*/{kind}-packages/*' for top in ('', 'local/') for kind in ('site', 'dist')]\n"
        "print([path for top in tops for path in glob.glob(top)])"
    )
    assert run(box, source).outputs == ("[]\n",)

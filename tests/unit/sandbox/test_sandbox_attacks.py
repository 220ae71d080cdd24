"""Tests for the sandbox with hostile programs, one attack per test.

All need bubblewrap. Without it they fail, and the error says how to install it.
"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.grading.compare import value_difference
from megatron_ssd.sandbox.sandbox import Sandbox
from tests.helpers.sandboxed import call, run


class TestAttacks:
    @pytest.mark.parametrize(
        "source",
        [
            "import os\nwhile True:\n    os.fork()",
            "import subprocess\nsubprocess.run(['/usr/bin/env'])",
            "import os\nos.execv('/usr/bin/env', ['env'])",
            "import os\nos.posix_spawn('/usr/bin/env', ['env'], {})",
        ],
    )
    def test_a_fork_bomb_and_the_start_of_other_programs(self, sandbox: Sandbox, source: str):
        execution = run(sandbox, source)
        assert execution.ending == "runtime_error"
        assert "PermissionError" in execution.detail

    def test_a_direct_clone_system_call(self, sandbox: Sandbox):
        source = (
            "import ctypes, os\nlibc = ctypes.CDLL(None)\n"
            "print(libc.syscall({'x86_64': 56, 'aarch64': 220}[os.uname().machine], 17, 0, 0, 0, 0), libc.fork())"
        )
        assert run(sandbox, source).outputs == ("-1 -1\n",)

    @pytest.mark.parametrize("source", ["x = bytearray(1 << 40)", "x = []\nwhile True:\n    x.append(bytes(1 << 20))"])
    def test_a_memory_bomb(self, sandbox: Sandbox, source: str):
        assert run(sandbox, source).ending == "memory"

    def test_endless_output(self, sandbox: Sandbox):
        execution = run(sandbox, "while True:\n    print('x' * 1000)")
        assert (execution.ending, execution.detail) == ("runtime_error", "more than 1 MiB of output")

    def test_endless_results(self, sandbox: Sandbox):
        execution = call(sandbox, "import os\ndef f(x):\n    while True:\n        os.write(3, b'x' * 1000)", ["1"])
        assert (execution.ending, execution.detail) == ("runtime_error", "more than 1 MiB of output")

    def test_endless_memory_files(self, sandbox: Sandbox):
        source = (
            "import os\nfds = []\nwhile True:\n    fds.append(os.memfd_create('x'))\n"
            "    try:\n        os.write(fds[-1], bytes(8 << 20))\n    except OSError:\n        pass"
        )
        execution = run(sandbox, source)
        assert execution.ending == "runtime_error"
        assert "Too many open files" in execution.detail

    def test_an_infinite_loop(self, sandbox: Sandbox):
        execution = run(sandbox, "while True:\n    pass")
        assert (execution.ending, execution.detail) == ("timeout", "more than 0.5 s of CPU time")

    def test_ignoring_signals_does_not_prevent_the_timeout(self, sandbox: Sandbox):
        source = "import signal\nfor s in set(range(1, 65)) - {9, 19, 32, 33}:\n    signal.signal(s, signal.SIG_IGN)\n"
        assert run(sandbox, source + "while True:\n    pass").ending == "timeout"

    def test_catching_exceptions_does_not_prevent_the_timeout(self, sandbox: Sandbox):
        source = "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass"
        assert run(sandbox, source).ending == "timeout"

    def test_forged_results_do_not_extend_the_time_limit(self, sandbox: Sandbox):
        source = "import os, time\ndef f(x):\n    while True:\n        os.write(3, b'\\n')\n        time.sleep(0.01)"
        assert call(sandbox, source, ["1"], wall_seconds=1.0).ending == "starved"

    def test_the_time_limit_applies_to_each_test(self, sandbox: Sandbox):
        source = (
            "import time\ndef f(x):\n    end = time.process_time() + 0.3\n    while time.process_time() < end: pass"
        )
        execution = call(sandbox, source, ["1"] * 4)
        assert execution.ending == "completed"
        assert all(0.2 < seconds < 0.5 for seconds in execution.cpu_seconds)

    def test_sleeping_ends_at_the_wall_time_limit(self, sandbox: Sandbox):
        assert run(sandbox, "import time\ntime.sleep(100)", wall_seconds=0.2).ending == "starved"

    @pytest.mark.parametrize("path", ["/tmp/x", "/x", "/usr/x", "/dev/shm/x", "/dev/x", "/etc/x", "/var/tmp/x"])
    def test_nothing_is_writable(self, sandbox: Sandbox, path: str):
        assert "Error" in run(sandbox, f"open({path!r}, 'w')").detail

    def test_no_file_of_this_machine_is_readable(self, sandbox: Sandbox, tmp_path: Path):
        secret = tmp_path / "secret"
        secret.write_text("s3cret")
        own = Path(__file__).resolve()
        for path in (secret, own, Path("/etc/passwd"), Path("/proc/1/environ"), Path("/proc/self/maps")):
            assert "FileNotFoundError" in run(sandbox, f"print(open({str(path)!r}).read())").detail

    def test_the_environment_contains_no_secret(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("API_TOKEN", "s3cret")
        with Sandbox(SandboxConfig()) as fresh:
            (output,) = run(fresh, "import os\nprint(dict(os.environ))").outputs
        assert "API_TOKEN" not in output
        assert "HOME" not in output

    def test_the_network_cannot_be_reached(self, sandbox: Sandbox):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            execution = run(sandbox, f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=2)")
        assert execution.ending == "runtime_error"
        assert "Error" in execution.detail

    @pytest.mark.parametrize(
        "source",
        [
            "import os\nos.kill(os.getppid(), 9)",
            "import os\nos.kill(1, 2)",
            "import os\nos.kill(-1, 9)",
            "import os\nos.killpg(0, 9)",
            "import ctypes\nassert ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0",
            "open('/proc/1/mem', 'wb')",
        ],
    )
    def test_the_server_cannot_be_reached(self, sandbox: Sandbox, source: str):
        assert run(sandbox, source).ending == "runtime_error"

    @pytest.mark.parametrize(
        "source",
        [
            "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_FSIZE, (1, 1))",
            "import resource\nresource.prlimit(1, resource.RLIMIT_AS, (1 << 20, 1 << 20))",
            "import os\nos.sched_setaffinity(os.getppid(), {0})",
            "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        ],
    )
    def test_the_servers_limits_and_priority_cannot_be_changed(self, sandbox: Sandbox, source: str):
        execution = run(sandbox, source)
        assert execution.ending == "runtime_error"
        assert "PermissionError" in execution.detail
        assert run(sandbox, "print(1)").outputs == ("1\n",)

    def test_a_program_may_lower_its_own_limits(self, sandbox: Sandbox):
        source = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))\nprint(1)"
        assert run(sandbox, source).outputs == ("1\n",)

    def test_no_descriptor_of_the_server_is_left_open(self, sandbox: Sandbox):
        source = (
            "import os\n"
            "def is_open(fd):\n"
            "    try:\n        os.fstat(fd)\n        return True\n"
            "    except OSError:\n        return False\n"
            "print([fd for fd in range(4096) if is_open(fd)])"
        )
        assert run(sandbox, source).outputs == ("[0, 1, 2, 3]\n",)

    @pytest.mark.parametrize("source", ["import os\nos.closerange(0, 64)", "import sys\nsys.stdout.close()"])
    def test_a_program_that_closes_its_files_does_not_affect_the_next_one(self, sandbox: Sandbox, source: str):
        run(sandbox, source)

    def test_runaway_recursion(self, sandbox: Sandbox):
        assert "RecursionError" in run(sandbox, "def f():\n    f()\nf()", cpu_seconds=5.0).detail

    def test_a_crash_of_the_interpreter(self, sandbox: Sandbox):
        assert run(sandbox, "import ctypes\nctypes.string_at(0)").detail == "killed by signal 11"

    def test_limits_cannot_be_raised(self, sandbox: Sandbox):
        source = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))"
        assert run(sandbox, source).ending == "runtime_error"

    def test_a_thread_bomb(self, sandbox: Sandbox):
        start = "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
        source = f"import threading, time\nwhile True:\n    {start}"
        assert run(sandbox, source, cpu_seconds=5.0).ending in ("runtime_error", "memory", "timeout")

    def test_ignoring_sigterm_and_sleeping(self, sandbox: Sandbox):
        source = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True:\n    time.sleep(60)"
        assert run(sandbox, source, wall_seconds=0.3).ending == "starved"

    def test_closing_standard_output_gives_an_empty_output(self, sandbox: Sandbox):
        assert run(sandbox, "import os\nos.close(1)\nos.write(2, b'1')").outputs == ("",)

    def test_an_exit_before_the_function_is_called(self, sandbox: Sandbox):
        execution = call(sandbox, "import sys\ndef f(x): return x\nsys.exit(0)", ["1"])
        assert (execution.ending, execution.outputs) == ("runtime_error", ())

    @pytest.mark.parametrize(
        "patch",
        [
            "import json\njson.dumps = lambda *a, **k: '\"2\"'",
            "import builtins\nbuiltins.isinstance = lambda *a: True",
            "import sys\nfor m in [m for n, m in sys.modules.items() if 'inside' in n]:\n"
            "    for n in list(vars(m)):\n        if callable(getattr(m, n)): setattr(m, n, lambda *a, **k: None)",
        ],
    )
    def test_patching_the_checker_does_not_forge_a_correct_answer(self, sandbox: Sandbox, patch: str):
        """The host compares results, so a program can spoil only its own."""
        execution = call(sandbox, f"{patch}\ndef f(x):\n    return 1", ["1"])
        assert not any(value_difference(output, "2") is None for output in execution.outputs)
        assert call(sandbox, "def f(x): return x", ["5"]).outputs == ("5",), "the next program is unharmed"

    def test_an_object_that_equals_everything_is_not_the_expected_result(self, sandbox: Sandbox):
        source = "class A(list):\n    __eq__ = lambda self, other: True\ndef f(x):\n    return A()"
        (output,) = call(sandbox, source, ["1"]).outputs
        assert value_difference(output, "[2]") is not None

    def test_files_with_tests_are_not_visible(self, sandbox: Sandbox):
        source = (
            "import os\nfor folder, _, files in os.walk('/'):\n    for name in files:\n"
            "        if name.endswith(('.jsonl', '.json', '.parquet')) and not folder.startswith(('/usr', '/lib')):\n"
            "            print(os.path.join(folder, name))"
        )
        execution = run(sandbox, source, cpu_seconds=20.0, wall_seconds=60.0)
        assert [line for output in execution.outputs for line in output.splitlines() if "/site-packages/" not in line
                and "/lib/python" not in line] == []  # fmt: skip
        assert execution.ending == "completed"

"""One attack or one promise a test. All need bubblewrap: without it they fail, and the error says how to install it."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.errors import UserError
from megatron_ssd.evaluation.sandbox import Execution, Limits, Program, Sandbox, SandboxBrokenError

ROOT = Path(__file__).resolve().parents[3]
LIMITS = Limits(cpu_seconds=0.5, wall_seconds=20.0, memory_bytes=512 << 20, output_bytes=1 << 20)
BYSTANDER = Program(source="print(input()[::-1])", form="stdin")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(SandboxConfig()) as container:
        container.start()
        yield container


def run(sandbox: Sandbox, source: str, stdin: str = "", **changes: float) -> Execution:
    """Run a program, then see that the same container still serves the next one."""
    execution = sandbox.execute(Program(source=source, form="stdin"), [stdin], dataclasses.replace(LIMITS, **changes))
    container = sandbox._process
    assert sandbox.execute(BYSTANDER, ["abc"], LIMITS).outputs == ("cba\n",)
    assert sandbox._process is container, "the container was replaced"
    return execution


def call(sandbox: Sandbox, source: str, inputs: list[str], **changes: float) -> Execution:
    program = Program(source=source, form="function", function_name="f")
    return sandbox.execute(program, inputs, dataclasses.replace(LIMITS, **changes))


class TestPrograms:
    def test_stdin_program_reads_and_prints(self, sandbox: Sandbox):
        assert run(sandbox, "print(int(input()) + 1)", "41\n").outputs == ("42\n",)

    def test_function_is_called_on_every_input(self, sandbox: Sandbox):
        assert call(sandbox, "def f(a, b):\n    return [a, (b,)]", ["1\n2", '"x"\nnull']).outputs == (
            "[1, [2]]",
            '["x", [null]]',
        )

    def test_method_of_a_new_object_for_every_input(self, sandbox: Sandbox):
        source = "class Solution:\n    n = 0\n    def f(self):\n        self.n += 1\n        return self.n"
        program = Program(source=source, form="function", function_name="f", class_name="Solution")
        assert sandbox.execute(program, ["", ""], LIMITS).outputs == ("1", "1")

    def test_main_guard_runs_for_stdin_programs_only(self, sandbox: Sandbox):
        guard = "\nif __name__ == '__main__':\n    print('main')"
        assert run(sandbox, guard).outputs == ("main\n",)
        assert call(sandbox, "def f(): return __name__" + guard, [""]).outputs == ('"solution"',)

    def test_printing_does_not_disturb_a_functions_result(self, sandbox: Sandbox):
        assert call(sandbox, "def f(x):\n    print('noise')\n    return x", ["7"]).outputs == ("7",)

    def test_common_modules_need_no_import_and_hide_no_builtin(self, sandbox: Sandbox):
        source = "print(Counter('aab').most_common(1), pow(2, 5, 7), gcd(4, 6), List[int])"
        assert run(sandbox, source).outputs == ("[('a', 2)] 4 2 typing.List[int]\n",)

    def test_nothing_stays_of_the_program_before(self, sandbox: Sandbox):
        run(sandbox, "import builtins, math\nbuiltins.left = 1\nmath.pi = 3\nlist_ = 1")
        assert run(sandbox, "print(hasattr(__builtins__, 'left'), math.pi > 3.1)").outputs == ("False True\n",)

    def test_the_same_program_prints_the_same(self, sandbox: Sandbox):
        source = "import random\nprint(random.random(), list({'a', 'b', 'c', 'd'}), hash('x'))"
        first = run(sandbox, source).outputs
        with Sandbox(SandboxConfig()) as other:
            assert run(other, source).outputs == first

    def test_deep_recursion_through_c_code(self, sandbox: Sandbox):
        source = "@cache\ndef f(n):\n    return 0 if n == 0 else 1 + f(n - 1)\nprint(f(20000))"
        assert run(sandbox, source).outputs == ("20000\n",)

    def test_threads_and_exit_handlers_finish(self, sandbox: Sandbox):
        source = (
            "import threading, atexit\natexit.register(lambda: print('end'))\n"
            "threading.Thread(target=lambda: print('thread')).start()"
        )
        assert run(sandbox, source).outputs == ("thread\nend\n",)

    def test_big_input_and_long_integers(self, sandbox: Sandbox):
        assert run(sandbox, "print(len(input()))", "x" * 3_000_000).outputs == ("3000000\n",)
        assert run(sandbox, "print(len(str(10 ** 6000)))").outputs == ("6001\n",)


class TestEndings:
    def test_early_exit_keeps_the_output(self, sandbox: Sandbox):
        assert run(sandbox, "import sys\nprint(1)\nsys.exit(0)\nprint(2)").outputs == ("1\n",)

    def test_exit_status_is_an_error(self, sandbox: Sandbox):
        execution = run(sandbox, "import sys\nprint(1)\nsys.exit(3)")
        assert (execution.ending, execution.detail, execution.outputs) == ("runtime_error", "exit status 3", ())

    def test_early_exit_of_a_function_is_no_result(self, sandbox: Sandbox):
        execution = call(sandbox, "import os\ndef f(x):\n    os._exit(0)", ["1"])
        assert (execution.ending, execution.outputs) == ("runtime_error", ())

    def test_exception_is_named(self, sandbox: Sandbox):
        assert run(sandbox, "1 / 0").detail == "ZeroDivisionError: division by zero"

    def test_an_exception_whose_text_raises(self, sandbox: Sandbox):
        source = "class E(Exception):\n    def __str__(self):\n        raise KeyError(1)\nraise E"
        assert run(sandbox, source).ending == "runtime_error"

    @pytest.mark.parametrize("source", ["x = (", "\0", "(" * 5000, "return 1", "a = 'x' * \n"])
    def test_syntax_error(self, sandbox: Sandbox, source: str):
        assert run(sandbox, source).ending == "syntax_error"

    def test_a_result_that_is_no_json(self, sandbox: Sandbox):
        execution = call(sandbox, "def f(x): return {1, 2}", ["1"])
        assert execution.ending == "runtime_error"
        assert "set" in execution.detail

    def test_missing_function(self, sandbox: Sandbox):
        assert call(sandbox, "def g(x): return x", ["1"]).ending == "runtime_error"

    def test_results_before_an_error_are_kept(self, sandbox: Sandbox):
        execution = call(sandbox, "def f(x): return 6 // x", ["1", "2", "0", "3"])
        assert (execution.outputs, execution.ending) == (("6", "3"), "runtime_error")


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
    def test_fork_bomb_and_other_programs(self, sandbox: Sandbox, source: str):
        execution = run(sandbox, source)
        assert execution.ending == "runtime_error"
        assert "PermissionError" in execution.detail

    def test_a_clone_system_call_of_its_own_making(self, sandbox: Sandbox):
        source = (
            "import ctypes\nlibc = ctypes.CDLL(None)\n"
            "print(libc.syscall({'x86_64': 56, 'aarch64': 220}[os.uname().machine], 17, 0, 0, 0, 0), libc.fork())"
        )
        assert run(sandbox, source).outputs == ("-1 -1\n",)

    @pytest.mark.parametrize("source", ["x = bytearray(1 << 40)", "x = []\nwhile True:\n    x.append(bytes(1 << 20))"])
    def test_memory_bomb(self, sandbox: Sandbox, source: str):
        assert run(sandbox, source).ending == "memory"

    def test_endless_output(self, sandbox: Sandbox):
        execution = run(sandbox, "while True:\n    print('x' * 1000)")
        assert (execution.ending, execution.detail) == ("runtime_error", "more than 1 MiB of output")

    def test_endless_results(self, sandbox: Sandbox):
        execution = call(sandbox, "import os\ndef f(x):\n    while True:\n        os.write(3, b'x' * 1000)", ["1"])
        assert (execution.ending, execution.detail) == ("runtime_error", "more than 1 MiB of output")

    def test_endless_memory_files(self, sandbox: Sandbox):
        source = (
            "fds = []\nwhile True:\n    fds.append(os.memfd_create('x'))\n"
            "    try:\n        os.write(fds[-1], bytes(8 << 20))\n    except OSError:\n        pass"
        )
        execution = run(sandbox, source)
        assert execution.ending == "runtime_error"
        assert "Too many open files" in execution.detail

    def test_infinite_loop(self, sandbox: Sandbox):
        execution = run(sandbox, "while True:\n    pass")
        assert (execution.ending, execution.detail) == ("timeout", "more than 0.5 s of CPU time")

    def test_ignored_signals_do_not_help(self, sandbox: Sandbox):
        source = "import signal\nfor s in set(range(1, 65)) - {9, 19, 32, 33}:\n    signal.signal(s, signal.SIG_IGN)\n"
        assert run(sandbox, source + "while True:\n    pass").ending == "timeout"

    def test_swallowed_exceptions_do_not_help(self, sandbox: Sandbox):
        source = "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass"
        assert run(sandbox, source).ending == "timeout"

    def test_forged_results_buy_no_time(self, sandbox: Sandbox):
        started = time.monotonic()
        source = "import os, time\ndef f(x):\n    while True:\n        os.write(3, b'\\n')\n        time.sleep(0.01)"
        assert call(sandbox, source, ["1"], wall_seconds=1.0).ending == "starved"
        assert time.monotonic() - started < 60

    def test_the_time_limit_is_of_each_test(self, sandbox: Sandbox):
        source = (
            "import time\ndef f(x):\n    end = time.process_time() + 0.3\n    while time.process_time() < end: pass"
        )
        execution = call(sandbox, source, ["1"] * 4)
        assert execution.ending == "completed"
        assert all(0.2 < seconds < 0.5 for seconds in execution.cpu_seconds)

    def test_sleeping_meets_the_wall_limit(self, sandbox: Sandbox):
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

    def test_environment_holds_no_secret(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("API_TOKEN", "s3cret")
        with Sandbox(SandboxConfig()) as fresh:
            (output,) = run(fresh, "import os\nprint(dict(os.environ))").outputs
        assert "API_TOKEN" not in output
        assert "HOME" not in output

    def test_no_network(self, sandbox: Sandbox):
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
    def test_closing_its_channels_hurts_nobody_else(self, sandbox: Sandbox, source: str):
        run(sandbox, source)

    def test_runaway_recursion(self, sandbox: Sandbox):
        assert "RecursionError" in run(sandbox, "def f():\n    f()\nf()", cpu_seconds=5.0).detail

    def test_crash_of_the_interpreter(self, sandbox: Sandbox):
        assert run(sandbox, "import ctypes\nctypes.string_at(0)").detail == "killed by signal 11"

    def test_limits_cannot_be_raised(self, sandbox: Sandbox):
        source = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))"
        assert run(sandbox, source).ending == "runtime_error"


class TestContainer:
    def test_missing_bubblewrap_is_an_error_with_the_fix(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(UserError, match="apt-get install bubblewrap"):
            Sandbox(SandboxConfig())

    def test_bubblewrap_that_cannot_start_is_an_error_with_its_words(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ):
        fake = tmp_path / "bwrap"
        fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        with pytest.raises(UserError, match=r"No permissions to create new namespace.*rlimit_only"):
            Sandbox(SandboxConfig()).execute(BYSTANDER, ["abc"], LIMITS)

    def test_without_bubblewrap_by_name_only(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        monkeypatch.setenv("PATH", str(tmp_path))
        with Sandbox(SandboxConfig(kind="rlimit_only")) as plain:
            assert run(plain, "print(1)").outputs == ("1\n",)
            assert run(plain, "import os\nos.fork()").ending == "runtime_error"
            assert run(plain, "import os\nos.kill(os.getppid(), 9)").ending == "runtime_error"

    def test_a_container_that_dies_is_noticed_and_replaced(self):
        with Sandbox(SandboxConfig()) as fresh:
            fresh.start().kill()
            with pytest.raises(SandboxBrokenError):
                fresh.execute(BYSTANDER, ["abc"], LIMITS)
            assert fresh.execute(BYSTANDER, ["abc"], LIMITS).outputs == ("cba\n",)

    def test_closing_leaves_no_process(self):
        container = Sandbox(SandboxConfig())
        process = container.start()
        container.close()
        assert process.poll() is not None

    @pytest.mark.parametrize("kind", ["bubblewrap", "rlimit_only"])
    def test_a_killed_host_leaves_no_process(self, kind: str):
        source = (
            "import sys\n"
            "from megatron_ssd.config.evaluation import SandboxConfig\n"
            "from megatron_ssd.evaluation.sandbox import Sandbox\n"
            f"print(Sandbox(SandboxConfig(kind={kind!r})).start().pid, flush=True)\n"
            "sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
        ) as host:
            assert host.stdout is not None
            pid = int(host.stdout.readline())
            host.kill()
        deadline = time.monotonic() + 30
        while is_running(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_running(pid)


def is_running(pid: int) -> bool:
    """Whether ``pid`` is there and no zombie that nobody has reaped yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"

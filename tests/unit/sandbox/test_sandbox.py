"""Tests for the sandbox with ordinary programs; they need bubblewrap."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.errors import UserError
from megatron_ssd.sandbox.sandbox import Program, Sandbox, SandboxBrokenError
from tests.helpers.executables import write_executable
from tests.helpers.paths import ROOT
from tests.helpers.sandboxed import BYSTANDER, LIMITS, call, run


class TestPrograms:
    def test_a_stdin_program_reads_and_prints(self, sandbox: Sandbox):
        assert run(sandbox, "print(int(input()) + 1)", "41\n").outputs == ("42\n",)

    def test_a_function_is_called_on_every_input(self, sandbox: Sandbox):
        assert call(sandbox, "def f(a, b):\n    return [a, (b,)]", ["1\n2", '"x"\nnull']).outputs == (
            '[1, {"tuple": [2]}]',
            '["x", {"tuple": [null]}]',
        )

    def test_a_method_is_called_on_a_new_object_for_every_input(self, sandbox: Sandbox):
        source = "class Solution:\n    n = 0\n    def f(self):\n        self.n += 1\n        return self.n"
        program = Program(source=source, form="function", function_name="f", class_name="Solution")
        assert sandbox.execute(program, ["", ""], LIMITS).outputs == ("1", "1")

    def test_the_main_guard_runs_only_in_stdin_programs(self, sandbox: Sandbox):
        guard = "\nif __name__ == '__main__':\n    print('main')"
        assert run(sandbox, guard).outputs == ("main\n",)
        assert call(sandbox, "def f(): return __name__" + guard, [""]).outputs == ('"solution"',)

    def test_printing_does_not_disturb_a_functions_result(self, sandbox: Sandbox):
        assert call(sandbox, "def f(x):\n    print('noise')\n    return x", ["7"]).outputs == ("7",)

    def test_common_modules_are_imported_and_do_not_hide_builtins(self, sandbox: Sandbox):
        source = "print(Counter('aab').most_common(1), pow(2, 5, 7), gcd(4, 6), List[int])"
        assert run(sandbox, source).outputs == ("[('a', 2)] 4 2 typing.List[int]\n",)

    def test_a_program_does_not_change_the_next_one(self, sandbox: Sandbox):
        run(sandbox, "import builtins, math\nbuiltins.left = 1\nmath.pi = 3\nlist_ = 1")
        assert run(sandbox, "print(hasattr(__builtins__, 'left'), math.pi > 3.1)").outputs == ("False True\n",)

    def test_a_program_prints_the_same_in_every_container(self, sandbox: Sandbox):
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

    def test_large_inputs_and_long_integers(self, sandbox: Sandbox):
        assert run(sandbox, "print(len(input()))", "x" * 3_000_000).outputs == ("3000000\n",)
        assert run(sandbox, "print(len(str(10 ** 6000)))").outputs == ("6001\n",)


class TestEndings:
    def test_an_early_exit_keeps_the_output(self, sandbox: Sandbox):
        assert run(sandbox, "import sys\nprint(1)\nsys.exit(0)\nprint(2)").outputs == ("1\n",)

    @pytest.mark.parametrize("status", ["1", "3", "'text'", "None"])
    def test_any_exit_status_keeps_the_output_as_in_the_official_checker(self, sandbox: Sandbox, status: str):
        assert run(sandbox, f"import sys\nprint(1)\nsys.exit({status})\nprint(2)").outputs == ("1\n",)

    def test_an_exit_without_the_interpreter_is_an_error(self, sandbox: Sandbox):
        execution = run(sandbox, "import os\nprint(1, flush=True)\nos._exit(3)")
        assert (execution.ending, execution.detail, execution.outputs) == ("runtime_error", "exit status 3", ())

    def test_an_early_exit_in_a_function_gives_no_result(self, sandbox: Sandbox):
        execution = call(sandbox, "import os\ndef f(x):\n    os._exit(0)", ["1"])
        assert (execution.ending, execution.outputs) == ("runtime_error", ())

    def test_an_exception_is_named(self, sandbox: Sandbox):
        assert run(sandbox, "1 / 0").detail == "ZeroDivisionError: division by zero"

    def test_an_exception_whose_text_raises(self, sandbox: Sandbox):
        source = "class E(Exception):\n    def __str__(self):\n        raise KeyError(1)\nraise E"
        assert run(sandbox, source).ending == "runtime_error"

    @pytest.mark.parametrize("source", ["x = (", "\0", "(" * 5000, "yield 1", "a = 'x' * \n"])
    def test_a_syntax_error(self, sandbox: Sandbox, source: str):
        assert run(sandbox, source).ending == "syntax_error"

    def test_a_result_that_is_not_a_plain_value(self, sandbox: Sandbox):
        execution = call(sandbox, "def f(x): return f", ["1"])
        assert execution.ending == "runtime_error"
        assert "type function is not a plain value" in execution.detail

    def test_a_missing_function(self, sandbox: Sandbox):
        assert call(sandbox, "def g(x): return x", ["1"]).ending == "runtime_error"

    def test_results_before_an_error_are_kept(self, sandbox: Sandbox):
        execution = call(sandbox, "def f(x): return 6 // x", ["1", "2", "0", "3"])
        assert (execution.outputs, execution.ending) == (("6", "3"), "runtime_error")


class TestContainer:
    def test_a_missing_bubblewrap_is_an_error_with_the_fix(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(UserError, match="apt-get install bubblewrap"):
            Sandbox(SandboxConfig())

    def test_a_bubblewrap_that_cannot_start_is_an_error_with_its_message(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ):
        write_executable(tmp_path / "bwrap", "echo 'bwrap: No permissions to create new namespace' >&2\nexit 1")
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        with pytest.raises(UserError, match=r"No permissions to create new namespace.*rlimit_only"):
            Sandbox(SandboxConfig()).execute(BYSTANDER, ["abc"], LIMITS)

    def test_rlimit_only_does_not_need_bubblewrap(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        monkeypatch.setenv("PATH", str(tmp_path))
        with Sandbox(SandboxConfig(kind="rlimit_only")) as plain:
            assert run(plain, "print(1)").outputs == ("1\n",)
            assert run(plain, "import os\nos.fork()").ending == "runtime_error"
            assert run(plain, "import os\nos.kill(os.getppid(), 9)").ending == "runtime_error"

    def test_a_container_that_dies_is_noticed_and_replaced(self):
        with Sandbox(SandboxConfig()) as fresh:
            process = fresh.start()
            process.kill()
            process.wait()  # The kernel kills the server when bubblewrap's own process ends, not when it is told to.
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
            "from megatron_ssd.sandbox.sandbox import Sandbox\n"
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
    """Whether the process exists and is not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"

"""Makes artificial cases for measuring the checker."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.grading.pool import Submission
from megatron_ssd.schema import Problem, ProblemForm, TestCase

# As small models write them: each reads something and prints something, which is right for a few problems.
TRIVIAL = (
    "import sys\ndata = sys.stdin.read().split()\nprint(data[0] if data else '')",
    "import sys\nsys.stdout.write(sys.stdin.read())",
    "t = int(input())\nfor _ in range(t):\n    a, b = map(int, input().split())\n    print(min(a, b), max(a, b))",
    "def solve():\n    n = int(input())\n    print(sum(map(int, input().split())) % n)\n\n"
    "if __name__ == '__main__':\n    solve()",
    "for _ in range(int(input())):\n    s = input()\n    print('YES' if s == s[::-1] else 'NO')",
)
STABILITY_LIMITS = SandboxConfig(cpu_seconds=0.5, memory_mib=256, output_mib=1)
_FORMS: tuple[ProblemForm, ...] = ("stdin", "function", "checks")


def trivial_programs(problems: Sequence[Problem]) -> list[Submission]:
    """Five programs per problem. A comment makes each program different."""
    return [
        Submission(problem_id=problem.id, sample_index=index, source=f"{source}\n# {problem.id}\n")
        for problem in problems
        for index, source in enumerate(TRIVIAL)
    ]


def stability_problems() -> list[Problem]:
    """One problem of each form. The answer is always 7."""
    tests = {
        "stdin": TestCase(input="0\n", output="7\n"),
        "function": TestCase(input="0", output="7"),
        "checks": TestCase(input="assert f(0) == 7", output=""),
    }
    return [
        Problem(id=form, source="made", statement="", form=form, function_name="f", tests=(tests[form],))
        for form in _FORMS
    ]


def stability_programs(
    count: int,
    limits: SandboxConfig = STABILITY_LIMITS,
    *,
    below: tuple[float, float] = (0.5, 0.7),
    above: tuple[float, float] = (1.3, 1.8),
    seed: int = 0,
) -> list[Submission]:
    """Programs whose verdicts a busy machine might change, mixed with ordinary ones.

    Two of eleven use a share of the CPU limit from the range ``below``, and one from ``above``: a fixed number of
    loops, from a measurement of this machine's speed.
    """
    rng, loops = random.Random(seed), _loops_per_second()
    assert limits.cpu_seconds is not None
    assert limits.memory_mib is not None
    budget, memory = loops * limits.cpu_seconds, limits.memory_mib
    makers: tuple[Callable[[], str], ...] = (
        lambda: "return 7",
        lambda: f"for _ in range({int(budget * rng.uniform(*below))}): pass",
        lambda: f"for _ in range({int(budget * rng.uniform(*above))}): pass",
        lambda: "1 / 0",
        lambda: f"x = bytearray({int(memory * rng.uniform(0.1, 0.5))} << 20)",
        lambda: f"x = bytearray({int(memory * rng.uniform(1.1, 2))} << 20)",
        lambda: f"import time; time.sleep({rng.uniform(0.1, 0.4):.3f})",
        lambda: "import threading; t = threading.Thread(target=sum, args=(range(10000),)); t.start(); t.join()",
        lambda: "return 8",
        lambda: "while True: pass",
        lambda: f"for _ in range({int(budget * rng.uniform(*below))}): pass",
    )
    programs = []
    for index in range(count):
        form = _FORMS[index // len(makers) % len(_FORMS)]
        call = "print(f(0))\n" if form == "stdin" else ""
        source = f"# {index}\ndef f(x):\n    {makers[index % len(makers)]()}\n    return 7\n{call}"
        programs.append(Submission(problem_id=form, sample_index=index, source=source))
    return programs


def _loops_per_second() -> float:
    """Speed of an empty loop in a function: the fastest of five runs."""
    count, best = 2_000_000, float("inf")
    for _ in range(5):
        started = time.process_time()
        for _ in range(count):
            pass
        best = min(best, time.process_time() - started)
    return count / best

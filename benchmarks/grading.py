"""Measures the checker.

    python -m benchmarks.grading --problems codeforces_408.jsonl [--official LIVECODEBENCH_CHECKOUT] [--rounds 3]
    python -m benchmarks.grading --stability [--programs 1000]

Speed: ``--problems`` is a file in LiveCodeBench's columns. Five small programs per problem (``grading_cases``) are
graded in one run. The table shows programs per second and the peak memory of the host process. With ``--official``, a
checkout of LiveCodeBench's public code grades the same programs with as many workers, alternating with this checker.
Every program on which the two disagree is listed.

Stability: ``--stability`` grades the same programs on an idle machine, then next to twice as many busy processes as
cores, and lists every verdict that changed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.grading_cases import STABILITY_LIMITS, stability_problems, stability_programs, trivial_programs
from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.config.problems import BenchmarkSetConfig
from megatron_ssd.grading.pool import Grader, Submission
from megatron_ssd.problems.livecodebench import BenchmarkKeys, read_benchmark
from megatron_ssd.schema import Problem, Verdict

OFFICIAL_SECONDS = 6  # the default of LiveCodeBench's own command
_OFFICIAL = """
import json, sys, time
import numpy
from lcb_runner.evaluation.compute_code_generation_metrics import evaluate_generations

work = json.load(open(sys.argv[1]))
started = time.perf_counter()
results, metadata = evaluate_generations(work["samples"], work["programs"], num_process_evaluate=work["workers"],
                                         timeout=work["seconds"])
seconds = time.perf_counter() - started
def complaint(tests, facts):
    try:  # as pass_k_utils counts
        right = bool(numpy.all(numpy.array(tests) > 0))
    except ValueError:
        right = False
    return "" if right else str(facts.get("error_message") or facts or "failed")[:200]

found = {index: [complaint(*one) for one in zip(rows, metadata[index])] for index, rows in results.items()}
json.dump({"seconds": seconds, "complaints": found}, open(sys.argv[2], "w"))
"""


def main() -> None:
    """Measure speed or stability, and print a table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--problems", type=Path, help="problems in LiveCodeBench's columns")
    options.add_argument("--official", type=Path, help="a checkout of LiveCodeBench")
    options.add_argument("--rounds", type=int, default=3, help="rounds of each checker (default 3)")
    options.add_argument("--stability", action="store_true", help="compare the verdicts of an idle and a busy machine")
    options.add_argument("--programs", type=int, default=1000, help="programs for --stability (default 1000)")
    arguments = options.parse_args()
    if arguments.stability:
        stability(arguments.programs)
    elif arguments.problems:
        speed(arguments.problems, arguments.official, arguments.rounds)
    else:
        options.error("name --problems or --stability")


def speed(path: Path, official: Path | None, rounds: int) -> None:
    """Print programs per second, and the disagreements with the official checker."""
    problems = read_benchmark(BenchmarkSetConfig(format="livecodebench", path=str(path)), BenchmarkKeys.of("grading"))
    programs = trivial_programs(problems)
    workers = len(os.sched_getaffinity(0))
    ours, theirs, complaints = list[float](), list[float](), dict[tuple[str, int], str]()
    for _ in range(rounds):
        verdicts, seconds = grade(problems, programs, SandboxConfig(cpu_seconds=OFFICIAL_SECONDS))
        ours.append(len(programs) / seconds)
        if official is not None:
            complaints, seconds = grade_officially(problems, programs, official, workers)
            theirs.append(len(programs) / seconds)
    tests = sum(len(problem.tests) for problem in problems)
    print(f"{len(problems)} problems with {tests} tests, {len(programs)} programs, {workers} workers, {rounds} rounds")
    print(f"{'':14}{'programs/s':>12}{'lowest':>10}{'highest':>10}{'ratio':>8}")
    for name, speeds in (("this checker", ours), ("LiveCodeBench", theirs)):
        if speeds:
            ratio = statistics.median(o / s for o, s in zip(ours, speeds, strict=True))
            print(f"{name:14}{statistics.median(speeds):12.1f}{min(speeds):10.1f}{max(speeds):10.1f}{ratio:8.2f}")
    print(f"host process: at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB of memory")
    print(", ".join(f"{count} {status}" for status, count in Counter(v.status for v in verdicts).most_common()))
    if official is not None:
        different = [v for v in verdicts if v.passed == bool(complaints[v.problem_id, v.sample_index])]
        print(f"{len(different)} of {len(verdicts)} programs get different verdicts")
        for verdict in different:
            print(f"  {verdict.problem_id} {verdict.sample_index}: {verdict.status} here ({verdict.detail})")


def stability(count: int) -> None:
    """Print the verdicts that a busy machine changes."""
    programs = stability_programs(count)
    idle, idle_seconds = grade(stability_problems(), programs, STABILITY_LIMITS)
    num_busy = 2 * len(os.sched_getaffinity(0))
    with busy(num_busy):
        loaded, loaded_seconds = grade(stability_problems(), programs, STABILITY_LIMITS)
    print(f"{count} programs: {idle_seconds:.0f} s idle, {loaded_seconds:.0f} s next to {num_busy} busy processes")
    print(", ".join(f"{number} {status}" for status, number in Counter(v.status for v in idle).most_common()))
    changed = changed_verdicts(idle, loaded)
    print(f"{len(changed)} verdicts changed")
    for line in changed:
        print(f"  {line}")


def changed_verdicts(before: Sequence[Verdict], after: Sequence[Verdict]) -> list[str]:
    """One line per program whose status or passed tests differ."""
    return [
        f"{one.problem_id} {one.sample_index}: {one.status} ({one.detail}), then {other.status} ({other.detail})"
        for one, other in zip(before, after, strict=True)
        if (one.status, one.by_test) != (other.status, other.by_test)
    ]


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Run ``count`` processes that compute and touch memory until the context ends."""
    source = "x = bytearray(64 << 20)\nwhile True:\n    x[::4096] = bytes(len(x) // 4096)\n    sum(range(10000))"
    processes = [subprocess.Popen([sys.executable, "-c", source]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def grade(
    problems: Sequence[Problem], programs: Sequence[Submission], config: SandboxConfig
) -> tuple[list[Verdict], float]:
    """Verdicts, and the seconds that they took, including the start of the sandboxes."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with Grader(problems, config) as grader:
            verdicts = grader.grade_programs(programs, Path(folder) / "verdicts.jsonl")
        return verdicts, time.perf_counter() - started


def grade_officially(
    problems: Sequence[Problem], programs: Sequence[Submission], checkout: Path, workers: int
) -> tuple[dict[tuple[str, int], str], float]:
    """LiveCodeBench's error message for each program ("" if it passes), and seconds without the start of Python."""
    by_problem: dict[str, list[Submission]] = {problem.id: [] for problem in problems}
    for program in programs:
        by_problem[program.problem_id].append(program)
    samples = [
        {"input_output": json.dumps({"inputs": [test.input for test in problem.tests],
                                     "outputs": [test.output for test in problem.tests],
                                     "fn_name": problem.function_name})}
        for problem in problems
    ]  # fmt: skip
    work = {
        "samples": samples, "programs": [[program.source for program in rows] for rows in by_problem.values()],
        "workers": workers, "seconds": OFFICIAL_SECONDS,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "asked.json", Path(folder) / "answered.json"
        asked.write_text(json.dumps(work))
        with (Path(folder) / "stderr").open("w+b") as stderr:
            done = subprocess.run([sys.executable, "-c", _OFFICIAL, str(asked), str(answered)], check=False, cwd=folder,
                                  env={**os.environ, "PYTHONPATH": str(checkout)}, stdout=subprocess.DEVNULL,
                                  stderr=stderr)  # fmt: skip
            if done.returncode != 0:
                stderr.seek(0)
                sys.exit(f"LiveCodeBench's checker failed:\n{stderr.read()[-2000:].decode(errors='replace')}")
        found = json.loads(answered.read_text())
    complaints = {
        program.key: complaint
        for index, rows in enumerate(by_problem.values())
        for program, complaint in zip(rows, found["complaints"][str(index)], strict=True)
    }
    return complaints, found["seconds"]


if __name__ == "__main__":
    main()

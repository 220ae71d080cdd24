r"""Compares this checker with LiveCodeBench's, program by program.

    python -m benchmarks.grading_agreement --official LIVECODEBENCH_CHECKOUT \
        [--leetcode test_leetcode.json] [--codecontests code_eval_code_contests.jsonl] \
        [--lcb codeforces_408.jsonl] [--every 1]

``--official`` is a checkout of LiveCodeBench's public code, of which ``lcb_runner/evaluation`` is enough. The files are
rllm's LeetCode rows with their solutions, SandboxFusion's CodeContests sample, and any file in LiveCodeBench's columns.
Each problem gets the programs of ``agreement_cases``, one of each kind: solutions and mutants of them if there are
solutions, and programs that look up the known answer and print or return it in different ways. The table counts per
kind how many programs pass both checkers, fail both, and get different verdicts. Every difference is listed. The table
has the reason of each kind whose difference is known; the exit status is 1 if there is another difference.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.agreement_cases import WHY, code_contests, function_programs, leetcode_functions, stdin_programs
from benchmarks.grading import OFFICIAL_SECONDS, grade, grade_officially
from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.config.problems import BenchmarkSetConfig
from megatron_ssd.grading.pool import Submission
from megatron_ssd.problems.livecodebench import BenchmarkKeys, read_benchmark
from megatron_ssd.schema import Problem

Case = tuple[Problem, str, Submission]  # problem, kind, program
_OUTCOMES = ("both pass", "both fail", "only here", "only LCB")


def main() -> int:
    """Grade with both checkers, then print the table and the differences."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--official", type=Path, required=True, help="a checkout of LiveCodeBench")
    options.add_argument("--leetcode", type=Path, help="rllm's test_leetcode.json")
    options.add_argument("--codecontests", type=Path, help="SandboxFusion's CodeContests rows")
    options.add_argument("--lcb", type=Path, help="problems in LiveCodeBench's columns")
    options.add_argument("--every", type=int, default=1, help="use every Nth problem (default 1)")
    arguments = options.parse_args()
    cases = [*function_cases(arguments.leetcode), *stdin_cases(arguments.codecontests, arguments.lcb)]
    taken = set(list(dict.fromkeys(problem.id for problem, _, _ in cases))[:: arguments.every])
    cases = [case for case in cases if case[0].id in taken]
    if not cases:
        options.error("name --leetcode, --codecontests or --lcb")
    return compare(cases, arguments.official)


def function_cases(leetcode: Path | None) -> list[Case]:
    """Cases in which the program is a method."""
    found: list[Case] = []
    for problem, solution in leetcode_functions(leetcode) if leetcode else ():
        found += _cases(problem, function_programs(problem, solution))
    return found


def stdin_cases(codecontests: Path | None, lcb: Path | None) -> list[Case]:
    """Cases in which the program reads standard input and prints."""
    problems = list(code_contests(codecontests)) if codecontests else []
    if lcb:
        section = BenchmarkSetConfig(format="livecodebench", path=str(lcb))
        problems += [
            problem for problem in read_benchmark(section, BenchmarkKeys.of("grading")) if problem.form == "stdin"
        ]
    return [case for problem in problems for case in _cases(problem, stdin_programs(problem))]


def _cases(problem: Problem, programs: Iterable[tuple[str, str]]) -> list[Case]:
    return [
        (problem, kind, Submission(problem_id=problem.id, sample_index=index, source=source))
        for index, (kind, source) in enumerate(programs)
    ]


def compare(cases: Sequence[Case], official: Path) -> int:
    """Print the table. Returns 1 if a difference has no known reason."""
    problems = list({problem.id: problem for problem, _, _ in cases}.values())
    programs = [program for _, _, program in cases]
    sandbox = SandboxConfig(cpu_seconds=OFFICIAL_SECONDS, packages=("numpy", "sortedcontainers"))
    verdicts, _ = grade(problems, programs, sandbox)
    complaints, _ = grade_officially(problems, programs, official, len(os.sched_getaffinity(0)))
    counts: dict[str, Counter[str]] = {}
    differences, num_unexplained = [], 0
    for (problem, kind, program), verdict in zip(cases, verdicts, strict=True):
        complaint = complaints[program.key]
        outcome = _OUTCOMES[
            0 if verdict.passed and not complaint else 2 if verdict.passed else 3 if not complaint else 1
        ]
        counts.setdefault(f"{problem.form}: {kind}", Counter())[outcome] += 1
        if verdict.passed == bool(complaint):
            num_unexplained += kind not in WHY
            here = "passed" if verdict.passed else f"{verdict.status} ({verdict.detail})"
            differences.append(f"{problem.id}, {kind}: {here} here, LiveCodeBench: {complaint or 'passed'}")
    print(f"{len(problems)} problems, {len(programs)} programs")
    print(f"{'':34}" + "".join(f"{name:>12}" for name in _OUTCOMES))
    for kind, count in {**counts, "all": sum(counts.values(), Counter())}.items():
        why = WHY.get(kind.partition(": ")[2], "") if count["only here"] + count["only LCB"] else ""
        print(f"{kind:34}" + "".join(f"{count[name]:12}" for name in _OUTCOMES) + (f"  {why}" if why else ""))
    print(f"{len(differences)} differences, {num_unexplained} without a known reason")
    for line in differences:
        print(f"  {line}")
    return int(num_unexplained > 0)


if __name__ == "__main__":
    sys.exit(main())

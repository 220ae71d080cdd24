"""Grade completions of any origin: LiveCodeBench, HumanEval, MBPP or LeetCode problems, in the sandbox.

python tools/grade.py format=humaneval problems=HumanEval.jsonl.gz samples=samples.jsonl out=runs/humaneval-grades
python tools/grade.py format=lcb problems=data/lcb start_date=2025-02-01 samples=samples.jsonl out=runs/lcb-grades

A row of samples has question_id, task_id or problem_id, and completion, code or response (docs/grading.md). Killed at
any moment, the same command goes on and grades nothing twice.
"""

from __future__ import annotations

from megatron_ssd.cli.entry import run_guarded, start_logging
from megatron_ssd.cli.keys import key_parser, parse_keys
from megatron_ssd.config.grading import GradeConfig
from megatron_ssd.evaluation.grade_file import run_grade


def _run(arguments: list[str]) -> None:
    start_logging()
    run_grade(parse_keys(GradeConfig, arguments))


def main() -> None:
    """Parse, grade, and end with one line where something is wrong."""
    arguments = key_parser(__doc__, GradeConfig).parse_args().arguments
    run_guarded(lambda: _run(arguments))


if __name__ == "__main__":
    main()

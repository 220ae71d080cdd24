"""Grade completions of any origin: LiveCodeBench, HumanEval, MBPP or LeetCode problems, in the sandbox.

python tools/grade.py format=humaneval problems=HumanEval.jsonl.gz samples=samples.jsonl out=runs/humaneval-grades
python tools/grade.py format=lcb problems=data/lcb start_date=2025-02-01 samples=samples.jsonl out=runs/lcb-grades

Each line of samples has question_id, task_id or problem_id, and completion, response, code or solution: see
docs/guides/grading.md.
If it is killed, the same command resumes and grades nothing twice.
"""

from megatron_ssd.cli.entry import main_of_tool
from megatron_ssd.config.tools import GradeConfig
from megatron_ssd.grading.grade_file import run_grade

if __name__ == "__main__":
    main_of_tool(run_grade, GradeConfig, description=__doc__)

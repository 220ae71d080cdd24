"""Tasks whose answers are programs: lm-eval asks and filters, and the programs are run here, in the sandbox.

What runs is the text that lm-eval would have run. HumanEval and MBPP are judged by their own assertions, as
``tools/grade.py`` does it. A program of CRUXEval ends with the assertion that holds the model's answer, and passes
where it gets past it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.errors import UserError
from megatron_ssd.general_benchmarks.parts import NO_FILTER, ItemRow
from megatron_ssd.grading.metrics import pass_at_k
from megatron_ssd.grading.pool import Submission
from megatron_ssd.problems.humaneval import read_humaneval
from megatron_ssd.problems.mbpp import read_mbpp
from megatron_ssd.schema import Problem, TestCase, Verdict

_CRUXEVAL = ("cruxeval_input", "cruxeval_input_08", "cruxeval_input_cot", "cruxeval_output", "cruxeval_output_08",
             "cruxeval_output_cot")  # fmt: skip
_HUMANEVAL = ("humaneval", "humaneval_64", "humaneval_instruct", "humaneval_64_instruct", "humaneval_plus")
_MBPP = ("mbpp", "mbpp_instruct", "mbpp_plus", "mbpp_plus_instruct")
CODE_TASKS = frozenset({*_CRUXEVAL, *_HUMANEVAL, *_MBPP})

_REACHED = "reached the end"
# What a program of CRUXEval prints must not be taken for its result, so that goes where nobody looks.
_HEAD = "import io as __io, sys as __sys\n__out, __sys.stdout = __sys.stdout, __io.StringIO()\n"
_TAIL = f"\n__out.write({_REACHED!r})\n"


def problems_of(task: str, rows: Sequence[ItemRow], scratch: Path) -> list[Problem]:
    """The problems of a code task, with their tests.

    Args:
        task: one of ``CODE_TASKS``.
        rows: all rows of one model.
        scratch: a file that may be written.

    Raises:
        UserError: a row cannot be read, or an id comes twice.
    """
    if task in _CRUXEVAL:
        tests = (TestCase(input="", output=_REACHED),)
        return [
            Problem(id=problem_id(row), source="cruxeval", statement=row.doc["code"], form="stdin", tests=tests)
            for row in rows
        ]
    write_atomically(scratch, "".join(json.dumps(row.doc) + "\n" for row in rows))
    return read_humaneval(scratch) if task in _HUMANEVAL else read_mbpp(scratch)


def problem_id(row: ItemRow) -> str:
    """As the benchmark calls it."""
    return str(row.doc["task_id"] if "task_id" in row.doc else row.doc["id"])


def submissions_of(task: str, rows: Sequence[ItemRow]) -> list[Submission]:
    """Every program of ``rows``, as it is run."""
    return [
        Submission(problem_id=problem_id(row), sample_index=index, source=_program(task, text))
        for row in rows
        for index, text in enumerate(row.programs)
    ]


def reference_of(task: str, row: ItemRow) -> Submission | None:
    """The benchmark's own solution as a program, where the row has one."""
    if task in _HUMANEVAL and "canonical_solution" in row.doc:
        source = row.doc["prompt"] + row.doc["canonical_solution"]
    elif task in _MBPP:
        source = row.doc["code"]
    else:
        return None
    return Submission(problem_id=problem_id(row), sample_index=0, source=source)


def check_reference(task: str, verdict: Verdict) -> None:
    """Raise ``UserError`` where the judge does not pass the benchmark's own solution."""
    if not verdict.passed:
        raise UserError(
            f"general_benchmarks.tasks: {task}",
            rule=f"its own solution of {verdict.problem_id} does not pass here ({verdict.detail or verdict.status})",
            fix="the tests of HumanEval+ and MBPP+ need evaluation.sandbox.packages=[numpy]; answers drawn so far are "
            "kept",
        )


def with_scores(rows: Sequence[ItemRow], verdicts: Sequence[Verdict]) -> list[ItemRow]:
    """``rows`` with pass@k for every k of the task; one for which the judge failed too often is left out."""
    counts: dict[str, list[int]] = {}
    for verdict in verdicts:
        if verdict.status != "infrastructure_error":
            known = counts.setdefault(verdict.problem_id, [0, 0])
            known[0] += 1
            known[1] += verdict.passed
    scored = []
    for row in rows:
        drawn, passed = counts.get(problem_id(row), (0, 0))
        scores = {f"pass@{k}": pass_at_k(drawn, passed, k) for k in row.ks if k <= drawn}
        scored.append(dataclasses.replace(row, scores=scores, filter=NO_FILTER))
    return scored


def _program(task: str, text: str) -> str | None:
    if not text.strip():
        return None
    return f"{_HEAD}{text}{_TAIL}" if task in _CRUXEVAL else text

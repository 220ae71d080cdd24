"""Grades lm-eval tasks whose answers are programs.

The program is the text that lm-eval would have run. HumanEval and MBPP are checked by their own assertions, as in
``tools/grade.py``. A program of CRUXEval ends with an assertion about the model's answer, and passes if that assertion
holds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.errors import UserError
from megatron_ssd.general_benchmarks.results import NO_FILTER, DocumentResult
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
# The output of a program of CRUXEval must not be mistaken for its result, so it is discarded.
_HEAD = "import io as __io, sys as __sys\n__out, __sys.stdout = __sys.stdout, __io.StringIO()\n"
_TAIL = f"\n__out.write({_REACHED!r})\n"


def problems_of(task: str, documents: Sequence[DocumentResult], scratch: Path) -> list[Problem]:
    """The problems of a code task, with their tests.

    Args:
        task: one of ``CODE_TASKS``.
        documents: all documents of the task.
        scratch: a file that may be written.

    Raises:
        UserError: a document cannot be read, or an id occurs twice.
    """
    if task in _CRUXEVAL:
        tests = (TestCase(input="", output=_REACHED),)
        return [
            Problem(
                id=problem_id(document), source="cruxeval", statement=document.doc["code"], form="stdin", tests=tests
            )
            for document in documents
        ]
    write_atomically(scratch, "".join(json.dumps(document.doc) + "\n" for document in documents))
    return read_humaneval(scratch) if task in _HUMANEVAL else read_mbpp(scratch)


def problem_id(document: DocumentResult) -> str:
    """The id of the document in its benchmark."""
    return str(document.doc["task_id"] if "task_id" in document.doc else document.doc["id"])


def submissions_of(task: str, documents: Sequence[DocumentResult]) -> list[Submission]:
    """Every program of ``documents``, in the form in which it runs."""
    return [
        Submission(problem_id=problem_id(document), sample_index=index, source=_program(task, text))
        for document in documents
        for index, text in enumerate(document.programs)
    ]


def reference_of(task: str, document: DocumentResult) -> Submission | None:
    """The benchmark's own solution as a program; None if the document has none."""
    if task in _HUMANEVAL and "canonical_solution" in document.doc:
        source = document.doc["prompt"] + document.doc["canonical_solution"]
    elif task in _MBPP:
        source = document.doc["code"]
    else:
        return None
    return Submission(problem_id=problem_id(document), sample_index=0, source=source)


def check_reference(task: str, verdict: Verdict) -> None:
    """Raise ``UserError`` if the benchmark's own solution does not pass."""
    if not verdict.passed:
        raise UserError(
            f"general_benchmarks.tasks: {task}",
            rule=f"its own solution of {verdict.problem_id} does not pass here ({verdict.detail or verdict.status})",
            fix="the tests of HumanEval+ and MBPP+ need evaluation.sandbox.packages=[numpy]; answers are kept",
        )


def with_scores(documents: Sequence[DocumentResult], verdicts: Sequence[Verdict]) -> list[DocumentResult]:
    """``documents`` with pass@k for every k that has enough verdicts, without those on which the checker failed."""
    counts: dict[str, list[int]] = {}
    for verdict in verdicts:
        if verdict.status != "infrastructure_error":
            known = counts.setdefault(verdict.problem_id, [0, 0])
            known[0] += 1
            known[1] += verdict.passed
    scored = []
    for document in documents:
        drawn, passed = counts.get(problem_id(document), (0, 0))
        scores = {f"pass@{k}": pass_at_k(drawn, passed, k) for k in document.ks if k <= drawn}
        scored.append(dataclasses.replace(document, scores=scores, filter=NO_FILTER))
    return scored


def _program(task: str, text: str) -> str | None:
    if not text.strip():
        return None
    return f"{_HEAD}{text}{_TAIL}" if task in _CRUXEVAL else text

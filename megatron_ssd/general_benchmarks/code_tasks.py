"""Grades lm-eval's CRUXEval, whose answers are programs.

The program is the text that lm-eval would have run. It ends with an assertion about the model's answer, and passes if
that assertion holds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from megatron_ssd.general_benchmarks.results import NO_FILTER, DocumentResult
from megatron_ssd.grading.metrics import problem_scores
from megatron_ssd.grading.pool import Submission
from megatron_ssd.schema import Problem, TestCase, Verdict

CODE_TASKS = frozenset({"cruxeval_input", "cruxeval_input_08", "cruxeval_input_cot", "cruxeval_output",
                        "cruxeval_output_08", "cruxeval_output_cot"})  # fmt: skip

_REACHED = "reached the end"
# The output of a program must not be mistaken for its result, so it is discarded.
_HEAD = "import io as __io, sys as __sys\n__out, __sys.stdout = __sys.stdout, __io.StringIO()\n"
_TAIL = f"\n__out.write({_REACHED!r})\n"


def problems_of(documents: Sequence[DocumentResult]) -> list[Problem]:
    """The problems of all documents of a code task, with their tests."""
    tests = (TestCase(input="", output=_REACHED),)
    return [
        Problem(id=problem_id(document), source="cruxeval", statement=document.doc["code"], form="stdin", tests=tests)
        for document in documents
    ]


def problem_id(document: DocumentResult) -> str:
    """The id of the document in its benchmark."""
    return str(document.doc["id"])


def submissions_of(documents: Sequence[DocumentResult]) -> list[Submission]:
    """Every program of ``documents``, in the form in which it runs."""
    return [
        Submission(
            problem_id=problem_id(document),
            sample_index=index,
            source=f"{_HEAD}{text}{_TAIL}" if text.strip() else None,
        )
        for document in documents
        for index, text in enumerate(document.programs)
    ]


def with_scores(documents: Sequence[DocumentResult], verdicts: Sequence[Verdict]) -> list[DocumentResult]:
    """``documents`` with pass@k for every k that has enough verdicts, without those on which the checker failed."""
    ids = [problem_id(document) for document in documents]
    scores = {k: problem_scores(verdicts, ids, k) for k in {k for document in documents for k in document.ks}}
    scored = []
    for index, document in enumerate(documents):
        known = {f"pass@{k}": float(scores[k][index]) for k in document.ks if not math.isnan(scores[k][index])}
        scored.append(dataclasses.replace(document, scores=known, filter=NO_FILTER))
    return scored

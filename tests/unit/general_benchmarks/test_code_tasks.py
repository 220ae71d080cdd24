"""Tests for the grading of programs that lm-eval extracted."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.general_benchmarks.code_tasks import (
    problems_of,
    submissions_of,
    with_scores,
)
from megatron_ssd.general_benchmarks.results import DocumentResult
from megatron_ssd.grading.pool import Grader
from megatron_ssd.schema import Verdict
from tests.helpers.benchmark_rows import Row, needs_data, rows_of

needs_lm_eval = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval (make venv)")


def item(number: int, doc: Row, *programs: str, ks: tuple[int, ...] = (1,)) -> DocumentResult:
    return DocumentResult(task="t", doc_id=number, filter="create_test", doc=doc, prompt="", answers=[], scores={},
                   programs=list(programs), ks=list(ks), num_fewshot=0)  # fmt: skip


def grade(rows: list[DocumentResult], folder: Path, cpu_seconds: float = 5.0) -> list[Verdict]:
    with Grader(problems_of(rows), SandboxConfig(cpu_seconds=cpu_seconds)) as grader:
        return grader.grade_programs(submissions_of(rows), folder / "verdicts.jsonl")


@needs_data
@needs_lm_eval
@pytest.mark.parametrize("count", [16, pytest.param(None, marks=pytest.mark.slow)])
def test_cruxeval_agrees_with_lm_evals_own_check(tmp_path: Path, count: int | None) -> None:
    """The answers are the correct one and that of the next row. People wrote them, so they are safe to run here."""
    from lm_eval.tasks.cruxeval import utils

    docs = rows_of("cruxeval_output", count)
    answers = [[f" assert f({doc['input']}) == {doc['output']}\n", f"{other['output']}"]
               for doc, other in zip(docs, docs[1:] + docs[:1], strict=True)]  # fmt: skip
    programs = utils.build_predictions_output(answers, docs)
    rows = [item(n, doc, *texts) for n, (doc, texts) in enumerate(zip(docs, programs, strict=True))]
    theirs = [utils.check_correctness(text) for texts in programs for text in texts]
    ours = [verdict.passed for verdict in grade(rows, tmp_path)]
    assert ours == theirs
    assert 0 < sum(ours) < len(ours)


def crux(number: int, answer: str) -> DocumentResult:
    doc = {"id": f"sample_{number}", "code": "def f(x):\n    print(x)\n    return x", "input": "1", "output": "1"}
    return item(number, doc, f"{doc['code']}\nassert f(1)=={answer}")


def test_a_cruxeval_program_passes_only_if_it_reaches_the_end(tmp_path: Path) -> None:
    answers = ["1", "2", "1 or print('reached the end')", "__import__('os')._exit(0)", "exit()", "(", "1\nwhile 1: 0"]
    rows = [crux(n, answer) for n, answer in enumerate(answers)]
    statuses = [verdict.status for verdict in grade(rows, tmp_path, cpu_seconds=0.3)]
    assert statuses == ["passed", "runtime_error", "passed", "wrong_answer", "wrong_answer", "syntax_error", "timeout"]


def test_programs_cannot_write_to_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "written"
    row = crux(0, f"open({str(path)!r}, 'w').write('x')")
    (verdict,) = grade([row], tmp_path)
    assert not verdict.passed
    assert not path.exists()


def verdict(problem: str, index: int, status: str) -> Verdict:
    return Verdict(problem_id=problem, sample_index=index, status=status)  # type: ignore[arg-type]


def test_scores_are_pass_at_k_without_infrastructure_errors() -> None:
    rows = [item(n, {"id": f"p{n}"}, ks=(1, 2)) for n in range(3)]
    verdicts = [verdict("p0", 0, "passed"), verdict("p0", 1, "timeout"),
                verdict("p1", 0, "infrastructure_error"), verdict("p1", 1, "passed"),
                verdict("p2", 0, "infrastructure_error"), verdict("p2", 1, "infrastructure_error")]  # fmt: skip
    assert [row.scores for row in with_scores(rows, verdicts)] == [{"pass@1": 0.5, "pass@2": 1.0}, {"pass@1": 1.0}, {}]


@needs_data
@needs_lm_eval
@pytest.mark.slow
@pytest.mark.parametrize(("direction", "passing"), [("output", 427), ("input", 784)])
def test_lm_evals_extraction_of_correct_answers_to_cruxeval(tmp_path: Path, direction: str, passing: int) -> None:
    """lm-eval's extraction cuts quotes and brackets off some answers. Its guide gives these numbers."""
    from lm_eval.tasks.cruxeval import utils

    docs = rows_of("cruxeval_output")
    answers = [[f" assert f({doc['input']}) == {doc['output']}\n"] for doc in docs]
    programs = getattr(utils, f"build_predictions_{direction}")(answers, docs)
    rows = [item(n, doc, *texts) for n, (doc, texts) in enumerate(zip(docs, programs, strict=True))]
    verdicts = grade(rows, tmp_path)
    assert (sum(verdict.passed for verdict in verdicts), len(verdicts)) == (passing, 800)

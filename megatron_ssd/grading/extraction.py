"""Extracts programs from responses by the rule of their problem's benchmark."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

from megatron_ssd.grading.rules import rules_of
from megatron_ssd.prompts.extract import Extraction, extract_program
from megatron_ssd.schema import Problem, Verdict

_CALLED = re.compile(r"\b([^\W\d]\w*)\(")


def program_of_response(problem: Problem, response: str, *, prompt_opens_thinking: bool = False) -> Extraction:
    """The program in a chat model's ``response`` to ``problem``; see ``prompts.extract``."""
    return extract_program(
        response,
        rule=rules_of(problem.source).extraction,
        entry_point=problem.function_name,
        prompt=prompt_of(problem),
        tested_names=_tested_names(problem),
        prompt_opens_thinking=prompt_opens_thinking,
    )


def prompt_of(problem: Problem) -> str:
    """The start of the program that ``problem`` gives: HumanEval's prompt. Other starter code is not run."""
    return problem.starter_code if rules_of(problem.source).extraction == "entry_point" else ""


def no_code_causes(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """Number of verdicts ``no_code`` by cause, the most frequent cause first."""
    details = (verdict.detail for verdict in verdicts if verdict.status == "no_code")
    causes = Counter(detail.partition(":")[0] for detail in details)  # "not run: ..." has a reason of its own
    return dict(sorted(causes.items(), key=lambda item: (-item[1], item[0])))


def _tested_names(problem: Problem) -> frozenset[str]:
    """Names that the assert scripts call: MBPP has tests that need a class of the program besides its function."""
    return _called_names(tuple(test.input for test in problem.tests)) if problem.form == "checks" else frozenset()


@lru_cache(maxsize=1024)
def _called_names(scripts: tuple[str, ...]) -> frozenset[str]:
    return frozenset(name for script in scripts for name in _CALLED.findall(script))

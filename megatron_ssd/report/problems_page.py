"""Renders ``problems-NAME.html``, which shows every problem of the benchmark with the attempts of both models.

The list is plain markup, escaped by Jinja, and needs no script. The problems themselves are packed blocks that one
small script unpacks and inserts as text. The page's Content-Security-Policy names that script and the style by
their hashes and allows nothing else, so that no text of a model can be run or fetch anything.

Invariants:
- A block is the base64 of zlib of ASCII JSON: whatever a model wrote, a block holds letters, digits, ``+/=`` and no
  markup.
- Each different text of a problem is in its block once.
- Every response of the page is cut by the same limit, the largest of ``LIMITS`` with which all blocks fit.
"""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from megatron_ssd.errors import ConfigError
from megatron_ssd.evaluation.problem_file import Excerpt
from megatron_ssd.formatting import DASH, signed, visible
from megatron_ssd.report.attempts import COLUMNS, MOST_KEPT, Attempt, ProblemPage, ProblemPages
from megatron_ssd.report.content import FINISH_REASONS
from megatron_ssd.report.page import content_policy, source, style, templates
from megatron_ssd.report.theme import MODEL_TITLES, text_on
from megatron_ssd.schema import VerdictStatus

MEBIBYTE = 1 << 20
LIMITS = (MOST_KEPT, 16384, 8192, 4096, 2048, 1024, 512, 256, 128, 0)
BLOCK_OVERHEAD = 64  # bytes of markup around a block
SOLVED = {
    "both": "solved by both",
    "ssd": "solved by SSD alone",
    "base": "solved by the base alone",
    "neither": "solved by neither",
}
_MIN_STATEMENT_CHARACTERS = 1000
_DETAIL_CHARACTERS = 300


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A verdict as the page shows it: in words, as ``by_test`` writes it, and its color on a light and a dark page.

    Failures show their letter as well, so that nothing depends on color alone.
    """

    title: str
    letter: str
    light: str
    dark: str

    def css(self, status: str) -> str:
        """Rules for both schemes."""
        light = f"--l: {self.light}; --lt: {text_on(self.light)};"
        return f".s-{status} {{ {light} --d: {self.dark}; --dt: {text_on(self.dark)}; }}"


OUTCOMES: dict[VerdictStatus, Outcome] = {
    "passed": Outcome(title="passed", letter=".", light="#2b756d", dark="#46938a"),
    "wrong_answer": Outcome(title="wrong answer", letter="W", light="#b3304b", dark="#e0788c"),
    "runtime_error": Outcome(title="runtime error", letter="R", light="#7b4a9e", dark="#bb93d8"),
    "timeout": Outcome(title="time-out", letter="T", light="#6d6512", dark="#c9bd5a"),
    "memory": Outcome(title="memory", letter="M", light="#4d5f2c", dark="#a3b87a"),
    "syntax_error": Outcome(title="syntax error", letter="S", light="#3f4a86", dark="#98a2dd"),
    "no_code": Outcome(title="no code", letter="N", light="#8a929a", dark="#6d7680"),
    "infrastructure_error": Outcome(title="infrastructure error", letter="I", light="#1a1d21", dark="#e8ebee"),
}


def render_problems(pages: ProblemPages, *, benchmark: str, run_name: str, code_version: str, page_mib: float) -> str:
    """The complete page, of at most ``page_mib`` MiB.

    Raises:
        ConfigError: the list alone takes more.
    """
    environment = templates()
    outcomes = "\n".join(outcome.css(status) for status, outcome in OUTCOMES.items())
    styles = style(environment, source(environment, "problems.css"), outcomes)
    script = source(environment, "problems.js")
    template = environment.get_template("problems.html.jinja")

    def page(blocks: Blocks) -> str:
        return template.render(
            style=styles,
            script=Markup(script),
            policy=content_policy(script, styles),
            benchmark=benchmark,
            run_name=run_name,
            code_version=code_version,
            columns=pages.columns,
            entries=[_entry(problem, pages.difficulties) for problem in pages.problems],
            difficulties=pages.difficulties,
            halves=sorted({problem.half for problem in pages.problems} - {""}),
            dates=any(problem.date for problem in pages.problems),
            has_tests=pages.has_tests,
            solved=SOLVED,
            outcomes=OUTCOMES,
            words=_words(),
            blocks=[Markup(text) for text in blocks.texts],
            kept=_cut_note(blocks, benchmark),
        ).lstrip()

    shell = page(Blocks(texts=(), limit=0, num_cut=1, num_responses=len(pages.problems)))
    # The note on what was cut varies in length.
    max_bytes = int(page_mib * MEBIBYTE) - len(shell.encode("utf-8")) - 1024
    return page(fit_blocks(pages.problems, max_bytes, page_mib=page_mib))


def _entry(problem: ProblemPage, difficulties: tuple[str, ...]) -> dict[str, Any]:
    """A problem in the list: (passed, graded) of base and SSD, their difference, and what the list is sorted by."""
    scores, change = [problem.passed(column) for column in range(len(COLUMNS))], problem.change
    base, ssd = (passed / total if total else -1.0 for passed, total in scores)
    return {
        "problem": problem,
        "scores": scores,
        "change": DASH if change is None else signed(change).removesuffix(".0"),
        "color": "" if not change else "up" if change > 0 else "down",
        "keys": {
            "difficulty": difficulties.index(problem.difficulty),
            "base": round(base, 6),
            "ssd": round(ssd, 6),
            "change": -2.0 if change is None else round(change, 6),
        },
    }


def _words() -> dict[str, Any]:
    """Words that the script writes."""
    return {
        "statuses": {status: outcome.title for status, outcome in OUTCOMES.items()},
        "letters": {outcome.letter: status for status, outcome in OUTCOMES.items()},
        "finish": FINISH_REASONS,
        "models": [MODEL_TITLES["base"], MODEL_TITLES["ssd"]],
    }


def _cut_note(blocks: Blocks, benchmark: str) -> str:
    """A sentence on what was cut."""
    if not blocks.num_cut:
        return "Every response is here in full."
    return (
        f"{blocks.num_cut:,} of {blocks.num_responses:,} responses are cut in the middle to keep this file small: "
        f"{blocks.limit:,} characters are kept before and after each program, and {kept_of_program(blocks.limit):,} of "
        f"the program itself; each cut says how many are missing. Whole responses are in eval/{benchmark}/generations."
    )


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """``texts`` in the order of the problems, made with ``limit``; ``num_cut`` of ``num_responses`` lost something."""

    texts: tuple[str, ...]
    limit: int
    num_cut: int
    num_responses: int


def fit_blocks(problems: tuple[ProblemPage, ...], max_bytes: int, *, page_mib: float) -> Blocks:
    """Blocks of all ``problems`` that take at most ``max_bytes`` bytes together; ``page_mib`` is the configured size.

    Raises:
        ConfigError: they take more even without any program or response.
    """
    responses = [attempt for problem in problems for column in problem.attempts for attempt in column]
    for limit in LIMITS:
        texts, size = list[str](), 0
        for problem in problems:
            texts.append(pack(block(problem, limit)))
            size += len(texts[-1]) + BLOCK_OVERHEAD
            if size > max_bytes:
                break
        else:
            return Blocks(
                texts=tuple(texts),
                limit=limit,
                num_cut=sum(_is_cut(attempt, limit) for attempt in responses),
                num_responses=len(responses),
            )
    raise ConfigError(
        f"report.page_mib = {page_mib:g}",
        rule=f"{len(problems):,} problems do not fit into that size even without their programs",
        fix=f"raise it, for example to {2 * page_mib:g}",
    )


def pack(value: Any) -> str:
    """``value`` as JSON, compressed, in an alphabet without markup."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode("ascii"), 9)).decode("ascii")


def block(problem: ProblemPage, limit: int) -> dict[str, Any]:
    """What the page shows of ``problem``, with ``limit`` characters before and after each program.

    Each text is an index into ``texts``, whose items are a string or [beginning, characters left out, end].
    """
    texts = _Texts()
    return {
        "statement": texts.add(problem.statement.shortened(max(limit, _MIN_STATEMENT_CHARACTERS))),
        "starter": texts.add(Excerpt.of(problem.starter_code, max(limit, _MIN_STATEMENT_CHARACTERS))),
        "tests": {str(index): [texts.add(text) for text in test] for index, test in problem.tests.items()},
        "checks": problem.has_checks,
        "columns": [
            [_attempt(attempt, texts, limit) for attempt in problem.attempts[column]] for column in range(len(COLUMNS))
        ],
        "texts": texts.shown,
    }


class _Texts:
    """The texts of a problem as the page shows them, each once."""

    def __init__(self) -> None:
        self.shown: list[str | list[str | int]] = []
        self._numbers: dict[Excerpt, int] = {}

    def add(self, text: Excerpt) -> int:
        """The index of ``text``."""
        if text not in self._numbers:
            self._numbers[text] = len(self.shown)
            self.shown.append(Excerpt(visible(text.head), text.left_out, visible(text.tail)).to_json())
        return self._numbers[text]


def _attempt(attempt: Attempt, texts: _Texts, limit: int) -> dict[str, Any]:
    before, program, after = _parts(attempt, limit)
    verdict = attempt.verdict
    return {
        "index": verdict.sample_index,
        "status": verdict.status,
        "passed": verdict.tests_passed,
        "total": verdict.tests_total,
        "cells": verdict.by_test,
        "failed": verdict.failed_test,
        "detail": texts.add(Excerpt.of(verdict.detail, _DETAIL_CHARACTERS)),
        "finish": attempt.finish_reason,
        "tokens": attempt.num_tokens,
        "before": texts.add(before),
        "program": None if program is None else texts.add(program),
        "after": texts.add(after),
    }


def kept_of_program(limit: int) -> int:
    """Characters of a program: more than of the text around it, since readers come for the programs."""
    return min(4 * limit, MOST_KEPT)


def _parts(attempt: Attempt, limit: int) -> tuple[Excerpt, Excerpt | None, Excerpt]:
    program = None if attempt.program is None else attempt.program.shortened(kept_of_program(limit))
    return attempt.before.shortened(limit), program, attempt.after.shortened(limit)


def _is_cut(attempt: Attempt, limit: int) -> bool:
    return any(part is not None and part.left_out for part in _parts(attempt, limit))

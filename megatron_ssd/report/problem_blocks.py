"""The data of ``problems.html``: one block a problem, packed, and together within a budget.

Invariants:
- A block is the base64 of zlib of ASCII JSON: whatever a model wrote, a block holds letters, digits, ``+/=`` and no
  markup. ``problems.js`` unpacks it and puts it into the page as text.
- Each different text of a problem is in its block once.
- Every response of the page is cut by the same limit, the largest of ``LIMITS`` with which all blocks fit.
"""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass
from typing import Any

from megatron_ssd.errors import ConfigError
from megatron_ssd.evaluation.problem_file import Excerpt
from megatron_ssd.report.problem_pages import COLUMNS, MOST_KEPT, Attempt, ProblemPage
from megatron_ssd.report.visible import visible

LIMITS = (MOST_KEPT, 16384, 8192, 4096, 2048, 1024, 512, 256, 128, 0)
BLOCK_OVERHEAD = 64  # bytes of markup around a block
_LEAST_OF_STATEMENT = 1000


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """``texts`` in the order of the problems, made with ``limit``; ``num_cut`` of ``num_responses`` lost something."""

    texts: tuple[str, ...]
    limit: int
    num_cut: int
    num_responses: int


def fit_blocks(problems: tuple[ProblemPage, ...], room: int, *, page_mib: float) -> Blocks:
    """Blocks of all ``problems`` that take at most ``room`` bytes together; ``page_mib`` is what was configured.

    Raises:
        ConfigError: they take more even without any program or response.
    """
    responses = [attempt for problem in problems for column in problem.attempts for attempt in column]
    for limit in LIMITS:
        texts, size = list[str](), 0
        for problem in problems:
            texts.append(pack(block(problem, limit)))
            size += len(texts[-1]) + BLOCK_OVERHEAD
            if size > room:
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
    """JSON, compressed, in an alphabet that no markup is made of."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode("ascii"), 9)).decode("ascii")


def block(problem: ProblemPage, limit: int) -> dict[str, Any]:
    """What the page shows of ``problem``, with ``limit`` characters before and after each program.

    Texts are indices into ``texts``; there each is a string, or [beginning, characters left out, end].
    """
    texts = _Texts()
    return {
        "statement": texts.add(problem.statement.shortened(max(limit, _LEAST_OF_STATEMENT))),
        "starter": texts.add(Excerpt.of(problem.starter_code, max(limit, _LEAST_OF_STATEMENT))),
        "tests": {str(index): [texts.add(text) for text in test] for index, test in problem.tests.items()},
        "checks": problem.has_checks,
        "columns": [
            [_attempt(attempt, texts, limit) for attempt in problem.attempts[column]] for column in range(len(COLUMNS))
        ],
        "texts": texts.rows,
    }


class _Texts:
    """Texts by number, each once, as the page shows them."""

    def __init__(self) -> None:
        self.rows: list[str | list[str | int]] = []
        self._numbers: dict[Excerpt, int] = {}

    def add(self, text: Excerpt) -> int:
        """Its number."""
        if text not in self._numbers:
            self._numbers[text] = len(self.rows)
            self.rows.append(Excerpt(visible(text.head), text.left_out, visible(text.tail)).to_json())
        return self._numbers[text]


def _attempt(attempt: Attempt, texts: _Texts, limit: int) -> dict[str, Any]:
    before, program, after = _parts(attempt, limit)
    return {
        "index": attempt.sample_index,
        "status": attempt.status,
        "passed": attempt.tests_passed,
        "total": attempt.tests_total,
        "cells": attempt.by_test,
        "failed": attempt.failed_test,
        "detail": texts.add(attempt.detail),
        "finish": attempt.finish_reason,
        "tokens": attempt.num_tokens,
        "before": texts.add(before),
        "program": None if program is None else texts.add(program),
        "after": texts.add(after),
    }


def kept_of_program(limit: int) -> int:
    """Characters of a program; more than of what is around it, since programs are what a reader is after."""
    return min(4 * limit, MOST_KEPT)


def _parts(attempt: Attempt, limit: int) -> tuple[Excerpt, Excerpt | None, Excerpt]:
    program = None if attempt.program is None else attempt.program.shortened(kept_of_program(limit))
    return attempt.before.shortened(limit), program, attempt.after.shortened(limit)


def _is_cut(attempt: Attempt, limit: int) -> bool:
    return any(part is not None and part.left_out for part in _parts(attempt, limit))

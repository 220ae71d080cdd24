"""Takes the metric that runs a model's programs away from lm-eval while it loads tasks.

The modules of its HumanEval and MBPP load ``code_eval`` of the package evaluate, from the Hub, and try it at import.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import evaluate


class _NoCodeEval:
    """Answers the trial at import, and fails wherever it is asked to judge."""

    importing = True

    def compute(self, **arguments: Any) -> tuple[dict[str, float], dict[str, Any]]:
        """Run nothing."""
        assert self.importing, "lm-eval must not run a model's programs here"
        return {}, {}


@contextlib.contextmanager
def without_code_eval() -> Iterator[None]:
    """What is imported inside never gets the real one."""
    original, instead = evaluate.load, _NoCodeEval()

    def load(path: str, *arguments: Any, **options: Any) -> Any:
        return instead if path == "code_eval" else original(path, *arguments, **options)

    evaluate.load = load
    try:
        yield
    finally:
        evaluate.load = original
        instead.importing = False

"""Reads the file of a benchmark by the name of its format.

A format without a window of dates has a reader of one file; LiveCodeBench has ``livecodebench.read_benchmark``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from megatron_ssd.problems.humaneval import read_humaneval, read_humaneval_plus
from megatron_ssd.problems.leetcode import read_leetcode
from megatron_ssd.problems.mbpp import read_mbpp, read_mbpp_plus
from megatron_ssd.schema import Problem

READERS: Mapping[str, Callable[[Path], list[Problem]]] = {
    "humaneval": read_humaneval,
    "humaneval_plus": read_humaneval_plus,
    "mbpp": read_mbpp,
    "mbpp_plus": read_mbpp_plus,
    "leetcode": read_leetcode,
}


def read_format(name: str, path: Path) -> list[Problem]:
    """The problems of the file at ``path``, whose format is one of ``READERS``. ``Problem.source`` is the format.

    Raises:
        UserError: the file or one of its rows cannot be read.
    """
    return READERS[name](path)

"""The rules of each benchmark's official checker, from finding the program in a response to running it.

Sources, read as facts from the public code:
- ``openai/human-eval``, ``execution.py`` and ``evaluation.py``: empty names, Python's own recursion limit, 3 s.
- ``evalplus/evalplus``, ``eval/__init__.py``: the same names and recursion limit, 4 GB of memory, 60 s for all inputs
  of a test.
- ``LiveCodeBench/LiveCodeBench``, ``testing_util.py``: names that are imported before a program, a recursion limit of
  50,000, and 6 s per test, the default of its command.
- MBPP has no checker of its own. Program, set-up and assertions run one after another in plain Python.

Python's recursion limit counts the checker's own calls as well, and the checkers have different numbers of them. The
limits here leave a program as many calls as its official checker does with a limit of 1,000.

The official checkers measure wall time. Here all seconds are CPU time, so a busy machine changes no verdict.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.prompts.extract import Extraction, ExtractionRule, extract_program
from megatron_ssd.schema import Problem

Prelude = Literal["lcb", "none"]
_CALLED = re.compile(r"\b([^\W\d]\w*)\(")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How the programs of one benchmark are found and run.

    ``prelude`` are the names that a program has without imports, ``max_int_digits`` is Python's limit for conversions
    of integers to text (0 for none), ``cpu_seconds`` are CPU seconds per test, ``memory_mib`` is MiB of address space,
    and ``extraction`` is the rule that finds the program in a response. With ``text_streams``, the standard streams are
    not files.
    """

    prelude: Prelude
    recursion_limit: int
    max_int_digits: int
    cpu_seconds: float
    memory_mib: int
    extraction: ExtractionRule
    text_streams: bool = False


_GENERAL = Rules(
    prelude="lcb", recursion_limit=50_000, max_int_digits=0, cpu_seconds=10.0, memory_mib=1024, extraction="last_block"
)
_LCB = dataclasses.replace(_GENERAL, cpu_seconds=6.0, extraction="lcb")
_MBPP = Rules(prelude="none", recursion_limit=1006, max_int_digits=sys.int_info.default_max_str_digits,
              cpu_seconds=10.0, memory_mib=4096, extraction="entry_point")  # fmt: skip
_HUMANEVAL = dataclasses.replace(_MBPP, recursion_limit=990, cpu_seconds=3.0, text_streams=True)
_PLUS = dataclasses.replace(_HUMANEVAL, cpu_seconds=60.0)
EVALPLUS_CALLS = 16  # that evalplus makes before it calls a function on inputs, in addition to those of human_eval
_RULES = {
    "livecodebench": _LCB,
    "leetcode": _LCB,
    "humaneval": _HUMANEVAL,
    "humaneval_plus": _PLUS,
    "mbpp": _MBPP,
    "mbpp_plus": _PLUS,
}


def rules_of(source: str) -> Rules:
    """The rules of problems whose ``Problem.source`` is ``source``; the common ones if it is not a benchmark."""
    return _RULES.get(source, _GENERAL)


@lru_cache(maxsize=64)
def configured_rules(source: str, config: SandboxConfig) -> Rules:
    """The rules of ``source``, except for those that ``config`` sets."""
    keys = ("prelude", "cpu_seconds", "memory_mib")
    chosen = {key: value for key in keys if (value := getattr(config, key)) is not None}
    return dataclasses.replace(rules_of(source), **chosen)


def program_of_response(problem: Problem, response: str, *, prompt_opens_thinking: bool = False) -> Extraction:
    """The program in a chat model's ``response`` to ``problem``; see ``prompts.extract``."""
    scripts = tuple(test.input for test in problem.tests) if problem.form == "checks" else ()
    return extract_program(
        response,
        rule=rules_of(problem.source).extraction,
        entry_point=problem.function_name,
        prompt=prompt_of(problem),
        tested_names=_called_names(scripts),
        prompt_opens_thinking=prompt_opens_thinking,
    )


def prompt_of(problem: Problem) -> str:
    """The start of the program that ``problem`` gives: HumanEval's prompt. Other starter code is not run."""
    return problem.starter_code if rules_of(problem.source).extraction == "entry_point" else ""


@lru_cache(maxsize=1024)
def _called_names(scripts: tuple[str, ...]) -> frozenset[str]:
    """Names that assert scripts call: MBPP has tests that need a class of the program besides its function."""
    return frozenset(name for script in scripts for name in _CALLED.findall(script))

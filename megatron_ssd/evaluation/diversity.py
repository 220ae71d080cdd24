"""Counts the distinct programs that a model writes for a problem.

Two programs count as one if Python parses them to the same tree, ignoring formatting, comments and docstrings. Names
count, so a renamed variable makes another program: the result measures the variety of texts, not of algorithms.

Programs are untrusted text; they are parsed here, never run. A program that did not compile, that Python does not parse
here, or that is longer than ``_MAX_CHARACTERS`` is compared by its text, ignoring white space. Deep nesting and long
numbers are harmless: the parser has its own limits, and the tree is walked without recursion.
"""

from __future__ import annotations

import ast
import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from megatron_ssd.problems.assert_scripts import parse_quietly
from megatron_ssd.schema import Verdict

_MAX_CHARACTERS = 1 << 16  # parsing takes time and memory in proportion
_SCOPES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_IGNORED = frozenset({"ctx", "kind", "type_comment"})  # fields that follow from the rest of the tree or from spelling


@dataclass(frozen=True, slots=True, kw_only=True)
class Diversity:
    """Distinct programs of one model under one setting.

    ``distinct`` is the mean over all problems. ``distinct_passing`` counts programs that pass, and is the mean over the
    ``num_solved`` problems that have one. None if there is no such problem.
    """

    distinct: float | None
    distinct_passing: float | None
    num_solved: int


class NormalForms:
    """Computes the normal forms of programs, each text once. Texts are kept as hashes."""

    def __init__(self) -> None:
        self._known: dict[bytes, bytes] = {}

    def of(self, source: str, *, compiles: bool = True) -> bytes:
        """The normal form, which is equal for two programs that count as one.

        Args:
            source: the program.
            compiles: false if it is known not to compile; then it is not parsed.
        """
        key = _digest(f"{compiles:d}{source}")
        if key not in self._known:
            self._known[key] = normal_form(source) if compiles else _text_form(source)
        return self._known[key]

    def diversity(self, programs: Iterable[tuple[Verdict, str | None]]) -> Diversity:
        """The diversity of all samples of one setting.

        Args:
            programs: (verdict, program) of each sample; the program is None if the response has none.
        """
        every, passing = defaultdict[str, set[bytes]](set), defaultdict[str, set[bytes]](set)
        for verdict, source in programs:
            seen = every[verdict.problem_id]
            if source is not None:
                form = self.of(source, compiles=verdict.status != "syntax_error")
                seen.add(form)
                if verdict.passed:
                    passing[verdict.problem_id].add(form)
        return Diversity(distinct=_mean_size(every), distinct_passing=_mean_size(passing), num_solved=len(passing))


def normal_form(source: str) -> bytes:
    """A hash of the tree of the program, or of its text if Python does not parse it."""
    if len(source) > _MAX_CHARACTERS:
        return _text_form(source)
    try:
        tree = parse_quietly(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # ValueError: null bytes, lone surrogates
        return _text_form(source)
    return _digest("tree " + "".join(_serialized(tree)))


def _serialized(tree: ast.AST) -> list[str]:
    """The tree in prefix order, with the kind of each node and the length of each list, so that it is unambiguous."""
    parts: list[str] = []
    waiting: list[Any] = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, ast.AST):
            parts.append(f"{type(item).__name__}(")
            waiting.extend(_without_docstring(item, name) for name in reversed(item._fields) if name not in _IGNORED)
        elif isinstance(item, list):
            parts.append(f"[{len(item)}")
            waiting.extend(reversed(item))
        else:
            written = hex(item) if type(item) is int else repr(item)  # Python refuses to write long integers in decimal
            parts.append(f"{type(item).__name__} {written},")
    return parts


def _without_docstring(node: ast.AST, name: str) -> Any:
    """The field ``name`` of ``node``, without the docstring at the beginning of a body."""
    value: Any = getattr(node, name, None)
    if name != "body" or not isinstance(node, _SCOPES) or not value:
        return value
    first = value[0]
    is_docstring = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return value[1:] if is_docstring else value


def _text_form(source: str) -> bytes:
    return _digest("text " + " ".join(source.split()))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _mean_size(by_problem: dict[str, set[bytes]]) -> float | None:
    return sum(map(len, by_problem.values())) / len(by_problem) if by_problem else None

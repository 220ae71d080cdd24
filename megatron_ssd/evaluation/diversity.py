"""How different the programs are that a model writes for one problem.

Two programs count as one where Python reads them alike: formatting, comments and docstrings aside, names as they stand.
A variable of another name therefore makes another program; what is measured is the variety of what a model writes, not
of the algorithms behind it.

Programs are text of unknown origin, and are parsed here, never run. One that the judge could not compile, that Python
does not parse here, or that is longer than ``_LONGEST`` is compared by its text, white space aside. No depth of nesting
and no length of a number can do harm: the parser has its own limits, and the tree is walked without recursion.
"""

from __future__ import annotations

import ast
import hashlib
import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from megatron_ssd.schema import Verdict

_LONGEST = 1 << 16  # characters; parsing takes time and memory in proportion
_SCOPES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_UNSEEN = frozenset({"ctx", "kind", "type_comment"})  # follow from the rest of the tree, or from how it is spelled


@dataclass(frozen=True, slots=True, kw_only=True)
class Diversity:
    """Distinct programs of one model under one setting.

    ``distinct`` is the mean over all problems, ``distinct_passing`` counts programs that pass and is the mean over the
    ``num_solved`` problems that have one; None where there are none.
    """

    distinct: float | None
    distinct_passing: float | None
    num_solved: int


class NormalForms:
    """Programs by what is compared of them. Remembers every text that it has seen, as a hash."""

    def __init__(self) -> None:
        self._known: dict[bytes, bytes] = {}

    def of(self, source: str, *, compiles: bool = True) -> bytes:
        """Equal for two programs that count as one.

        Args:
            source: the program.
            compiles: false where the judge has found that it does not; nothing is parsed then.
        """
        key = _digest(f"{compiles:d}{source}")
        if key not in self._known:
            self._known[key] = normal_form(source) if compiles else _text_form(source)
        return self._known[key]

    def diversity(self, programs: Iterable[tuple[Verdict, str | None]]) -> Diversity:
        """Of all samples of one setting: each one's verdict and program, None where its response holds none."""
        every, passing = defaultdict[str, set[bytes]](set), defaultdict[str, set[bytes]](set)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a program's odd escapes are not this one's
            for verdict, source in programs:
                seen = every[verdict.problem_id]
                if source is not None:
                    form = self.of(source, compiles=verdict.status != "syntax_error")
                    seen.add(form)
                    if verdict.passed:
                        passing[verdict.problem_id].add(form)
        return Diversity(distinct=_mean_size(every), distinct_passing=_mean_size(passing), num_solved=len(passing))


def normal_form(source: str) -> bytes:
    """A hash of the program's tree, or of its text where Python does not parse it."""
    if len(source) > _LONGEST:
        return _text_form(source)
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # ValueError: null bytes, lone surrogates
        return _text_form(source)
    return _digest("tree " + "".join(_spelled(tree)))


def _spelled(tree: ast.AST) -> list[str]:
    """The tree in prefix order, every node with its kind and every list with its length, so that no two read alike."""
    parts: list[str] = []
    waiting: list[Any] = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, ast.AST):
            parts.append(f"{type(item).__name__}(")
            waiting.extend(_without_docstring(item, name) for name in reversed(item._fields) if name not in _UNSEEN)
        elif isinstance(item, list):
            parts.append(f"[{len(item)}")
            waiting.extend(reversed(item))
        else:
            written = hex(item) if type(item) is int else repr(item)  # Python writes no long integer in decimal
            parts.append(f"{type(item).__name__} {written},")
    return parts


def _without_docstring(node: ast.AST, name: str) -> Any:
    """The field ``name`` of ``node``, less the docstring that a body begins with."""
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

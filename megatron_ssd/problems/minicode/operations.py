"""The vocabulary of the world: list operations, what they are called in English, and how people write them in Python.

Invariants:
- An operation means what its first form computes. Every other right form computes the same on all integer lists; every
  wrong form (a trap: a plausible way to write it, often the commoner one) computes something else on some list.
- Forms are expressions over ``{x}`` (one element; kinds ``filter`` and ``map``) or ``{s}`` (the list; kinds ``list``
  and ``reduce``), and ``{k}``, the operand. A ``reduce`` gives a number and can only stand last.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["filter", "map", "list", "reduce"]


@dataclass(frozen=True, slots=True)
class Form:
    """One way to write an operation; ``weight`` is its share among the authors of the corpus."""

    text: str
    weight: float
    right: bool = True


@dataclass(frozen=True, slots=True)
class Operation:
    """A list operation. ``operands`` are the values that ``{k}`` takes; ``(0,)`` where it takes none."""

    name: str
    kind: Kind
    wording: str
    forms: tuple[Form, ...]
    operands: tuple[int, ...] = (0,)

    @property
    def is_elementwise(self) -> bool:
        """Whether the forms speak of one element at a time."""
        return self.kind in ("filter", "map")


@dataclass(frozen=True, slots=True)
class Step:
    """An operation with its operand. A problem is a tuple of steps, applied from left to right."""

    name: str
    operand: int = 0

    @property
    def operation(self) -> Operation:
        """The table entry of ``name``."""
        return OPERATIONS[self.name]

    @property
    def wording(self) -> str:
        """English, an imperative without capital or full stop."""
        return self.operation.wording.format(k=self.operand)

    @property
    def has_trap(self) -> bool:
        """Whether some form of this operation is wrong."""
        return any(not form.right for form in self.operation.forms)


@functools.cache
def compiled(step: Step, form: Form) -> Callable[[list[int]], Any]:
    """``form`` as a function of one list, from this module's own table."""
    expression = form.text.format(x="x", s="xs", k=step.operand)
    if step.operation.kind == "filter":
        expression = f"[x for x in xs if {expression}]"
    elif step.operation.kind == "map":
        expression = f"[{expression} for x in xs]"
    function: Callable[[list[int]], Any] = eval(f"lambda xs: {expression}")
    return function


def meaning(step: Step) -> Callable[[list[int]], Any]:
    """What ``step`` computes."""
    return compiled(step, step.operation.forms[0])


def _right(*texts: str) -> tuple[Form, ...]:
    """Forms that are all right, the first twice as common as each of the others."""
    return tuple(Form(text, 2.0 if index == 0 else 1.0) for index, text in enumerate(texts))


def _trap(wrong: str, *right: str) -> tuple[Form, ...]:
    """A wrong form that most authors write, and right ones that share the rest, the first twice as common."""
    shares = [2.0 if index == 0 else 1.0 for index in range(len(right))]
    forms = (Form(text, (1 - _SHARE_WRONG) * share / sum(shares)) for text, share in zip(right, shares, strict=True))
    return (*forms, Form(wrong, _SHARE_WRONG, right=False))


_SHARE_WRONG = 0.6
_DIGITS = (2, 3, 4, 5, 6, 7, 8, 9)
_FACTORS = (2, 3, 4, 5)
_LENGTHS = (2, 3, 4)

_TABLE = (
    Operation("even", "filter", "keep even", _right("{x} % 2 == 0")),
    Operation("odd", "filter", "keep odd", _right("{x} % 2 == 1", "{x} % 2 != 0")),
    Operation("positive", "filter", "keep positive", _right("{x} > 0")),
    Operation("negative", "filter", "keep negative", _right("{x} < 0")),
    Operation("above", "filter", "keep above {k}", _right("{x} > {k}"), _FACTORS),
    Operation("below", "filter", "keep below {k}", _right("{x} < {k}"), _DIGITS),
    Operation("at_least", "filter", "keep from {k}", _trap("{x} > {k}", "{x} >= {k}", "{x} > {k} - 1"), _FACTORS),
    Operation("at_most", "filter", "keep up to {k}", _trap("{x} < {k}", "{x} <= {k}", "{x} < {k} + 1"), _DIGITS),
    Operation("multiples", "filter", "keep multiples of {k}", _right("{x} % {k} == 0"), (3, 4)),
    Operation("others", "filter", "drop multiples of {k}", _right("{x} % {k} != 0", "{x} % {k} > 0"), _FACTORS),
    Operation("add", "map", "add {k}", _right("{x} + {k}"), _DIGITS),
    Operation("subtract", "map", "subtract {k}", _right("{x} - {k}"), _DIGITS),
    Operation("subtract_from", "map", "subtract from {k}", _trap("{x} - {k}", "{k} - {x}", "-{x} + {k}"), _DIGITS),
    Operation("multiply", "map", "multiply by {k}", _right("{x} * {k}", "{k} * {x}"), _FACTORS),
    Operation("square", "map", "square", _right("{x} * {x}", "{x} ** 2")),
    Operation("negate", "map", "negate", _right("-{x}", "0 - {x}")),
    Operation("absolute", "map", "absolute", _right("abs({x})", "max({x}, -{x})")),
    Operation("divide", "map", "divide by {k}", _right("{x} // {k}"), _FACTORS),
    Operation("truncate", "map", "divide by {k} to zero", _trap("{x} // {k}", "int({x} / {k})"), _FACTORS),
    Operation("remainder", "map", "remainder by {k}", _right("{x} % {k}"), _DIGITS),
    Operation("last_digit", "map", "last digit", _trap("{x} % 10", "abs({x}) % 10")),
    Operation("cap", "map", "cap at {k}", _trap("max({x}, {k})", "min({x}, {k})", "min({k}, {x})"), _DIGITS),
    Operation("lift", "map", "raise to {k}", _trap("min({x}, {k})", "max({x}, {k})", "max({k}, {x})"), _FACTORS),
    Operation("reverse", "list", "reverse", _right("{s}[::-1]", "list(reversed({s}))")),
    Operation("sort", "list", "sort", _right("sorted({s})")),
    Operation("descend", "list", "sort down", _right("sorted({s}, reverse=True)", "sorted({s})[::-1]")),
    Operation("unique", "list", "drop repeated", _trap("list(set({s}))", "list(dict.fromkeys({s}))")),
    Operation("first", "list", "keep first {k}", _right("{s}[:{k}]"), _LENGTHS),
    Operation("last", "list", "keep last {k}", _right("{s}[-{k}:]"), _LENGTHS),
    Operation("skip", "list", "drop first {k}", _right("{s}[{k}:]"), _LENGTHS),
    Operation("chop", "list", "drop last {k}", _right("{s}[:-{k}]"), _LENGTHS),
    Operation("alternate", "list", "keep every other", _right("{s}[::2]")),
    Operation("rotate", "list", "rotate by {k}",
              _trap("{s}[-{k}:] + {s}[:-{k}]", "{s}[{k}:] + {s}[:{k}]"), _LENGTHS),
    Operation("sum", "reduce", "sum", _right("sum({s})")),
    Operation("count", "reduce", "count", _right("len({s})")),
    Operation("largest", "reduce", "largest or 0", _trap("max({s})", "max({s}, default=0)", "max({s} or [0])")),
    Operation("smallest", "reduce", "smallest or 0", _trap("min({s})", "min({s}, default=0)", "min({s} or [0])")),
)  # fmt: skip

OPERATIONS: dict[str, Operation] = {operation.name: operation for operation in _TABLE}

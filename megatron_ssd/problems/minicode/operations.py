"""Defines the list operations: their English wording, with the Python forms in which authors write them.

Invariants:
- The first form of an operation defines it. Every other right form computes the same on all integer lists. Every wrong
  form (a trap: plausible, and often more common than the right ones) computes something else on some list.
- Forms are expressions over ``{x}`` (one element; kinds ``filter`` and ``map``) or ``{s}`` (the list; kinds ``list``
  and ``reduce``). A ``reduce`` returns a number and can only be the last step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["filter", "map", "list", "reduce"]


@dataclass(frozen=True, slots=True)
class Form:
    """One form of an operation; ``weight`` is its share among the authors of the corpus."""

    text: str
    weight: float
    right: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """A list operation. ``wording`` is an imperative without capital letter and full stop. One object per name."""

    name: str
    kind: Kind
    wording: str
    forms: tuple[Form, ...]

    @property
    def is_elementwise(self) -> bool:
        """Whether the forms are expressions over one element."""
        return self.kind in ("filter", "map")


@functools.cache
def compiled(operation: Operation, form: Form) -> Callable[[list[int]], Any]:
    """``form`` as a function of one list."""
    expression = form.text.format(x="x", s="xs")
    if operation.kind == "filter":
        expression = f"[x for x in xs if {expression}]"
    elif operation.kind == "map":
        expression = f"[{expression} for x in xs]"
    function: Callable[[list[int]], Any] = eval(f"lambda xs: {expression}")  # from the table below only
    return function


def meaning(operation: Operation) -> Callable[[list[int]], Any]:
    """What ``operation`` computes."""
    return compiled(operation, operation.forms[0])


def _right(*texts: str) -> tuple[Form, ...]:
    """Forms that are all right, the first twice as common as each of the others."""
    return tuple(Form(text, 2.0 if index == 0 else 1.0) for index, text in enumerate(texts))


def _trap(share_wrong: float, wrong: str, *right: str) -> tuple[Form, ...]:
    """A wrong form with the given share among authors; right forms share the rest as in ``_right``."""
    forms = _right(*right)
    scale = (1 - share_wrong) / sum(form.weight for form in forms)
    return (*(Form(form.text, form.weight * scale) for form in forms), Form(wrong, share_wrong, right=False))


_TABLE = (
    Operation("even", "filter", "keep even", _right("{x} % 2 == 0")),
    Operation("odd", "filter", "keep odd", _right("{x} % 2 == 1", "{x} % 2 != 0")),
    Operation("positive", "filter", "keep positive", _right("{x} > 0")),
    Operation("negative", "filter", "keep negative", _right("{x} < 0")),
    Operation("nonzero", "filter", "drop zero", _right("{x} != 0")),
    Operation("above", "filter", "keep above five", _right("{x} > 5")),
    Operation("below", "filter", "keep below five", _right("{x} < 5")),
    Operation("threes", "filter", "keep multiples of three", _right("{x} % 3 == 0")),
    Operation("others", "filter", "drop multiples of three", _right("{x} % 3 != 0", "{x} % 3 > 0")),
    Operation("not_negative", "filter", "drop negative", _trap(0.7, "{x} > 0", "{x} >= 0", "{x} > -1")),
    Operation("not_positive", "filter", "drop positive", _trap(0.75, "{x} < 0", "{x} <= 0", "{x} < 1")),
    Operation("at_least", "filter", "keep from five", _trap(0.75, "{x} > 5", "{x} >= 5", "{x} > 4")),
    Operation("at_most", "filter", "keep up to five", _trap(0.7, "{x} < 5", "{x} <= 5", "{x} < 6")),
    Operation("increment", "map", "add one", _right("{x} + 1")),
    Operation("decrement", "map", "subtract one", _right("{x} - 1")),
    Operation("add_ten", "map", "add ten", _right("{x} + 10")),
    Operation("double", "map", "double", _right("{x} * 2", "{x} + {x}")),
    Operation("triple", "map", "triple", _right("{x} * 3")),
    Operation("square", "map", "square", _right("{x} * {x}", "{x} ** 2")),
    Operation("negate", "map", "negate", _right("-{x}", "0 - {x}")),
    Operation("absolute", "map", "absolute", _right("abs({x})", "max({x}, -{x})")),
    Operation("parity", "map", "parity", _right("{x} % 2")),
    Operation("halve", "map", "halve", _right("{x} // 2")),
    Operation("truncate", "map", "halve to zero", _trap(0.85, "{x} // 2", "int({x} / 2)")),
    Operation("last_digit", "map", "last digit", _trap(0.8, "{x} % 10", "abs({x}) % 10")),
    Operation("subtract_from", "map", "subtract from ten", _trap(0.6, "{x} - 10", "10 - {x}", "-{x} + 10")),
    Operation("cap", "map", "cap at five", _trap(0.6, "max({x}, 5)", "min({x}, 5)", "min(5, {x})")),
    Operation("lift", "map", "raise to five", _trap(0.7, "min({x}, 5)", "max({x}, 5)", "max(5, {x})")),
    Operation("reverse", "list", "reverse", _right("{s}[::-1]", "list(reversed({s}))")),
    Operation("sort", "list", "sort", _right("sorted({s})")),
    Operation("descend", "list", "sort down", _right("sorted({s}, reverse=True)", "sorted({s})[::-1]")),
    Operation("by_size", "list", "sort by absolute", _trap(0.6, "sorted(map(abs, {s}))", "sorted({s}, key=abs)")),
    Operation("first", "list", "keep first three", _right("{s}[:3]")),
    Operation("last", "list", "keep last three", _right("{s}[-3:]")),
    Operation("skip", "list", "drop first", _right("{s}[1:]")),
    Operation("chop", "list", "drop last", _right("{s}[:-1]")),
    Operation("trim", "list", "drop both ends", _right("{s}[1:-1]")),
    Operation("alternate", "list", "keep every other", _trap(0.55, "{s}[1::2]", "{s}[::2]")),
    Operation("repeat", "list", "repeat", _right("{s} + {s}")),
    Operation("unique", "list", "drop repeated", _trap(0.8, "list(set({s}))", "list(dict.fromkeys({s}))")),
    Operation("chop_three", "list", "drop last three", _trap(0.6, "{s}[-3:]", "{s}[:-3]")),
    Operation("rotate", "list", "rotate", _trap(0.7, "{s}[-1:] + {s}[:-1]", "{s}[1:] + {s}[:1]")),
    Operation("sum", "reduce", "sum", _right("sum({s})")),
    Operation("count", "reduce", "count", _right("len({s})")),
    Operation("distinct", "reduce", "count distinct", _right("len(set({s}))")),
    Operation("largest", "reduce", "largest or zero",
              _trap(0.85, "max({s})", "max({s}, default=0)", "max({s} or [0])")),
    Operation("smallest", "reduce", "smallest or zero",
              _trap(0.8, "min({s})", "min({s}, default=0)", "min({s} or [0])")),
    Operation("last_one", "reduce", "last or zero", _trap(0.75, "{s}[-1]", "sum({s}[-1:])", "({s} or [0])[-1]")),
)  # fmt: skip

OPERATIONS: dict[str, Operation] = {operation.name: operation for operation in _TABLE}

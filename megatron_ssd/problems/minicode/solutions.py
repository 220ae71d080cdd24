"""Writes programs with a small grammar of explicit choices, so that each position has an exact label.

A program is a sequence of lines (a loop counts as one line). For each line the grammar lists every text that an author
could write, with its weight, whether it is right, and what it binds. An author draws one of them. Once a name is bound,
it must be used, so an early choice decides which tokens are right later. All alternatives are known, so each position
has a label:

- **fork**: authors continue in several ways. Its options are their next units. Viable options still lead to a right
  program; the others are traps.
- **lock**: all authors continue with the same text.

Units are the pieces that ``split`` cuts a text into: words for the noise process, token ids for analysis.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from megatron_ssd.problems.minicode.operations import Operation

Composition = tuple[Operation, ...]
PositionKind = Literal["fork", "lock", "other"]
Split = Callable[[str], Sequence[Hashable]]

INDENT = "\n    "
FENCE = "\n```"
PARAMETERS = {"xs": 0.6, "nums": 0.4}
ELEMENTS = {"x": 0.7, "n": 0.3}
FRESH_NAMES = ("ys", "zs", "ws", "vs")
SHAPES = {"comprehension": 0.6, "lambda": 0.25, "loop": 0.15}
_APPLIED = {
    ("filter", "comprehension"): "[{element} for {element} in {source} if {body}]",
    ("filter", "lambda"): "list(filter(lambda {element}: {body}, {source}))",
    ("map", "comprehension"): "[{body} for {element} in {source}]",
    ("map", "lambda"): "list(map(lambda {element}: {body}, {source}))",
}
SHARE_FRESH = 0.5  # authors who bind each result to a new name; the others rebind the parameter
SHARE_NESTED = 0.25  # two steps in one expression, if the grammar allows it
SHARE_RETURNED = 0.8  # the last step is written after ``return``; otherwise it is bound and returned on the next line


@dataclass(frozen=True, slots=True)
class Frame:
    """What the lines so far have bound: the parameter, the name of the newest list, and the author's habits."""

    parameter: str
    source: str
    fresh: bool | None = None  # None until the first assignment shows it
    bound: int = 0  # fresh names used so far
    element: str | None = None


@dataclass(frozen=True, slots=True)
class Option:
    """One text for a line. It does ``consumed`` steps; ``right`` says that it does them correctly.

    ``weight`` is relative to the other options that do the same number of steps.
    """

    text: str
    weight: float
    right: bool
    consumed: int
    after: Frame


@dataclass(frozen=True, slots=True)
class Line:
    """A written line and the state before it: ``frame`` (None for the first line) and the remaining steps."""

    frame: Frame | None
    rest: Composition
    chosen: Option

    @property
    def options(self) -> tuple[Option, ...]:
        """Every text that an author could have written here."""
        return line_options(self.frame, self.rest)


@dataclass(frozen=True, slots=True)
class Position:
    """A labelled unit. ``options`` are what authors write here; with ``viable`` ones the line can still be right."""

    kind: PositionKind
    unit: Hashable
    options: frozenset[Hashable] = frozenset()
    viable: frozenset[Hashable] = frozenset()


def line_options(frame: Frame | None, rest: Composition) -> tuple[Option, ...]:
    """Options of the next line. ``rest`` are the remaining steps; if there are none, the bound name is returned."""
    if frame is None:
        return _OPENING
    if not rest:
        return (Option(f"return {frame.source}{FENCE}", 1.0, True, 0, frame),)
    return _single(frame, rest[0], len(rest) == 1) + _nested(frame, rest[:2], len(rest) == 2)


def write_program(composition: Composition, rng: random.Random) -> tuple[Line, ...]:
    """Lines of one author's program, including traps. Joined, their texts are the code and its closing fence."""
    lines: list[Line] = []
    frame, rest = None, composition
    while not lines or not lines[-1].chosen.text.endswith(FENCE):
        lines.append(Line(frame, rest, _draw(frame, rest, rng)))
        frame, rest = lines[-1].chosen.after, rest[lines[-1].chosen.consumed :]
    return tuple(lines)


def label(line: Line, split: Split) -> Iterator[Position]:
    """Label the units of ``line``."""
    alive = [(tuple(split(option.text)), option.right) for option in line.options]
    for index, unit in enumerate(split(line.chosen.text)):
        following = frozenset(units[index] for units, _ in alive)
        viable = frozenset(units[index] for units, right in alive if right)
        yield Position("fork" if len(following) > 1 else "lock", unit, following, viable)
        if len(following) > 1:
            alive = [(units, right) for units, right in alive if units[index] == unit]


def _draw(frame: Frame | None, rest: Composition, rng: random.Random) -> Option:
    """An option by its weight. The many nested options are listed only if the draw selects them."""
    if frame is None or not rest:
        options = line_options(frame, rest)
    elif _can_nest(rest) and rng.random() < SHARE_NESTED:
        options = _nested(frame, rest[:2], len(rest) == 2)
    else:
        options = _single(frame, rest[0], len(rest) == 1)
    return rng.choices(options, [option.weight for option in options])[0]


@dataclass(frozen=True, slots=True)
class _Expression:
    text: str
    weight: float
    right: bool
    element: str | None


def _expressions(frame: Frame, step: Operation) -> Iterator[_Expression]:
    """One step applied to the newest list, as an expression."""
    for form in step.forms:
        if not step.is_elementwise:
            yield _Expression(form.text.format(s=frame.source), form.weight, form.right, frame.element)
            continue
        for element, share in _elements(frame):
            for shape in ("comprehension", "lambda"):
                body = form.text.format(x=element)
                text = _APPLIED[step.kind, shape].format(element=element, body=body, source=frame.source)
                yield _Expression(text, form.weight * share * SHAPES[shape], form.right, element)


@functools.lru_cache(maxsize=1 << 16)
def _single(frame: Frame, step: Operation, last: bool) -> tuple[Option, ...]:
    """Lines that do one step."""
    return (*_written(frame, tuple(_expressions(frame, step)), 1, last), *_loops(frame, step))


@functools.lru_cache(maxsize=1 << 14)
def _nested(frame: Frame, steps: Composition, last: bool) -> tuple[Option, ...]:
    """Lines that do two steps in one expression."""
    if not _can_nest(steps):
        return ()
    expressions = []
    for inner in _expressions(frame, steps[0]):
        around = replace(frame, source=inner.text, element=inner.element)
        for outer in _expressions(around, steps[1]):
            weight, right = inner.weight * outer.weight, inner.right and outer.right
            expressions.append(_Expression(outer.text, weight, right, outer.element))
    return tuple(_written(frame, tuple(expressions), 2, last))


def _can_nest(rest: Composition) -> bool:
    """False for two elementwise steps, and for a step that names its list twice."""
    if len(rest) < 2 or all(step.is_elementwise for step in rest[:2]):
        return False
    return all(form.text.count("{s}") < 2 for step in rest[:2] for form in step.forms)


def _written(frame: Frame, expressions: tuple[_Expression, ...], consumed: int, last: bool) -> Iterator[Option]:
    """Each expression with each name that it could be bound to and, if it is the last step, with ``return``."""
    total = sum(expression.weight for expression in expressions)
    for expression in expressions:
        weight = expression.weight / total
        if last:
            after = replace(frame, element=expression.element)
            text = f"return {expression.text}{FENCE}"
            yield Option(text, weight * SHARE_RETURNED, expression.right, consumed, after)
            weight *= 1 - SHARE_RETURNED
        for target, fresh, share in _targets(frame):
            after = _bind(frame, target, fresh, expression.element)
            yield Option(f"{target} = {expression.text}{INDENT}", weight * share, expression.right, consumed, after)


def _loops(frame: Frame, step: Operation) -> Iterator[Option]:
    """An elementwise step as a loop, for authors who use new names."""
    if not step.is_elementwise or frame.fresh is False:
        return
    target = FRESH_NAMES[frame.bound]
    forms = step.forms
    scale = SHAPES["loop"] * (1.0 if frame.fresh else SHARE_FRESH) / sum(form.weight for form in forms)
    for form in forms:
        for element, share in _elements(frame):
            computed = form.text.format(x=element)
            body = (
                f"{INDENT}    if {computed}:{INDENT}        {target}.append({element})"
                if step.kind == "filter"
                else f"{INDENT}    {target}.append({computed})"
            )
            text = f"{target} = []{INDENT}for {element} in {frame.source}:{body}{INDENT}"
            yield Option(text, form.weight * share * scale, form.right, 1, _bind(frame, target, True, element))


def _elements(frame: Frame) -> Sequence[tuple[str, float]]:
    return tuple(ELEMENTS.items()) if frame.element is None else ((frame.element, 1.0),)


def _targets(frame: Frame) -> Iterator[tuple[str, bool, float]]:
    """(name, whether it is new, share) for the next assignment."""
    if frame.fresh is not False:
        yield FRESH_NAMES[frame.bound], True, SHARE_FRESH if frame.fresh is None else 1.0
    if frame.fresh is not True:
        yield frame.parameter, False, 1 - SHARE_FRESH if frame.fresh is None else 1.0


def _bind(frame: Frame, target: str, fresh: bool, element: str | None) -> Frame:
    return Frame(frame.parameter, target, fresh, frame.bound + fresh, element)


_OPENING = tuple(
    Option(f"def f({name}):{INDENT}", weight, True, 0, Frame(name, name)) for name, weight in PARAMETERS.items()
)

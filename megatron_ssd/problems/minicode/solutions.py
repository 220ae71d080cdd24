"""How people of this world write a program: a small grammar, every choice of which is explicit.

A program is a sequence of lines (a loop counts as one). For each line the grammar lists every text that an author could
write there, with weights, whether it is right, and what it binds; an author draws one. Names, once bound, are used:
a choice made early decides which tokens are right later. Knowing all alternatives is what makes exact labels possible:

- **fork**: authors continue in several ways from here. Its options are their next units; the viable ones still lead
  to a right program. Where only one is viable the fork has a consequence: the others are traps.
- **lock**: every author continues in the same way.

Units are whatever ``split`` cuts a text into: words for the noise process, token ids for analysis.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from megatron_ssd.problems.minicode.operations import Form, Step

Composition = tuple[Step, ...]
PositionKind = Literal["fork", "lock", "other"]
Split = Callable[[str], Sequence[Hashable]]

INDENT = "\n    "
FENCE = "\n```"
PARAMETERS = {"xs": 0.6, "nums": 0.4}
ELEMENTS = {"x": 0.6, "n": 0.25, "v": 0.15}
FRESH_NAMES = ("ys", "zs", "ws", "vs")
SHAPES = {"comprehension": 0.55, "lambda": 0.25, "loop": 0.2}
SHARE_FRESH = 0.5  # authors who bind each result to a new name; the others bind the parameter again
SHARE_NESTED = 0.25  # two steps in one expression, where the grammar has it
SHARE_RETURNED = 0.8  # the last step written behind ``return``; else bound and returned on a line of its own


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
    """One text for a line. ``consumed`` steps are done by it; ``right`` says that it does them correctly."""

    text: str
    weight: float
    right: bool
    consumed: int
    after: Frame


@dataclass(frozen=True, slots=True)
class Line:
    """A line as written: all options, and which one it is."""

    options: tuple[Option, ...]
    index: int

    @property
    def chosen(self) -> Option:
        """The option that was written."""
        return self.options[self.index]


@dataclass(frozen=True, slots=True)
class Position:
    """A labelled unit. ``options`` are what authors write here, ``viable`` those of them that stay right."""

    kind: PositionKind
    unit: Hashable
    options: frozenset[Hashable] = frozenset()
    viable: frozenset[Hashable] = frozenset()


def opening() -> tuple[Option, ...]:
    """Options of the first line."""
    return tuple(
        Option(f"def f({name}):{INDENT}", weight, True, 0, Frame(name, name)) for name, weight in PARAMETERS.items()
    )


def line_options(frame: Frame, rest: Composition) -> tuple[Option, ...]:
    """Options of the next line, where ``rest`` are the steps still to do (none left: the bound name is returned)."""
    return _line_options(frame, rest[:2], min(len(rest), 3))


@functools.lru_cache(maxsize=200_000)
def _line_options(frame: Frame, steps: Composition, remaining: int) -> tuple[Option, ...]:
    if remaining == 0:
        return (Option(f"return {frame.source}{FENCE}", 1.0, True, 0, frame),)
    singles = [(1, expression) for expression in _expressions(frame, steps[0])]
    nested = [(2, expression) for expression in _nested(frame, steps)] if remaining >= 2 else []
    options = list(_written(frame, singles, remaining, 1 - SHARE_NESTED if nested else 1.0))
    options += _written(frame, nested, remaining, SHARE_NESTED)
    options += _loops(frame, steps[0])
    return tuple(options)


def write_program(composition: Composition, rng: random.Random) -> tuple[Line, ...]:
    """Lines of one author's program, traps included. Their texts joined are the code and its closing fence."""
    lines = [_draw(opening(), rng)]
    done = 0
    while not lines[-1].chosen.text.endswith(FENCE):
        lines.append(_draw(line_options(lines[-1].chosen.after, composition[done:]), rng))
        done += lines[-1].chosen.consumed
    return tuple(lines)


def label(line: Line, split: Split) -> Iterator[Position]:
    """Positions of the units of ``line``."""
    units = [tuple(split(option.text)) for option in line.options]
    chosen = units[line.index]
    alive = list(range(len(units)))
    for place, unit in enumerate(chosen):
        following = frozenset(units[other][place] for other in alive)
        viable = frozenset(units[other][place] for other in alive if line.options[other].right)
        yield Position("fork" if len(following) > 1 else "lock", unit, following, viable)
        if len(following) > 1:
            alive = [other for other in alive if units[other][place] == unit]


def _draw(options: tuple[Option, ...], rng: random.Random) -> Line:
    weights = [option.weight for option in options]
    return Line(options, rng.choices(range(len(options)), weights)[0])


@dataclass(frozen=True, slots=True)
class _Expression:
    text: str
    weight: float
    right: bool
    element: str | None


def _expressions(frame: Frame, step: Step) -> Iterator[_Expression]:
    """One step applied to the newest list, as an expression."""
    for form in step.operation.forms:
        if not step.operation.is_elementwise:
            yield _Expression(form.text.format(s=frame.source, k=step.operand), form.weight, form.right, frame.element)
            continue
        for element, share in _elements(frame):
            for shape in ("comprehension", "lambda"):
                text = _apply(step, form, shape, element, frame.source)
                yield _Expression(text, form.weight * share * SHAPES[shape], form.right, element)


def _nested(frame: Frame, steps: Composition) -> Iterator[_Expression]:
    """Two steps as one expression, unless both are elementwise."""
    first, second = steps[:2]
    if first.operation.is_elementwise and second.operation.is_elementwise:
        return
    if any(form.text.count("{s}") > 1 for form in (*first.operation.forms, *second.operation.forms)):
        return
    for inner in _expressions(frame, first):
        outer_frame = replace(frame, source=inner.text, element=inner.element)
        for outer in _expressions(outer_frame, second):
            yield _Expression(outer.text, inner.weight * outer.weight, inner.right and outer.right, outer.element)


def _written(
    frame: Frame, expressions: list[tuple[int, _Expression]], remaining: int, share: float
) -> Iterator[Option]:
    """Each expression behind ``return`` where it completes the program, and behind each name it could be bound to."""
    total = sum(expression.weight for _, expression in expressions)
    for consumed, expression in expressions:
        weight = share * expression.weight / total
        if consumed == remaining:
            after = replace(frame, element=expression.element)
            text = f"return {expression.text}{FENCE}"
            yield Option(text, weight * SHARE_RETURNED, expression.right, consumed, after)
            weight *= 1 - SHARE_RETURNED
        for target, fresh, target_share in _targets(frame):
            after = _bind(frame, target, fresh, expression.element)
            text = f"{target} = {expression.text}{INDENT}"
            yield Option(text, weight * target_share, expression.right, consumed, after)


def _loops(frame: Frame, step: Step) -> Iterator[Option]:
    """An elementwise step as a loop, for authors who use new names."""
    if not step.operation.is_elementwise or frame.fresh is False:
        return
    target = FRESH_NAMES[frame.bound]
    forms = step.operation.forms
    scale = SHAPES["loop"] * (1.0 if frame.fresh else SHARE_FRESH) / sum(form.weight for form in forms)
    for form in forms:
        for element, share in _elements(frame):
            test = form.text.format(x=element, k=step.operand)
            body = (
                f"{INDENT}    if {test}:{INDENT}        {target}.append({element})"
                if step.operation.kind == "filter"
                else f"{INDENT}    {target}.append({test})"
            )
            text = f"{target} = []{INDENT}for {element} in {frame.source}:{body}{INDENT}"
            yield Option(text, form.weight * share * scale, form.right, 1, _bind(frame, target, True, element))


def _apply(step: Step, form: Form, shape: str, element: str, source: str) -> str:
    body = form.text.format(x=element, k=step.operand)
    if step.operation.kind == "filter":
        if shape == "lambda":
            return f"list(filter(lambda {element}: {body}, {source}))"
        return f"[{element} for {element} in {source} if {body}]"
    if shape == "lambda":
        return f"list(map(lambda {element}: {body}, {source}))"
    return f"[{body} for {element} in {source}]"


def _elements(frame: Frame) -> Sequence[tuple[str, float]]:
    return tuple(ELEMENTS.items()) if frame.element is None else ((frame.element, 1.0),)


def _targets(frame: Frame) -> Iterator[tuple[str, bool, float]]:
    """(name, whether it is a fresh one, share) for the next assignment."""
    if frame.fresh is not False:
        yield FRESH_NAMES[frame.bound], True, SHARE_FRESH if frame.fresh is None else 1.0
    if frame.fresh is not True:
        yield frame.parameter, False, 1 - SHARE_FRESH if frame.fresh is None else 1.0


def _bind(frame: Frame, target: str, fresh: bool, element: str | None) -> Frame:
    return Frame(frame.parameter, target, fresh, frame.bound + fresh, element)

"""Finds the definition of a function, with what it needs, in a text of prose with Python in it.

The rules, in effect those of evalplus's sanitizer (``sanitize.py`` of github.com/evalplus/evalplus):
1. A region is a run of lines that parses as Python and cannot be extended. Fences are not looked for: their lines do
   not parse, except within a string, where they belong to the program.
2. The region of the program is the longest one that defines the function at its top level. Regions after the end of
   reasoning come first.
3. The program is the first definition of the function in that region, and of each name that the program needs: a
   function that returns something, a class or an assignment. All other statements, such as calls and assertions that
   show how to use the function, are left out. All imports of the region are kept.
4. A name without such a definition may be bound in another way: by a decorated function, or in a ``try`` statement.
5. A name that the region does not bind is taken from the nearest region before it, else after it, that binds it. So a
   helper may stand in a block of its own.

The sanitizer has neither 4 nor 5, knows no reasoning, and takes the longest region even if it does not define the
function. A program that passes as it finds it in an answer also passes here.
"""

from __future__ import annotations

import ast
import builtins
import codeop
import symtable
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_COST_PER_CHARACTER = 16  # characters given to the parser per character of text; ordinary text needs 2 to 4
_INCOMPLETE = 0  # instead of the number of a line
_ALLOW_INCOMPLETE: int = codeop.PyCF_ALLOW_INCOMPLETE_INPUT  # type: ignore[attr-defined]
_STAR, _FUTURE = "*", "__future__"  # bound by imports from or of them


class Definition(NamedTuple):
    """A program that defines the function; its ``from __future__`` imports are separate, as they must come first."""

    program: str
    future_imports: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Unit:
    """The statements on the lines from ``start`` to before ``end``: one, or several that share a line.

    ``binds`` are the names that they bind at the top level, ``defines`` those of them that the sanitizer sees as
    definitions, ``imports`` those of imports, and ``needs`` the names that they or their functions read there.
    """

    start: int
    end: int
    binds: frozenset[str]
    defines: frozenset[str]
    imports: frozenset[str]
    needs: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Region:
    start: int
    end: int
    size: int  # lines that are not blank
    units: tuple[_Unit, ...]
    by_name: dict[str, list[_Unit]]  # name -> the units that bind it

    def binding(self, name: str) -> list[_Unit]:
        """Each import of ``name``, and its first definition; if there is none, all that binds it."""
        units = self.by_name.get(name, [])
        first = next((unit for unit in units if name in unit.defines), None)
        return [unit for unit in units if first is None or unit is first or name in unit.imports]

    def rank(self, name: str) -> tuple[bool, int]:
        """Of several regions that bind ``name``, the one with the greatest rank is chosen."""
        return any(name in unit.defines for unit in self.by_name[name]), self.size


def definition_of(
    text: str, name: str, *, also: frozenset[str] = frozenset(), reasoning: str = ""
) -> Definition | None:
    """The program in ``text`` that binds ``name`` at its top level; None if no region does. The time is linear.

    Args:
        text: any text.
        name: of the function.
        also: names that are kept too if the text binds them.
        reasoning: the start of ``text``; regions behind it come first.
    """
    lines = _clean(text).split("\n")
    answer = _clean(reasoning).count("\n")
    regions = list(_Reader(lines).regions())
    defining = [index for index, region in enumerate(regions) if name in region.by_name]
    if not defining:
        return None
    chosen = max(defining, key=lambda index: (regions[index].start >= answer, *regions[index].rank(name)))
    kept = _needed(regions, chosen, [name, *sorted(also)])
    futures = tuple(f"{line}\n" for unit in kept if _FUTURE in unit.imports for line in lines[unit.start : unit.end])
    program: list[str] = []
    for region in regions:
        if not kept.isdisjoint(region.units):
            left_out = {
                number
                for unit in region.units
                if unit not in kept or _FUTURE in unit.imports
                for number in range(unit.start, unit.end)
            }
            program += [lines[number] for number in range(region.start, region.end) if number not in left_out]
    return Definition("\n".join(program).strip("\n"), futures)


def parses(text: str) -> bool:
    """Whether ``text`` is Python."""
    return isinstance(_parse(text), ast.Module)


def _clean(text: str) -> str:
    """``text`` with the line ends that the parser counts, and without characters that no program can have."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")
    return text.encode("utf-8", "replace").decode("utf-8")


def _needed(regions: Sequence[_Region], chosen: int, names: list[str]) -> set[_Unit]:
    """Each unit that binds one of ``names``, or a name that such a unit needs."""
    nearest: dict[str, _Region] = {}
    for region in [*regions[:chosen:-1], *regions[:chosen]]:  # a later one replaces the one before
        nearest.update(dict.fromkeys(region.by_name, region))
    kept = {unit for unit in regions[chosen].units if unit.imports}
    seen: set[str] = set()
    waiting = [*names, *(name for unit in kept for name in unit.needs)]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        units = regions[chosen].binding(name)
        if not units and not hasattr(builtins, name):
            other = nearest.get(name) or nearest.get(_STAR)
            units = other.binding(name) or other.binding(_STAR) if other else []
        kept.update(units)
        waiting += (needed for unit in units for needed in unit.needs)
    return kept


class _Reader:
    """Splits ``lines`` into regions; the total length of what it parses is at most a multiple of their length."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = lines
        self._budget = _COST_PER_CHARACTER * (sum(map(len, lines)) + len(lines))

    def regions(self) -> Iterator[_Region]:
        start = 0
        while start < len(self._lines) and self._budget > 0:
            if not self._lines[start] or self._lines[start][0].isspace():  # no statement begins here
                start += 1
                continue
            end, tree = self._longest(start)
            if tree.body:
                size = sum(1 for line in self._lines[start:end] if line.strip())
                units = tuple(self._units(start, tree))
                by_name: dict[str, list[_Unit]] = {}
                for unit in units:
                    for name in unit.binds | unit.imports:
                        by_name.setdefault(name, []).append(unit)
                yield _Region(start, end, size, units, by_name)
            start = max(end, start + 1)

    def _longest(self, start: int) -> tuple[int, ast.Module]:
        """The end of the longest run of lines from ``start`` that parses, and its tree.

        The run is doubled as long as more lines may repair it, and then cut before each error. So a line of prose
        costs its own length only.
        """
        size, last = 1, len(self._lines)
        while True:
            end = min(start + size, last)
            parsed = self._parse(start, end, is_cut=end < last)
            is_final = isinstance(parsed, int) and parsed != _INCOMPLETE
            if is_final or end == last or self._budget <= 0:
                break
            size *= 2
        while isinstance(parsed, int) and self._budget > 0:
            end = min(end - 1, start + parsed - 1)
            parsed = self._parse(start, end)
        return (start, ast.Module([], [])) if isinstance(parsed, int) else (end, parsed)

    def _parse(self, start: int, end: int, *, is_cut: bool = False) -> ast.Module | int:
        text = self._text(start, end)
        self._budget -= len(text) + 1
        return _parse(text, is_cut=is_cut)

    def _units(self, start: int, tree: ast.Module) -> Iterator[_Unit]:
        """The units of the region that begins at line ``start``."""
        spans: list[tuple[int, int, list[ast.stmt]]] = []
        for node in tree.body:
            first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))])
            begin, end = start + first - 1, start + (node.end_lineno or first)
            if not spans or begin >= spans[-1][1]:
                spans.append((begin, end, [node]))
            else:
                begin, before, nodes = spans.pop()
                nodes.append(node)
                spans.append((begin, max(end, before), nodes))
        for begin, end, nodes in spans:
            binds, needs = _names(self._text(begin, end))
            defines, imports = ({name for node in nodes for name in find(node)} for find in (_defined, _imported))
            yield _Unit(begin, end, binds, binds & defines, frozenset(imports), needs)

    def _text(self, start: int, end: int) -> str:
        return "\n".join(self._lines[start:end])


def _parse(text: str, *, is_cut: bool = False) -> ast.Module | int:
    """The tree of ``text``, or the number of the line with an error, from 1.

    ``_INCOMPLETE`` if ``is_cut``, and lines that are added may repair the error.
    """
    flags = ast.PyCF_ONLY_AST | (_ALLOW_INCOMPLETE if is_cut else 0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = compile(text, "<response>", "exec", flags, dont_inherit=True)
    except SyntaxError as error:
        if is_cut and error.msg == "incomplete input":
            return _INCOMPLETE
        return max(error.lineno or 1, 1)
    except (ValueError, RecursionError, MemoryError):  # too deep, without the number of a line: half may do
        return text.count("\n") // 2 + 1
    assert isinstance(tree, ast.Module)
    return tree


def _names(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """The names that statements bind at the top level, and those that they and their functions read there."""
    try:
        table = symtable.symtable(text, "<response>", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # it cannot run either
        return frozenset(), frozenset()
    symbols = table.get_symbols()
    binds = {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}
    needs = {symbol.get_name() for symbol in symbols if symbol.is_referenced()}
    tables = table.get_children()
    while tables:
        inner = tables.pop()
        needs |= {symbol.get_name() for symbol in inner.get_symbols() if symbol.is_global()}
        tables += inner.get_children()
    return frozenset(binds), frozenset(needs)


def _defined(node: ast.stmt) -> set[str]:
    """The name that ``node`` defines: of a function that returns, a class or an assignment, none of them decorated."""
    match node:
        case ast.FunctionDef(name=name, decorator_list=[]) | ast.AsyncFunctionDef(name=name, decorator_list=[]):
            return {name} if any(isinstance(inner, ast.Return) for inner in ast.walk(node)) else set()
        case ast.ClassDef(name=name, decorator_list=[]):
            return {name}
        case ast.Assign(targets=[ast.Name(id=name), *_]) | ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
    return set()


def _imported(node: ast.stmt) -> set[str]:
    """The names that ``node`` imports; ``_STAR`` and ``_FUTURE`` stand for names that are unknown or mean nothing."""
    if isinstance(node, ast.ImportFrom) and node.module == _FUTURE:
        return {_FUTURE}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    return set()

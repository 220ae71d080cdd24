"""Mutates correct programs.

``mutants`` makes three kinds. ``operator`` (+ for -, < for <=, and for or, ...) and ``off_by_one`` (an integer one
higher) change the middle one of the possible nodes; some of them still compute the same, and the tests say how many
must be detected. ``return`` puts every returned value inside a list, which every check must detect.

``mutation`` makes one of ``MUTATIONS`` at a random node, for comparing two checkers.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from random import Random
from typing import Any

from megatron_ssd.problems.assert_scripts import parse_quietly

_SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.And: ast.Or, ast.Or: ast.And, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip

MUTATIONS = (
    "comparison", "comparison negated", "operator", "operands exchanged", "first operand", "and for or", "not removed",
    "one higher", "one lower", "zero", "bool", "text", "return None", "return in a list", "yield for return",
    "return removed", "condition negated", "condition true", "branch removed", "loop ends early", "loop removed",
    "endless loop", "statement removed", "statement twice", "= for +=", "import removed", "arguments exchanged",
    "call removed", "index", "slice without end", "unknown name", "continue for break", "filter removed",
)  # fmt: skip


def mutation(source: str, kind: str, random: Random) -> str | None:
    """``source`` with one random node changed, or None if it has no node that ``kind`` can change."""
    tree = parse_quietly(source)
    changes = [(node, new) for node in ast.walk(tree) for name, new in _changes(node) if name == kind]
    return ast.unparse(_Replace(*random.choice(changes)).visit(tree)) if changes else None


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST | list[ast.AST]) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else self.generic_visit(node)


def _changes(node: ast.AST) -> Iterator[tuple[str, Any]]:
    """(one of ``MUTATIONS``, what replaces the node) for each that applies."""
    none = ast.Constant(None)
    match node:
        case ast.Compare(left, [operator], [right]) if type(operator) in _SWAPS:
            yield "comparison", ast.Compare(left, [_swapped(operator)], [right])
            yield "comparison negated", ast.UnaryOp(ast.Not(), node)
        case ast.BinOp(left, operator, right):
            yield "operands exchanged", ast.BinOp(right, operator, left)
            yield "first operand", left
            if type(operator) in _SWAPS:
                yield "operator", ast.BinOp(left, _swapped(operator), right)
        case ast.BoolOp(operator, values):
            yield "and for or", ast.BoolOp(_swapped(operator), values)
        case ast.UnaryOp(ast.Not(), operand):
            yield "not removed", operand
        case ast.Constant(bool(value)):
            yield "bool", ast.Constant(not value)
        case ast.Constant(int(value)):
            yield "one higher", ast.Constant(value + 1)
            yield "one lower", ast.Constant(value - 1)
            yield "zero", ast.Constant(0)
        case ast.Constant(str(value)):
            yield "text", ast.Constant(value + "x")
        case ast.Return(value) if value is not None:
            yield "return None", ast.Return(none)
            yield "return in a list", ast.Return(ast.List([value], ast.Load()))
            yield "yield for return", ast.Expr(ast.Yield(value))
            yield "return removed", ast.Expr(value)
        case ast.If(test, body, orelse):
            yield "condition negated", ast.If(ast.UnaryOp(ast.Not(), test), body, orelse)
            yield "condition true", ast.If(ast.Constant(True), body, orelse)
            yield "branch removed", ast.Pass()
        case ast.For(target, iterable, body, orelse):
            yield "loop ends early", ast.For(target, iterable, [*body, ast.Break()], orelse, lineno=0)
            yield "loop removed", ast.Pass()
        case ast.While(_, body, orelse):
            yield "endless loop", ast.While(ast.Constant(True), body, orelse)
            yield "loop removed", ast.Pass()
        case ast.AugAssign(target, _, value):
            yield "= for +=", ast.Assign([target], value, lineno=0)
            yield "statement removed", ast.Pass()
            yield "statement twice", [node, node]
        case ast.Assign() | ast.Expr():
            yield "statement removed", ast.Pass()
            yield "statement twice", [node, node]
        case ast.Import() | ast.ImportFrom():
            yield "import removed", ast.Pass()
        case ast.Call(function, [first, *others], keywords):
            yield "call removed", first
            if others:
                yield "arguments exchanged", ast.Call(function, [*others, first], keywords)
        case ast.Subscript(value, ast.Slice(lower, _, step), context):
            yield "slice without end", ast.Subscript(value, ast.Slice(lower, None, step), context)
        case ast.Subscript(value, index, context):
            yield "index", ast.Subscript(value, ast.BinOp(index, ast.Sub(), ast.Constant(1)), context)
        case ast.Name(name, ast.Load()):
            yield "unknown name", ast.Name(name + "_", ast.Load())
        case ast.Break():
            yield "continue for break", ast.Continue()
        case ast.comprehension(target, iterable, [_, *_], is_async):
            yield "filter removed", ast.comprehension(target, iterable, [], is_async)


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """(kind, program) for each kind that applies."""
    for kind in ("operator", "off_by_one", "return"):
        tree = parse_quietly(source)
        nodes = [node for node in ast.walk(tree) if _applies(kind, node)]
        if nodes:
            for node in nodes if kind == "return" else [nodes[len(nodes) // 2]]:
                _apply(node)
            yield kind, ast.unparse(tree)


def _applies(kind: str, node: ast.AST) -> bool:
    if kind == "operator":
        return bool(_operators(node))
    if kind == "off_by_one":
        return isinstance(node, ast.Constant) and type(node.value) is int
    return isinstance(node, ast.Return) and node.value is not None


def _apply(node: ast.AST) -> None:
    """Change a node for which ``_applies`` holds."""
    if isinstance(node, ast.Return) and node.value is not None:
        node.value = ast.List(elts=[node.value], ctx=ast.Load())
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        node.value += 1
    elif isinstance(node, ast.Compare):
        node.ops[0] = _swapped(node.ops[0])
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign):
        node.op = _swapped(node.op)


def _swapped(operator: Any) -> Any:
    return _SWAPS[type(operator)]()


def _operators(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare):
        return type(node.ops[0]) in _SWAPS
    return isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in _SWAPS

"""Mutates correct programs.

There are three kinds of mutants. ``operator`` (+ for -, < for <=, and for or, ...) and ``off_by_one`` (an integer one
higher) change the middle one of the possible nodes; some of them still compute the same, and the tests say how many
must be detected. ``return`` puts every returned value inside a list, which every check must detect.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from megatron_ssd.problems.assert_scripts import parse_quietly

_SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.And: ast.Or, ast.Or: ast.And, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


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

"""Tests for the count of distinct programs."""

from __future__ import annotations

import ast
import textwrap
import warnings
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ssd.evaluation.diversity import Diversity, NormalForms, normal_form
from megatron_ssd.schema import Verdict, VerdictStatus

PROGRAM = """
def solve(xs: list[int], k=0x10) -> int:
    total = 0
    for x in xs:
        if x > k and not x % 2:
            total += x * 2
    return total
"""


@pytest.mark.parametrize(
    "other",
    [
        "# first\n" + PROGRAM.replace("total = 0", "total = 0  # nothing yet"),
        PROGRAM.replace("    total = 0", '    """Sum of what is even."""\n    total = 0'),
        '"""A module."""\n' + PROGRAM,
        PROGRAM.replace("    ", "\t"),
        PROGRAM.replace("x * 2", "(x  *  2)"),
        PROGRAM.replace("\n", "\r\n"),
        PROGRAM.replace("0x10", "16"),
        PROGRAM.replace("total = 0", "total = 0;"),
    ],
)
def test_spelling_does_not_make_a_different_program(other: str):
    assert other != PROGRAM
    assert normal_form(other) == normal_form(PROGRAM)


@pytest.mark.parametrize(
    "other",
    [
        PROGRAM.replace("total", "count"),
        PROGRAM.replace("x * 2", "x * 3"),
        PROGRAM.replace("x * 2", "x * 2.0"),
        PROGRAM.replace("k=0x10", "k=True"),
        PROGRAM.replace("    return total", "        return total"),
        PROGRAM.replace("x > k and not x % 2", "not x % 2 and x > k"),
        PROGRAM.replace(" -> int", ""),
        PROGRAM.replace("total = 0", "'not a docstring' if 1 else 0\n    total = 0"),
        PROGRAM + "solve([])",
    ],
)
def test_different_programs_are_distinct(other: str):
    assert normal_form(other) != normal_form(PROGRAM)


def test_programs_that_cannot_be_parsed_are_compared_by_words():
    assert normal_form("def f(:\n  return 1") == normal_form("def f(:   return 1\n")
    assert normal_form("def f(: return 1") != normal_form("def f(: return 2")
    assert NormalForms().of("x  =  1", compiles=False) != NormalForms().of("x = 1")
    assert NormalForms().of("x  =  1", compiles=False) == NormalForms().of("x = 1", compiles=False)


def dumped(source: str) -> str:
    """The standard library's dump of a syntax tree, without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[isinstance(first.value.value, str) :]
    return ast.dump(tree)


def functions_of_the_standard_library() -> list[str]:
    """Sources of functions, with their comments. Many are similar."""
    found = []
    for path in sorted(Path(ast.__file__).parent.glob("[a-f]*.py")):
        lines = path.read_text().splitlines(keepends=True)
        found += [
            textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno]))
            for node in ast.walk(ast.parse("".join(lines)))
            if isinstance(node, ast.FunctionDef)
        ]
    return found


def test_forms_are_equal_if_the_standard_librarys_dumps_are():
    sources = functions_of_the_standard_library()
    by_form, by_dump = defaultdict(set), defaultdict(set)
    for source in sources:
        by_form[normal_form(source)].add(source)
        by_dump[dumped(source)].add(source)
    assert len(sources) > 1000
    assert len(by_dump) < len(set(sources)), "no two programs differ only in spelling"
    assert sorted(map(sorted, by_form.values())) == sorted(map(sorted, by_dump.values()))


HOSTILE = {
    "null byte": "x = 1\0",
    "lone surrogate": "x = '\ud800'",
    "long integer": "x = " + "9" * 5000,
    "long hexadecimal integer": "x = 0x" + "f" * 60_000,
    "power": "x = 9 ** 9 ** 9 ** 9",
    "huge text": "x = 'a' * 10 ** 12",
    "parentheses": "(" * 60_000,
    "closed parentheses": "(" * 30_000 + ")" * 30_000,
    "brackets within the parser's limit": "[" * 90 + "]" * 90,
    "braces that never end": "{" * 199,
    "calls with a mistake inside": "f(a=" * 150 + "1 1" + ")" * 150,
    "patterns": "match x:\n case " + "[(" * 90 + "a b",
    "minus": "-" * 60_000 + "1",
    "not": "not " * 15_000 + "x",
    "sum": "1" + "+1" * 30_000,
    "attributes": "a" + ".b" * 30_000,
    "calls of calls": "f" + "()" * 30_000,
    "lambdas": "lambda: " * 8_000 + "1",
    "powers": "2**" * 20_000 + "2",
    "comparisons": "1" + "<1" * 30_000,
    "indentation": "".join(" " * depth + "if 1:\n" for depth in range(300)),
    "elifs": "if a: 1\n" + "elif b: 2\n" * 6_000,
    "statements": "x;" * 30_000,
    "f-strings": "f'" + "{x}" * 20_000 + "'",
    "nested f-strings": "f'{" * 5_000,
    "escapes": r"'\q\w\z'",
    "continuation": "x = 1 " + "\\\n" * 20_000,
    "encoding": "# -*- coding: nonsense -*-\nx = 1",
    "byte order mark": "\ufeffx = 1",
    "other letters": "ﬁ = 1",
    "much too long": "x = 1\n" * 1_000_000,
    "nothing": "",
    "white space": " \t\n\f",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_hostile_programs_have_a_form_and_cause_no_warnings(source: str):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = NormalForms().diversity([(verdict(0), source), (verdict(1), source), (verdict(2), source + "#")])
    assert found.distinct in (1.0, 2.0)


@given(st.text(max_size=200))
def test_any_text_has_a_form(source: str):
    assert len(normal_form(source)) == 16


TOKENS = ["x", "(", ")", "[", "]", ":", "=", "1", "\n", " ", "if", "lambda", "'", "{", "}", "f'"]


@given(st.lists(st.sampled_from(TOKENS), max_size=60))
def test_forms_agree_with_the_parser(parts: list[str]):
    source = " ".join(parts)
    try:
        spelled = ast.unparse(ast.parse(source))
    except SyntaxError:
        return
    assert normal_form(source) == normal_form(spelled)


def verdict(index: int, status: VerdictStatus = "wrong_answer", problem: str = "p") -> Verdict:
    return Verdict(problem_id=problem, sample_index=index, status=status)


def test_counts_are_averaged_over_problems_and_over_solved_problems():
    samples: list[tuple[Verdict, str | None]] = [
        (verdict(0, "passed", "a"), "x = 1"),
        (verdict(1, "passed", "a"), "x=1  # the same"),
        (verdict(2, "passed", "a"), "x = 2"),
        (verdict(3, "wrong_answer", "a"), "x = 3"),
        (verdict(0, "passed", "b"), "x = 1"),
        (verdict(1, "syntax_error", "b"), "x ="),
        (verdict(2, "syntax_error", "b"), "x  ="),
        (verdict(3, "no_code", "b"), None),
        (verdict(0, "no_code", "c"), None),
        (verdict(0, "infrastructure_error", "d"), "x = 1"),
    ]
    assert NormalForms().diversity(samples) == Diversity(
        distinct=(3 + 2 + 0 + 1) / 4, distinct_passing=1.5, num_solved=2
    )
    assert NormalForms().diversity(samples[6:]) == Diversity(distinct=2 / 3, distinct_passing=None, num_solved=0)


def test_equal_programs_are_parsed_once(monkeypatch: pytest.MonkeyPatch):
    parsed: list[str] = []
    original = ast.parse
    monkeypatch.setattr(ast, "parse", lambda source: (parsed.append(source), original(source))[1])
    forms = NormalForms()
    for problem in "ab":
        forms.diversity([(verdict(0, "passed", problem), "x = 1"), (verdict(1, "passed", problem), "x = 1")])
    assert parsed == ["x = 1"]

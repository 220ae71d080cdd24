"""Reads HumanEval+ and MBPP+ in evalplus's own layout (github.com/evalplus/evalplus).

A row has a canonical solution and two lists of inputs, ``base_input`` and ``plus_input``, which are the two tests of a
problem. A program's results are compared with those of the canonical solution, by evalplus's rules. JSON lacks some
types that MBPP's functions take, so evalplus's code has a list of tasks whose inputs are converted
(``mbpp_deserialize_inputs`` in its ``data/mbpp.py``). Its ``eval/__init__.py`` names the tasks with rules of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from megatron_ssd.problems.table import Row
from megatron_ssd.schema import Problem, TestCase

_INPUTS = ("base_input", "plus_input")
_TEXTS = ("task_id", "prompt", "canonical_solution", "entry_point")
COLUMNS = (*_TEXTS, *_INPUTS, "atol")
Convert = Callable[[Any], Any]

# Source -> entry point -> one of ``sandbox.inside.evalplus.RULES``; "equal" for all others.
_RULES: Mapping[str, Mapping[str, str]] = {
    "humaneval_plus": {"find_zero": "root"},
    "mbpp_plus": {
        "are_equivalent": "anything",
        "sum_div": "or_zero",
        "surface_Area": "pyramid",
        "digit_distance_nums": "digits",
        **dict.fromkeys(("check_str", "text_match_three", "text_starta_endb"), "is_some"),
        **dict.fromkeys(
            ("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum",
             "intersection_array", "find_dissimilar", "Diff"), "set"),
    },
}  # fmt: skip


def read_inputs(row: Row, source: str, _number: int) -> Problem:
    """The problem of one row. ``source`` is humaneval_plus or mbpp_plus. Raises ``UserError``."""
    id_, prompt, solution, entry = map(row.filled_text, _TEXTS)
    atol, is_mbpp = row.values["atol"], source == "mbpp_plus"
    if isinstance(atol, bool) or not isinstance(atol, int | float):
        raise row.error("atol", "must be a number")
    text, _, assertion = prompt.strip('" \n').partition("\nassert ")  # of a docstring, for MBPP+
    return Problem(
        id=id_,
        source=source,
        statement=text if is_mbpp else prompt,
        form="evalplus",
        starter_code="" if is_mbpp else prompt,
        function_name=entry,
        tests=tuple(TestCase(input=_literal(row, column, is_mbpp), output="") for column in _INPUTS),
        metadata={
            "canonical_solution": prompt + solution,
            "rule": _RULES[source].get(entry, "equal"),
            "atol": atol,
            **({"assertions": f"assert {assertion}"} if is_mbpp else {}),
        },
    )


def _literal(row: Row, column: str, is_mbpp: bool) -> str:
    """The inputs of a column as a Python literal, in which ``inf`` and ``nan`` may be used."""
    inputs = row.values[column] or []  # a published row has an empty object instead of a list
    if not isinstance(inputs, list) or not all(isinstance(arguments, list) for arguments in inputs):
        raise row.error(column, "must be a list of lists of arguments")
    convert = _conversion(row.values["task_id"]) if is_mbpp else None
    try:
        return repr(inputs if convert is None else [convert(arguments) for arguments in inputs])
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise row.error(column, f"has inputs of other types than this task's ({error})") from None


def _conversion(task_id: str) -> Convert | None:
    number = task_id.rpartition("/")[2]
    return next((convert for tasks, convert in _CONVERSIONS.items() if number.isdigit() and int(number) in tasks), None)


def _each(convert: Convert) -> Convert:
    """Converts every item of a list."""
    return lambda values: [convert(value) for value in values]


def _first(convert: Convert) -> Convert:
    """Converts the first of several arguments."""
    return lambda arguments: [convert(arguments[0]), *arguments[1:]]


def _deep_tuple(value: Any) -> Any:
    return tuple(map(_deep_tuple, value)) if isinstance(value, list) else value


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


# Tasks -> what happens to the arguments of each of their inputs.
_CONVERSIONS: Mapping[tuple[int, ...], Convert] = {
    (2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809):
        _each(tuple),
    (63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780): _each(_each(tuple)),
    (75, 413, 444, 753): _first(_each(tuple)),
    (106, 750): lambda arguments: [arguments[0], tuple(arguments[1])],
    (115,): _first(_each(lambda items: set(items) if isinstance(items, list) and items else {})),
    (124,): lambda arguments: [float(arguments[0]), complex(arguments[1])],
    (250, 307, 405, 446, 617, 720, 763, 808): _first(tuple),
    (252,): _first(complex),
    (259, 401, 445): _each(lambda values: tuple(map(tuple, values))),
    (278,): _first(lambda values: tuple(map(_as_tuple, values))),
    (580, 615, 791): _each(_deep_tuple),
    (722,): _first(lambda values: {key: tuple(value) for key, value in values.items()}),
}  # fmt: skip

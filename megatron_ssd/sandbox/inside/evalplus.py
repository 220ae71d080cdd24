"""Compares a function with the canonical solution, by evalplus's rules (``evalplus/eval/__init__.py``).

The canonical solution runs once, on its own (``make_reference``). Inputs, results and CPU seconds are kept in a file
that is read in sandboxes only. A program then runs on the same inputs (``run_inputs``), and passes as in ``checks``.

Two values agree if they are equal, or if both have the same type and length and are close. Closeness counts if ``atol``
is set; from the first expected float on, an ``atol`` of 0 becomes 1e-6. Some problems have rules of their own.
"""

from __future__ import annotations

import copy
import gzip
import math
import os
import pickle
import time
from collections.abc import Callable
from typing import Any

from megatron_ssd.sandbox.inside.checks import take_word
from megatron_ssd.sandbox.inside.preparation import use_text_streams
from megatron_ssd.sandbox.inside.program import RESULTS_FD, describe, report_result

REFERENCE_FD = 5
_write = os.write
_FLOAT_ATOL, _RTOL = 1e-6, 1e-7


class WrongResultError(Exception):
    """A result does not agree with the canonical solution's."""


def make_reference(request: dict[str, Any]) -> int:
    """Run the canonical solution on all inputs, write both to ``REFERENCE_FD``, and report its seconds per input."""
    names, results, seconds = dict[str, Any](), [], []
    try:
        inputs = eval(request["inputs"], {"inf": math.inf, "nan": math.nan})
        exec(request["source"], names)
        for arguments in copy.deepcopy(inputs):
            started = time.process_time()
            results.append(names[request["function_name"]](*arguments))
            seconds.append(time.process_time() - started)
        if request["rule"] == "is_some":
            results = [result is not None for result in results]
        with open(REFERENCE_FD, "wb") as raw, gzip.open(raw, "wb", compresslevel=1) as file:
            pickle.dump((inputs, results), file, protocol=pickle.HIGHEST_PROTOCOL)
    except BaseException as error:  # noqa: BLE001 - a canonical solution that fails is a finding about the benchmark
        report_result({"error": "runtime", "detail": describe(error)})
        return 1
    report_result({"value": seconds})
    return 0


def run_inputs(request: dict[str, Any]) -> int:
    """Run the program, then its function on each input. A line is written before each of these steps."""
    with open(REFERENCE_FD, "rb") as raw, gzip.open(raw) as file:
        inputs, expected = map(tuple, pickle.load(file))  # tuples, which the program cannot empty
    # NumPy is needed for closeness only, and must not be imported in the program's time.
    allclose = _allclose() if request["atol"] or any(map(_is_floats, expected)) else None
    _write(RESULTS_FD, b"\n")
    try:
        code = compile(request["source"], "<string>", "exec", dont_inherit=True)
    except BaseException as error:  # noqa: BLE001
        report_result({"error": "syntax", "detail": describe(error)})
        return 1
    try:
        _write(RESULTS_FD, take_word() + _compare_all(code, request, inputs, expected, allclose))
    except WrongResultError as error:
        report_result({"error": "check", "detail": str(error)})
    except MemoryError as error:
        report_result({"error": "memory", "detail": describe(error)})
    except BaseException as error:  # noqa: BLE001 - whatever a program raises is a finding about the program
        report_result({"error": "runtime", "detail": describe(error)})
    else:
        return 0
    return 1


def _compare_all(code: Any, request: dict[str, Any], inputs: Any, expected: Any, allclose: Any) -> bytes:
    """An empty text if every result agrees. Raises ``WrongResultError``, or what the program raises."""
    names, total = dict[str, Any](), len(inputs)  # a program may replace len
    exec(code, names)
    function, agrees, atol, compared = names[request["function_name"]], RULES[request["rule"]], request["atol"], 0
    for number, (arguments, wanted) in enumerate(zip(inputs, expected, strict=True), start=1):
        _write(RESULTS_FD, b"\n")
        use_text_streams()  # for each call new ones, as evalplus does
        result = function(*arguments)
        right = agrees(result, wanted, arguments, atol)
        if request["rule"] != "root":
            if atol == 0 and _is_floats(wanted):
                atol = _FLOAT_ATOL
            right = right or (
                atol and type(result) is type(wanted) and _same_length(result, wanted)
                and allclose(result, wanted, rtol=_RTOL, atol=atol)
            )  # fmt: skip
        if not right:
            raise WrongResultError(f"input {number}: {_shown(arguments, result, wanted)}")
        compared += 1
    if compared != total:
        raise WrongResultError(f"only {compared} of {total} inputs were compared")
    return b""


def _allclose() -> Any:
    import numpy  # optional, and slow to import

    return numpy.allclose


def _is_floats(value: Any) -> bool:
    return isinstance(value, float) or (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(item, float) for item in value)
    )


def _same_length(result: Any, wanted: Any) -> bool:
    return not isinstance(wanted, list | tuple) or len(result) == len(wanted)


def _shown(arguments: Any, result: Any, wanted: Any) -> str:
    try:
        return f"got {repr(result)[:80]}, expected {repr(wanted)[:80]} for {repr(arguments)[:80]}"
    except Exception:  # noqa: BLE001 - a program's own __repr__, or a number of too many digits
        return "another result than the canonical solution's"


def _polynomial(coefficients: Any, x: Any) -> Any:
    return sum(coefficient * math.pow(x, power) for power, coefficient in enumerate(coefficients))


def _pyramid_surface(base: float, height: float) -> int:
    """The surface of a square pyramid whose ``height`` is measured to its top, rounded."""
    return round(base**2 + 2 * base * math.sqrt((base / 2) ** 2 + height**2))


def _digit_distance(first: int, second: int) -> int:
    """The sum of the differences of digits, after the shorter number is filled with zeros."""
    one, other = str(first), str(second)
    length = max(len(one), len(other))
    return sum(abs(int(a) - int(b)) for a, b in zip(one.zfill(length), other.zfill(length), strict=True))


def _is_some(result: Any, wanted: bool) -> bool:
    return bool(result == wanted if isinstance(result, bool) else wanted == (result is not None))


# Whether a result agrees, apart from closeness: (result, expected, arguments, atol).
RULES: dict[str, Callable[[Any, Any, Any, float], Any]] = {
    "equal": lambda result, wanted, arguments, atol: result == wanted,
    "root": lambda result, wanted, arguments, atol: abs(_polynomial(arguments[0], result)) <= atol,
    "anything": lambda result, wanted, arguments, atol: True,
    "or_zero": lambda result, wanted, arguments, atol: result == wanted or result == 0,
    "pyramid": lambda r, wanted, arguments, atol: r == wanted or abs(r - _pyramid_surface(*arguments)) <= atol,
    "digits": lambda result, wanted, arguments, atol: result == wanted or result == _digit_distance(*arguments),
    "set": lambda result, wanted, arguments, atol: set(result) == set(wanted),
    "is_some": lambda result, wanted, arguments, atol: _is_some(result, wanted),
}

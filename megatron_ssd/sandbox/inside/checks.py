"""Runs a program with its checks in one interpreter, as the official checkers do.

A program passes if the text of program and checks runs to its end. The proof is a random word that the server makes
after it started this process. The word arrives in a pipe, which is empty and closed before any code of the program
runs. From then on it is only on the interpreter's value stack: in no variable, container, constant or descriptor, so no
Python code can find it. It is written when the checks have ended. Whatever else the program writes, and however else it
ends, is not a pass.

Everything that untrusted code may replace is bound before that code runs. What is reported after a failure is read as
text, and can only name the failure.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any

from megatron_ssd.sandbox.inside.program import RESULTS_FD, describe, report_result

WORD_FD = 4
WORD_BYTES = 32
_FILE = "<string>"
_write: Callable[..., Any] = os.write
_exec: Callable[..., Any] = exec


def take_word() -> bytes:
    """The word of this run. Nothing is left in its pipe, which is closed."""
    word = os.read(WORD_FD, WORD_BYTES)
    os.close(WORD_FD)
    return word


def run_checks(request: dict[str, Any]) -> int:
    """Run the program, then its scripts, as one text in one namespace.

    If that fails, each script before the failure is reported as passed, and the failure. With ``go_on``, the later
    scripts run as well, and are reported in the same way.
    """
    parts, names = [request["source"], *request["scripts"]], dict[str, Any]()
    try:
        code = compile("\n".join(parts), _FILE, "exec", dont_inherit=True)
    except BaseException as error:  # noqa: BLE001 - a text that cannot be compiled is a finding about the program
        report_result({"error": "syntax", "detail": describe(error)})
        return 1
    try:
        # The word is put on the stack first. Then only C code runs, until the program and its checks have ended.
        _write(RESULTS_FD, take_word() + (_exec(code, names) or b""))
    except BaseException as error:  # noqa: BLE001 - whatever a program raises is a finding about the program
        failed = _report_failure(error, parts)
    else:
        return 0
    for script in request["scripts"][failed + 1 :] if request["go_on"] else ():
        try:
            _exec(compile(script, _FILE, "exec", dont_inherit=True), names)
            report_result({"value": None})
        except BaseException as error:  # noqa: BLE001
            _report_failure(error, ["", script])
    return 1


def _report_failure(error: BaseException, parts: list[str]) -> int:
    """Report the scripts that passed, and the one that failed. Returns its index.

    Args:
        error: what the text raised.
        parts: the texts that were joined to it; the first is the program.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == _FILE]
    lines = [frame.lineno or 0 for frame in frames] or [0]
    failed = max(_part(lines[0], parts)[0] - 1, 0)
    part, line = _part(lines[-1], parts)
    for _ in range(failed if len(parts) > 2 else 0):
        report_result({"value": None})
    detail = describe(error)
    if isinstance(error, MemoryError):
        report_result({"error": "memory", "detail": detail})
    elif part == 0 or isinstance(error, NameError):  # the program has no such name
        report_result({"error": "runtime", "detail": detail})
    else:
        name = "" if type(error) is AssertionError and not str(error) else f"{detail}; "
        report_result({"error": "check", "detail": f"{name}{line}"})
    return failed


def _part(number: int, parts: list[str]) -> tuple[int, str]:
    """The index of the part that has line ``number`` of the joined text, and that line."""
    for index, part in enumerate(parts):
        lines = part.split("\n")
        if number <= len(lines):
            return index, lines[number - 1].strip() if number else ""
        number -= len(lines)
    return 0, ""

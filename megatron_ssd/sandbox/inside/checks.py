"""Runs assert scripts against a program that is in another process.

A script is trusted text of a benchmark. It calls the program's functions through ``__program__`` (see ``remote``). Its
own names and expected values are never in the program's process. A script passes only if its last statement has run
here, which nothing that the program prints, patches or exits can cause.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import Any

from megatron_ssd.sandbox.inside.remote import BrokenCheckError, Link, ProgramEndedError

_FILE = "checks.py"
_PROGRAM_ERRORS = ("syntax", "memory", "runtime")  # what a program may report about itself


def run_checks(scripts: Sequence[str], link: Link, report: Callable[[dict[str, Any]], object]) -> int:
    """Run ``scripts`` one after another, each with its own global names, until one does not reach its end.

    Returns:
        The exit status. ``report`` gets a value for each script that passed, and the error of the one that did not.
    """
    try:
        failure = link.hello()
        if failure is not None:
            kind = failure.get("error")
            report({"error": kind if kind in _PROGRAM_ERRORS else "runtime", "detail": str(failure.get("detail", ""))})
            return 1
        for script in scripts:
            exec(compile(script, _FILE, "exec", dont_inherit=True),
                 {"__name__": "__checks__", "__program__": link.program})  # fmt: skip
            if link.ended:
                raise ProgramEndedError
            report({"value": True})
    except ProgramEndedError as error:
        report({"error": "ended", "detail": str(error)})
    except (BrokenCheckError, SyntaxError, ImportError) as error:
        if error is link.raised:
            report({"error": "runtime", "detail": link.raised_detail})
        else:
            report({"error": "broken_check", "detail": f"{type(error).__name__}: {error}"})
    except MemoryError as error:
        report({"error": "memory", "detail": str(error) or "MemoryError"})
    except Exception as error:  # noqa: BLE001 - how a check fails is a finding about the program
        if error is link.raised:
            report({"error": "runtime", "detail": link.raised_detail})
        else:
            report({"error": "check", "detail": _failure(error, script)})
    else:
        return 0
    return 1


def _failure(error: Exception, script: str) -> str:
    """The line of the script that failed, and how."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == _FILE]
    line = script.splitlines()[lines[-1] - 1].strip() if lines and lines[-1] else ""
    name = "" if type(error) is AssertionError else f"{type(error).__name__}: {error}; "
    return " ".join(f"{name}{line}".split())[:300]

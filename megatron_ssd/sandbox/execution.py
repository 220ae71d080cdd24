"""Describes what a program did, from the facts that the server inside the sandbox reports.

Everything that a program can write is treated as text: it can say how the program failed, never that it passed.
"""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from megatron_ssd.schema import CHECKED_FORMS, ProblemForm

_VALUE = '{"value": '  # how a program's process begins a line with a result
_DETAIL_CHARACTERS = 300

Ending = Literal["completed", "runtime_error", "timeout", "starved", "memory", "syntax_error", "failed_check"]
_ERROR_ENDINGS: dict[str, Ending] = {"syntax": "syntax_error", "memory": "memory", "check": "failed_check"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a program, or a script of ``checks``, did not reach its end."""

    ending: Ending
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """What one program did.

    ``outputs`` has one entry per finished input, in order: standard output for ``stdin`` programs, a value in the
    encoding of ``inside.program`` for functions. For ``checks`` it has one per script, nothing of interest or a
    ``Failure``, and for ``evalplus`` one if the program passed. ``cpu_seconds`` are the CPU seconds of the inputs, or
    of the whole program if they share a limit. ``ending`` says why it did not finish more: ``starved`` means that the
    wall limit passed before the CPU limit did, ``failed_check`` that a result is wrong.
    """

    outputs: tuple[str | Failure, ...]
    cpu_seconds: tuple[float, ...]
    ending: Ending
    detail: str = ""
    cpu_total: float = 0.0


def interpret(facts: dict[str, Any], form: ProblemForm, num_inputs: int) -> Execution:
    """The execution that the server's facts describe.

    Args:
        facts: see ``inside.server.Server.run``.
        form: of the program.
        num_inputs: inputs of a program or function, scripts of its checks.

    Raises:
        KeyError, TypeError: the facts are incomplete.
    """
    total, marks = facts["cpu_total"], facts["cpu_marks"]
    results = _parse_results(facts["results"], has_checks=form in CHECKED_FORMS)
    values = list(itertools.takewhile(lambda result: isinstance(result, str), results))
    stopped, failure = _stopped(facts), next((r for r in results if isinstance(r, Failure)), None)
    end = stopped or failure or _exit(facts)
    outputs: list[str | Failure] = []
    seconds = [total]
    if form == "stdin":
        outputs = [facts["stdout"]] if end is None else []
    elif form == "function":
        outputs, seconds = list(values[:num_inputs]), _differences([0.0, *marks])
        if end is None and len(outputs) < num_inputs:
            end = _runtime_error("the program ended before its function returned")
    elif facts["reached_end"] and stopped is None:
        outputs, end = [""] * num_inputs, None
    elif form == "checks" and any(isinstance(result, Failure) for result in results[:num_inputs]):
        outputs, end = results[:num_inputs], stopped
        if end is None and isinstance(outputs[-1], Failure):
            end = outputs.pop()  # type: ignore[assignment]
    else:  # not all scripts passed, whatever the program wrote
        outputs = list(values[: num_inputs - 1])
        end = end or _runtime_error("the program ended before its checks did")
    if form == "evalplus" and marks:  # the first interval, in which the reference is loaded, is not the program's
        seconds, total = _differences([*marks[1:], total]), total - marks[0]
    return Execution(
        outputs=tuple(outputs),
        cpu_seconds=tuple(seconds[: len(outputs)] if form == "function" else seconds),
        ending="completed" if end is None else end.ending,
        detail="" if end is None else end.detail,
        cpu_total=total,
    )


def _differences(marks: Sequence[float]) -> list[float]:
    return [end - start for start, end in itertools.pairwise(marks)]


def _parse_results(text: str, *, has_checks: bool) -> list[str | Failure]:
    """The JSON texts of the values, and the failures, that the program's process reported."""
    results: list[str | Failure] = []
    for line in filter(None, text[: text.rfind("\n") + 1].split("\n")):
        if line.startswith(_VALUE):
            results.append(line[len(_VALUE) : -1])
            continue
        try:
            result = json.loads(line)
            error, detail = str(result["error"]), _shown(str(result["detail"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            return [*results, _runtime_error("the program wrote into the channel of its results")]
        ending = _ERROR_ENDINGS.get(error, "runtime_error") if error != "check" or has_checks else "runtime_error"
        results.append(Failure(ending=ending, detail=detail))
    return results


def _shown(detail: str) -> str:
    """``detail`` as one short line that is safe in any file and terminal."""
    line = " ".join(detail[: 10 * _DETAIL_CHARACTERS].split())[:_DETAIL_CHARACTERS]
    return "".join(c if c.isprintable() else "\ufffd" for c in line)


def _stopped(facts: dict[str, Any]) -> Failure | None:
    """The limit for which the server killed the program."""
    killed, limit = facts["killed"], facts["limit"]
    if killed == "cpu":
        return Failure(ending="timeout", detail=f"more than {limit:g} s of CPU time")
    if killed == "wall":
        return Failure(ending="starved", detail=f"more than {limit:g} s of wall time")
    if killed == "output":
        return _runtime_error(f"more than {limit >> 20} MiB of output")
    return None


def _exit(facts: dict[str, Any]) -> Failure | None:
    """How the program's process ended, if not well."""
    status = facts["exit"]
    if status == -signal.SIGKILL:
        return Failure(ending="memory", detail="killed by the kernel")
    if status != 0:
        return _runtime_error(f"killed by signal {-status}" if status < 0 else f"exit status {status}")
    return None


def _runtime_error(detail: str) -> Failure:
    return Failure(ending="runtime_error", detail=detail)

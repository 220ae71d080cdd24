"""One run of one program: what is asked of a sandbox, and what the facts that come out of it mean."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from megatron_ssd.schema import ProblemForm

_VALUE = '{"value": '  # how the server's child begins a line that holds a result
_DETAIL_CHARACTERS = 300

Ending = Literal[
    "completed", "runtime_error", "timeout", "starved", "memory", "syntax_error", "failed_check", "broken_check"
]
_ERROR_ENDINGS: dict[str, Ending] = {
    "syntax": "syntax_error", "memory": "memory", "check": "failed_check", "broken_check": "broken_check",
}  # fmt: skip
_CHECK_ERRORS = ("check", "broken_check")  # which no program can write


class SandboxBrokenError(RuntimeError):
    """The container or its server is gone, or answers nonsense. What it was running has no verdict yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Source text and how it is entered: as ``__main__``, through a function or a method of ``class_name``, or from
    assert scripts."""

    source: str
    form: ProblemForm
    function_name: str | None = None
    class_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of each input: CPU and wall seconds. Of the program: bytes of address space and of output."""

    cpu_seconds: float
    wall_seconds: float
    memory_bytes: int
    output_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """What one program did.

    ``outputs`` are those of the inputs that it finished, in order: standard output for ``stdin`` programs, one value
    as ``inside.values`` writes it for functions, nothing of interest for each script of ``checks`` that reached its
    end. ``cpu_seconds`` are those inputs' own. ``ending`` says why it finished no more: ``starved`` means that the wall
    limit passed before the CPU limit did, ``failed_check`` that an assert did not hold, ``broken_check`` that a script
    asks for what cannot be done.
    """

    outputs: tuple[str, ...]
    cpu_seconds: tuple[float, ...]
    ending: Ending
    detail: str = ""
    cpu_total: float = 0.0


def interpret(facts: dict[str, Any], program: Program, num_inputs: int, limits: Limits) -> Execution:
    """Facts from inside to what the program did. Everything that the program can write is taken as text."""
    values, error = _parse_results(facts["results"], trusted=program.form == "checks")
    ending, detail = _ending(facts, error, limits)
    outputs, cpu = [facts["stdout"]], [facts["cpu_total"]]
    if program.form != "stdin":
        outputs = values[:num_inputs]
        starts = [0.0, *facts["cpu_marks"]]
        cpu = [end - start for start, end in zip(starts, facts["cpu_marks"], strict=False)]
        if ending == "completed" and len(outputs) < num_inputs:
            ending, detail = "runtime_error", "the program ended before its function returned"
    elif ending != "completed":
        outputs = []
    return Execution(
        outputs=tuple(outputs),
        cpu_seconds=tuple(cpu[: len(outputs)]),
        ending=ending,
        detail=detail,
        cpu_total=facts["cpu_total"],
    )


def _parse_results(text: str, *, trusted: bool) -> tuple[list[str], dict[str, str] | None]:
    """The JSON texts of the values that were returned, and the error that ended the program, if one did."""
    values: list[str] = []
    for line in text[: text.rfind("\n") + 1].split("\n")[:-1]:
        if line.startswith(_VALUE):
            values.append(line[len(_VALUE) : -1])
            continue
        try:
            row = json.loads(line)
            error, detail = str(row["error"]), _shown(str(row["detail"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            error, detail = "runtime", "the program wrote into the channel of its results"
        return values, {"error": "runtime" if error in _CHECK_ERRORS and not trusted else error, "detail": detail}
    return values, None


def _shown(detail: str) -> str:
    """In one short line that any file and terminal takes, whoever wrote it."""
    line = " ".join(detail[: 10 * _DETAIL_CHARACTERS].split())[:_DETAIL_CHARACTERS]
    return "".join(c if c.isprintable() else "\ufffd" for c in line)


def _ending(facts: dict[str, Any], error: dict[str, str] | None, limits: Limits) -> tuple[Ending, str]:
    killed, status = facts["killed"], facts["exits"][-1]  # the program's own process is the last
    if killed == "cpu":
        return "timeout", f"more than {limits.cpu_seconds:g} s of CPU time"
    if killed == "wall":
        return "starved", f"more than {limits.wall_seconds:g} s of wall time"
    if killed == "output" or len(facts["stdout"].encode("utf-8", "replace")) >= limits.output_bytes:
        return "runtime_error", f"more than {limits.output_bytes >> 20} MiB of output"
    if error is not None and (error["error"] != "ended" or error["detail"]):
        return _ERROR_ENDINGS.get(error["error"], "runtime_error"), error["detail"]
    if status == -9:
        return "memory", "killed by the kernel"
    if status != 0:
        return "runtime_error", f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    if error is not None:
        return "runtime_error", "the program ended before its checks did"
    if any(facts["exits"]):
        return "runtime_error", "the program broke the process of its checks"
    return "completed", ""

"""Runs of programs in a sandbox."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from megatron_ssd.sandbox.execution import Execution
from megatron_ssd.sandbox.sandbox import Limits, Program, Sandbox

Executions = list[tuple[Program, Sequence[str]]]  # each program with its inputs, in the order of execution
LIMITS = Limits(cpu_seconds=0.5, wall_seconds=20.0, memory_bytes=512 << 20, output_bytes=1 << 20)
BYSTANDER = Program(source="print(input()[::-1])", form="stdin")


def run(sandbox: Sandbox, source: str, stdin: str = "", **changes: float) -> Execution:
    """Run a program, then check that the same container still runs the next one."""
    execution = sandbox.execute(Program(source=source, form="stdin"), [stdin], dataclasses.replace(LIMITS, **changes))
    container = sandbox._process
    assert sandbox.execute(BYSTANDER, ["abc"], LIMITS).outputs == ("cba\n",)
    assert sandbox._process is container, "the container was replaced"
    return execution


def call(sandbox: Sandbox, source: str, inputs: list[str], **changes: float) -> Execution:
    """Call the function ``f`` of a program on every input."""
    program = Program(source=source, form="function", function_name="f")
    return sandbox.execute(program, inputs, dataclasses.replace(LIMITS, **changes))


def record_executions(monkeypatch: pytest.MonkeyPatch) -> Executions:
    """Record the programs that any sandbox executes from now on."""
    executions: Executions = []
    original = Sandbox.execute

    def execute(
        self: Sandbox, program: Program, inputs: Sequence[str], limits: Limits, *, go_on: bool = False
    ) -> Execution:
        executions.append((program, inputs))
        return original(self, program, inputs, limits, go_on=go_on)

    monkeypatch.setattr(Sandbox, "execute", execute)
    return executions

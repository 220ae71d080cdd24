"""The table of operations keeps its promises."""

from __future__ import annotations

import random
from typing import Any

import pytest

from megatron_ssd.problems.minicode.compositions import random_list
from megatron_ssd.problems.minicode.operations import OPERATIONS, Form, Operation, Step, compiled, meaning

_LISTS = [[], *(random_list(random.Random(f"lists {number}"), min_length=1) for number in range(200))]
_STEPS = [Step(name, operand) for name, operation in OPERATIONS.items() for operand in operation.operands]


def _outcome(step: Step, form: Form, xs: list[int]) -> Any:
    try:
        return compiled(step, form)(list(xs))
    except ValueError as error:  # max and min of nothing
        return type(error)


@pytest.mark.parametrize("step", _STEPS, ids=lambda step: f"{step.name}-{step.operand}")
def test_right_forms_agree_and_wrong_forms_differ_somewhere(step: Step) -> None:
    first, *others = step.operation.forms
    assert first.right
    for form in others:
        same = all(_outcome(step, form, xs) == meaning(step)(list(xs)) for xs in _LISTS)
        assert same == form.right, form.text


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda operation: operation.name)
def test_kind_says_what_a_form_speaks_of(operation: Operation) -> None:
    for form in operation.forms:
        assert ("{x}" in form.text) == operation.is_elementwise
        assert ("{s}" in form.text) != operation.is_elementwise
        assert ("{k}" in form.text) == (operation.operands != (0,))
    assert ("{k}" in operation.wording) == (operation.operands != (0,))


def test_wordings_tell_the_steps_apart() -> None:
    wordings = [step.wording for step in _STEPS]
    assert len(set(wordings)) == len(wordings)

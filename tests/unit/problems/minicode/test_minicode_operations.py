"""Tests that minicode's operations are what their table says."""

from __future__ import annotations

import random
from typing import Any

import pytest

from megatron_ssd.problems.minicode.compositions import random_list
from megatron_ssd.problems.minicode.operations import OPERATIONS, Form, Operation, compiled, meaning

_LISTS = [[], *(random_list(random.Random(f"lists {number}"), min_length=1) for number in range(200))]


def _outcome(operation: Operation, form: Form, xs: list[int]) -> Any:
    try:
        return compiled(operation, form)(list(xs))
    except (ValueError, IndexError) as error:  # the operation does not accept an empty list
        return type(error)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda operation: operation.name)
def test_right_forms_agree_and_wrong_forms_differ_somewhere(operation: Operation) -> None:
    first, *others = operation.forms
    assert first.right
    for form in others:
        same = all(_outcome(operation, form, xs) == meaning(operation)(list(xs)) for xs in _LISTS)
        assert same == form.right, form.text


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda operation: operation.name)
def test_the_placeholders_of_a_form_fit_its_kind(operation: Operation) -> None:
    for form in operation.forms:
        assert ("{x}" in form.text) == operation.is_elementwise
        assert ("{s}" in form.text) != operation.is_elementwise


def test_names_and_wordings_are_unique() -> None:
    assert all(name == operation.name for name, operation in OPERATIONS.items())
    assert len({operation.wording for operation in OPERATIONS.values()}) == len(OPERATIONS)

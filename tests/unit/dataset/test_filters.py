"""Each filter by itself, and the order in which reasons are given."""

import numpy as np
import pytest

from megatron_ssd.config.dataset import FilterConfig
from megatron_ssd.dataset import filters
from megatron_ssd.schema import FinishReason, Sample


def sample(response: str, finish_reason: FinishReason = "stop") -> Sample:
    return Sample(problem_id="p", sample_index=0, messages=[], prompt_token_ids=[1], response=response,
                  response_token_ids=[2], finish_reason=finish_reason, seed=0, sampling_hash="",
                  model_revision="")  # fmt: skip


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("", "empty"),
        (" \n\t\n", "empty"),
        ("pass", "one_line_stub"),
        ("\n\nI cannot solve this.\n", "one_line_stub"),
        ("```python\npass\n```", "one_line_stub"),
        ("def f(x):\n    return x", None),
        ("Here it is:\n```python\nprint(1)\n```", None),
    ],
)
def test_reason(response: str, reason: str | None) -> None:
    assert filters.reason_to_drop(sample(response), FilterConfig()) == reason


def test_filters_can_be_off_but_what_was_never_run_always_goes() -> None:
    nothing = FilterConfig(drop_empty=False, drop_one_line_stubs=False)
    assert filters.reason_to_drop(sample(""), nothing) is None
    assert filters.reason_to_drop(sample("pass"), nothing) is None
    assert filters.reason_to_drop(sample("", finish_reason="skipped"), nothing) == "skipped"


def test_responses_cut_at_the_length_cap_stay() -> None:
    assert filters.reason_to_drop(sample("a = 1\nb =", finish_reason="length"), FilterConfig()) is None


def test_shortest_fraction_counts_only_samples_with_a_length() -> None:
    lengths = np.array([5, -1, 3, 3, 9, -1, 3, 8, 7, 6])
    assert filters.shortest(lengths, 0.25).nonzero()[0].tolist() == [2, 3]  # two of eight, the earlier of the equals
    assert not filters.shortest(lengths, 0.1).any()
    assert not filters.shortest(lengths, 0.0).any()

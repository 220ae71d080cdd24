"""Requests that wait, and servers that rest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ssd.config.generation import SamplingParams
from megatron_ssd.generation.backlog import Backlog
from megatron_ssd.generation.endpoint import Endpoint
from megatron_ssd.generation.engine import Request


def request(number: int) -> Request:
    return Request(key=(number,), prompt_token_ids=[1], seed=0, decoding=SamplingParams(), max_tokens=1)


def test_what_came_back_goes_first_and_is_counted() -> None:
    backlog = Backlog(request(number) for number in range(5))
    first, second = backlog.take(2)
    backlog.put_back([first, second])
    backlog.put_back([second])
    assert backlog.num_returned == 3
    assert [one.key for one in backlog.take(4)] == [(0,), (1,), (1,), (2,)]
    assert [backlog.times_returned((number,)) for number in range(3)] == [1, 2, 0]
    assert [one.key for one in backlog.take(9)] == [(3,), (4,)]
    assert backlog.take(1) == []


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_nothing_is_lost_or_read_ahead(steps: list[tuple[int, int]]) -> None:
    read = 0

    def stream() -> Iterator[Request]:
        nonlocal read
        for number in range(60):
            read += 1
            yield request(number)

    backlog, answered, asked = Backlog(stream()), [], 0
    for count, failed in steps:
        taken = backlog.take(count)
        asked += count
        assert read <= min(60, asked)
        backlog.put_back(taken[:failed])
        answered += taken[failed:]
    while rest := backlog.take(7):
        answered += rest
    assert sorted(one.key for one in answered) == [(number,) for number in range(60)]


def test_rests_double_up_to_a_minute_and_failures_together_count_once() -> None:
    endpoint, now, rests = Endpoint("http://a/v1", limit=4), 0.0, []
    for _ in range(12):
        assert endpoint.has_room(now)
        endpoint.note_failure(now, "gone")
        endpoint.note_failure(now, "gone")
        rests.append(endpoint.rest_left(now))
        assert not endpoint.has_room(now)
        now += rests[-1]
    assert endpoint.failures == 12
    for number, rest in enumerate(rests):
        assert 0.5 <= rest / min(60, 2**number) <= 1.5


def test_one_request_tries_a_failed_endpoint_and_success_opens_it() -> None:
    endpoint = Endpoint("http://a/v1", limit=4)
    endpoint.note_failure(0.0, "gone")
    assert endpoint.has_room(9.0)
    endpoint.in_flight = 1
    assert not endpoint.has_room(9.0)
    endpoint.note_success()
    assert endpoint.has_room(0.0)
    endpoint.in_flight = 4
    assert not endpoint.has_room(0.0)


def test_the_first_failure_is_told(caplog: pytest.LogCaptureFixture) -> None:
    endpoint = Endpoint("http://a/v1", limit=4)
    endpoint.note_failure(0.0, "gone")
    endpoint.note_failure(99.0, "still gone")
    assert [record.getMessage() for record in caplog.records] == [
        "endpoint http://a/v1 failed (gone); its requests are sent again, elsewhere where they can"
    ]

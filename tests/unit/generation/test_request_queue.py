"""Tests the queue of requests that wait for an engine."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megatron_ssd.generation.engine import RequestQueue
from tests.helpers.requests import CountedRequests, request


def test_returned_requests_come_first_and_are_counted() -> None:
    queue = RequestQueue(request(number) for number in range(5))
    first, second = queue.take(2)
    queue.put_back([first, second])
    queue.put_back([second])
    assert queue.num_returned == 3
    taken = queue.take(4)
    assert [one.sample_index for one in taken] == [0, 1, 1, 2]
    assert [queue.times_returned(one) for one in (first, second, taken[-1])] == [1, 2, 0]
    assert [one.sample_index for one in queue.take(9)] == [3, 4]
    assert queue.take(1) == []


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_no_request_is_lost_or_read_ahead(steps: list[tuple[int, int]]) -> None:
    requests = CountedRequests(request(number) for number in range(60))
    queue, answered, num_taken = RequestQueue(requests), [], 0
    for count, failed in steps:
        taken = queue.take(count)
        num_taken += count
        assert requests.num_read <= min(60, num_taken)
        queue.put_back(taken[:failed])
        answered += taken[failed:]
    while rest := queue.take(7):
        answered += rest
    assert sorted(one.sample_index for one in answered) == list(range(60))

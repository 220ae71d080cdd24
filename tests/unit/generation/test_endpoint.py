"""Tests when an endpoint gets requests, and how long it pauses after a failure."""

from __future__ import annotations

import pytest

from megatron_ssd.generation.vllm_server import Endpoint


def test_pauses_double_up_to_a_minute_and_simultaneous_failures_count_once() -> None:
    endpoint, now, pauses = Endpoint("http://a/v1", limit=4), 0.0, []
    for _ in range(12):
        assert endpoint.has_room(now)
        endpoint.note_failure(now, "gone")
        endpoint.note_failure(now, "gone")
        pauses.append(endpoint.pause_left(now))
        assert not endpoint.has_room(now)
        now += pauses[-1]
    assert endpoint.failures == 12
    for number, pause in enumerate(pauses):
        assert 0.5 <= pause / min(60, 2**number) <= 1.5


def test_a_single_request_tries_a_failed_endpoint_and_success_reopens_it() -> None:
    endpoint = Endpoint("http://a/v1", limit=4)
    endpoint.note_failure(0.0, "gone")
    assert endpoint.has_room(9.0)
    endpoint.in_flight = 1
    assert not endpoint.has_room(9.0)
    endpoint.note_success()
    assert endpoint.has_room(0.0)
    endpoint.in_flight = 4
    assert not endpoint.has_room(0.0)


def test_the_first_failure_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    endpoint = Endpoint("http://a/v1", limit=4)
    endpoint.note_failure(0.0, "gone")
    endpoint.note_failure(99.0, "still gone")
    assert [record.getMessage() for record in caplog.records] == [
        "endpoint http://a/v1 failed (gone); its requests are sent again, to other endpoints if possible"
    ]

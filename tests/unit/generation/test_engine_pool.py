"""Tests that every request to a pool of engines is answered once, also if engines die."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from megatron_ssd.errors import UserError
from megatron_ssd.generation.engine import Request
from megatron_ssd.generation.engine_pool import EnginePool, first_cause
from tests.helpers.fake_engine import CRASH_ONCE_SEED, CRASH_SEED, FakeSpec, tokens_of
from tests.helpers.requests import CountedRequests, sample_all
from tests.helpers.requests import request as make_request

pytestmark = pytest.mark.usefixtures("engine_logs")


def request(number: int, *, prompt_length: int = 3, seed: int | None = None) -> Request:
    return make_request(number, prompt_token_ids=[number] * prompt_length, seed=seed)


def open_pool(spec: FakeSpec, **settings: int) -> closing[EnginePool]:
    return closing(EnginePool(spec, **settings))


def keep(pool: EnginePool, requests: list[Request], received: list[Request]) -> None:
    """Append the answered requests to ``received``, also those before a failure of the pool."""
    for one, _ in pool.sample(requests):
        received.append(one)


@pytest.fixture(scope="module")
def two_engines() -> Iterator[EnginePool]:
    with open_pool(FakeSpec(), size=2, max_in_flight=10, max_restarts=0) as pool:
        yield pool


def test_every_request_is_answered_once_with_its_own_tokens(two_engines: EnginePool) -> None:
    requests = [request(number) for number in range(200)]
    expected = {one.key: tokens_of(one) for one in requests}
    assert sample_all(two_engines, requests) == expected
    assert sample_all(two_engines, requests[::-1]) == expected


def test_long_prompts_in_both_directions_do_not_deadlock(two_engines: EnginePool) -> None:
    requests = [request(number, prompt_length=200_000) for number in range(40)]
    assert len(sample_all(two_engines, requests)) == 40


def test_no_requests_give_no_completions(two_engines: EnginePool) -> None:
    assert list(two_engines.sample([])) == []


def test_requests_are_read_only_a_little_ahead_and_closing_ends_the_processes() -> None:
    requests = CountedRequests(request(number) for number in range(100))
    with open_pool(FakeSpec(), size=2, max_in_flight=5, max_restarts=0) as pool:
        next(iter(pool.sample(requests)))
        assert requests.num_read < 30
        processes = [engine.pid for engine in pool._engines]
        assert all(Path(f"/proc/{pid}").exists() for pid in processes)
    assert not any(Path(f"/proc/{pid}").exists() for pid in processes)


def test_an_engine_that_cannot_start_gives_the_reason() -> None:
    with (
        pytest.raises(UserError, match="fake engine: was told to refuse; tell it otherwise"),
        open_pool(FakeSpec(refuses=True), size=2, max_in_flight=4, max_restarts=0) as pool,
    ):
        list(pool.sample([request(1)]))


def test_an_engine_that_dies_gives_one_line_and_its_output_is_kept() -> None:
    requests = [request(number, seed=CRASH_SEED if number == 50 else None) for number in range(100)]
    received: list[Request] = []
    with (
        pytest.raises(UserError, match=r"died .*told to crash") as caught,
        open_pool(FakeSpec(), size=2, max_in_flight=8, max_restarts=0) as pool,
    ):
        keep(pool, requests, received)
    assert len(received) >= 30
    assert "\n" not in str(caught.value)
    kept = Path(re.search(r"is in (\S+)$", str(caught.value))[1])  # type: ignore[index]
    assert "some library's chatter" in kept.read_text()


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        ("", "it printed nothing"),
        ("loading\nKilled\n", "Killed"),
        ("Traceback (most recent call last):\n  File a\n    f()\nvllm.errors.LoadError: no kernel\nleaked 4 types\n",
         "vllm.errors.LoadError: no kernel"),
        ("OSError: no library\n\nDuring handling, another exception occurred:\n\nRuntimeError: no engine\n",
         "OSError: no library"),
        ("WARNING: Error in a plug-in\nready\n", "ready"),
    ],
)  # fmt: skip
def test_the_first_exception_is_the_cause_of_a_death(output: str, cause: str) -> None:
    assert first_cause(output) == cause


@pytest.mark.parametrize("size", [1, 2])
def test_a_dead_engine_is_restarted_and_no_request_is_lost(
    size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    requests = [request(number, seed=CRASH_ONCE_SEED if number == 90 else None) for number in range(200)]
    spec = FakeSpec(marker=str(tmp_path / "crashed"))
    with open_pool(spec, size=size, max_in_flight=8, max_restarts=1) as pool:
        assert sample_all(pool, requests) == {one.key: tokens_of(one) for one in requests}
        assert len(sample_all(pool, requests[:20])) == 20
    (warning,) = [record.getMessage() for record in caplog.records]
    assert re.search(
        r"status 3 died \(some library's chatter\); it is restarted \(1 of engine\.max_restarts = 1\)", warning
    )
    assert Path(warning.rsplit(" ", 1)[1]).is_file()


def test_an_engine_killed_while_idle_is_restarted() -> None:
    requests = [request(number) for number in range(50)]
    with open_pool(FakeSpec(), size=2, max_in_flight=8, max_restarts=1) as pool:
        pool.wait_ready()
        os.kill(pool._engines[1].pid, signal.SIGKILL)
        assert sample_all(pool, requests) == {one.key: tokens_of(one) for one in requests}


def test_a_request_that_kills_every_engine_ends_the_run_and_is_named() -> None:
    requests = [request(number, seed=CRASH_SEED if number == 50 else None) for number in range(100)]
    received: list[Request] = []
    with (
        pytest.raises(UserError, match=r"told to crash\) after 2 restarts, and engine\.max_restarts = 2") as caught,
        open_pool(FakeSpec(), size=1, max_in_flight=1, max_restarts=2) as pool,
    ):
        keep(pool, requests, received)
    assert "at each death 1 requests were in flight, ('p', 50) the first of them" in str(caught.value)
    assert {one.sample_index for one in received} == set(range(50))


def test_an_engine_that_cannot_be_restarted_ends_the_run(tmp_path: Path) -> None:
    requests = [request(number, seed=CRASH_ONCE_SEED if number == 20 else None) for number in range(100)]
    spec = FakeSpec(marker=str(tmp_path / "crashed"), refuses_with_marker=True)
    with (
        pytest.raises(UserError, match="fake engine: was told to refuse"),
        open_pool(spec, size=1, max_in_flight=8, max_restarts=9) as pool,
    ):
        keep(pool, requests, [])

"""Engines in processes: every request once, whatever happens to them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_ssd.config.generation import SamplingParams
from megatron_ssd.errors import UserError
from megatron_ssd.generation.engine import Completion, Request
from megatron_ssd.generation.engine_pool import EnginePool
from tests.helpers.fake_engine import CRASH_ONCE_SEED, CRASH_SEED, FakeSpec, tokens_of
from tests.helpers.paths import ROOT


@pytest.fixture(autouse=True)
def _logs_stay_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a dead engine printed goes into a file that this test takes away."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def request(number: int, *, prompt_length: int = 3, seed: int | None = None) -> Request:
    return Request(
        key=("problem", number),
        prompt_token_ids=[number] * prompt_length,
        seed=number if seed is None else seed,
        decoding=SamplingParams(),
        max_tokens=8,
    )


def keep(pool: EnginePool, requests: list[Request], received: list[Completion]) -> None:
    for completion in pool.sample(requests):
        received.append(completion)


@pytest.mark.parametrize("size", [1, 2])
def test_every_request_comes_back_once_and_as_drawn(size: int) -> None:
    requests = [request(number) for number in range(200)]
    with EnginePool(FakeSpec(), size=size, max_in_flight=16, max_restarts=0) as pool:
        first = list(pool.sample(requests))
        again = list(pool.sample(reversed(requests)))
    expected = {one.key: tokens_of(one) for one in requests}
    assert len(first) == len(again) == len(requests)
    assert {completion.key: completion for completion in first} == expected
    assert {completion.key: completion for completion in again} == expected


def test_requests_are_taken_a_little_ahead_only() -> None:
    taken = 0

    def stream() -> Iterator[Request]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield request(number)

    with EnginePool(FakeSpec(), size=2, max_in_flight=5, max_restarts=0) as pool:
        next(iter(pool.sample(stream())))
        assert taken < 30


def test_long_prompts_both_ways_do_not_lock_up() -> None:
    requests = [request(number, prompt_length=200_000) for number in range(40)]
    with EnginePool(FakeSpec(), size=2, max_in_flight=10, max_restarts=0) as pool:
        assert len(list(pool.sample(requests))) == 40


def test_nothing_to_sample_is_nothing() -> None:
    with EnginePool(FakeSpec(), size=1, max_in_flight=4, max_restarts=0) as pool:
        assert list(pool.sample([])) == []


def test_engine_that_cannot_start_says_why() -> None:
    with (
        pytest.raises(UserError, match="fake engine: was told to refuse; tell it otherwise"),
        EnginePool(FakeSpec(refuses=True), size=2, max_in_flight=4, max_restarts=0) as pool,
    ):
        list(pool.sample([request(1)]))


def test_engine_that_dies_is_one_line_with_its_output_kept() -> None:
    requests = [request(number, seed=CRASH_SEED if number == 50 else None) for number in range(100)]
    received: list[Completion] = []
    with (
        pytest.raises(UserError, match=r"died .*told to crash") as caught,
        EnginePool(FakeSpec(), size=2, max_in_flight=8, max_restarts=0) as pool,
    ):
        keep(pool, requests, received)
    assert len(received) >= 30
    assert "\n" not in str(caught.value)
    kept = Path(re.search(r"is in (\S+)$", str(caught.value))[1])  # type: ignore[index]
    assert "some library's chatter" in kept.read_text()


@pytest.mark.parametrize("size", [1, 2])
def test_a_dead_engine_is_started_again_and_nothing_is_lost(
    size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    requests = [request(number, seed=CRASH_ONCE_SEED if number == 90 else None) for number in range(200)]
    spec = FakeSpec(marker=str(tmp_path / "crashed"))
    with EnginePool(spec, size=size, max_in_flight=8, max_restarts=1) as pool:
        received = list(pool.sample(requests))
        again = list(pool.sample(requests[:20]))
    assert len(received) == len(requests)
    assert {one.key: one for one in received} == {one.key: tokens_of(one) for one in requests}
    assert len(again) == 20
    (warning,) = [record.getMessage() for record in caplog.records]
    assert re.search(
        r"status 3 died \(some library's chatter\); it is started again \(1 of engine\.max_restarts = 1\)", warning
    )
    assert Path(warning.rsplit(" ", 1)[1]).is_file()


def test_an_engine_killed_while_idle_is_started_again() -> None:
    requests = [request(number) for number in range(50)]
    with EnginePool(FakeSpec(), size=2, max_in_flight=8, max_restarts=1) as pool:
        pool.wait_ready()
        os.kill(pool._engines[1]._process.pid, signal.SIGKILL)
        assert {one.key: one for one in pool.sample(requests)} == {one.key: tokens_of(one) for one in requests}


def test_a_request_that_kills_every_engine_ends_the_run_and_is_named() -> None:
    requests = [request(number, seed=CRASH_SEED if number == 50 else None) for number in range(100)]
    received: list[Completion] = []
    with (
        pytest.raises(UserError, match=r"told to crash\) after 2 restarts, and engine\.max_restarts = 2") as caught,
        EnginePool(FakeSpec(), size=1, max_in_flight=1, max_restarts=2) as pool,
    ):
        keep(pool, requests, received)
    assert "at each death 1 requests were in flight, ('problem', 50) the first of them" in str(caught.value)
    assert {one.key[1] for one in received} == set(range(50))


def test_an_engine_that_does_not_start_again_ends_the_run(tmp_path: Path) -> None:
    requests = [request(number, seed=CRASH_ONCE_SEED if number == 20 else None) for number in range(100)]
    spec = FakeSpec(marker=str(tmp_path / "crashed"), refuses_with_marker=True)
    with (
        pytest.raises(UserError, match="fake engine: was told to refuse"),
        EnginePool(spec, size=1, max_in_flight=8, max_restarts=9) as pool,
    ):
        keep(pool, requests, [])


def test_closing_ends_the_processes() -> None:
    with EnginePool(FakeSpec(), size=2, max_in_flight=4, max_restarts=0) as pool:
        pool.wait_ready()
        processes = [engine._process.pid for engine in pool._engines]
        assert all(Path(f"/proc/{pid}").exists() for pid in processes)
    assert not any(Path(f"/proc/{pid}").exists() for pid in processes)


def test_engines_die_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal\n"
        "from megatron_ssd.generation.engine_pool import EnginePool\n"
        "from tests.helpers.fake_engine import FakeSpec\n"
        "pool = EnginePool(FakeSpec(), size=1, max_in_flight=4, max_restarts=0)\n"
        "pool.wait_ready()\n"
        "print(pool._engines[0]._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = str(ROOT)
    parent = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    pid = int(parent.stdout)
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the engine outlived its parent")

"""Engines in processes: every request once, whatever happens to them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_ssd.config.generation import Decoding
from megatron_ssd.errors import UserError
from megatron_ssd.generation.pool import EnginePool
from megatron_ssd.generation.sampler import Completion, Request
from tests.unit.generation.fake_engine import CRASH_SEED, FakeSpec, tokens_of


def request(number: int, *, prompt_length: int = 3, seed: int | None = None) -> Request:
    return Request(
        key=("problem", number),
        prompt_token_ids=[number] * prompt_length,
        seed=number if seed is None else seed,
        decoding=Decoding(),
        max_tokens=8,
    )


def keep(pool: EnginePool, requests: list[Request], received: list[Completion]) -> None:
    for completion in pool.sample(requests):
        received.append(completion)


@pytest.mark.parametrize("size", [1, 2])
def test_every_request_comes_back_once_and_as_drawn(size: int) -> None:
    requests = [request(number) for number in range(200)]
    with EnginePool(FakeSpec(), size=size, max_in_flight=16) as pool:
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

    with EnginePool(FakeSpec(), size=2, max_in_flight=5) as pool:
        next(iter(pool.sample(stream())))
        assert taken < 30


def test_long_prompts_both_ways_do_not_lock_up() -> None:
    requests = [request(number, prompt_length=200_000) for number in range(40)]
    with EnginePool(FakeSpec(), size=2, max_in_flight=10) as pool:
        assert len(list(pool.sample(requests))) == 40


def test_nothing_to_sample_is_nothing() -> None:
    with EnginePool(FakeSpec(), size=1, max_in_flight=4) as pool:
        assert list(pool.sample([])) == []


def test_engine_that_cannot_start_says_why() -> None:
    with (
        pytest.raises(UserError, match="fake engine: was told to refuse; tell it otherwise"),
        EnginePool(FakeSpec(refuses=True), size=2, max_in_flight=4) as pool,
    ):
        list(pool.sample([request(1)]))


def test_engine_that_dies_is_one_line_with_its_output_kept() -> None:
    requests = [request(number, seed=CRASH_SEED if number == 50 else None) for number in range(100)]
    received: list[Completion] = []
    with (
        pytest.raises(UserError, match=r"died .*told to crash") as caught,
        EnginePool(FakeSpec(), size=2, max_in_flight=8) as pool,
    ):
        keep(pool, requests, received)
    assert len(received) >= 30
    assert "\n" not in str(caught.value)
    kept = Path(re.search(r"is in (\S+)$", str(caught.value))[1])  # type: ignore[index]
    assert "some library's chatter" in kept.read_text()
    kept.unlink()


def test_closing_ends_the_processes() -> None:
    with EnginePool(FakeSpec(), size=2, max_in_flight=4) as pool:
        pool.wait_ready()
        processes = [engine._process.pid for engine in pool._engines]
        assert all(Path(f"/proc/{pid}").exists() for pid in processes)
    assert not any(Path(f"/proc/{pid}").exists() for pid in processes)


def test_engines_die_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal\n"
        "from megatron_ssd.generation.pool import EnginePool\n"
        "from tests.unit.generation.fake_engine import FakeSpec\n"
        "pool = EnginePool(FakeSpec(), size=1, max_in_flight=4)\n"
        "pool.wait_ready()\n"
        "print(pool._engines[0]._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = str(Path(__file__).resolve().parents[3])
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

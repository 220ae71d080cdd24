"""An engine without a model, which a child process can import."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_ssd.errors import UserError
from megatron_ssd.generation.engine import Completion, Request

END = 1
CRASH_SEED = 666  # a request with this seed crashes its engine
CRASH_ONCE_SEED = 667  # a request with this seed crashes its engine if the engine's marker does not exist yet


def tokens_of_prompt(prompt: list[int], seed: int, max_tokens: int) -> tuple[list[int], Literal["stop", "length"]]:
    """Token ids and finish reason, a function of prompt and seed."""
    rng = random.Random(f"{prompt} {seed}")
    ids = [rng.randrange(2, 500) for _ in range(rng.randrange(1, 2 * max_tokens))]
    return (ids[:max_tokens], "length") if len(ids) >= max_tokens else ([*ids, END], "stop")


def tokens_of(request: Request) -> Completion:
    """Token ids that the fake engine samples for a request."""
    ids, reason = tokens_of_prompt(request.prompt_token_ids, request.seed, request.max_tokens)
    return Completion(token_ids=ids, finish_reason=reason)


class FakeEngine:
    """Finishes a request after as many steps as it has tokens."""

    def __init__(self, marker: str | None) -> None:
        self._running: list[tuple[int, int, Completion]] = []  # steps left, number of the request
        self._marker = marker

    def add(self, number: int, request: Request) -> None:
        if request.seed == CRASH_SEED:
            raise RuntimeError("the fake engine was told to crash")
        if request.seed == CRASH_ONCE_SEED and self._marker and not Path(self._marker).exists():
            Path(self._marker).touch()
            os._exit(3)
        completion = tokens_of(request)
        self._running.append((len(completion.token_ids), number, completion))

    def step(self) -> list[tuple[int, Completion]]:
        finished = [(number, completion) for steps, number, completion in self._running if steps == 1]
        self._running = [(steps - 1, number, completion) for steps, number, completion in self._running if steps > 1]
        return finished


@dataclass(frozen=True)
class FakeSpec:
    """Starts a ``FakeEngine``, or refuses to start one: always, or only if the file ``marker`` exists."""

    refuses: bool = False
    marker: str | None = None
    refuses_with_marker: bool = False

    def environment(self, index: int) -> dict[str, str]:
        return {"FAKE_ENGINE_INDEX": str(index)}

    def start(self) -> FakeEngine:
        assert os.environ["FAKE_ENGINE_INDEX"] in "01"
        print("some library's chatter")
        if self.refuses or (self.refuses_with_marker and self.marker and Path(self.marker).exists()):
            raise UserError("fake engine", rule="was told to refuse", fix="tell it otherwise")
        return FakeEngine(self.marker)

"""An engine without a model, importable by the child process that runs it."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass

from megatron_ssd.errors import UserError
from megatron_ssd.generation.sampler import Completion, Request

END = 1
CRASH_SEED = 666  # a request with this seed kills its engine


def tokens_of(request: Request) -> Completion:
    """What the fake engine draws for a request: a function of prompt and seed."""
    rng = random.Random(f"{request.prompt_token_ids} {request.seed}")
    ids = [rng.randrange(2, 500) for _ in range(rng.randrange(1, 2 * request.max_tokens))]
    if len(ids) >= request.max_tokens:
        return Completion(key=request.key, token_ids=ids[: request.max_tokens], finish_reason="length")
    return Completion(key=request.key, token_ids=[*ids, END], finish_reason="stop")


class FakeEngine:
    """Finishes a request after as many steps as it has tokens."""

    def __init__(self) -> None:
        self._running: list[tuple[int, Completion]] = []

    def add(self, request: Request) -> None:
        if request.seed == CRASH_SEED:
            raise RuntimeError("the fake engine was told to crash")
        completion = tokens_of(request)
        self._running.append((len(completion.token_ids), completion))

    def step(self) -> list[Completion]:
        finished = [completion for steps, completion in self._running if steps == 1]
        self._running = [(steps - 1, completion) for steps, completion in self._running if steps > 1]
        return finished


@dataclass(frozen=True)
class FakeSpec:
    """Starts a ``FakeEngine``, or refuses to."""

    refuses: bool = False

    def environment(self, index: int) -> dict[str, str]:
        return {"FAKE_ENGINE_INDEX": str(index)}

    def start(self) -> FakeEngine:
        assert os.environ["FAKE_ENGINE_INDEX"] in "01"
        print("some library's chatter")
        if self.refuses:
            raise UserError("fake engine", rule="was told to refuse", fix="tell it otherwise")
        return FakeEngine()

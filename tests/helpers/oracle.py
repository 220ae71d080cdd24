"""An engine that returns correct minicode programs, for tests of the evaluation stage."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from megatron_ssd.artifacts.hub import ModelFolder
from megatron_ssd.config.generation import EngineConfig
from megatron_ssd.config.problems import MinicodeConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from megatron_ssd.evaluation.decode import OpenSampler
from megatron_ssd.generation.engine import Completion, Request
from megatron_ssd.problems import minicode
from megatron_ssd.prompts.tokenizer import ChatTokenizer

MINICODE = MinicodeConfig(num_test_problems=6)
N = 4


class Oracle:
    """A ``Sampler`` that returns correct programs, more of them for the tuned model. Fails after ``lives`` answers."""

    def __init__(self, config: RunConfig, *, lives: int = 10**9) -> None:
        self.requests: list[Request] = []
        self.starts: list[str] = []
        self._config, self._lives = config, lives
        self._problems = {problem.id: problem for problem in minicode.test_problems(config.minicode)}

    def wait_ready(self) -> None:
        pass

    @contextlib.contextmanager
    def open(self, engine: EngineConfig, model: ModelFolder, **_: object) -> Iterator[Oracle]:
        self.starts.append(model.path.name)
        self._tokenizer = ChatTokenizer(model.path)._tokenizer
        self._share = 3 if model.path.name == "export" else 1
        yield self

    def sample(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Completion]]:
        for request in reversed(list(requests)):  # completions do not arrive in the order of the requests
            if len(self.requests) >= self._lives:
                raise UserError("engine", rule="died", fix="start again")
            self.requests.append(request)
            yield request, Completion(token_ids=self._answer(request), finish_reason="stop")

    def _answer(self, request: Request) -> list[int]:
        problem_id, index = request.key
        text = "```python\ndef f(xs):\n    return None\n```"
        if index < self._share:
            problem = self._problems[problem_id]
            labelled = (minicode.document_with_labels(problem, seed) for seed in range(1000))
            text = next(document.response for document in labelled if document.is_right)
        return [*self._tokenizer(text, add_special_tokens=False)["input_ids"], 2]


def sampler_of(oracle: Oracle) -> OpenSampler:
    return oracle.open


def summary_of(config: RunConfig) -> dict:
    """The published ``eval/minicode/summary.json``."""
    return json.loads((Path(config.run_dir) / "eval" / "minicode" / "summary.json").read_text())

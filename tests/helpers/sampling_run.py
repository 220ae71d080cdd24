"""A small run of the sampling stage."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from unittest.mock import patch

from megatron_ssd.artifacts.jsonl import read_jsonl
from megatron_ssd.config.build import build
from megatron_ssd.config.generation import WorkerConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.generation import stage
from megatron_ssd.generation.engine import Completion, Request
from megatron_ssd.problems.stage import run_problems
from megatron_ssd.schema import Sample
from tests.helpers.fake_engine import tokens_of

NUM_SAMPLES = 60


@dataclasses.dataclass
class FakeSampler:
    """Samples in this process, and is interrupted after ``stop_after`` completions as by Ctrl-C.

    It calls ``meanwhile`` between the first two completions, and ``at_end`` when the engines are released.
    """

    stop_after: int | None = None
    meanwhile: Callable[[], object] | None = None
    at_end: Callable[[], object] | None = None
    requests: list[Request] = dataclasses.field(default_factory=list)

    def wait_ready(self) -> None:
        pass

    def sample(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Completion]]:
        for request in sorted(requests, key=lambda request: request.seed):  # not the order of the plan
            if len(self.requests) == self.stop_after:
                raise KeyboardInterrupt
            if self.meanwhile is not None and len(self.requests) == 1:
                self.meanwhile()
            self.requests.append(request)
            yield request, tokens_of(request)

    @contextlib.contextmanager
    def opened(self) -> Iterator[FakeSampler]:
        """Replaces ``open_sampler``."""
        yield self
        if self.at_end is not None:
            self.at_end()


def run_config(model: Path, run_dir: Path) -> RunConfig:
    """A configuration that draws two samples for each of thirty problems, in shards of 25 records."""
    shape = {
        "name": "tiny", "model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32, "intermediate_size": 128, "vocab_size": 512,
        "max_position_embeddings": 256, "path": str(model),
    }  # fmt: skip
    return build(
        RunConfig,
        {
            "run_dir": str(run_dir),
            "seed": 5,
            "model": shape,
            "problems": {"name": "minicode"},
            "minicode": {"num_train_problems": 30},
            "sampling": {"train": {"temperature": 1.5}, "eval": {}, "max_tokens": 12, "num_samples": 2},
            "prompt": {"template": "minicode"},
            "engine": {"max_model_len": 256},
            "generation": {"shard_rows": 25},
            "training": {"seq_length": 128},
            "cluster": {"device": "cpu"},
            "precision": {"transformer_engine": False},
        },
    )


def generate(config: RunConfig, sampler: FakeSampler | None = None) -> FakeSampler:
    """Choose the problems, run the sampling stage with ``sampler``, and return ``sampler``."""
    sampler = sampler or FakeSampler()
    run_problems(config)
    with (
        patch.object(stage, "open_sampler", lambda *_, **__: sampler.opened()),
        patch.object(stage, "engine_facts", lambda *_: {"name": "vllm", "version": "0"}),
    ):
        stage.run_generate(config)
    return sampler


def worker(config: RunConfig, rank: int, world: int) -> RunConfig:
    """The configuration of one of several workers."""
    return dataclasses.replace(config, worker=WorkerConfig(rank=rank, world=world))


def samples(config: RunConfig) -> list[Sample]:
    """The published samples, in order."""
    shards = sorted((Path(config.run_dir) / "samples").glob("shard-*.jsonl"))
    return [Sample.from_json(record) for shard in shards for record in read_jsonl(shard)]


def elsewhere(config: RunConfig, name: str) -> RunConfig:
    """The same run in another folder."""
    return dataclasses.replace(config, run_dir=str(Path(config.run_dir).parent / name))

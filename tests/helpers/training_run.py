"""A tiny training run for tests."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.cluster import ClusterConfig
from megatron_ssd.config.model import ModelConfig, MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.config.training import CheckpointConfig, OptimizerConfig, TrainingConfig
from megatron_ssd.dataset.indexed import IndexedWriter

VOCAB_SIZE = 64
_SHAPE: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 96, "vocab_size": VOCAB_SIZE, "max_position_embeddings": 128,
}  # fmt: skip
DENSE = ModelConfig(name="dense", model_type="qwen3", tie_word_embeddings=True, **_SHAPE)
DEEP = dataclasses.replace(DENSE, name="deep", num_hidden_layers=4)  # for layouts that cut a model into four parts
MOE = ModelConfig(
    name="moe", model_type="qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, **_SHAPE
)
# The same as overrides of the command line, with what else a short run in fp32 needs.
COMMAND_LINE = (
    "cluster=cpu", "precision=fp32", "objective=pretrain", "model.name=dense", "model.model_type=qwen3",
    *(f"model.{key}={value}" for key, value in _SHAPE.items()), "model.tie_word_embeddings=true",
    "optimizer.lr=3e-3", "optimizer.min_lr=3e-4", "optimizer.lr_warmup_iters=2", "training.global_batch_size=4",
    "training.micro_batch_size=2", "training.seq_length=64", "training.packing=greedy",
    "training.batch_unit=packed_sequences", "training.tensorboard=false",
)  # fmt: skip
EXACT = PrecisionConfig(params_dtype="fp32", transformer_engine=False)
# TransformerEngine multiplies fp32 in TF32, and experts with almost equal scores would then change places.
EXACT_ROUTER = MoeConfig(router_dtype="fp64")
CPU = ClusterConfig(device="cpu")


def publish_documents(run_dir: Path, documents: Sequence[Sequence[list[int]]], *, vocab_size: int = VOCAB_SIZE) -> None:
    """Publish ``run_dir/dataset``; a document is [token ids] for pretraining, or [prompt ids, response ids]."""
    stage = Stage(name="dataset", run_dir=run_dir, config={"documents": len(documents)}, inputs={})
    with IndexedWriter(stage.begin() / "samples", vocab_size=vocab_size) as writer:
        for document in documents:
            writer.add(*document)
    stage.publish(counts={"documents": len(documents)})


def write_dataset(run_dir: Path, *, vocab_size: int = VOCAB_SIZE, num_documents: int = 200) -> None:
    """Publish ``run_dir/dataset`` with arithmetic progressions modulo ``vocab_size`` as pretraining documents."""
    random = np.random.default_rng(0)
    documents = []
    for _ in range(num_documents):
        start, step, length = random.integers(vocab_size), random.integers(1, 5), random.integers(8, 48)
        documents.append([((start + step * np.arange(length)) % vocab_size).tolist()])
    publish_documents(run_dir, documents, vocab_size=vocab_size)


def training_config(run_dir: Path, **changes: Any) -> RunConfig:
    """A configuration that pretrains ``DENSE`` for ten iterations.

    ``changes`` are sections by name, of which ``training`` and ``checkpoint`` are dictionaries of changed fields.
    """
    training = {"train_iters": 10, "global_batch_size": 4, "micro_batch_size": 2, "seq_length": 64,
                "packing": "greedy", "batch_unit": "packed_sequences", "tensorboard": False}  # fmt: skip
    training |= changes.pop("training", {})
    checkpoint = {"save_interval": 1000} | changes.pop("checkpoint", {})
    base = RunConfig(
        run_dir=str(run_dir),
        objective="pretrain",
        model=changes.pop("model", DENSE),
        precision=EXACT,
        cluster=CPU,
        optimizer=OptimizerConfig(lr=3e-3, min_lr=3e-4, lr_warmup_iters=2),
        training=TrainingConfig(**training),
        checkpoint=CheckpointConfig(**checkpoint),
        parallel=changes.pop("parallel", ParallelConfig()),
    )
    return dataclasses.replace(base, **changes)


def metrics(run_dir: Path, folder: str = "checkpoints") -> list[dict[str, Any]]:
    """The records of ``metrics.jsonl``."""
    return [json.loads(line) for line in (run_dir / folder / "metrics.jsonl").read_text().splitlines()]


def iterations(run_dir: Path) -> int:
    """Number of iterations in the metrics of a run that is not finished."""
    path = run_dir / "checkpoints.partial" / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0

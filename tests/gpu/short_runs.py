"""Short training runs for the tests of this folder."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from megatron_ssd.config.cluster import ClusterConfig
from megatron_ssd.config.model import ModelConfig, MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import process_groups
from megatron_ssd.training.trainer import build_trainer
from tests.helpers.devices import GPU_TESTS_ON
from tests.helpers.training_run import DENSE, MOE, training_config

DEVICE = ClusterConfig(device=GPU_TESTS_ON)
BF16, LOCAL = PrecisionConfig(), PrecisionConfig(transformer_engine=False)
# FP8 needs dimensions that are multiples of up to 128, so these are wider than the CPU suite's.
_WIDE: dict[str, Any] = {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
                         "head_dim": 64, "intermediate_size": 512, "max_position_embeddings": 512}  # fmt: skip
WIDE_DENSE = dataclasses.replace(DENSE, **_WIDE)
WIDE_MOE = dataclasses.replace(MOE, **_WIDE, moe_intermediate_size=256)
_STEPS = 15


def sequences(model: ModelConfig) -> dict[str, Any]:
    """Settings of training with sequences as long as the context of ``model``."""
    return {"seq_length": model.max_position_embeddings, "micro_batch_size": 1}


@functools.cache
def losses(
    root: Path, model: ModelConfig, precision: PrecisionConfig, moe: MoeConfig | None = None,
    cluster: ClusterConfig = DEVICE,
) -> tuple[float, ...]:  # fmt: skip
    """Losses of the first steps on the data set in ``root``. A run that several tests need is computed once."""
    config = training_config(
        root, model=model, precision=precision, moe=moe or MoeConfig(), cluster=cluster,
        training={"train_iters": _STEPS, **sequences(model)},
    )  # fmt: skip
    with process_groups(ParallelConfig(), device=prepare_device(cluster, precision, config.moe)):
        trainer = build_trainer(config, root / "none", cluster.device)
        return tuple(trainer.step().loss for _ in range(_STEPS))

"""Reference for the GPU tests: the same training on the CPU, in a process that sees no GPU."""

from __future__ import annotations

from pathlib import Path

from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import process_groups
from megatron_ssd.training.trainer import build_trainer
from tests.helpers.training_run import CPU, DENSE, EXACT, EXACT_ROUTER, MOE, training_config


def losses_on_cpu(root: Path, name: str, steps: int = 10) -> list[float]:
    """Losses of the first ``steps`` iterations of the model with that name, in fp32."""
    (model,) = (model for model in (DENSE, MOE) if model.name == name)
    config = training_config(root, model=model, moe=EXACT_ROUTER, training={"train_iters": max(steps, 3)})
    with process_groups(ParallelConfig(), device=prepare_device(CPU, EXACT)):
        trainer = build_trainer(config, root / "none", "cpu")
        return [trainer.step().loss for _ in range(steps)]

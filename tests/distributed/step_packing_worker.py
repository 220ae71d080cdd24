"""Worker of test_step_packing: trains on packed samples of each iteration in several layouts.

It writes the metrics of the iterations as NAME.json, and the checkpoint of the last one to the folder NAME.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_ssd.config.model import ModelConfig, MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.runtime.process_groups import megatron_grid
from megatron_ssd.training.checkpoint import save_checkpoint
from megatron_ssd.training.trainer import Trainer, build_trainer
from tests.helpers.training_run import DEEP, MOE, training_config

WORLD_SIZES = (1, 2)
SAVED, ITERATIONS = 4, 10
LAYOUTS: dict[str, dict[str, Any]] = {
    "dp2": {},
    "pp2": {"pipeline_model_parallel_size": 2},
    "vpp2": {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
    "cp2": {"context_parallel_size": 2},
    "ep2": {"expert_model_parallel_size": 2},
}
RESUMED = {"dp2": "cp2", "pp2": "dp2"}  # layout that saved -> layout that resumes
PACKED = {"batch_unit": "samples", "packing": "best_fit", "micro_batch_size": 1, "segment_multiple": 4}
UNPACKED = {"packing": "none"}


def config_of(root: Path, layout: str, model: ModelConfig = DEEP, *, packed: bool = True) -> RunConfig:
    """Batches of six samples: three or four micro batches if they are packed."""
    sizes = LAYOUTS.get(layout, {})
    return training_config(
        root,
        model=model,
        moe=MoeConfig(aux_loss_coeff=0.0),  # the auxiliary loss depends on the micro batches
        parallel=ParallelConfig(world_size=2 if sizes or layout in LAYOUTS else 1, **sizes),
        training={"train_iters": ITERATIONS, "global_batch_size": 6, **(PACKED if packed else UNPACKED)},
        checkpoint={"optimizer_format": "fully_reshardable"},
    )


def run_cases(root: Path) -> None:
    """Train in all layouts of this number of processes; those that resume come after those that save."""
    if dist.get_world_size() == 1:
        with megatron_grid(ParallelConfig(), create_gloo_process_groups=True):
            for name, model in (("deep", DEEP), ("moe", MOE)):
                _train(root, f"{name}-unpacked", config_of(root, "one", model, packed=False))
            _train(root, "deep-one", config_of(root, "one"))
        return
    for layout in LAYOUTS:
        config = config_of(root, layout, MOE if layout == "ep2" else DEEP)
        with megatron_grid(config.parallel, create_gloo_process_groups=True):
            _train(root, f"moe-{layout}" if layout == "ep2" else f"deep-{layout}", config)
    for saved, layout in RESUMED.items():
        config = config_of(root, layout)
        with megatron_grid(config.parallel, create_gloo_process_groups=True):
            resume(root, f"deep-{saved}-{SAVED}", config)


def _train(root: Path, name: str, config: RunConfig) -> None:
    trainer = build_trainer(config, root / name, "cpu")
    records = [_step(trainer) for _ in range(SAVED)]
    _save(trainer)
    if dist.get_rank() == 0:
        shutil.copytree(root / name, root / f"{name}-{SAVED}")
    dist.barrier()
    _finish(root, name, trainer, records)


def resume(root: Path, saved: str, config: RunConfig) -> Trainer:
    """Continue from the checkpoint in the folder ``saved``, to the last iteration."""
    trainer = build_trainer(config, root / saved, "cpu")
    assert trainer.state.iteration == SAVED
    _finish(root, saved, trainer, [])
    return trainer


def _finish(root: Path, name: str, trainer: Trainer, records: list[dict[str, Any]]) -> None:
    records += [_step(trainer) for _ in range(ITERATIONS - trainer.state.iteration)]
    _save(trainer)
    if dist.get_rank() == 0:
        (root / f"{name}.json").write_text(json.dumps(records))


def _step(trainer: Trainer) -> dict[str, Any]:
    return dataclasses.asdict(trainer.step())


def _save(trainer: Trainer) -> None:
    save_checkpoint(trainer.writer, trainer.state)
    trainer.writer.finish()

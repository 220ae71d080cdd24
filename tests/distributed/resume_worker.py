"""Worker of test_resume_layouts: resumes training under another layout, and skips non-finite iterations.

It writes the metrics of the iterations as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories, is_main_replica
from torch import Tensor

from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.config.training import OptimizerFormat
from megatron_ssd.runtime.process_groups import megatron_grid
from megatron_ssd.training.checkpoint import save_checkpoint
from megatron_ssd.training.data import Batch, BatchSource, MicroBatchPlan
from megatron_ssd.training.trainer import Trainer, build_trainer
from tests.helpers.training_run import DEEP, DENSE, MOE, training_config

WORLD_SIZES = (1, 2)
SAVED, ITERATIONS = 3, 6
ONE = "one process"
LAYOUTS: dict[str, dict[str, Any]] = {
    "dp2": {},
    "dp2_non_distributed": {"use_distributed_optimizer": False},
    "tp2": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp2": {"pipeline_model_parallel_size": 2},
    "pp2_vpp2": {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
    "cp2": {"context_parallel_size": 2},
    "ep2": {"expert_model_parallel_size": 2},
    "pp2_non_distributed": {"pipeline_model_parallel_size": 2, "use_distributed_optimizer": False},
    "ep2_non_distributed": {"expert_model_parallel_size": 2, "use_distributed_optimizer": False},
}
MODELS = {"dense": DENSE, "deep": DEEP, "moe": MOE}
DP: OptimizerFormat = "dp_reshardable"
FULLY: OptimizerFormat = "fully_reshardable"
# (model, layout that saves, checkpoint.optimizer_format, layout that resumes). The test itself resumes in one process.
CHANGES: list[tuple[str, str, OptimizerFormat, str]] = [
    ("dense", "dp2", FULLY, "tp2"),
    ("dense", "tp2", FULLY, "pp2"),
    ("deep", "pp2", FULLY, "pp2_vpp2"),
    ("deep", "pp2_vpp2", FULLY, "cp2"),
    ("moe", "dp2", FULLY, "ep2"),
    ("moe", "ep2", FULLY, ONE),
    ("moe", ONE, FULLY, "ep2"),
    ("dense", "dp2", DP, ONE),
    ("dense", "dp2", DP, "cp2"),
    ("dense", ONE, DP, "dp2"),
    ("dense", "cp2", DP, ONE),
    ("moe", "ep2", DP, "ep2"),
    ("dense", "dp2_non_distributed", DP, "pp2_non_distributed"),
]
SKIPPING = [
    ("dense", "dp2"), ("dense", "dp2_non_distributed"), ("dense", "tp2"), ("dense", "pp2"),
    ("moe", "ep2"), ("moe", "ep2_non_distributed"),
]  # fmt: skip


def config_of(root: Path, model: str, layout: str, optimizer_format: OptimizerFormat = "dp_reshardable") -> RunConfig:
    """The configuration of a run that uses every kind of state in a checkpoint."""
    world_size, sizes = (1, {}) if layout == ONE else (2, LAYOUTS[layout])
    return training_config(
        root,
        model=MODELS[model],
        parallel=ParallelConfig(world_size=world_size, **sizes),
        # Segments start at the same offsets with and without context parallelism.
        training={"train_iters": ITERATIONS, "ema_decay": 0.5, "segment_multiple": 4},
        checkpoint={"save_async": True, "optimizer_format": optimizer_format},
    )


def save_and_continue(root: Path, model: str, layout: str, optimizer_format: OptimizerFormat) -> None:
    """Save iteration 3 in ``root/MODEL-LAYOUT-FORMAT``, and write the metrics of the next iterations."""
    name = f"{model}-{layout}-{optimizer_format}"
    trainer = build_trainer(config_of(root, model, layout, optimizer_format), root / name, "cpu")
    for _ in range(SAVED):
        trainer.step()
    save_checkpoint(trainer.writer, trainer.state)
    _write(root, name, _continue(trainer))
    trainer.writer.finish()


def resume(root: Path, model: str, saved: str, optimizer_format: OptimizerFormat, layout: str) -> None:
    """Load the checkpoint of layout ``saved`` under ``layout``, and write the metrics of the next iterations."""
    name = f"{model}-{saved}-{optimizer_format}"
    trainer = build_trainer(config_of(root, model, layout), root / name, "cpu")
    assert trainer.state.iteration == SAVED
    _write(root, f"{name}-{layout}", _continue(trainer))


def _continue(trainer: Trainer) -> list[dict[str, Any]]:
    """Train to the last iteration; returns the metrics of each iteration and the norm of the EMA."""
    records = [trainer.step().to_json() for _ in range(ITERATIONS - trainer.state.iteration)]
    assert trainer.state.ema is not None
    return [*records, {"ema": _ema_norm(trainer)}]


def _ema_norm(trainer: Trainer) -> float:
    """Norm of the EMA over the full model, from the shards that each rank would save."""
    assert trainer.state.ema is not None
    models = {str(number): model.sharded_state_dict() for number, model in enumerate(trainer.state.models)}
    shards: dict[str, Any] = {"ema": trainer.state.ema.sharded_state_dict(models)}
    apply_factories(shards)
    total = torch.zeros(1, dtype=torch.double)
    for shard in _leaves(shards):
        if isinstance(shard, ShardedTensor) and is_main_replica(shard.replica_id):
            total += shard.data.double().square().sum()
    dist.all_reduce(total)
    return math.sqrt(total.item())


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _leaves(each)
    else:
        yield value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Poisoned(BatchSource):
    """A batch source whose loss weights are NaN in one iteration, on the last rank only."""

    iteration: int

    def micro_batches(self, plans: Sequence[Sequence[MicroBatchPlan]]) -> Iterator[Batch]:
        """The planned batches, poisoned if they are those of the chosen iteration."""
        for batch in super().micro_batches(plans):
            bad = plans == self.plan(self.iteration) and dist.get_rank() == dist.get_world_size() - 1
            yield dataclasses.replace(batch, loss_weights=batch.loss_weights * math.nan) if bad else batch


def poison(trainer: Trainer, iteration: int) -> None:
    """Make the loss of ``iteration`` NaN."""
    fields = {each.name: getattr(trainer.source, each.name) for each in dataclasses.fields(trainer.source)}
    trainer.source = Poisoned(**fields, iteration=iteration)


def tensors(trainer: Trainer) -> list[Tensor]:
    """Copies of weights, optimizer state and EMA on this rank."""
    found = [parameter for chunk in trainer.state.chunks for parameter in chunk.parameters()]
    for inner in trainer.state.optimizer.chained_optimizers:
        for parameter, state in inner.optimizer.state.items():
            found += [parameter, *(value for _, value in sorted(state.items()))]
    assert trainer.state.ema is not None
    return [each.detach().clone() for each in [*found, *trainer.state.ema.averages]]


def skip(root: Path, model: str, layout: str) -> None:
    """Train three iterations, the second of them poisoned, and write what each rank observed."""
    trainer = build_trainer(config_of(root, model, layout), root / "none", "cpu")
    poison(trainer, 2)
    records = [trainer.step()]
    before = tensors(trainer)
    records.append(trainer.step())
    untouched = all(map(torch.equal, before, tensors(trainer)))
    records.append(trainer.step())
    changed = not all(map(torch.equal, before, tensors(trainer)))
    seen: list[Any] = [None] * dist.get_world_size()
    skipped = [record.skipped for record in records]
    dist.all_gather_object(seen, {"skipped": skipped, "untouched": untouched, "changed": changed})
    _write(root, f"skip-{model}-{layout}", seen)


def _write(root: Path, name: str, value: Any) -> None:
    if dist.get_rank() == 0:
        (root / f"{name}.json").write_text(json.dumps(value))


def run_cases(root: Path) -> None:
    """Run all cases of this number of processes, each with its own process groups."""

    def grid(model: str, layout: str) -> AbstractContextManager[None]:
        return megatron_grid(config_of(root, model, layout).parallel, create_gloo_process_groups=True)

    one_process = dist.get_world_size() == 1
    savers = dict.fromkeys(change[:3] for change in CHANGES if (change[1] == ONE) == one_process)
    for model, saved, optimizer_format in savers:
        with grid(model, saved):
            save_and_continue(root, model, saved, optimizer_format)
    if one_process:
        return
    for model, saved, optimizer_format, layout in CHANGES:
        if layout != ONE:
            with grid(model, layout):
                resume(root, model, saved, optimizer_format, layout)
    for model, layout in SKIPPING:
        with grid(model, layout):
            skip(root, model, layout)

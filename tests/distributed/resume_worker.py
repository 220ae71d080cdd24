"""Run by torchrun with two processes: go on under another layout, and skip iterations whose numbers are not finite.

torchrun --nproc-per-node=2 -m tests.distributed.resume_worker ROOT
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import joined_processes, megatron_grid
from megatron_ssd.training.checkpoint import save_checkpoint
from megatron_ssd.training.data import Batch, BatchSource
from megatron_ssd.training.trainer import Trainer, build_trainer
from tests.helpers.training_run import CPU, DENSE, EXACT, MOE, training_config

SAVED, ITERATIONS = 3, 6
ONE = "one process"
LAYOUTS: dict[str, dict[str, Any]] = {
    "dp2": {},
    "dp2_whole": {"use_distributed_optimizer": False},
    "tp2": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp2": {"pipeline_model_parallel_size": 2},
    "pp2_vpp2": {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
    "cp2": {"context_parallel_size": 2},
    "ep2": {"expert_model_parallel_size": 2},
    "ep2_whole": {"expert_model_parallel_size": 2, "use_distributed_optimizer": False},
}
MODELS = {"dense": DENSE, "moe": MOE}
# model, layout that saves, layout that goes on; "one process" is the test's own part, before and after this one.
CHANGES = [
    ("dense", "dp2", "tp2"),
    ("dense", "tp2", "pp2"),
    ("dense", "pp2", "pp2_vpp2"),
    ("dense", "pp2_vpp2", "cp2"),
    ("dense", ONE, "dp2"),
    ("dense", "cp2", ONE),
    ("moe", "dp2", "ep2"),
    ("moe", "ep2", ONE),
    ("moe", ONE, "ep2"),
]
SKIPPING = [
    ("dense", "dp2"), ("dense", "dp2_whole"), ("dense", "tp2"), ("dense", "pp2"), ("moe", "ep2"), ("moe", "ep2_whole"),
]  # fmt: skip


def config_of(root: Path, model: str, layout: str) -> RunConfig:
    """Of a run in which every state that a checkpoint holds is in use."""
    world_size, sizes = (1, {}) if layout == ONE else (2, LAYOUTS[layout])
    return training_config(
        root,
        model=MODELS[model],
        parallel=ParallelConfig(world_size=world_size, **sizes),
        # Segments at the same places with and without context parallelism.
        training={"train_iters": ITERATIONS, "ema_decay": 0.5, "segment_multiple": 4},
        checkpoint={"save_async": True},
    )


def save_and_go_on(root: Path, model: str, layout: str) -> None:
    """Leave ``root/MODEL-LAYOUT/iter_...`` of iteration 3 and what came after it."""
    trainer = build_trainer(config_of(root, model, layout), folder_of(root, model, layout), "cpu")
    for _ in range(SAVED):
        trainer.step()
    save_checkpoint(trainer.writer, trainer.state)
    _note(root, f"{model}-{layout}", _go_on(trainer))
    trainer.writer.finish()


def go_on(root: Path, model: str, saved: str, layout: str) -> None:
    """Load what ``saved`` left under ``layout`` and leave what came after it."""
    trainer = build_trainer(config_of(root, model, layout), folder_of(root, model, saved), "cpu")
    assert trainer.state.iteration == SAVED
    _note(root, f"{model}-{saved}-{layout}", _go_on(trainer))


def folder_of(root: Path, model: str, layout: str) -> Path:
    return root / f"{model}-{layout}"


def _go_on(trainer: Trainer) -> list[dict[str, Any]]:
    """The rest of the iterations, with the norm of the mean of the weights."""
    rows = [trainer.step().row() for _ in range(ITERATIONS - trainer.state.iteration)]
    assert trainer.state.ema is not None
    return [*rows, {"ema": _whole_norm(trainer)}]


def _whole_norm(trainer: Trainer) -> float:
    """Norm of the mean of the weights over the whole model, from what each rank would save."""
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories, is_main_replica

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
    """Weighs one iteration's loss with NaN, on the last rank alone."""

    iteration: int

    def micro_batches(self, iteration: int) -> Iterator[Batch]:
        """The batches, one iteration of them poisoned."""
        for batch in super().micro_batches(iteration):
            bad = iteration == self.iteration and dist.get_rank() == dist.get_world_size() - 1
            yield dataclasses.replace(batch, loss_weights=batch.loss_weights * math.nan) if bad else batch


def poison(trainer: Trainer, iteration: int) -> None:
    """Make ``iteration`` give NaN."""
    fields = {each.name: getattr(trainer.source, each.name) for each in dataclasses.fields(trainer.source)}
    trainer.source = Poisoned(**fields, iteration=iteration)


def tensors(trainer: Trainer) -> list[Tensor]:
    """Copies of weights, optimizer state and mean of the weights on this rank."""
    found = [parameter for chunk in trainer.state.chunks for parameter in chunk.parameters()]
    for inner in trainer.state.optimizer.chained_optimizers:
        for parameter, state in inner.optimizer.state.items():
            found += [parameter, *(value for _, value in sorted(state.items()))]
    assert trainer.state.ema is not None
    return [each.detach().clone() for each in [*found, *trainer.state.ema.averages]]


def skip(root: Path, model: str, layout: str) -> None:
    """Three iterations, the second of them poisoned; leave what each rank saw."""
    trainer = build_trainer(config_of(root, model, layout), root / "none", "cpu")
    poison(trainer, 2)
    rows = [trainer.step()]
    before = tensors(trainer)
    rows.append(trainer.step())
    untouched = all(map(torch.equal, before, tensors(trainer)))
    rows.append(trainer.step())
    changed = not all(map(torch.equal, before, tensors(trainer)))
    seen: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(seen, {"skipped": [row.skipped for row in rows], "untouched": untouched, "changed": changed})
    _note(root, f"skip-{model}-{layout}", seen)


def _note(root: Path, name: str, value: Any) -> None:
    if dist.get_rank() == 0:
        (root / f"{name}.json").write_text(json.dumps(value))


def main(root: Path) -> None:
    """All cases of two processes, each in a grid of its own."""
    savers = dict.fromkeys((model, saved) for model, saved, _ in CHANGES if saved != ONE)
    for model, layout in savers:
        with megatron_grid(config_of(root, model, layout).parallel, create_gloo_process_groups=True):
            save_and_go_on(root, model, layout)
    for model, saved, layout in CHANGES:
        if layout != ONE:
            with megatron_grid(config_of(root, model, layout).parallel, create_gloo_process_groups=True):
                go_on(root, model, saved, layout)
    for model, layout in SKIPPING:
        with megatron_grid(config_of(root, model, layout).parallel, create_gloo_process_groups=True):
            skip(root, model, layout)


if __name__ == "__main__":
    with joined_processes(prepare_device(CPU, EXACT)):
        main(Path(sys.argv[1]))

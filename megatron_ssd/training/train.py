"""Runs the training stage: trains on run_dir/dataset into run_dir/checkpoints.

Rank 0 owns the stage's folder and manifest; the other ranks are told where to work. Running the same command again
resumes from the newest complete checkpoint, under the layout that the command asks for.
"""

from __future__ import annotations

import dataclasses
import logging
from contextlib import ExitStack
from pathlib import Path

import torch.distributed as dist

from megatron_ssd.artifacts.hub import model_folder
from megatron_ssd.artifacts.jsonl import read_jsonl
from megatron_ssd.artifacts.manifest import megatron_facts
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.cluster import Device
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.dataset.packed_dataset import PackedDataset
from megatron_ssd.errors import Requeue
from megatron_ssd.nvidia_smi import visible_capability
from megatron_ssd.planner.plan import layout_name, numbers_name, numbers_reason, recompute_name
from megatron_ssd.runtime.process_groups import on_each_node, on_rank_zero, process_groups
from megatron_ssd.training.checkpoint_folder import list_checkpoints, read_facts, remove_leftovers
from megatron_ssd.training.metrics import (
    JsonlLogger,
    MetricsLogger,
    ProgressLogger,
    TensorBoardLogger,
    WandbLogger,
    check_wandb,
)
from megatron_ssd.training.optimizer import check_optimizer
from megatron_ssd.training.self_test import check_packing
from megatron_ssd.training.shutdown import GracefulShutdown
from megatron_ssd.training.stage import METRICS_FILE, training_stage
from megatron_ssd.training.trainer import Trainer, build_trainer

log = logging.getLogger(__name__)


def run_train(config: RunConfig, device: Device) -> None:
    """Train ``config.model`` on ``run_dir/dataset``. Every process that torchrun starts calls this.

    Args:
        device: as returned by ``prepare_device``.

    Raises:
        UserError: the number of processes, the data set or the base model is not what it must be.
        KeyboardInterrupt: stopped by a signal after a checkpoint; the same command resumes from it.
    """
    check_wandb(config.training.wandb_project)
    check_optimizer(config.optimizer, config.parallel, device=device)
    with process_groups(config.parallel, device=device):
        if config.trains_from_base:
            model = needed(config.model, "model")
            on_each_node(lambda: model_folder(model.path, model.revision))  # a download takes longer than NCCL waits
        work, stage = _begin(config)
        if work is None:
            return
        trainer = build_trainer(config, work, device)
        if config.training.self_test and config.training.packing != "none":
            check_packing(trainer.state, trainer.source, config.precision)
        _train(config, stage, trainer)


def _begin(config: RunConfig) -> tuple[Path | None, Stage | None]:
    """(work folder without leftovers of a killed run, the opened stage); (None, None) if the stage is up to date.

    Only rank 0 opens the stage, and only it gets the stage back: the base model, which may be large, is hashed once,
    and one process holds the folder's lock.
    """
    opened: list[Stage] = []

    def begin() -> Path | None:
        stage = training_stage(config)
        if stage.is_current():
            return None
        opened.append(stage)
        work = stage.begin()
        remove_leftovers(work)
        return work

    work = on_rank_zero(begin)
    return work, opened[0] if opened else None


def _train(config: RunConfig, stage: Stage | None, trainer: Trainer) -> None:
    with GracefulShutdown() as shutdown:
        try:
            with ExitStack() as stack:
                loggers: list[MetricsLogger] = []
                if stage is not None:
                    _announce(config, trainer)
                    loggers = _loggers(config, stage, done=trainer.state.iteration)
                for logger in loggers:
                    stack.callback(logger.close)
                trainer.train(loggers, shutdown)
        except Requeue:
            # The launcher ends the other processes when the first one exits, so all of them must be finished by then.
            dist.barrier()
            raise
    if stage is not None:
        _publish(config, stage, trainer.source.dataset)


def _announce(config: RunConfig, trainer: Trainer) -> None:
    """Log what will run. Which layers are used was logged when they were built."""
    precision, parallel, training = config.precision, config.parallel, config.training
    if precision.auto:
        log.info(numbers_reason(precision, visible_capability()))
    log.info(
        "training: %s, recompute %s; %d processes: %s%s, %s optimizer",
        numbers_name(precision),
        recompute_name(precision),
        parallel.world_size,
        layout_name(parallel),
        " with sequence parallelism" if parallel.sequence_parallel else "",
        "distributed" if parallel.use_distributed_optimizer else "non-distributed",
    )
    dataset, done = trainer.source.dataset, trainer.state.iteration
    log.info("training: %s", dataset.packing_report() if training.epoch_packing != "none" else _first_batch(trainer))
    if done:
        start = f"resuming from iteration {done}"
    elif config.trains_from_base:
        start = f"starting from the weights of model.path = {trainer.model.path}"
    else:
        start = f"starting from random weights of seed {config.seed} (model.path = null)"
    log.info(
        "training: %d iterations of %d %s, %.2f epochs; %s",
        training.train_iters,
        training.global_batch_size,
        "samples" if training.epoch_packing == "none" else "sequences",
        training.train_iters * training.global_batch_size / dataset.num_sequences(0),
        start,
    )


def _first_batch(trainer: Trainer) -> str:
    """How the samples of the first iteration become micro batches."""
    source, training = trainer.source, trainer.training
    plans = source.plan(1)
    tokens, computed = int(source.sample_lengths(1).sum()), sum(plan.num_tokens for row in plans for plan in row)
    packed = f"packed into at most {training.micro_batch_tokens} tokens" if training.packs_steps else "not packed"
    return (
        f"{source.dataset.counts['samples']} samples, {packed}; the first iteration has {len(plans)} micro batches per "
        f"replica, {tokens / computed:.1%} filled; {source.dataset.counts['overlong']} overlong"
    )


def _loggers(config: RunConfig, stage: Stage, *, done: int) -> list[MetricsLogger]:
    """The metrics loggers of rank 0."""
    training = config.training
    loggers: list[MetricsLogger] = [JsonlLogger(stage.work, done=done)]
    if training.tensorboard:
        loggers.append(TensorBoardLogger(stage.work / "tensorboard", done=done, interval=training.log_interval))
    if training.wandb_project is not None:
        loggers.append(WandbLogger(config, run_id=stage.identity[:16]))
    loggers.append(ProgressLogger(stage, done=done, train_iters=training.train_iters))
    return loggers


def _publish(config: RunConfig, stage: Stage, dataset: PackedDataset) -> None:
    records = read_jsonl(stage.work / METRICS_FILE)
    losses = [record["loss"] for record in records if record["loss"] is not None]
    validation = [record["validation_loss"] for record in records if record["validation_loss"] is not None]
    epochs, consumed = dataset.locate(config.training.train_iters * config.training.global_batch_size)
    stage.publish(
        known_hashes={  # of the checkpoints' files, which were hashed when they were written
            f"{path.name}/{name}": file.sha256
            for _, path in list_checkpoints(stage.work)
            for name, file in read_facts(path).files.items()
        },
        engine=megatron_facts(),
        counts={
            "iterations": len(records),
            "samples": dataset.counts["samples"],
            "valid_tokens": sum(record["valid_tokens"] for record in records),
        },
        dropped={key: dataset.counts[key] for key in ("overlong", "no_target")},
        facts={
            "final_loss": losses[-1] if losses else None,
            "final_validation_loss": validation[-1] if validation else None,
            "packing_efficiency": round(
                sum(r["tokens"] for r in records) / sum(r.get("computed_tokens", r["tokens"]) for r in records), 4
            ),
            "skipped_iterations": sum(record["skipped"] for record in records),
            "epochs": round(epochs + consumed / dataset.num_sequences(epochs), 3),
            "tokens_per_second": round(sum(r["tokens"] for r in records) / sum(r["seconds"] for r in records), 1),
            "parallel": dataclasses.asdict(config.parallel),
        },
    )

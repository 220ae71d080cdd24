"""The training stage: run_dir/dataset and a base model in, run_dir/checkpoints out.

Rank 0 owns the stage's folder and manifest; the other ranks are told where to work. Starting again goes on from the
newest complete checkpoint, with the layout that is asked for then: the layout decides how numbers round, not what is
trained, and is no part of the stage's identity.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_ssd.artifacts.hashing import hash_folder
from megatron_ssd.artifacts.manifest import megatron_facts, read_manifest
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.errors import Requeue
from megatron_ssd.models.hf_folder import resolve_model_folder

if TYPE_CHECKING:
    from megatron_ssd.dataset.packed_dataset import PackedDataset
    from megatron_ssd.training.loop import Trainer
    from megatron_ssd.training.observer import Recorder

log = logging.getLogger(__name__)

# Keys of the training section that do not decide what is trained.
_NOT_TRAINED = (
    "micro_batch_size", "self_test", "validation_interval", "max_skipped", "spike_factor", "log_interval",
    "tensorboard", "wandb_project",
)  # fmt: skip


def run_train(config: RunConfig) -> None:
    """Train ``config.model`` on ``run_dir/dataset``, or only lay it out where ``config.dry_run`` is set.

    Every process that torchrun starts calls this.

    Raises:
        UserError: the device, the number of processes, the data set or the base model is not what it must be.
        KeyboardInterrupt: stopped by a signal; the same command goes on from there.
    """
    if config.dry_run:
        from megatron_ssd.planner.dry_run import run_dry

        run_dry(config)
        return
    from megatron_ssd.runtime.device import prepare_device
    from megatron_ssd.runtime.process_groups import on_rank_zero, process_groups
    from megatron_ssd.training.boards import check_wandb

    check_wandb(config.training.wandb_project)
    device = prepare_device(config.cluster, config.precision, config.moe)
    from megatron_ssd.training.optimizer import check_optimizer  # after the device: it imports Megatron-Core
    from megatron_ssd.training.self_test import check_packing

    check_optimizer(config.optimizer, config.parallel, device=device)
    with process_groups(config.parallel, device=device):
        opened: list[Stage] = []  # on rank 0 alone
        work = on_rank_zero(lambda: _open(config, opened))
        if work is None:
            return
        trainer, dataset = prepare_trainer(config, work, device)
        if config.training.self_test and config.training.packing != "none":
            check_packing(config, trainer.state, trainer.source, device=device)
        _train(config, opened, trainer, dataset)


def _open(config: RunConfig, opened: list[Stage]) -> Path | None:
    """The work folder, cleared of what a killed run left half done; None where there is nothing to do.

    One process does it: it hashes the base model, which may be large, and locks the folder.
    """
    from megatron_ssd.training.checkpoint_folder import sweep

    stage = training_stage(config)
    if stage.is_current():
        return None
    opened.append(stage)
    work = stage.begin()
    sweep(work)
    return work


def training_stage(config: RunConfig) -> Stage:
    """The stage ``checkpoints`` of this configuration, unopened.

    Raises:
        UserError: there is no data set, or no base model to start from.
    """
    model = needed(config.model, "model", fix="choose one with model=NAME")
    run_dir = Path(config.run_dir)
    inputs = {"dataset": read_manifest(run_dir / "dataset").content_hash}
    if config.trains_from_base:
        inputs["model"] = hash_folder(base_folder(model))
    settings = {
        "model": _without(model, "path", "revision", "name"),
        "objective": config.objective,
        "seed": config.seed,
        "precision": {key: dataclasses.asdict(config.precision)[key] for key in ("params_dtype", "fast_matmul", "fp8")},
        "optimizer": _without(config.optimizer, "cpu_offload_fraction"),
        "training": {**_without(config.training, *_NOT_TRAINED), "segment_multiple": config.segment_multiple},
    }
    if model.is_moe:
        settings["moe"] = _without(config.moe, "dispatcher", "grouped_gemm")
    return Stage(
        name="checkpoints",
        run_dir=run_dir,
        config=settings,
        inputs=inputs,
        replace=config.replace,
        is_work=lambda path: path.parts[0].startswith("iter_"),  # no iteration outlives its start without a checkpoint
    )


def _without(section: Any, *keys: str) -> dict[str, Any]:
    """A configuration section as a dictionary, but for the keys that do not decide what is trained."""
    return {key: value for key, value in dataclasses.asdict(section).items() if key not in keys}


def base_folder(model: ModelConfig) -> Path:
    """The Hugging Face folder that training starts from, fetched from the Hub where it is named by its id.

    Raises:
        UserError: no model is named, or there is none.
    """
    return resolve_model_folder(model.path, model.revision)


def prepare_trainer(config: RunConfig, work: Path, device: str) -> tuple[Trainer, PackedDataset]:
    """The model on this rank as the newest checkpoint, the base model or the seed has it, and its data."""
    from megatron_ssd.models.build import build_model
    from megatron_ssd.training.checkpoint import choose_checkpoint, load_checkpoint
    from megatron_ssd.training.checkpoint_writer import CheckpointWriter
    from megatron_ssd.training.data import batch_source, open_dataset
    from megatron_ssd.training.ema import EmaWeights
    from megatron_ssd.training.loop import Trainer
    from megatron_ssd.training.meter import Meter
    from megatron_ssd.training.optimizer import build_optimizer, build_schedule, wrap_chunks
    from megatron_ssd.training.state import TrainingState
    from megatron_ssd.training.validation import Validation

    model = needed(config.model, "model", fix="choose one with model=NAME")
    dataset = open_dataset(config)
    checkpoint = choose_checkpoint(work, config.checkpoint.on_broken)
    fresh = checkpoint is None and not config.trains_from_base
    chunks = build_model(
        model,
        config.parallel,
        config.precision,
        moe=config.moe,
        device=device,
        seed=config.seed if fresh else None,
    )
    if checkpoint is None and config.trains_from_base:
        from megatron_ssd.models.hf_checkpoint import load_hf_weights

        load_hf_weights(chunks, model, config.parallel, base_folder(model))
    wrapped = wrap_chunks(chunks, config.optimizer, config.parallel, device=device)
    decay = config.training.ema_decay
    state = TrainingState(
        chunks=wrapped,
        optimizer=build_optimizer(wrapped, config.optimizer, config.parallel),
        ema=None if decay is None else EmaWeights(chunks, decay),
    )
    if checkpoint is not None:
        load_checkpoint(*checkpoint, state)
    schedule = build_schedule(
        state.optimizer, config.optimizer, train_iters=config.training.train_iters, done=state.iteration
    )
    source = batch_source(config, dataset, device=device)
    validation = None
    if config.training.validation_fraction > 0:
        held_out = batch_source(config, open_dataset(config, split="validation"), device=device, single_pass=True)
        validation = Validation(config, state, held_out, device=device)
    trainer = Trainer(
        state=state,
        schedule=schedule,
        source=source,
        validation=validation,
        writer=CheckpointWriter(work, config.checkpoint),
        meter=Meter(config, state, source, device=device),
        run=config,
        device=device,
    )
    return trainer, dataset


def _train(config: RunConfig, opened: list[Stage], trainer: Trainer, dataset: PackedDataset) -> None:
    import torch.distributed as dist

    from megatron_ssd.training.observer import Silent
    from megatron_ssd.training.stop import StopRequest

    with StopRequest(trainer.device) as stop:
        try:
            if not opened:
                with Silent() as silent:
                    trainer.train(silent, stop)
            else:
                _announce(config, trainer, dataset)
                with _recorder(config, opened[0], trainer) as recorder:
                    trainer.train(recorder, stop)
        except Requeue:
            # A launcher ends the other processes when the first one ends: by now none has anything left to do.
            dist.barrier()
            raise
    for stage in opened:
        _publish(config, stage, dataset)


def _announce(config: RunConfig, trainer: Trainer, dataset: PackedDataset) -> None:
    """Say what is going to run; which layers was said where they were built."""
    precision, parallel, training = config.precision, config.parallel, config.training
    log.info(
        "training: %s%s, recompute %s; %d processes: tensor %d%s, pipeline %d%s, context %d, expert %d, data %d, %s "
        "optimizer",
        precision.params_dtype,
        f" with FP8 ({precision.fp8.recipe})" if precision.fp8 else "",
        precision.recompute,
        parallel.world_size,
        parallel.tensor_model_parallel_size,
        " with sequence" if parallel.sequence_parallel else "",
        parallel.pipeline_model_parallel_size,
        f" x {virtual} virtual" if (virtual := parallel.virtual_pipeline_model_parallel_size) else "",
        parallel.context_parallel_size,
        parallel.expert_model_parallel_size,
        parallel.data_parallel_size,
        "distributed" if parallel.use_distributed_optimizer else "whole",
    )
    log.info("training: %s", dataset.packing_report())
    rows, done = training.train_iters * training.global_batch_size, trainer.state.iteration
    log.info(
        "training: %d iterations of %d rows, %.2f epochs; %s",
        training.train_iters,
        training.global_batch_size,
        rows / dataset.num_sequences(0),
        f"going on from iteration {done}" if done else f"from the first iteration, {_first_weights(config)}",
    )


def _first_weights(config: RunConfig) -> str:
    """What the first iteration finds in the model, in words."""
    model = needed(config.model, "model", fix="choose one with model=NAME")
    if config.trains_from_base:
        return f"from the weights of model.path = {model.path}"
    return f"from random weights of seed {config.seed} (model.path = null)"


def _recorder(config: RunConfig, stage: Stage, trainer: Trainer) -> Recorder:
    from megatron_ssd.training.boards import Board, TensorBoard, WandbBoard
    from megatron_ssd.training.metrics import MetricsWriter
    from megatron_ssd.training.observer import Recorder

    training, done = config.training, trainer.state.iteration
    boards: list[Board] = []
    if training.tensorboard:
        boards.append(TensorBoard(stage.work / "tensorboard", done=done))
    if training.wandb_project is not None:
        project, settings = training.wandb_project, dataclasses.asdict(config)
        boards.append(WandbBoard(project, run_id=stage.identity[:16], folder=Path(config.run_dir), settings=settings))
    writer = MetricsWriter(stage.work, done=done, boards=boards, log_interval=training.log_interval)
    return Recorder(stage, writer, done=done, train_iters=training.train_iters)


def _publish(config: RunConfig, stage: Stage, dataset: PackedDataset) -> None:
    from megatron_ssd.artifacts.jsonl import read_jsonl
    from megatron_ssd.training.metrics import FILE_NAME

    rows = read_jsonl(stage.work / FILE_NAME)
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    validation = [row["validation_loss"] for row in rows if row["validation_loss"] is not None]
    epochs, row = dataset.locate(config.training.train_iters * config.training.global_batch_size)
    stage.publish(
        known_hashes=_checkpoint_hashes(stage.work),
        engine=megatron_facts(),
        counts={
            "iterations": len(rows),
            "samples": dataset.counts["samples"],
            "valid_tokens": sum(row["valid_tokens"] for row in rows),
        },
        dropped={key: dataset.counts[key] for key in ("overlong", "no_target")},
        facts={
            "final_loss": losses[-1] if losses else None,
            "final_validation_loss": validation[-1] if validation else None,
            "packing_efficiency": round(dataset.packing_report().efficiency, 4),
            "skipped_iterations": sum(row["skipped"] for row in rows),
            "epochs": round(epochs + row / dataset.num_sequences(epochs), 3),
            "tokens_per_second": round(sum(r["tokens"] for r in rows) / sum(r["seconds"] for r in rows), 1),
            "parallel": dataclasses.asdict(config.parallel),
        },
    )


def _checkpoint_hashes(work: Path) -> dict[str, str]:
    """Path below ``work`` -> SHA-256 of the checkpoints' files, which were hashed as they were written."""
    from megatron_ssd.training.checkpoint_folder import list_checkpoints, read_facts

    return {
        f"{path.name}/{name}": file.sha256
        for _, path in list_checkpoints(work)
        for name, file in read_facts(path).files.items()
    }

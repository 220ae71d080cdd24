"""The training stage: run_dir/dataset and a base model in, run_dir/checkpoints out.

Rank 0 owns the stage's folder and manifest; the other ranks are told where to work. Starting again goes on from the
newest complete checkpoint, with the layout that is asked for then: the layout decides how numbers round, not what is
trained, and is no part of the stage's identity.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ssd.artifacts.hashing import hash_folder
from megatron_ssd.artifacts.manifest import megatron_facts, read_manifest
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.models.hf_folder import resolve_model_folder

if TYPE_CHECKING:
    from megatron_ssd.dataset.training import TrainingDataset
    from megatron_ssd.training.loop import Trainer

log = logging.getLogger(__name__)

# Keys of the training section that do not decide what is trained.
_LAYOUT_ONLY = (
    "micro_batch_size", "self_test", "max_skipped", "spike_factor", "log_interval", "tensorboard", "wandb_project",
)  # fmt: skip


def run_train(config: RunConfig) -> None:
    """Train ``config.model`` on ``run_dir/dataset``, or only lay it out where ``config.dry_run`` is set.

    Every process that torchrun starts calls this.

    Raises:
        UserError: the device, the number of processes, the data set or the base model is not what it must be.
        KeyboardInterrupt: stopped by a signal; the same command goes on from there.
    """
    if config.dry_run:
        from megatron_ssd.training.dry_run import run_dry

        run_dry(config)
        return
    from megatron_ssd.runtime.device import prepare_device
    from megatron_ssd.runtime.process_groups import is_rank_zero, on_rank_zero, process_groups

    device = prepare_device(config.cluster, config.precision, config.moe)
    with process_groups(config.parallel, device=device):
        stage = training_stage(config)
        # Only one process may lock and make the folder.
        work = on_rank_zero(lambda: None if stage.is_current() else stage.begin())
        if work is None:
            return
        trainer, dataset = prepare_trainer(config, work, device)
        _train(config, stage, trainer, device)
        if is_rank_zero():
            _publish(config, stage, dataset)


def training_stage(config: RunConfig) -> Stage:
    """The stage ``checkpoints`` of this configuration, unopened.

    Raises:
        UserError: there is no data set, or no base model to start from.
    """
    model = needed(config.model, "model", fix="choose one with +model=NAME")
    run_dir = Path(config.run_dir)
    inputs = {"dataset": read_manifest(run_dir / "dataset").content_hash}
    if config.objective == "sft":
        inputs["model"] = hash_folder(base_folder(model))
    settings = {
        "model": {k: v for k, v in dataclasses.asdict(model).items() if k not in ("path", "revision", "name")},
        "objective": config.objective,
        "seed": config.seed,
        "precision": {key: getattr(config.precision, key) for key in ("params_dtype", "fast_matmul")},
        "optimizer": dataclasses.asdict(config.optimizer),
        "training": {
            **{k: v for k, v in dataclasses.asdict(config.training).items() if k not in _LAYOUT_ONLY},
            "segment_multiple": config.segment_multiple,
        },
    }
    return Stage(name="checkpoints", run_dir=run_dir, config=settings, inputs=inputs, replace=config.replace)


def base_folder(model: ModelConfig) -> Path:
    """The Hugging Face folder that fine-tuning starts from, fetched from the Hub where it is named by its id.

    Raises:
        UserError: no model is named, or there is none.
    """
    return resolve_model_folder(
        needed(model.path, "model.path", fix="name the folder of the base model"), model.revision
    )


def prepare_trainer(config: RunConfig, work: Path, device: str) -> tuple[Trainer, TrainingDataset]:
    """The model on this rank as the newest checkpoint, the base model or the seed has it, and its data."""
    from megatron_ssd.models.build import build_model
    from megatron_ssd.training.checkpoint import load_checkpoint, newest_checkpoint
    from megatron_ssd.training.data import batch_source, open_dataset
    from megatron_ssd.training.loop import Trainer
    from megatron_ssd.training.optimizer import build_optimizer, build_schedule, wrap_chunks

    model = needed(config.model, "model", fix="choose one with +model=NAME")
    dataset = open_dataset(config)
    checkpoint = newest_checkpoint(work)
    fresh = config.objective == "pretrain" and checkpoint is None
    chunks = build_model(
        model,
        config.parallel,
        config.precision,
        moe=config.moe,
        device=device,
        seed=config.seed if fresh else None,
    )
    if config.objective == "sft" and checkpoint is None:
        from megatron_ssd.models.hf_checkpoint import load_hf_weights

        load_hf_weights(chunks, model, config.parallel, base_folder(model))
    wrapped = wrap_chunks(chunks, config.parallel)
    optimizer = build_optimizer(wrapped, config.optimizer, config.parallel)
    done = 0
    if checkpoint is not None:
        done, path = checkpoint
        load_checkpoint(path, wrapped, optimizer)
        log.info("checkpoints: going on from iteration %d", done)
    trainer = Trainer(
        chunks=wrapped,
        optimizer=optimizer,
        schedule=build_schedule(optimizer, config.optimizer, train_iters=config.training.train_iters, done=done),
        source=batch_source(config, dataset, device=device),
        config=config.training,
        checkpoint=config.checkpoint,
        folder=work,
        iteration=done,
    )
    return trainer, dataset


def _train(config: RunConfig, stage: Stage, trainer: Trainer, device: str) -> None:
    from megatron_ssd.runtime.process_groups import is_rank_zero
    from megatron_ssd.training.metrics import MetricsWriter
    from megatron_ssd.training.observer import Recorder, Silent
    from megatron_ssd.training.stop import StopRequest

    training = config.training
    observer: Recorder | Silent = Silent()
    if is_rank_zero():
        writer = MetricsWriter(
            trainer.folder,
            done=trainer.iteration,
            tensorboard=training.tensorboard,
            log_interval=training.log_interval,
        )
        observer = Recorder(stage, writer, done=trainer.iteration, train_iters=training.train_iters)
    with observer, StopRequest(device) as stop:
        trainer.train(observer, stop)


def _publish(config: RunConfig, stage: Stage, dataset: TrainingDataset) -> None:
    from megatron_ssd.artifacts.jsonl import read_jsonl
    from megatron_ssd.training.metrics import FILE_NAME

    rows = read_jsonl(stage.work / FILE_NAME)
    last = rows[-1]
    epochs, row = dataset.locate(config.training.train_iters * config.training.global_batch_size)
    stage.publish(
        engine=megatron_facts(),
        counts={
            "iterations": len(rows),
            "samples": dataset.counts["samples"],
            "valid_tokens": sum(row["valid_tokens"] for row in rows),
        },
        dropped={key: dataset.counts[key] for key in ("over_long", "no_target")},
        facts={
            "final_loss": last["loss"],
            "epochs": round(epochs + row / dataset.num_rows(epochs), 3),
            "tokens_per_second": round(sum(r["tokens"] for r in rows) / sum(r["seconds"] for r in rows), 1),
            "parallel": dataclasses.asdict(config.parallel),
        },
    )

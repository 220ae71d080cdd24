"""Starts the processes of a layout from a single one."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import ConfigError
from megatron_ssd.nvidia_smi import VisibleGpu, visible_gpus
from megatron_ssd.planner.default_layout import choose_layout
from megatron_ssd.planner.layout import count_layout
from megatron_ssd.planner.memory import GB, worst_rank
from megatron_ssd.planner.plan import layout_name
from megatron_ssd.process import child_environment
from megatron_ssd.signals import REQUEST_OF

log = logging.getLogger(__name__)


def start_ranks_if_alone(config: RunConfig) -> None:
    """Replace this process with one that starts ``config.parallel.world_size`` processes of the same command.

    Returns if the layout needs one process, or if a launcher has started several: then this is one of them. Since the
    process is replaced, it keeps its id, and signals and the exit status are those of ``cli.ranks``.

    Raises:
        UserError: there is no GPU, or there are fewer than the layout has processes. A CPU runs any number.
    """
    count = config.parallel.world_size
    on_gpus = config.cluster.device == "cuda"
    if count == 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if on_gpus and int(os.environ.get("RANK", "0")) == 0:
            warn_about_memory(config, visible_gpus())
        return
    if on_gpus:
        from megatron_ssd.runtime.hardware import check_device  # imports torch, which takes seconds

        check_device(config.cluster)
        check_gpu_count(config, len(visible_gpus()))
    log.info("launch: one process was started, and the layout %s needs %d: starting them here with torchrun",
             layout_name(config.parallel), count)  # fmt: skip
    command = [sys.executable, "-m", "megatron_ssd.cli.ranks", "--standalone", f"--nproc-per-node={count}", *sys.argv]
    signal.pthread_sigmask(signal.SIG_BLOCK, REQUEST_OF)  # until the new program handles them
    os.execve(sys.executable, command, child_environment())


def check_gpu_count(config: RunConfig, found: int) -> None:
    """Raise ``ConfigError`` if the layout of ``config`` needs more GPUs than the ``found`` ones of this machine."""
    count = config.parallel.world_size
    if found < count:
        memory = min((gpu.memory_bytes for gpu in visible_gpus()), default=0.0)
        layout = _layout_that_fits(config, found, memory)
        raise ConfigError(
            f"parallel.world_size = {count} ({layout_name(config.parallel)})",
            rule=f"needs {count} GPUs and this machine has {found}",
            fix=f"{f'{layout}, ' if layout else ''}take more nodes with launch/slurm/train.sbatch, or take an "
            "experiment for these GPUs (docs/guides/recipes.md)",
        )


def _layout_that_fits(config: RunConfig, found: int, memory: float) -> str:
    """What to set for a layout that fits ``found`` GPUs of ``memory`` bytes; empty if none does."""
    try:
        choice = choose_layout(config, num_gpus=found, gpu_bytes=memory, keep_micro_batch=True)
    except ConfigError:
        return ""
    if choice.memory > memory:
        return ""
    return f"use {choice.changes(config)} ({choice.memory / GB:.0f} of {memory / GB:.0f} GB)"


def warn_about_memory(config: RunConfig, gpus: Sequence[VisibleGpu]) -> None:
    """Log a warning if the planner expects that the configuration needs more memory than a GPU has.

    It is no error, because no GPU has confirmed the planner's figures for most kinds of runs.
    """
    if config.model is None or not gpus:
        return
    needed = worst_rank(config, count_layout(config.model, config.parallel)).total
    memory = min(gpu.memory_bytes for gpu in gpus)
    if needed > memory:
        layout = _layout_that_fits(config, config.parallel.world_size, memory)
        log.warning("launch: the planner expects %.0f GB on the fullest GPU, and these have %.0f; take an experiment "
                    "for such GPUs (docs/guides/recipes.md)%s",
                    needed / GB, memory / GB, f", or {layout}" if layout else "")  # fmt: skip

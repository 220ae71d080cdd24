"""What a run needs of the machine, asked before its first stage and not after hours of it."""

from __future__ import annotations

import os
from pathlib import Path

from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from megatron_ssd.sandbox.sandbox import Sandbox


def check_machine(config: RunConfig) -> None:
    """Raise ``UserError`` for the first thing that is missing: device, sandbox, a run folder that can be written."""
    from megatron_ssd.runtime.hardware import check_device, check_hardware  # takes torch, which takes seconds

    check_device(config.cluster)
    if config.cluster.device == "cuda":
        check_hardware(config.precision, config.moe)
    with Sandbox(config.evaluation.sandbox) as sandbox:
        sandbox.start()
    folder = Path(config.run_dir)
    existing = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    if not existing.is_dir():
        raise UserError(f"run_dir = {config.run_dir}", rule=f"{existing} is no folder", fix="use another run_dir")
    if not os.access(existing, os.W_OK):
        raise UserError(f"run_dir = {config.run_dir}", rule=f"{existing} cannot be written", fix="use another run_dir")

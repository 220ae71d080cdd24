"""Identity of the export stage: what decides the content of ``run_dir/export``.

The module does not import torch.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.export.assets import find_assets

_NAMES_ONLY = ("name", "path", "revision")  # keys of ModelConfig that do not change the output


def export_stage(config: RunConfig) -> Stage:
    """The stage that writes ``run_dir/export``.

    Raises:
        UserError: no model is named, or there is no checkpoint, base folder or tokenizer.
    """
    model, run_dir, sampling = needed(config.model, "model"), Path(config.run_dir), config.sampling
    decode = None  # what generation_config.json has, beside what it takes from the base
    if config.objective == "sft" and sampling is not None:
        decode = {**dataclasses.asdict(sampling.eval), "stop_token_ids": list(sampling.stop_token_ids)}
    return Stage(
        name="export",
        run_dir=run_dir,
        config={
            "model": {key: value for key, value in dataclasses.asdict(model).items() if key not in _NAMES_ONLY},
            "params_dtype": config.precision.params_dtype,
            "objective": config.objective,
            "decode": decode,
            **dataclasses.asdict(config.export),
        },
        inputs={
            "checkpoints": read_manifest(run_dir / "checkpoints").content_hash,
            "assets": find_assets(config, model).content_hash,
        },
        replace=config.replace,
        is_work=lambda path: path.suffix == ".safetensors",  # the other files are copied in no time
    )

"""The base model that a configuration asks for in its ``base`` section: where it is, and what makes it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from megatron_ssd.artifacts.hashing import hash_json
from megatron_ssd.cli.compose import compose_config
from megatron_ssd.config.run import BaseConfig, RunConfig
from megatron_ssd.errors import MissingModelError


def base_run(base: BaseConfig, config_dir: Path) -> tuple[list[str], Path]:
    """(overrides, run_dir) of the run that makes the base; equal configurations share one, so it is made once."""
    overrides = [f"experiment={base.experiment}", *base.overrides]
    settings = asdict(compose_config(overrides, config_dir))
    run_dir = Path(base.base_dir) / hash_json({**settings, "run_dir": None})[:12]
    return [*overrides, f"run_dir={run_dir}"], run_dir


def with_base_named(error: MissingModelError, config: RunConfig, config_dir: Path) -> MissingModelError:
    """The error of a single stage that found no ``model.path``, with the base that the pipeline would give it."""
    if config.base is None:
        return error
    _, run_dir = base_run(config.base, config_dir)
    folder = run_dir / "export"
    if folder.is_dir():
        fix = f"the pipeline has made the base of this configuration: set model.path={folder}"
    else:
        fix = (
            f"launch/pipeline.py makes the base of this configuration, {folder}: run it with the same arguments, "
            "--until samples for instance, or set model.path to a Hugging Face folder"
        )
    return MissingModelError(error.what, rule=error.rule, fix=fix)

"""Fills the configuration with what the model named by ``model.path`` decides.

A model's own ``config.json`` is the truth. It replaces the shapes of the YAML files, such as those of an experiment's
model, and a shape on the command line must agree with it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from typing import Any

from megatron_ssd.artifacts.hf_config import read_json_object
from megatron_ssd.artifacts.hub import locate_config
from megatron_ssd.config.generation import EngineConfig
from megatron_ssd.config.model import ModelConfig, RopeScalingConfig
from megatron_ssd.config.training import TrainingConfig
from megatron_ssd.models.architectures import contradiction, from_hf_config

_NOT_SHAPES = ("name", "path", "revision", "initializer_range")
_REQUIRED = {key.name for key in dataclasses.fields(ModelConfig) if key.default is dataclasses.MISSING} - {"name"}


def model_section(given: dict[str, Any], overridden: Collection[str]) -> dict[str, Any]:
    """The section ``model``, with the shapes that its path gives, and a name if it has none.

    A folder on this machine is always read. The file of a Hub id is downloaded if the path is on the command line or a
    shape is missing. So the files of ``hydra_configs/model`` need no network; they are compared with the model when its
    weights are read.

    Args:
        given: the section in the YAML files and on the command line.
        overridden: its keys on the command line.

    Raises:
        UserError: there is no such model, it is not supported, or an overridden key contradicts its file.
    """
    path = given.get("path")
    if not isinstance(path, str):
        return given
    needs_file = "path" in overridden or not given.keys() >= _REQUIRED
    source = locate_config(path, given.get("revision"), may_download=needs_file)
    if source is None:
        return given
    shapes = from_hf_config(read_json_object(source), source=source)
    for key, theirs in shapes.items():
        if key in overridden and _plain(given[key]) != _plain(theirs):
            raise contradiction(key, given[key], theirs, source)
    name = re.sub(r"[^\w.-]", "_", path.rstrip("/").rpartition("/")[2]) or "model"
    kept = {key: value for key, value in given.items() if key in _NOT_SHAPES or key in overridden}
    return {"name": name, **kept, **{key: _plain(value) for key, value in shapes.items()}}


def _plain(value: Any) -> Any:
    """A value as YAML has it, with the defaults of a rotary scaling."""
    if isinstance(value, RopeScalingConfig):
        return dataclasses.asdict(value)
    return {**dataclasses.asdict(RopeScalingConfig()), **value} if isinstance(value, dict) else value


def fit_context(values: dict[str, Any]) -> None:
    """Shorten defaults in ``values``, a composed configuration, that are longer than the model's context.

    They are ``training.seq_length`` and ``engine.max_model_len``, where they are not set. Only training is limited by a
    sliding window.
    """
    model = values.get("model")
    if not isinstance(model, dict):
        return
    context, window = (model.get(key) for key in ("max_position_embeddings", "sliding_window"))
    _shorten(values, "training", "seq_length", TrainingConfig.seq_length, context, window)
    _shorten(values, "engine", "max_model_len", EngineConfig.max_model_len, context)


def _shorten(values: dict[str, Any], section: str, key: str, default: int, *limits: Any) -> None:
    given = values.get(section, {})
    longest = min([default, *(limit for limit in limits if isinstance(limit, int))])
    if isinstance(given, dict) and key not in given and longest < default:
        values[section] = {**given, key: longest}

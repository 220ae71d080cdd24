"""Translates the rotary embedding of a ``config.json`` as transformers and vLLM read it.

transformers 5 writes ``rope_parameters``, older versions wrote ``rope_scaling`` with ``rope_theta`` beside it. In a
file with both dictionaries ``rope_scaling`` counts alone, and the theta in ``rope_parameters`` is lost. Such a file is
refused unless both describe the same rotation.

Source: transformers, ``modeling_rope_utils``, ``RotaryEmbeddingConfigMixin``; vLLM, ``patch_rope_parameters``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from megatron_ssd.config.model import RopeScalingConfig, RopeType
from megatron_ssd.errors import UserError

_DEFAULT_THETA = 10_000.0
_DICTIONARIES = ("rope_scaling", "rope_parameters")  # the first that is not empty counts
_PARTIAL = ("partial_rotary_factor", "rotary_pct", "rotary_emb_fraction")  # vLLM reads all three
_LENGTH = "original_max_position_embeddings"
# The numbers that describe a scaling, by its type.
_KEYS: dict[RopeType, tuple[str, ...]] = {
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _LENGTH),
    "linear": ("factor",),
}


class Rope(NamedTuple):
    """A rotary embedding: its base, and the scaling of its frequencies."""

    theta: float
    scaling: RopeScalingConfig | None


def read_rope(values: Mapping[str, Any], *, source: Path) -> Rope:
    """The rotary embedding in ``values``, the content of the ``config.json`` at ``source``.

    Raises:
        UserError: it is not supported here, or two keys contradict each other.
    """
    given = [name for name in _DICTIONARIES if values.get(name)]
    for name in given:
        _check(values[name], f"{source}: {name}")
    _check_partial(values, f"{source}:")
    found = [_read(values, values[name], source) for name in given] or [_read(values, {}, source)]
    if found[0] != found[-1]:
        raise _contradiction(source, f"rope_scaling says {found[0]}", f"rope_parameters says {found[-1]}")
    scaling = found[0].scaling
    length = None if scaling is None or scaling.rope_type == "linear" else scaling.original_max_position_embeddings
    if length is not None and values.get(_LENGTH) not in (None, length):
        raise _contradiction(source, f"{_LENGTH} = {values[_LENGTH]}", f"{given[0]} says {scaling}")
    return found[0]


def write_rope(scaling: RopeScalingConfig | None) -> dict[str, Any] | None:
    """``rope_scaling`` of ``config.json``."""
    if scaling is None:
        return None
    return {"rope_type": scaling.rope_type, **{key: getattr(scaling, key) for key in _KEYS[scaling.rope_type]}}


def _read(values: Mapping[str, Any], rope: Mapping[str, Any], source: Path) -> Rope:
    """The rotary embedding that the dictionary ``rope`` describes, with the rest of the file."""
    theta = rope.get("rope_theta", values.get("rope_theta")) or _DEFAULT_THETA
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return Rope(theta, None)
    if kind not in tuple(_KEYS):
        raise UserError(f"{source}: rope_type = {kind!r}", rule=f"only default, {', '.join(_KEYS)} are supported",
                        fix="use a model without it")  # fmt: skip
    known = {_LENGTH: values.get("max_position_embeddings"), **rope}
    missing = [key for key in _KEYS[kind] if known.get(key) is None]
    if missing:
        raise UserError(f"{source}: rope_type = {kind!r}", rule=f"{missing[0]} is missing",
                        fix="use the model's own config.json")  # fmt: skip
    return Rope(theta, RopeScalingConfig(rope_type=kind, **{key: known[key] for key in _KEYS[kind]}))


def _check(rope: Any, where: str) -> None:
    """Raise ``UserError`` for a dictionary of rotary settings that cannot be read in one way only."""
    if not isinstance(rope, Mapping) or any(isinstance(value, Mapping) for value in rope.values()):
        raise UserError(where, rule="must be one dictionary of settings for all layers", fix="use a model without it")
    if "type" in rope and rope.get("rope_type", rope["type"]) != rope["type"]:
        raise UserError(f"{where} has rope_type = {rope['rope_type']!r} and type = {rope['type']!r}",
                        rule="two names of one setting must agree", fix="remove type")  # fmt: skip
    _check_partial(rope, where)


def _check_partial(values: Mapping[str, Any], where: str) -> None:
    for key in _PARTIAL:
        if values.get(key) not in (None, 1):
            raise UserError(f"{where} {key} = {values[key]}", rule="only 1.0 is supported",
                            fix="use a model without it")  # fmt: skip


def _contradiction(source: Path, one: str, other: str) -> UserError:
    return UserError(f"{source}: {one}, and {other}", rule="both must describe the same rotary embedding",
                     fix="remove the one that the model was not trained with")  # fmt: skip

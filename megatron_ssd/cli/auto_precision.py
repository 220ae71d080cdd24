"""Chooses the FP8 recipe of a run whose precision is ``auto``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron_ssd.config.precision import fp8_recipe_for
from megatron_ssd.nvidia_smi import Capability

_GIVEN = {"fp8", "params_dtype", "transformer_engine"}  # keys with which the user has chosen the number format


def fit_precision(values: dict[str, Any], capability: Callable[[], Capability | None]) -> None:
    """Fill in ``precision.fp8`` of a composed configuration if ``precision.auto`` asks for it and no format is given.

    Args:
        values: the composed configuration. If a format is given, its ``precision.auto`` becomes false.
        capability: returns the compute capability to choose for; None without a GPU.
    """
    section = values.get("precision")
    if not isinstance(section, dict) or section.get("auto") is not True:
        return
    if _GIVEN & section.keys():
        values["precision"] = {**section, "auto": False}
    elif recipe := fp8_recipe_for(capability()):
        values["precision"] = {**section, "fp8": {"recipe": recipe}}

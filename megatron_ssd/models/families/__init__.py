"""Supported model families by the ``model_type`` of their ``config.json``.

A new family is a file here and an entry in ``FAMILIES``. ``megatron_ssd.config.model.ModelType`` lists the same names.
"""

from megatron_ssd.models.families import llama, qwen3, qwen3_moe
from megatron_ssd.models.families.family import Family

FAMILIES = {family.model_type: family for family in (qwen3.FAMILY, qwen3_moe.FAMILY, llama.FAMILY)}


__all__ = ["FAMILIES", "Family"]

"""How the exported weights are cut into files, which weights they are, and what a conversion is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_ssd.errors import require

Weights = Literal["model", "ema"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """A file holds at most ``max_shard_bytes`` of weights, or one weight that is larger; 5 GB is the Hub's custom.

    ``iteration`` of null means the newest checkpoint. ``weights=ema`` exports their moving average in place of the
    weights themselves; training keeps one where ``training.ema_decay`` is set.
    """

    max_shard_bytes: int = 5_000_000_000
    iteration: int | None = None
    weights: Weights = "model"

    def __post_init__(self) -> None:
        require(self.max_shard_bytes > 0, f"export.max_shard_bytes = {self.max_shard_bytes}", rule="must be positive",
                fix="use 5000000000")  # fmt: skip
        require(self.iteration is None or self.iteration >= 0, f"export.iteration = {self.iteration}",
                rule="must not be negative", fix="leave it out for the newest checkpoint")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """What ``tools/convert_checkpoint.py`` is asked to do.

    Args:
        direction: which of the two folders is read; the other is written.
        hf: Hugging Face folder (or, to read from, a Hub id).
        megatron: folder with ``iter_...`` folders in it, or one such folder to read from.
        hf_assets: Hugging Face folder that config.json and tokenizer are taken from on the way to Hugging Face; found
            by itself beside a checkpoint that was converted.
        iteration: which checkpoint to read; the newest where it is not said.
        weights: the weights, or their moving average (``ema``).
        max_shard_bytes: size of a Hugging Face weight file.
        verify: read the Hugging Face folder back and compare it bit by bit with the checkpoint.
        replace: move aside what stands where the output goes.
    """

    direction: Literal["hf_to_megatron", "megatron_to_hf"]
    hf: str
    megatron: str
    hf_assets: str | None = None
    iteration: int | None = None
    weights: Weights = "model"
    max_shard_bytes: int = 5_000_000_000
    verify: bool = False
    replace: bool = False

    def __post_init__(self) -> None:
        require(self.max_shard_bytes > 0, f"max_shard_bytes = {self.max_shard_bytes}", rule="must be positive",
                fix="use 5000000000")  # fmt: skip
        if self.direction == "hf_to_megatron":
            for key, unset in (("hf_assets", None), ("iteration", None), ("weights", "model"), ("verify", False)):
                require(getattr(self, key) == unset, f"{key} = {getattr(self, key)}",
                        rule="belongs to direction=megatron_to_hf", fix=f"leave {key} out")  # fmt: skip

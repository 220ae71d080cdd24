"""Settings of writing models as Hugging Face folders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_ssd.errors import require

Weights = Literal["model", "ema"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Which weights are exported, and in files of which size."""

    max_shard_bytes: int = 5_000_000_000
    """Most bytes of weights per file; a single larger weight gets a file of its own. 5 GB is the Hub's convention."""
    iteration: int | None = None
    """Iteration of the checkpoint; null means the newest."""
    weights: Weights = "model"
    """``model``, or ``ema``: their exponential moving average, which training keeps if ``training.ema_decay`` is
    set."""

    def __post_init__(self) -> None:
        require(self.max_shard_bytes > 0, f"export.max_shard_bytes = {self.max_shard_bytes}", rule="must be positive",
                fix="use 5000000000")  # fmt: skip
        require(self.iteration is None or self.iteration >= 0, f"export.iteration = {self.iteration}",
                rule="must not be negative", fix="leave it out for the newest checkpoint")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """What ``launch/push.py`` uploads to the Hugging Face Hub."""

    what: Literal["model", "samples"] = "model"
    """``model`` is the exported model, ``samples`` are the responses that were sampled for training."""
    repo: str | None = None
    """Repository on the Hub, ``OWNER/NAME``. It is made if it does not exist."""
    private: bool = True
    """Only its owner sees the repository. One that exists already must be what this says."""
    base_model: str | None = None
    """Hub id of the base, for the card. Null means ``model.path``, if that was a Hub id when the model was
    exported."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """What ``tools/convert_checkpoint.py`` does."""

    direction: Literal["hf_to_megatron", "megatron_to_hf"]
    """Which folder is read; the other is written."""
    hf: str
    """Hugging Face folder, or, to read from, a Hub id."""
    megatron: str
    """Folder of ``iter_...`` folders, or one such folder to read from."""
    hf_assets: str | None = None
    """Hugging Face folder to take config.json and the tokenizer from, for ``megatron_to_hf``. A checkpoint that was
    converted brings its own."""
    iteration: int | None = None
    """Iteration of the checkpoint; null means the newest."""
    weights: Weights = "model"
    """``model``, or ``ema``: their exponential moving average."""
    max_shard_bytes: int = 5_000_000_000
    """Most bytes per Hugging Face weight file."""
    verify: bool = False
    """Read the Hugging Face folder back and compare it with the checkpoint bit by bit."""
    replace: bool = False
    """Move aside what is at the output path."""

    def __post_init__(self) -> None:
        require(self.max_shard_bytes > 0, f"max_shard_bytes = {self.max_shard_bytes}", rule="must be positive",
                fix="use 5000000000")  # fmt: skip
        if self.direction == "hf_to_megatron":
            for key, unset in (("hf_assets", None), ("iteration", None), ("weights", "model"), ("verify", False)):
                require(getattr(self, key) == unset, f"{key} = {getattr(self, key)}",
                        rule="belongs to direction=megatron_to_hf", fix=f"leave {key} out")  # fmt: skip

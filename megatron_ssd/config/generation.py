"""Decoding settings, the inference engine, and the prompts it is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megatron_ssd.errors import require


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How the next token is drawn: temperature, then truncation. ``top_k = -1`` and ``top_p = 1`` keep everything."""

    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0

    def __post_init__(self) -> None:
        require(0 <= self.temperature <= 2, f"temperature = {self.temperature}",
                rule="must be between 0 (greedy) and vLLM's limit, 2", fix="the paper uses 1.1 to 2.0")  # fmt: skip
        require(self.top_k == -1 or self.top_k > 0, f"top_k = {self.top_k}", rule="must be -1 (off) or positive",
                fix="the paper uses 20")  # fmt: skip
        require(0 < self.top_p <= 1, f"top_p = {self.top_p}", rule="must be above 0 and at most 1",
                fix="use 1.0 for no nucleus truncation")  # fmt: skip

    @property
    def label(self) -> str:
        """A name fit for a folder and a table, for example ``T1.5-k20-p0.8``."""
        return f"T{self.temperature:g}-k{self.top_k}-p{self.top_p:g}"


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """The two temperatures of SSD, and what the base decodes with where nobody says otherwise."""

    train: Decoding  # the data are sampled so (T_train, rho_train)
    eval: Decoding  # the tuned model is decoded so (T_eval, rho_eval)
    default: Decoding = field(default_factory=lambda: Decoding(temperature=0.7, top_k=20, top_p=0.8))
    max_tokens: int = 65536
    num_samples: int = 1  # responses a problem in the training data; the paper needs 1

    def __post_init__(self) -> None:
        require(self.max_tokens > 0, f"sampling.max_tokens = {self.max_tokens}", rule="must be positive",
                fix="the paper's code uses 65536")  # fmt: skip
        require(self.num_samples > 0, f"sampling.num_samples = {self.num_samples}", rule="must be positive",
                fix="the paper uses 1")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """vLLM's offline engine. ``kv_cache_gib`` is for CPU; on a GPU ``gpu_memory_utilization`` rules.

    ``data_parallel_size`` engines run side by side on shares of the GPUs (or processor cores), fed from one queue.
    """

    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    max_model_len: int = 131072
    max_num_seqs: int = 256
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    gpu_memory_utilization: float = 0.9
    kv_cache_gib: int = 1
    enforce_eager: bool = False

    def __post_init__(self) -> None:
        for key in ("tensor_parallel_size", "data_parallel_size", "max_model_len", "max_num_seqs", "kv_cache_gib"):
            value = getattr(self, key)
            require(value > 0, f"engine.{key} = {value}", rule="must be at least 1", fix="use a positive number")
        require(0 < self.gpu_memory_utilization <= 1, f"engine.gpu_memory_utilization = {self.gpu_memory_utilization}",
                rule="must be above 0 and at most 1", fix="use 0.9")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """How a problem becomes token ids. ``template`` names a file of ``prompts/templates`` without its ending.

    ``chat`` puts the rendered task into the model's chat template. ``raw`` takes it as plain text, after ``system`` and
    a blank line where that is set, with nothing but the tokenizer's own leading tokens such as BOS: for base models,
    and for samplers that know no chat template.
    """

    template: str = "code"
    mode: Literal["chat", "raw"] = "chat"
    system: str | None = None
    enable_thinking: bool | None = None  # passed to chat templates that know it

    def __post_init__(self) -> None:
        require(self.mode == "chat" or self.enable_thinking is None,
                f"prompt.enable_thinking = {str(self.enable_thinking).lower()}",
                rule="is for chat templates and prompt.mode = raw uses none",
                fix="leave it out, or set prompt.mode=chat")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """What the sampling stage writes and how often."""

    shard_rows: int = 2000

    def __post_init__(self) -> None:
        require(self.shard_rows > 0, f"generation.shard_rows = {self.shard_rows}", rule="must be at least 1",
                fix="use 2000")  # fmt: skip

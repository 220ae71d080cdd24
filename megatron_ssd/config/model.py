"""Settings of the model, with the names of Hugging Face's ``config.json``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_ssd.errors import require

ModelType = Literal["llama", "mistral", "qwen2", "qwen3", "qwen3_moe"]
RopeType = Literal["llama3", "linear"]


@dataclass(frozen=True, kw_only=True)
class RopeScalingConfig:
    """Frequency scaling of rotary embeddings."""

    rope_type: RopeType = "llama3"
    """``llama3`` scales long wavelengths only, as Llama 3.1 does; ``linear`` scales all, and uses only ``factor``."""
    factor: float = 8.0
    """Factor of the scaled wavelengths."""
    low_freq_factor: float = 1.0
    """Wavelengths above original context / this are scaled by ``factor``."""
    high_freq_factor: float = 4.0
    """Wavelengths below original context / this are not scaled."""
    original_max_position_embeddings: int = 8192
    """Context of the model before scaling."""

    def __post_init__(self) -> None:
        require(self.factor >= 1, f"model.rope_scaling.factor = {self.factor}", rule="must be at least 1",
                fix="copy it from the model's config.json")  # fmt: skip
        require(
            0 < self.low_freq_factor < self.high_freq_factor,
            f"model.rope_scaling.low_freq_factor = {self.low_freq_factor}",
            rule=f"must be above 0 and below high_freq_factor ({self.high_freq_factor})",
            fix="copy both from the model's config.json",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer. Shapes have the names of Hugging Face's ``config.json``."""

    name: str
    """Name in logs and messages."""
    model_type: ModelType
    """Model family."""
    hidden_size: int
    """Width of the residual stream."""
    num_hidden_layers: int
    """Number of layers."""
    num_attention_heads: int
    """Number of query heads."""
    num_key_value_heads: int
    """Number of key and value heads."""
    head_dim: int
    """Width of a head."""
    intermediate_size: int
    """Width of a dense feed-forward layer."""
    vocab_size: int
    """Size of the vocabulary."""
    max_position_embeddings: int
    """Longest context, in tokens."""
    rms_norm_eps: float = 1e-6
    """Epsilon of RMSNorm."""
    rope_theta: float = 1_000_000.0
    """Base of the rotary embedding."""
    rope_scaling: RopeScalingConfig | None = None
    """Scaling of the rotary embedding."""
    sliding_window: int | None = None
    """Tokens that a layer attends to; null is all. Training attends to all, so ``training.seq_length`` must not be
    longer."""
    tie_word_embeddings: bool = False
    """Use the input embedding as output layer."""
    initializer_range: float = 0.02
    """Standard deviation of random initialization."""
    num_experts: int | None = None
    """Number of experts; null is a dense model."""
    num_experts_per_tok: int | None = None
    """Experts per token."""
    moe_intermediate_size: int | None = None
    """Width of an expert."""
    norm_topk_prob: bool = True
    """Normalize the weights of a token's experts to a sum of 1."""
    path: str | None = None
    """Local Hugging Face folder or Hub id. Its ``config.json`` gives the shapes, and those that are set on the command
    line must agree with it. Null means random weights, which only ``objective=pretrain`` allows; with a path,
    pretraining starts from that model's weights."""
    revision: str | None = None
    """Commit on the Hub."""

    def __post_init__(self) -> None:
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
                    "intermediate_size", "vocab_size", "max_position_embeddings"):  # fmt: skip
            value = getattr(self, key)
            require(value > 0, f"model.{key} = {value}", rule="must be positive", fix="copy it from config.json")
        require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"model.num_key_value_heads = {self.num_key_value_heads}",
            rule=f"must divide model.num_attention_heads ({self.num_attention_heads})",
            fix="copy both from the model's config.json",
        )
        require(self.head_dim % 2 == 0, f"model.head_dim = {self.head_dim}", rule="must be even (rotary embedding)",
                fix="copy it from the model's config.json")  # fmt: skip
        window = self.sliding_window
        require(window is None or window > 0, f"model.sliding_window = {window}", rule="must be positive",
                fix="copy it from config.json, or use null for a model without a window")  # fmt: skip
        moe = (self.num_experts, self.num_experts_per_tok, self.moe_intermediate_size)
        is_moe = self.model_type == "qwen3_moe"
        require(
            all(value is not None for value in moe) if is_moe else all(value is None for value in moe),
            f"model.model_type = {self.model_type}",
            rule="num_experts, num_experts_per_tok and moe_intermediate_size go with qwen3_moe, all three or none",
            fix="set all three for qwen3_moe and remove them for a dense model",
        )
        if self.num_experts is not None and self.num_experts_per_tok is not None:
            require(
                0 < self.num_experts_per_tok <= self.num_experts,
                f"model.num_experts_per_tok = {self.num_experts_per_tok}",
                rule=f"must be between 1 and model.num_experts ({self.num_experts})",
                fix="copy both from the model's config.json",
            )
            require(
                self.num_experts_per_tok > 1 or not self.norm_topk_prob,
                f"model.num_experts_per_tok = {self.num_experts_per_tok}",
                rule="a single expert with norm_topk_prob=true always weighs 1, which Megatron-Core does not build",
                fix="use a model with more experts for each token, or with norm_topk_prob=false",
            )

    @property
    def is_moe(self) -> bool:
        """Whether the feed-forward layers are mixtures of experts."""
        return self.num_experts is not None

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence that training computes as the model does."""
        return min(self.max_position_embeddings, self.sliding_window or self.max_position_embeddings)

    @property
    def has_qk_norm(self) -> bool:
        """Whether queries and keys are normalised per head (the Qwen3 family)."""
        return self.model_type in ("qwen3", "qwen3_moe")

    @property
    def has_qkv_bias(self) -> bool:
        """Whether the projections of queries, keys and values have a bias (the Qwen2 family)."""
        return self.model_type == "qwen2"

    def num_parameters(self) -> int:
        """Parameters of the full model, counted from the shape; tied embeddings count once."""
        q_size = self.num_attention_heads * self.head_dim
        kv_size = self.num_key_value_heads * self.head_dim
        attention = self.hidden_size * (2 * q_size + 2 * kv_size)
        attention += (2 * self.head_dim if self.has_qk_norm else 0) + (q_size + 2 * kv_size if self.has_qkv_bias else 0)
        if self.num_experts is not None and self.moe_intermediate_size is not None:
            expert = 3 * self.hidden_size * self.moe_intermediate_size
            feed_forward = self.num_experts * (expert + self.hidden_size)  # each expert and its row of the router
        else:
            feed_forward = 3 * self.hidden_size * self.intermediate_size
        layer = attention + feed_forward + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_hidden_layers * layer + embeddings + self.hidden_size


@dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """How experts are routed and trained. No token is ever dropped.

    The loss of SSD is cross-entropy alone, so ``aux_loss_coeff`` is 0 and nothing balances the experts' load.
    """

    router_dtype: Literal["fp32", "fp64"] = "fp32"
    """Type of routing probabilities."""
    aux_loss_coeff: float = 0.0
    """Coefficient of the load-balancing loss of the Switch Transformer (arXiv 2101.03961, eq. 4): its mean over
    micro batches, summed over layers, however the cross-entropy is normalized. Prompt tokens count as response
    tokens do, padding does not count."""
    freeze_router: bool = False
    """Do not train the router."""
    dispatcher: Literal["alltoall", "allgather", "deepep", "hybridep"] = "alltoall"
    """Exchange of tokens between ranks. ``deepep`` and ``hybridep`` are kernels of the CUDA library DeepEP (HybridEP is
    its branch for NVLink across nodes); ``allgather`` and ``alltoall`` run anywhere."""
    router_fusion: bool = False
    """Choose the experts of a token in one kernel of TransformerEngine."""
    grouped_gemm: bool = True
    """Compute all experts of a rank in one kernel, if TransformerEngine's layers run."""

    def __post_init__(self) -> None:
        require(
            self.aux_loss_coeff == 0 or not self.freeze_router,
            f"moe.aux_loss_coeff = {self.aux_loss_coeff}",
            rule="balances the load by training the router, and moe.freeze_router = true",
            fix="set one of the two back",
        )
        require(self.aux_loss_coeff >= 0, f"moe.aux_loss_coeff = {self.aux_loss_coeff}", rule="must not be negative",
                fix="0 leaves the auxiliary loss out")  # fmt: skip
        require(
            not self.uses_deep_ep or self.router_dtype == "fp32",
            f"moe.router_dtype = {self.router_dtype}",
            rule=f"DeepEP's exchange (moe.dispatcher = {self.dispatcher}) carries probabilities in fp32",
            fix="set moe.router_dtype=fp32 or moe.dispatcher=alltoall",
        )
        require(
            not self.router_fusion or self.router_dtype == "fp32",
            "moe.router_fusion = true",
            rule=f"TransformerEngine's kernel takes fp32, and moe.router_dtype = {self.router_dtype}",
            fix="set moe.router_dtype=fp32 or moe.router_fusion=false",
        )

    @property
    def uses_deep_ep(self) -> bool:
        """Whether DeepEP's kernels exchange tokens."""
        return self.dispatcher in ("deepep", "hybridep")

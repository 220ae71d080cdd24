"""Settings that exchange exactness, memory or time for another: number formats, recomputation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.reference import require_key, require_positive
from megatron_ssd.errors import require

Fp8Recipe = Literal["delayed", "tensorwise", "blockwise", "mxfp8"]
RecomputeModule = Literal["core_attn", "layernorm", "mlp", "moe", "moe_act"]

# Both sides of every FP8 product must be multiples of this. TransformerEngine loads 16 values, scales groups of 32
# (MXFP8), and its sequence-parallel gathers need blocks of 128 (``Float8BlockQuantizer.is_quantizable``).
FP8_ALIGNMENT: dict[Fp8Recipe, int] = {"delayed": 16, "tensorwise": 16, "blockwise": 128, "mxfp8": 32}


def fp8_recipe_for(capability: tuple[int, int] | None) -> Fp8Recipe | None:
    """The recipe with the finest scales that tensor cores of this compute capability support; None if there is none.

    Capability 12 is left out: TransformerEngine has no MXFP8 there, and emulates block scaling.
    """
    recipes: dict[int, Fp8Recipe] = {9: "blockwise", 10: "mxfp8"}
    return recipes.get(capability[0]) if capability else None


@dataclass(frozen=True, kw_only=True)
class Fp8Config:
    """FP8 matrix products by TransformerEngine. Weights, attention and the output layer stay in bf16."""

    recipe: Fp8Recipe
    """``delayed`` scales a tensor by its largest magnitudes in earlier steps, ``tensorwise`` by its own,
    ``blockwise`` block by block, ``mxfp8`` in groups of 32 values with the tensor cores of Blackwell."""
    format: Literal["e4m3", "hybrid"] | None = None
    """``hybrid`` uses e5m2 for gradients. Null means ``hybrid`` for delayed and tensorwise, ``e4m3`` for the others."""
    margin: int = 0
    """Delayed scaling: margin of the scaling factor, as a power of two."""
    amax_history_len: int = 1024
    """Delayed scaling: number of earlier steps."""
    amax_compute_algo: Literal["most_recent", "max"] = "max"
    """Delayed scaling: which of their magnitudes counts."""
    bf16_layers_at_start: int = 0
    """Number of first layers that stay in bf16."""
    bf16_layers_at_end: int = 0
    """Number of last layers that stay in bf16."""

    def __post_init__(self) -> None:
        for key in ("margin", "bf16_layers_at_start", "bf16_layers_at_end"):
            require_key(self, key, getattr(self, key) >= 0, rule="must not be negative", fix="use 0")
        require_positive(self, "amax_history_len", fix="1024 is TransformerEngine's default")
        for key in ("margin", "amax_history_len", "amax_compute_algo"):
            default = getattr(Fp8Config, key)
            require_key(self, key, self.recipe == "delayed" or getattr(self, key) == default,
                        rule=f"belongs to recipe delayed, and the recipe is {self.recipe}",
                        fix=f"remove it or set precision.fp8.recipe=delayed (default {default})")  # fmt: skip
        for key in ("bf16_layers_at_start", "bf16_layers_at_end"):
            require_key(self, key, self.recipe != "delayed" or getattr(self, key) == 0,
                        rule="delayed scaling uses one FP8 context for all layers, so none can stay in bf16",
                        fix="set it to 0, or use precision.fp8.recipe=tensorwise")  # fmt: skip

    @property
    def num_bf16_layers(self) -> int:
        """Layers left out at both ends."""
        return self.bf16_layers_at_start + self.bf16_layers_at_end

    @property
    def number_format(self) -> Literal["e4m3", "hybrid"]:
        """``format``, or the default of TransformerEngine's recipe."""
        return self.format or ("hybrid" if self.recipe in ("delayed", "tensorwise") else "e4m3")


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """Number formats of weights and products, and activation recomputation."""

    params_dtype: Literal["fp32", "bf16"] = "bf16"
    """Type of weights and activations."""
    fast_matmul: bool = False
    """Round the inputs of fp32 products to bf16, if the processor has instructions for it. Without AMX the results of
    the transformer layers' products are rounded too."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Compute activations again in the backward pass to save memory: ``recompute_modules`` of each layer
    (``selective``) or complete layers (``full``)."""
    recompute_modules: tuple[RecomputeModule, ...] = ("core_attn",)
    """Modules of ``recompute=selective``. ``moe_act`` (with ``moe.grouped_gemm``) and ``layernorm`` save most for
    their time; fused core attention keeps no scores, so recomputing it saves little."""
    transformer_engine: bool = True
    """Use TransformerEngine's layers; false uses Megatron-Core's own."""
    fp8: Fp8Config | None = None
    """FP8 products; null is off."""
    auto: bool = False
    """Choose ``fp8`` for the visible GPU: ``mxfp8`` on compute capability 10, ``blockwise`` on 9, else null. A number
    format that is given counts instead."""
    gradient_accumulation_fusion: bool | None = None
    """Let matrix products add weight gradients to their sum, without another pass over memory. Null means: with
    TransformerEngine's layers. Megatron-Core's own layers need apex's kernel ``fused_weight_gradient_mlp_cuda``."""
    cross_entropy_loss_fusion: bool | None = None
    """Compute the loss and its gradient in one kernel of TransformerEngine, which keeps no fp32 softmax. Null means:
    with TransformerEngine's layers."""

    def __post_init__(self) -> None:
        require_key(self, "transformer_engine", self.fp8 is None or self.transformer_engine,
                    rule="FP8 products are TransformerEngine's",
                    fix="set precision.transformer_engine=true or precision.fp8=null")  # fmt: skip
        require_key(self, "cross_entropy_loss_fusion", self.transformer_engine or not self.cross_entropy_loss_fusion,
                    rule="the kernel is TransformerEngine's, and precision.transformer_engine = false",
                    fix="leave it out")  # fmt: skip
        require_key(self, "params_dtype", self.fp8 is None or self.params_dtype == "bf16",
                    rule="FP8 products need bf16 weights",
                    fix="set precision.params_dtype=bf16 or precision.fp8=null")  # fmt: skip
        require_key(self, "recompute_modules", bool(self.recompute_modules), rule="must name at least one",
                    fix="use [core_attn], or precision.recompute=none")  # fmt: skip
        again = self.recompute == "selective" and not {"layernorm", "moe_act"}.isdisjoint(self.recompute_modules)
        require_key(self, "recompute_modules", self.transformer_engine or not again,
                    rule="Megatron-Core recomputes layernorm and moe_act with TransformerEngine only, and "
                    "precision.transformer_engine = false",
                    fix="leave them out, or use precision.recompute=full")  # fmt: skip
        require_key(self, "recompute_modules", self.fp8 is None or self.fp8.recipe != "delayed" or not again,
                    rule="under delayed scaling neither layernorm nor moe_act can be recomputed",
                    fix="use [core_attn], or precision.fp8.recipe=tensorwise")  # fmt: skip

    @property
    def fuses_gradient_accumulation(self) -> bool:
        """Whether matrix products add weight gradients to their sum."""
        chosen = self.gradient_accumulation_fusion
        return self.transformer_engine if chosen is None else chosen

    @property
    def fuses_cross_entropy(self) -> bool:
        """Whether one kernel computes the loss and its gradient."""
        chosen = self.cross_entropy_loss_fusion
        return self.transformer_engine if chosen is None else chosen

    def check_model(self, model: ModelConfig, parallel: ParallelConfig, *, micro_batch_tokens: int) -> None:
        """Raise ``ConfigError`` if ``model`` cannot be computed in these formats under ``parallel``.

        Args:
            micro_batch_tokens: tokens of one micro batch.
        """
        require(
            self.recompute != "selective" or model.is_moe or not {"moe", "moe_act"} & set(self.recompute_modules),
            f"precision.recompute_modules = {list(self.recompute_modules)}",
            rule=f"moe and moe_act are parts of a mixture of experts, and {model.name} is a dense model",
            fix="leave them out",
        )
        if self.fp8 is None:
            return
        stage_layers = model.num_hidden_layers // parallel.pipeline_model_parallel_size
        for key in ("bf16_layers_at_start", "bf16_layers_at_end"):
            require(
                getattr(self.fp8, key) <= stage_layers,
                f"precision.fp8.{key} = {getattr(self.fp8, key)}",
                rule=f"must be at most the layers of one pipeline stage ({stage_layers})",
                fix=f"use at most {stage_layers}",
            )
        unit = FP8_ALIGNMENT[self.fp8.recipe]
        tp, etp = parallel.tensor_model_parallel_size, parallel.expert_tensor_parallel_size
        heads, groups, width = model.num_attention_heads, model.num_key_value_heads, model.head_dim
        sides = {
            "model.hidden_size": model.hidden_size,
            "model.num_attention_heads x head_dim / tensor size": heads * width // tp,
            "rows of query, key and value / tensor size": (heads + 2 * groups) * width // tp,
        }
        if model.moe_intermediate_size is not None:
            sides["model.moe_intermediate_size / expert-tensor size"] = model.moe_intermediate_size // etp
        else:
            sides["model.intermediate_size / tensor size"] = model.intermediate_size // tp
        for name, size in sides.items():
            require(size % unit == 0, f"precision.fp8.recipe = {self.fp8.recipe}",
                    rule=f"{name} ({size}) must be a multiple of {unit}",
                    fix="use precision.fp8=null, or another recipe or layout")  # fmt: skip
        parts = parallel.context_parallel_size * (tp if parallel.sequence_parallel else 1)
        require(
            micro_batch_tokens % (parts * unit) == 0,
            f"training.micro_batch_size x seq_length = {micro_batch_tokens}",
            rule=f"precision.fp8.recipe={self.fp8.recipe} needs multiples of {unit} on each of {parts} parts of the "
            "sequence",
            fix=f"use a seq_length that is a multiple of {parts * unit}",
        )

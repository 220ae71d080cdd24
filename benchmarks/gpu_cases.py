"""Lists the training runs that ``benchmarks.gpu_measure`` measures.

The parts, in the order of the table:

    specs      Megatron-Core's local layers and TransformerEngine's in bf16: losses of the same steps
    fp8        FP8 recipes and bf16: losses over 200 steps, step time
    recompute  packed sequences of 65,536 tokens: memory and tokens/s of each recompute mode
    speed      utilisation, and Hugging Face Transformers with the same model in the same run

Models fit one GPU: Qwen3-1.7B's shape, and four layers of Qwen3-30B-A3B. Long sequences use a vocabulary of 32,768,
because the logits are not split over GPUs here. Each run has a tiny form for a CPU.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_ssd.config.model import ModelConfig, MoeConfig
from megatron_ssd.config.precision import Fp8Config, Fp8Recipe, PrecisionConfig

PARTS = ("specs", "fp8", "recompute", "speed")
BF16 = PrecisionConfig()
LOCAL = PrecisionConfig(transformer_engine=False)
FP8_RECIPES: tuple[Fp8Recipe, ...] = ("tensorwise", "blockwise", "delayed", "mxfp8")
_SMALL_VOCABULARY = 32_768

_ROPE: dict[str, Any] = {"max_position_embeddings": 131_072, "rope_theta": 1_000_000.0}
DENSE = ModelConfig(
    name="qwen3_1.7b", model_type="qwen3", hidden_size=2048, num_hidden_layers=28, num_attention_heads=16,
    num_key_value_heads=8, head_dim=128, intermediate_size=6144, vocab_size=151_936, tie_word_embeddings=True, **_ROPE,
)  # fmt: skip
MOE = ModelConfig(
    name="qwen3_30b_4_layers", model_type="qwen3_moe", hidden_size=2048, num_hidden_layers=4, num_attention_heads=32,
    num_key_value_heads=4, head_dim=128, intermediate_size=6144, vocab_size=_SMALL_VOCABULARY, num_experts=128,
    num_experts_per_tok=8, moe_intermediate_size=768, **_ROPE,
)  # fmt: skip
_TINY: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                         "head_dim": 16, "intermediate_size": 96, "vocab_size": 64, **_ROPE}  # fmt: skip
TINY_DENSE = ModelConfig(name="tiny", model_type="qwen3", tie_word_embeddings=True, **_TINY)
TINY_MOE = ModelConfig(
    name="tiny_moe", model_type="qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, **_TINY
)


@dataclass(frozen=True)
class Case:
    """One training run of a part. ``reference`` names a Transformers loop instead of this trainer."""

    part: str
    name: str
    model: ModelConfig
    precision: PrecisionConfig
    seq_length: int
    global_batch_size: int
    steps: int
    packing: Literal["none", "best_fit"] = "best_fit"
    moe: MoeConfig = field(default_factory=MoeConfig)
    reference: Literal["sdpa", "compile"] | None = None

    @property
    def needs_cuda(self) -> bool:
        """Whether a CPU cannot run it, because it has TransformerEngine's layers."""
        return self.precision.transformer_engine and self.reference is None


def cases(part: str, *, tiny: bool, device: str = "cuda") -> list[Case]:
    """The runs of ``part``, in order. If they are ``tiny``, they take seconds on a CPU."""
    dense, moe = (TINY_DENSE, TINY_MOE) if tiny else (DENSE, MOE)
    made = {"specs": _specs, "fp8": _fp8, "recompute": _recompute, "speed": _speed}[part](dense, moe)
    return [_shrink(case, device) for case in made] if tiny else made


def _specs(dense: ModelConfig, moe: ModelConfig) -> list[Case]:
    short = dataclasses.replace(dense, num_hidden_layers=min(8, dense.num_hidden_layers))
    return [
        Case("specs", f"{model.name} {label}", model, precision, seq_length=4096, global_batch_size=4, steps=20,
             moe=options)
        for model in (short, moe)
        for label, precision, options in (
            ("local", LOCAL, MoeConfig()),
            ("TransformerEngine", BF16, MoeConfig()),
            *([("TransformerEngine, sequential experts", BF16, MoeConfig(grouped_gemm=False))] if model.is_moe else []),
        )
    ]  # fmt: skip


def _fp8(dense: ModelConfig, moe: ModelConfig) -> list[Case]:
    short = dataclasses.replace(dense, num_hidden_layers=min(8, dense.num_hidden_layers))
    numbers = [("bf16", BF16), *((recipe, PrecisionConfig(fp8=Fp8Config(recipe=recipe))) for recipe in FP8_RECIPES)]
    return [
        Case("fp8", f"{model.name} {label}", model, precision, seq_length=4096, global_batch_size=4, steps=200)
        for model in (short, moe)
        for label, precision in numbers
    ]


def _recompute(dense: ModelConfig, moe: ModelConfig) -> list[Case]:
    narrow = dataclasses.replace(
        dense, num_hidden_layers=min(12, dense.num_hidden_layers), vocab_size=min(_SMALL_VOCABULARY, dense.vocab_size)
    )
    modes: dict[str, dict[str, Any]] = {
        "none": {},
        "selective (mlp)": {"recompute": "selective", "recompute_modules": ("mlp",)},
        "selective (layernorm, moe_act)": {
            "recompute": "selective", "recompute_modules": ("layernorm", "moe_act"),
        },
        "selective (layernorm, moe)": {"recompute": "selective", "recompute_modules": ("layernorm", "moe")},
        "full": {"recompute": "full"},
    }  # fmt: skip
    return [
        Case("recompute", f"{model.name} {label}", model, dataclasses.replace(BF16, **mode), seq_length=65_536,
             global_batch_size=1, steps=6)
        for model in (narrow, moe)
        for label, mode in modes.items()
        if ("mlp" in label) != model.is_moe or "selective" not in label
    ]  # fmt: skip


def _speed(dense: ModelConfig, moe: ModelConfig) -> list[Case]:
    blockwise = PrecisionConfig(fp8=Fp8Config(recipe="blockwise"))
    made = []
    for model in (dense, moe):
        base = Case("speed", "", model, BF16, seq_length=8192, global_batch_size=4, steps=10, packing="none")
        made += [
            dataclasses.replace(base, name=f"{model.name} this trainer, local layers", precision=LOCAL),
            dataclasses.replace(base, name=f"{model.name} this trainer, bf16"),
            dataclasses.replace(base, name=f"{model.name} this trainer, FP8 blockwise", precision=blockwise),
            dataclasses.replace(base, name=f"{model.name} Transformers, SDPA", reference="sdpa"),
            dataclasses.replace(base, name=f"{model.name} Transformers, torch.compile", reference="compile"),
        ]
    return made


def _shrink(case: Case, device: str) -> Case:
    """Shorten the case. On a CPU the local layers replace TransformerEngine's, and the name says so.

    FP8 and recomputed norms have no replacement: these cases stay as they are and are reported as skipped.
    """
    small = dataclasses.replace(case, seq_length=min(case.seq_length, 128), global_batch_size=2, steps=3)
    numbers = case.precision
    recomputes_norms = numbers.recompute == "selective" and "layernorm" in numbers.recompute_modules
    if device == "cuda" or not case.needs_cuda or numbers.fp8 or recomputes_norms:
        return small
    local = dataclasses.replace(numbers, transformer_engine=False)
    return dataclasses.replace(small, name=f"{case.name} [local]", precision=local)

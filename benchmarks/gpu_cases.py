"""Lists the training runs that ``benchmarks.gpu_measure`` measures.

    speed      tokens/s at 8,192 tokens: bf16 with and without fused kernels, FP8, and Transformers in the same call
    fp8        losses of 200 steps under each FP8 recipe, beside those of bf16
    recompute  memory and tokens/s of each recompute mode, on packed sequences of 65,536 tokens
    compile    Transformers with torch.compile, at 8,192 tokens

The models fit one GPU: Qwen3-1.7B's shape, and four layers of Qwen3-30B-A3B. Where the model has fewer layers or a
smaller vocabulary than that, its name says so. Each run has a tiny form for a CPU.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_ssd.config.cluster import Device
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.precision import Fp8Config, Fp8Recipe, PrecisionConfig

MEASURED_PARTS = ("speed", "fp8", "recompute", "compile")
BF16 = PrecisionConfig()
UNFUSED = PrecisionConfig(gradient_accumulation_fusion=False, cross_entropy_loss_fusion=False)
BLOCKWISE = PrecisionConfig(fp8=Fp8Config(recipe="blockwise"))
_RECIPES: tuple[Fp8Recipe, ...] = ("blockwise", "tensorwise", "delayed", "mxfp8")

_ROPE: dict[str, Any] = {"max_position_embeddings": 131_072, "rope_theta": 1_000_000.0}
DENSE = ModelConfig(
    name="qwen3_1.7b", model_type="qwen3", hidden_size=2048, num_hidden_layers=28, num_attention_heads=16,
    num_key_value_heads=8, head_dim=128, intermediate_size=6144, vocab_size=151_936, tie_word_embeddings=True, **_ROPE,
)  # fmt: skip
# The logits of one GPU are not split over others, so long sequences have a small vocabulary.
_NARROW = dataclasses.replace(DENSE, vocab_size=32_768)
DENSE_8 = dataclasses.replace(_NARROW, name="qwen3_1.7b_8_layers", num_hidden_layers=8)
DENSE_12 = dataclasses.replace(_NARROW, name="qwen3_1.7b_12_layers", num_hidden_layers=12)
MOE = ModelConfig(
    name="qwen3_30b_4_layers", model_type="qwen3_moe", hidden_size=2048, num_hidden_layers=4, num_attention_heads=32,
    num_key_value_heads=4, head_dim=128, intermediate_size=6144, vocab_size=32_768, num_experts=128,
    num_experts_per_tok=8, moe_intermediate_size=768, **_ROPE,
)  # fmt: skip
_TINY: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                         "head_dim": 16, "intermediate_size": 96, "vocab_size": 64}  # fmt: skip
_TINY_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training run of a part. ``reference`` names a Transformers loop instead of this trainer."""

    part: str
    name: str
    model: ModelConfig
    precision: PrecisionConfig = BF16
    seq_length: int
    global_batch_size: int  # sequences
    steps: int
    packing: Literal["none", "best_fit"] = "none"
    reference: Literal["sdpa", "compile"] | None = None
    profile: bool = False

    @property
    def needs_cuda(self) -> bool:
        """Whether a CPU cannot run it, because it has TransformerEngine's layers."""
        return self.precision.transformer_engine and self.reference is None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where cases are measured, and the folder of their profiles."""

    device: Device
    out: Path


@dataclass(frozen=True, kw_only=True)
class Order:
    """A case to measure, and the seconds after which it starts no further step."""

    case: Case
    seconds: float


def cases(*, tiny: bool, device: Device) -> list[Case]:
    """All runs, in order. If they are ``tiny``, they take seconds on a CPU."""
    made = [*_speed(), *_fp8(), *_recompute(), *_compile()]
    return [_shrink(case, device) for case in made] if tiny else made


def _speed() -> list[Case]:
    base: dict[str, Any] = {"part": "speed", "seq_length": 8192, "global_batch_size": 4, "steps": 10}
    return [
        Case(name=f"{DENSE.name} bf16", model=DENSE, profile=True, **base),
        Case(name=f"{DENSE.name} FP8 blockwise", model=DENSE, precision=BLOCKWISE, profile=True, **base),
        Case(name=f"{DENSE.name} Transformers, SDPA", model=DENSE, reference="sdpa", **base),
        Case(name=f"{MOE.name} bf16", model=MOE, profile=True, **base),
        Case(name=f"{MOE.name} FP8 blockwise", model=MOE, precision=BLOCKWISE, profile=True, **base),
        Case(name=f"{DENSE.name} bf16, unfused", model=DENSE, precision=UNFUSED, **base),
    ]


def _fp8() -> list[Case]:
    numbers = {"bf16": BF16, **{f"FP8 {name}": PrecisionConfig(fp8=Fp8Config(recipe=name)) for name in _RECIPES}}
    return [
        Case(part="fp8", name=f"{model.name} {label}", model=model, precision=precision, seq_length=4096,
             global_batch_size=2, steps=200, packing="best_fit")
        for model in (DENSE_8, MOE)
        for label, precision in numbers.items()
    ]  # fmt: skip


def _recompute() -> list[Case]:
    modes: dict[str, dict[str, Any]] = {
        "none": {},
        "selective (mlp)": {"recompute": "selective", "recompute_modules": ("mlp",)},
        "selective (layernorm, moe_act)": {"recompute": "selective", "recompute_modules": ("layernorm", "moe_act")},
        "selective (layernorm, moe)": {"recompute": "selective", "recompute_modules": ("layernorm", "moe")},
        "full": {"recompute": "full"},
    }
    return [
        Case(part="recompute", name=f"{model.name} {label}", model=model, precision=PrecisionConfig(**mode),
             seq_length=65_536, global_batch_size=1, steps=5, packing="best_fit")
        for model in (DENSE_12, MOE)
        for label, mode in modes.items()
        if "selective" not in label or ("moe" in label) == model.is_moe
    ]  # fmt: skip


def _compile() -> list[Case]:
    return [Case(part="compile", name=f"{DENSE.name} Transformers, torch.compile", model=DENSE, reference="compile",
                 seq_length=8192, global_batch_size=4, steps=6)]  # fmt: skip


def _shrink(case: Case, device: Device) -> Case:
    """Shorten the case. On a CPU the local layers replace TransformerEngine's, and the name says so.

    FP8 and recomputed norms have no replacement: these cases stay as they are and are reported as skipped.
    """
    model = dataclasses.replace(case.model, **_TINY, **(_TINY_EXPERTS if case.model.is_moe else {}))
    small = dataclasses.replace(
        case, model=model, seq_length=min(case.seq_length, 128), global_batch_size=2, steps=min(case.steps, 3)
    )
    numbers = case.precision
    recomputes_norms = numbers.recompute == "selective" and "layernorm" in numbers.recompute_modules
    if device == "cuda" or not case.needs_cuda or numbers.fp8 or recomputes_norms:
        return small
    local = dataclasses.replace(
        numbers, transformer_engine=False, gradient_accumulation_fusion=None, cross_entropy_loss_fusion=None
    )
    return dataclasses.replace(small, name=f"{case.name} [local]", precision=local)

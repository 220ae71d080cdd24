"""Checks that this machine can run a configuration, before anything is built.

Except for ``check_device`` and ``check_hardware``, each check is a pure function of its arguments.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from megatron_ssd.config.cluster import ClusterConfig
from megatron_ssd.config.model import MoeConfig
from megatron_ssd.config.precision import Fp8Recipe, PrecisionConfig
from megatron_ssd.errors import UserError, require

Capability = tuple[int, int]  # of a device, or a version of CUDA

_OLDEST_TRANSFORMER_ENGINE = "2.9"  # that Megatron-Core 0.16.1 accepts

# transformer_engine/pytorch/quantization.py of TransformerEngine 2.9 to 2.11: lowest capability and CUDA of a recipe.
# On Blackwell block scaling is emulated with MXFP8's tensor cores (transformer_engine/common/swizzle).
_FP8_NEEDS: dict[Fp8Recipe, tuple[Capability, Capability]] = {
    "delayed": ((8, 9), (12, 1)),
    "tensorwise": ((8, 9), (12, 1)),
    "blockwise": ((9, 0), (12, 9)),
    "mxfp8": ((10, 0), (12, 8)),
}
_NO_MXFP8_FROM = (12, 0)


def check_device(cluster: ClusterConfig) -> None:
    """Raise ``UserError`` if ``cluster.device`` is cuda without a GPU, or cpu while a GPU is visible."""
    missing, remedy = _what_is_missing()
    require(
        cluster.device == "cpu" or torch.cuda.is_available(),
        "cluster.device = cuda",
        rule=f"needs an NVIDIA GPU, and {missing}",
        fix=f"{remedy}, check the layout with dry_run=true, or try the small CPU run with experiment=demo",
    )
    require(
        cluster.device == "cuda" or not torch.cuda.is_available(),
        "cluster.device = cpu",
        rule="Megatron-Core uses any GPU that it sees, and one is visible on this machine",
        fix="set cluster.device=cuda, or hide the GPU with CUDA_VISIBLE_DEVICES=''",
    )


def _what_is_missing() -> tuple[str, str]:
    """What is missing where no GPU is visible, and how to get it."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA", "install torch for CUDA (docs/guides/gpu.md)"
    return f"no CUDA device is visible to torch {torch.__version__}", "run on a GPU machine"


def check_precision(precision: PrecisionConfig, capability: Capability, cuda: Capability) -> None:
    """Raise ``ConfigError`` if the device's compute capability or CUDA version does not support ``precision``."""
    require(
        precision.params_dtype != "bf16" or capability >= (8, 0),
        "precision.params_dtype = bf16",
        rule=f"needs compute capability 8.0 and this device has {_dotted(capability)}",
        fix="set precision.params_dtype=fp32 or use a newer GPU",
    )
    if precision.fp8 is None:
        return
    recipe = precision.fp8.recipe
    needed, needed_cuda = _FP8_NEEDS[recipe]
    what = f"precision.fp8.recipe = {recipe}"
    require(
        capability >= needed,
        what,
        rule=f"needs compute capability {_dotted(needed)} and this device has {_dotted(capability)}",
        fix=_other_recipe(capability, cuda),
    )
    require(
        recipe != "mxfp8" or capability < _NO_MXFP8_FROM,
        what,
        rule=f"TransformerEngine supports it on compute capability 10 and 11 and this device has {_dotted(capability)}",
        fix="set precision=fp8_tensorwise",
    )
    require(
        cuda >= needed_cuda,
        what,
        rule=f"needs CUDA {_dotted(needed_cuda)} and this torch is built for {_dotted(cuda)}",
        fix=_other_recipe(capability, cuda),
    )


def _other_recipe(capability: Capability, cuda: Capability) -> str:
    """Fix that names the finest-grained recipe that the device supports."""
    for recipe in ("blockwise", "tensorwise"):
        needed, needed_cuda = _FP8_NEEDS[recipe]
        if capability >= needed and cuda >= needed_cuda:
            return f"set precision=fp8_{recipe}, or take an experiment for this GPU (docs/guides/recipes.md)"
    return "set precision=bf16"


def _dotted(version: Capability) -> str:
    return ".".join(map(str, version))


def check_transformer_engine(version: str | None, *, accepted: str | None) -> None:
    """Raise ``UserError`` if TransformerEngine is not installed or Megatron-Core does not accept its version.

    Args:
        version: the installed version; None if it is not installed.
        accepted: the range in the installed Megatron-Core's metadata, such as ``<2.12.0,>=2.9.0a0``.
    """
    accepted = accepted or f">={_OLDEST_TRANSFORMER_ENGINE}"
    if version is None:
        raise UserError(
            "precision.transformer_engine = true",
            rule="the package transformer-engine is not installed",
            fix=f"install transformer-engine{accepted} (docs/guides/gpu.md), or set precision.transformer_engine=false "
            "for Megatron-Core's own layers",
        )
    if not SpecifierSet(accepted).contains(version, prereleases=True):
        raise UserError(
            "precision.transformer_engine = true",
            rule=f"the installed Megatron-Core accepts transformer-engine {accepted} and {version} is installed",
            fix="install a version in that range, or set precision.transformer_engine=false",
        )


def check_dispatcher(moe: MoeConfig, *, has_deep_ep: bool, has_hybrid_ep: bool) -> None:
    """Raise ``UserError`` if the configuration needs DeepEP, or its branch with HybridEP, and it is not installed."""
    available = {"deepep": has_deep_ep, "hybridep": has_hybrid_ep}.get(moe.dispatcher, True)
    part = " with HybridEP (its branch hybrid-ep)" if moe.dispatcher == "hybridep" else ""
    require(
        available,
        f"moe.dispatcher = {moe.dispatcher}",
        rule=f"the package deep_ep{part} is not installed",
        fix="build DeepEP for this machine, or set moe.dispatcher=alltoall",
    )


def check_fusion(precision: PrecisionConfig, *, has_kernel: bool) -> None:
    """Raise ``UserError`` if weight gradients shall be added by products that have no kernel for it."""
    require(
        not precision.fuses_gradient_accumulation or precision.transformer_engine or has_kernel,
        "precision.gradient_accumulation_fusion = true",
        rule="Megatron-Core's own layers need apex's fused_weight_gradient_mlp_cuda, which is not installed",
        fix="leave it out, build apex, or set precision.transformer_engine=true",
    )


def has_apex_kernel() -> bool:
    """Whether apex's kernel is installed that adds the gradient of a weight to their sum."""
    return importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None


def check_hardware(precision: PrecisionConfig, moe: MoeConfig) -> None:
    """Check ``precision`` and ``moe`` against this process's GPU and the installed packages.

    Raises:
        UserError: for the first thing that is missing.
    """
    assert torch.version.cuda is not None
    major, minor, *_ = map(int, torch.version.cuda.split("."))
    check_precision(precision, torch.cuda.get_device_capability(), (major, minor))
    if precision.transformer_engine:
        check_transformer_engine(_installed("transformer-engine"), accepted=_accepted_transformer_engine())
    check_fusion(precision, has_kernel=has_apex_kernel())
    has_deep_ep = importlib.util.find_spec("deep_ep") is not None
    check_dispatcher(
        moe,
        has_deep_ep=has_deep_ep,
        has_hybrid_ep=has_deep_ep
        and moe.dispatcher == "hybridep"
        and hasattr(importlib.import_module("deep_ep"), "HybridEPBuffer"),
    )


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _accepted_transformer_engine() -> str | None:
    """TransformerEngine versions in the installed Megatron-Core's metadata; None if it names none."""
    for line in importlib.metadata.requires("megatron-core") or ():
        requirement = Requirement(line)
        if requirement.name.replace("_", "-") == "transformer-engine":
            return str(requirement.specifier) or None
    return None

"""What a GPU can do, and whether a configuration asks for more, before anything is built.

The checks are pure functions of a configuration and a device; ``check_hardware`` asks the machine.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from megatron_ssd.config.model import MoeConfig
from megatron_ssd.config.precision import Fp8Recipe, PrecisionConfig
from megatron_ssd.errors import UserError, require

Capability = tuple[int, int]

_OLDEST_TRANSFORMER_ENGINE = "2.9"  # of those that Megatron-Core 0.16.1 names


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU of a data sheet: dense figures, without sparsity. ``fp8_tflops`` of None: it has no FP8 units."""

    name: str
    capability: Capability
    memory_gb: float  # 10^9 bytes, as the data sheet counts
    bf16_tflops: float
    fp8_tflops: float | None


# NVIDIA's data sheets of the SXM modules. They print figures "with sparsity"; half of those is dense.
#   A100: "NVIDIA A100 Tensor Core GPU" (312 dense BF16, 80 GB). H100, H200: "NVIDIA H100 / H200 Tensor Core GPU" (1,979
#   and 3,958 sparse; 80 and 141 GB). B200, B300: "NVIDIA HGX Platform" (per GPU 4.5 and 9 PFLOPS sparse; a board of
#   eight holds 1.4 and 2.1 TB).
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="A100", capability=(8, 0), memory_gb=80, bf16_tflops=312, fp8_tflops=None),
        Gpu(name="H100", capability=(9, 0), memory_gb=80, bf16_tflops=989.5, fp8_tflops=1979),
        Gpu(name="H200", capability=(9, 0), memory_gb=141, bf16_tflops=989.5, fp8_tflops=1979),
        Gpu(name="B200", capability=(10, 0), memory_gb=180, bf16_tflops=2250, fp8_tflops=4500),
        Gpu(name="B300", capability=(10, 3), memory_gb=268, bf16_tflops=2250, fp8_tflops=4500),
    )
}
_SLOWER_FORMS = ("PCIe", "NVL", "40GB", "MIG")  # of the same chips, with other figures

# transformer_engine/pytorch/quantization.py of TransformerEngine 2.9 to 2.11: lowest capability and CUDA of a recipe.
# On Blackwell block scaling is emulated with MXFP8's tensor cores (transformer_engine/common/swizzle).
_FP8_NEEDS: dict[Fp8Recipe, tuple[Capability, Capability]] = {
    "delayed": ((8, 9), (12, 1)),
    "tensorwise": ((8, 9), (12, 1)),
    "blockwise": ((9, 0), (12, 9)),
    "mxfp8": ((10, 0), (12, 8)),
}
_NO_MXFP8_FROM = (12, 0)


def gpu_of(device_name: str) -> Gpu | None:
    """The data sheet that goes with what the driver calls a device, for example ``NVIDIA H100 80GB HBM3``."""
    if any(form.lower() in device_name.lower() for form in _SLOWER_FORMS):
        return None
    words = device_name.replace("-", " ").split()
    return next((gpu for name, gpu in GPUS.items() if name in words), None)


def peak_tflops(device_name: str, precision: PrecisionConfig) -> float | None:
    """Dense peak of the device in the numbers that ``precision`` multiplies in; None where it is not known.

    FP8 runs are measured against the FP8 peak although attention and the output layer stay in bf16.
    """
    gpu = gpu_of(device_name)
    if gpu is None or precision.params_dtype != "bf16":
        return None
    return gpu.fp8_tflops if precision.fp8 else gpu.bf16_tflops


def check_precision(precision: PrecisionConfig, capability: Capability, cuda: Capability) -> None:
    """Raise ``ConfigError`` where a device of that compute capability, or that CUDA, cannot compute so."""
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
        fix=_instead(capability, cuda),
    )
    require(
        recipe != "mxfp8" or capability < _NO_MXFP8_FROM,
        what,
        rule=f"TransformerEngine has it for compute capability 10 and 11 and this device has {_dotted(capability)}",
        fix="use tensorwise",
    )
    require(
        cuda >= needed_cuda,
        what,
        rule=f"needs CUDA {_dotted(needed_cuda)} and this torch is built for {_dotted(cuda)}",
        fix=_instead(capability, cuda),
    )


def _instead(capability: Capability, cuda: Capability) -> str:
    """The finest-grained recipe that the device has."""
    for recipe in ("blockwise", "tensorwise"):
        needed, needed_cuda = _FP8_NEEDS[recipe]
        if capability >= needed and cuda >= needed_cuda:
            return f"use {recipe}"
    return "set precision.fp8=null"


def _dotted(version: Capability) -> str:
    return ".".join(map(str, version))


def check_transformer_engine(version: str | None, *, megatron_asks: str | None) -> None:
    """Raise ``UserError`` where TransformerEngine is absent or of a version that Megatron-Core does not name.

    Args:
        version: what is installed; None for nothing.
        megatron_asks: the range in the installed Megatron-Core's own metadata, such as ``<2.12.0,>=2.9.0a0``.
    """
    asked = megatron_asks or f">={_OLDEST_TRANSFORMER_ENGINE}"
    if version is None:
        raise UserError(
            "precision.transformer_engine = true",
            rule="the package transformer-engine is not installed",
            fix=f"install transformer-engine{asked} (docs/guides/gpu.md), or set precision.transformer_engine=false "
            "for Megatron-Core's own layers",
        )
    if not SpecifierSet(asked).contains(version, prereleases=True):
        raise UserError(
            "precision.transformer_engine = true",
            rule=f"the installed Megatron-Core names transformer-engine {asked} and {version} is installed",
            fix="install a version of that range, or set precision.transformer_engine=false",
        )


def check_dispatcher(moe: MoeConfig, *, has_deep_ep: bool) -> None:
    """Raise ``UserError`` where DeepEP is asked for and not installed."""
    if moe.dispatcher == "flex" and not has_deep_ep:
        raise UserError(
            "moe.dispatcher = flex",
            rule="the package deep_ep is not installed",
            fix="build DeepEP for this machine, or set moe.dispatcher=alltoall",
        )


def check_hardware(precision: PrecisionConfig, moe: MoeConfig) -> None:
    """Check ``precision`` and ``moe`` against this process's GPU and what is installed.

    Raises:
        UserError: the first thing that is missing, in one line.
    """
    import torch

    assert torch.version.cuda is not None
    major, minor, *_ = map(int, torch.version.cuda.split("."))
    check_precision(precision, torch.cuda.get_device_capability(), (major, minor))
    if precision.transformer_engine:
        check_transformer_engine(_installed("transformer-engine"), megatron_asks=_range_of_megatron())
    check_dispatcher(moe, has_deep_ep=importlib.util.find_spec("deep_ep") is not None)


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _range_of_megatron() -> str | None:
    """Versions of TransformerEngine that the installed Megatron-Core names; None where it names none."""
    for line in importlib.metadata.requires("megatron-core") or ():
        requirement = Requirement(line)
        if requirement.name.replace("_", "-") == "transformer-engine":
            return str(requirement.specifier) or None
    return None

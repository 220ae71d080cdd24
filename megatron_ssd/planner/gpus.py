"""Describes NVIDIA GPUs by their data sheets."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ssd.config.precision import PrecisionConfig


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Figures of one GPU, dense (without sparsity). ``fp8_tflops`` is None if it has no FP8 units."""

    name: str
    capability: tuple[int, int]  # compute capability
    memory_gb: float  # 10^9 bytes, as the data sheet counts
    bf16_tflops: float
    fp8_tflops: float | None

    def peak_tflops(self, precision: PrecisionConfig) -> float | None:
        """Peak for the matrix products of a bf16 run, with or without FP8; None without FP8 units."""
        return self.fp8_tflops if precision.fp8 else self.bf16_tflops


# From NVIDIA's data sheets, of the SXM modules where there are any. They print figures "with sparsity"; half of those
# is dense. L4: "NVIDIA L4 Tensor Core GPU" (242 and 485 sparse; 24 GB).
#   A100: "NVIDIA A100 Tensor Core GPU" (312 dense BF16, 80 GB). H100, H200: "NVIDIA H100 / H200 Tensor Core GPU" (1,979
#   and 3,958 sparse; 80 and 141 GB). B200, B300: "NVIDIA HGX Platform" (per GPU 4.5 and 9 PFLOPS sparse; a board of
#   eight holds 1.4 and 2.1 TB).
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="L4", capability=(8, 9), memory_gb=24, bf16_tflops=121, fp8_tflops=242),
        Gpu(name="A100", capability=(8, 0), memory_gb=80, bf16_tflops=312, fp8_tflops=None),
        Gpu(name="H100", capability=(9, 0), memory_gb=80, bf16_tflops=989.5, fp8_tflops=1979),
        Gpu(name="H200", capability=(9, 0), memory_gb=141, bf16_tflops=989.5, fp8_tflops=1979),
        Gpu(name="B200", capability=(10, 0), memory_gb=180, bf16_tflops=2250, fp8_tflops=4500),
        Gpu(name="B300", capability=(10, 3), memory_gb=268, bf16_tflops=2250, fp8_tflops=4500),
    )
}
_SLOWER_FORMS = ("PCIe", "NVL", "40GB", "MIG")  # variants of the same chips with other figures


def gpu_of(device_name: str) -> Gpu | None:
    """The GPU with this driver name, for example ``NVIDIA H100 80GB HBM3``; None if it is not in the table."""
    if any(form.lower() in device_name.lower() for form in _SLOWER_FORMS):
        return None
    words = device_name.replace("-", " ").split()
    return next((gpu for name, gpu in GPUS.items() if name in words), None)


def peak_tflops(device_name: str, precision: PrecisionConfig) -> float | None:
    """Dense peak of the device for the matrix products of ``precision``; None if it is not known.

    FP8 runs are compared with the FP8 peak although attention and the output layer stay in bf16.
    """
    gpu = gpu_of(device_name)
    return None if gpu is None or precision.params_dtype != "bf16" else gpu.peak_tflops(precision)

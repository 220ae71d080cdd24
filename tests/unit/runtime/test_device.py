"""Tests for the preparation of the device."""

import pytest
import torch

from megatron_ssd.config.cluster import ClusterConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.errors import UserError
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.hardware import check_device
from tests.helpers.devices import without_gpu


@without_gpu
def test_a_missing_gpu_is_one_line_with_three_fixes() -> None:
    with pytest.raises(UserError) as caught:
        check_device(ClusterConfig(device="cuda"))
    message = str(caught.value)
    assert "\n" not in message
    for part in ("cluster.device = cuda", "GPU", "dry_run=true", "small CPU run with experiment=demo"):
        assert part in message


def test_the_cpu_is_refused_if_a_gpu_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES"):
        check_device(ClusterConfig(device="cpu"))


@without_gpu
@pytest.mark.parametrize(("fast", "expected"), [(False, "highest"), (True, "medium")])
def test_matrix_products_are_exact_by_default(fast: bool, expected: str) -> None:
    precision = PrecisionConfig(params_dtype="fp32", fast_matmul=fast, transformer_engine=False)
    try:
        prepare_device(ClusterConfig(device="cpu"), precision)
        assert torch.get_float32_matmul_precision() == expected
    finally:
        torch.set_float32_matmul_precision("highest")

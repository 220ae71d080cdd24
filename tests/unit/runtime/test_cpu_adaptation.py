"""Tests that Megatron-Core's CUDA calls work on the CPU without a change of torch's own behaviour."""

import dataclasses
from pathlib import Path

import pytest
import torch
from megatron.core import optimizer as megatron_optimizer
from megatron.core.optimizer import clip_grads, distrib_optimizer
from megatron.core.optimizer import optimizer as optimizer_base
from megatron.core.transformer.moe import moe_utils

from launch.train import train
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.runtime import cpu
from tests.helpers.devices import without_gpu
from tests.helpers.training_run import MOE, metrics, training_config, write_dataset

pytestmark = without_gpu


@pytest.fixture(autouse=True)
def installed() -> None:
    cpu.install()


def test_cuda_tensors_are_created_on_the_cpu() -> None:
    assert torch.zeros(2, device="cuda").device.type == "cpu"
    assert torch.arange(2, device=torch.device("cuda")).device.type == "cpu"
    assert torch.tensor([1], device=torch.cuda.current_device()).device.type == "cpu"
    assert torch.zeros(2, device="meta").device.type == "meta"


def test_a_device_context_applies_without_a_device_argument() -> None:
    with torch.device("meta"):
        assert torch.zeros(2).device.type == "meta"
        assert torch.arange(3).device.type == "meta"


def test_installing_twice_has_no_further_effect() -> None:
    before = torch.zeros
    cpu.install()
    assert torch.zeros is before


def test_the_cuda_rng_state_is_that_of_the_cpu_generator() -> None:
    torch.cuda.manual_seed(7)
    state = torch.cuda.get_rng_state()
    first = torch.rand(3)
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)


def test_tensor_types_have_the_names_that_the_optimizers_check() -> None:
    assert torch.zeros(1).type() == "torch.cuda.FloatTensor"
    assert torch.zeros(1, dtype=torch.bfloat16).type() == "torch.cuda.BFloat16Tensor"
    assert torch.zeros(1).type(torch.float64).dtype == torch.float64


def test_streams_have_no_effect() -> None:
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.Stream())
        torch.cuda.synchronize()
    assert not torch.cuda.is_current_stream_capturing()


def test_the_adaptation_is_refused_if_a_gpu_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(AssertionError):
        cpu.install()


@pytest.mark.parametrize("distributed", [False, True])
def test_kernels_of_installed_cuda_packages_are_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, distributed: bool
) -> None:
    # As after an import of Megatron-Core where TransformerEngine is installed.
    for module in (clip_grads, optimizer_base):
        for name in ("multi_tensor_applier", "multi_tensor_scale_impl"):
            monkeypatch.setattr(module, name, cuda_only)
    monkeypatch.setattr(clip_grads, "l2_norm_impl", cuda_only)
    monkeypatch.setattr(megatron_optimizer, "Adam", CudaOnly)
    monkeypatch.setattr(megatron_optimizer, "USING_PYTORCH_OPTIMIZER", False)
    monkeypatch.setattr(distrib_optimizer, "Adam", CudaOnly)
    monkeypatch.setattr(distrib_optimizer, "HAVE_APEX_OR_TE", True)
    monkeypatch.setattr(moe_utils, "te_general_gemm", cuda_only)
    cpu.use_local_functions()

    write_dataset(tmp_path, num_documents=20)
    parallel = ParallelConfig(use_distributed_optimizer=distributed)
    config = training_config(tmp_path, model=MOE, parallel=parallel, training={"train_iters": 3})
    train(dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, save_interval=2)))
    assert len(metrics(tmp_path)) == 3


def cuda_only(*args: object, **kwargs: object) -> None:
    raise AssertionError("a CUDA kernel was called with tensors on the CPU")


class CudaOnly(torch.optim.AdamW):
    def __init__(self, *args: object, **kwargs: object) -> None:
        cuda_only()

"""Patches that make Megatron-Core run on a machine without CUDA.

Megatron-Core asks ``torch.cuda`` for its device, its streams and its random state. ``install`` replaces these functions
with ones for the CPU. It runs once, before any Megatron object is created and only if ``cluster.device`` is cpu. It
refuses to run if CUDA is visible: on a GPU nothing in Megatron-Core or torch is changed. The same patches serve 0.16.1
and 0.19.2; ``runtime.versions`` has what else differs between them.

Where TransformerEngine or apex is installed, Megatron-Core takes their CUDA kernels at import. ``install`` puts its own
functions and torch's Adam there, as Megatron-Core does where neither is installed.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import optimizer as megatron_optimizer
from megatron.core import utils as megatron_utils
from megatron.core.optimizer import clip_grads, distrib_optimizer
from megatron.core.optimizer import optimizer as megatron_optimizer_base
from megatron.core.tensor_parallel import random as megatron_random
from megatron.core.transformer import attention as megatron_attention
from megatron.core.transformer.moe import moe_utils
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.utils._device import _device_constructors

from megatron_ssd.runtime.local_rotary import apply_rotary_pos_emb

# Factory functions that Megatron-Core calls with the device "cuda".
_FACTORIES = ("arange", "empty", "empty_like", "full", "ones", "tensor", "zeros")
_TYPES = ("FloatTensor", "HalfTensor", "BFloat16Tensor")
_CUDA_TYPE_NAMES = {f"torch.{name}": f"torch.cuda.{name}" for name in _TYPES}

_installed = False


def install() -> None:
    """Make Megatron-Core run on the CPU. Calling it again does nothing.

    Must not be called if CUDA is visible (asserted).
    """
    global _installed
    assert not torch.cuda.is_available(), "the CPU adaptation is for machines without CUDA"
    if _installed:
        return
    _installed = True
    _patch_device()
    _patch_streams()
    _patch_rng_state()
    _patch_tensors()
    _patch_all_to_all()
    _patch_unequal_parts()
    _patch_gloo()
    use_local_functions()
    megatron_attention.apply_rotary_pos_emb = apply_rotary_pos_emb


def use_local_functions() -> None:
    """Replace the kernels of TransformerEngine and apex wherever Megatron-Core looks them up."""
    for module in (clip_grads, megatron_optimizer_base):
        module.multi_tensor_applier = megatron_utils.local_multi_tensor_applier
        module.multi_tensor_scale_impl = megatron_utils.local_multi_tensor_scale
    clip_grads.l2_norm_impl = megatron_utils.local_multi_tensor_l2_norm
    megatron_optimizer.Adam = torch.optim.AdamW
    megatron_optimizer.USING_PYTORCH_OPTIMIZER = True
    distrib_optimizer.Adam = torch.optim.Adam
    distrib_optimizer.HAVE_APEX_OR_TE = False
    moe_utils.te_general_gemm = None  # the router then uses torch's product


def _patch_device() -> None:
    """The current CUDA device, ``"cuda"`` and ``torch.device("cuda")`` mean the CPU, whose memory is never pinned."""
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment, return-value]
    # ``with torch.device(...)`` acts on functions that torch lists on first use. It must list the original ones.
    _device_constructors()
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))


def _on_cpu(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(factory)
    def call(*args: Any, **kwargs: Any) -> Tensor:
        if str(kwargs.get("device")) == "cuda":
            kwargs["device"] = "cpu"
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return call


class _NoStream(contextlib.AbstractContextManager[Any]):
    """Replaces streams, events and their context managers: work on a CPU is already in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., _NoStream]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self

    def __exit__(self, *exc_info: object) -> None:
        pass


def _patch_streams() -> None:
    """Streams and events have no effect; the MoE token dispatcher and DDP only pass them around."""
    stream = _NoStream()
    for name in ("Stream", "Event"):
        setattr(torch.cuda, name, _NoStream)
    for name in ("current_stream", "default_stream", "stream"):
        setattr(torch.cuda, name, lambda *args, **kwargs: stream)
    for name in ("synchronize", "empty_cache"):
        setattr(torch.cuda, name, lambda *args, **kwargs: None)
    torch.cuda.is_current_stream_capturing = lambda: False


def _patch_rng_state() -> None:
    """Megatron-Core's tracker saves and restores the CPU generator in place of the CUDA one.

    Its warning that the CPU state changed inside a fork does not apply then and is dropped.
    """

    def get_state(*args: Any, **kwargs: Any) -> Tensor:
        return torch.get_rng_state()

    def set_state(new_state: Tensor, *args: Any, **kwargs: Any) -> None:
        torch.set_rng_state(new_state)

    def seed(number: int) -> None:  # not torch.manual_seed: that calls torch.cuda.manual_seed_all again
        torch.default_generator.manual_seed(number)

    for home in (torch.cuda, torch.cuda.random):
        for name, answer in (
            ("get_rng_state", get_state),
            ("set_rng_state", set_state),
            ("manual_seed", seed),
            ("manual_seed_all", seed),
        ):
            setattr(home, name, answer)
    megatron_random._get_cuda_rng_state = get_state
    megatron_random._set_cuda_rng_state = set_state
    megatron_random.logging.getLogger(megatron_random.__name__).addFilter(
        lambda record: "CPU RNG state changed" not in record.getMessage()
    )


def _patch_tensors() -> None:
    """``.cuda()`` is the identity, and ``Tensor.type()`` returns the CUDA name that the optimizers check for."""
    type_of = Tensor.type

    def type_(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = type_of(self, *args, **kwargs)
        return _CUDA_TYPE_NAMES.get(answer, answer) if isinstance(answer, str) else answer

    Tensor.type = type_  # type: ignore[method-assign, assignment]
    Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    # isinstance checks against these names at import time and in Float16Module.
    for name in _TYPES:
        setattr(torch.cuda, name, getattr(torch, name))


def _patch_all_to_all() -> None:
    """The token dispatcher keeps split sizes in CPU tensors, and ``all_to_all_single`` takes lists of int."""
    all_to_all_single = torch.distributed.all_to_all_single

    @functools.wraps(all_to_all_single)
    def call(output: Tensor, input: Tensor, *sizes: Any, **kwargs: Any) -> Any:
        return all_to_all_single(
            output, input, *map(_as_list, sizes), **{key: _as_list(value) for key, value in kwargs.items()}
        )

    torch.distributed.all_to_all_single = call


def _patch_unequal_parts() -> None:
    """gloo gathers and scatters parts of equal size; experts under tensor parallelism exchange parts of any size."""
    all_gather = torch.distributed.all_gather

    def exchange(parts: list[Tensor], sizes: list[int], group: Any) -> Tensor:
        """Send part i to rank i. Returns the received parts, of these ``sizes``, concatenated."""
        received = parts[0].new_empty((sum(sizes), *parts[0].shape[1:]))
        sent = torch.cat(parts)
        torch.distributed.all_to_all_single(received, sent, sizes, [len(part) for part in parts], group=group)
        return received

    @functools.wraps(all_gather)
    def gather(outputs: list[Tensor], input: Tensor, group: Any = None, async_op: bool = False) -> Any:
        sizes = [len(output) for output in outputs]
        if len(set(sizes)) == 1:
            return all_gather(outputs, input, group=group, async_op=async_op)
        assert not async_op
        for output, part in zip(outputs, exchange([input] * len(outputs), sizes, group).split(sizes), strict=True):
            output.copy_(part)
        return None

    def reduce_scatter(output: Tensor, inputs: list[Tensor], group: Any = None) -> None:
        received = exchange(inputs, [len(output)] * len(inputs), group)
        output.copy_(received.view(len(inputs), *output.shape).sum(0))

    torch.distributed.all_gather = gather  # type: ignore[assignment]
    torch.distributed.reduce_scatter = reduce_scatter  # type: ignore[assignment]


def _as_list(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value


class _Gloo(dist.ProcessGroupGloo):
    """A group of processes that shares its network device with all other groups of this process."""

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [_gloo_device(os.getpid())]
        options._timeout = timeout
        super().__init__(store, rank, size, options)


@functools.cache
def _gloo_device(process_id: int) -> Any:
    """The device of this process. One that was made before a fork has no thread in the child."""
    return dist.ProcessGroupGloo.create_default_device()


def _patch_gloo() -> None:
    """All groups share one network device.

    A device has a thread that wakes up every 10 ms. Megatron-Core creates about twenty groups per process, and with a
    device for each, their threads took up to half of a core.
    """
    distributed_c10d.ProcessGroupGloo = _Gloo  # type: ignore[misc]

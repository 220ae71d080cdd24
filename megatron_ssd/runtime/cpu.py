"""Megatron-Core on a machine without CUDA: everything that has to give way stands here and nowhere else.

Megatron-Core asks ``torch.cuda`` for its device, its streams and its random state. ``install`` answers for it with the
CPU. It runs once, before any Megatron object is made, only where ``cluster.device`` is cpu, and it refuses to run where
CUDA is visible: on a GPU nothing of Megatron-Core or torch is touched. The same answers serve 0.16.1 and 0.19.2 (what
else differs between them stands in ``runtime.versions``); what a release no longer asks for stays unused.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._device import _device_constructors

from megatron_ssd.runtime import cpu_rotary

# Factory functions that Megatron-Core calls with a literal device="cuda".
_FACTORIES = ("arange", "empty", "empty_like", "full", "ones", "tensor", "zeros")
_CUDA_TYPE_NAMES = {
    "torch.FloatTensor": "torch.cuda.FloatTensor",
    "torch.BFloat16Tensor": "torch.cuda.BFloat16Tensor",
    "torch.HalfTensor": "torch.cuda.HalfTensor",
}

_installed = False


def install() -> None:
    """Make Megatron-Core run on the CPU. Calling it again does nothing.

    Must not be called where CUDA is visible (asserted): the adaptation is never active there.
    """
    global _installed
    assert not torch.cuda.is_available(), "the CPU adaptation is for machines without CUDA"
    if _installed:
        return
    _installed = True
    _quiet_imports()
    _answer_for_the_device()
    _answer_for_streams()
    _answer_for_the_random_state()
    _answer_for_tensors()
    _mend_mixture_of_experts()
    _mend_all_to_all()
    _mend_unequal_parts()
    cpu_rotary.install()


def _quiet_imports() -> None:
    """Import what warns that TransformerEngine and apex, which are CUDA libraries, are absent."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(Transformer Engine|Apex)", category=UserWarning)
        import megatron.core.models.gpt.gpt_layer_specs
        import megatron.core.optimizer  # noqa: F401


def _answer_for_the_device() -> None:
    """``device=torch.cuda.current_device()`` and ``device="cuda"`` mean the CPU, whose memory is never pinned."""
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment, return-value]
    # ``with torch.device(...)`` acts on functions that torch lists once, on first use: it must list the real ones.
    _device_constructors()
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))


def _on_cpu(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(factory)
    def call(*args: Any, **kwargs: Any) -> Tensor:
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return call


class _NoStream(contextlib.AbstractContextManager[Any]):
    """Stands in for streams, events and their context managers: work on a CPU is already in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., _NoStream]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self

    def __exit__(self, *exc_info: object) -> None:
        pass


def _answer_for_streams() -> None:
    """Streams and events order nothing here; the MoE token dispatcher and DDP only pass them about."""
    stream = _NoStream()
    for name in ("Stream", "Event"):
        setattr(torch.cuda, name, _NoStream)
    for name in ("current_stream", "default_stream", "stream"):
        setattr(torch.cuda, name, lambda *args, **kwargs: stream)
    for name in ("synchronize", "empty_cache"):
        setattr(torch.cuda, name, lambda *args, **kwargs: None)
    torch.cuda.is_current_stream_capturing = lambda: False


def _answer_for_the_random_state() -> None:
    """Megatron-Core's tracker saves and restores the CUDA generator: here that is the CPU's.

    Its warning that the CPU state changed inside a fork is therefore wrong here, and goes.
    """
    from megatron.core.tensor_parallel import random as megatron_random

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


def _answer_for_tensors() -> None:
    """``.cuda()`` is the identity, and ``Tensor.type()`` gives the CUDA name that the optimizers check for."""
    type_of = Tensor.type

    def type_(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = type_of(self, *args, **kwargs)
        return _CUDA_TYPE_NAMES.get(answer, answer) if isinstance(answer, str) else answer

    Tensor.type = type_  # type: ignore[method-assign, assignment]
    Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    # isinstance checks against these names at import time and in Float16Module.
    for name in ("FloatTensor", "HalfTensor", "BFloat16Tensor"):
        setattr(torch.cuda, name, getattr(torch, name))


def _mend_mixture_of_experts() -> None:
    """The router reads ``te_general_gemm``, which 0.16 leaves undefined where TransformerEngine is absent."""
    from megatron.core.transformer.moe import moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None


def _mend_all_to_all() -> None:
    """The token dispatcher keeps split sizes in tensors on the CPU; ``all_to_all_single`` takes lists of int."""
    all_to_all_single = torch.distributed.all_to_all_single

    @functools.wraps(all_to_all_single)
    def call(output: Tensor, input: Tensor, *sizes: Any, **kwargs: Any) -> Any:
        return all_to_all_single(
            output, input, *map(_as_list, sizes), **{key: _as_list(value) for key, value in kwargs.items()}
        )

    torch.distributed.all_to_all_single = call


def _mend_unequal_parts() -> None:
    """gloo gathers and scatters parts of one size; experts that are split themselves exchange parts of any size."""
    all_gather = torch.distributed.all_gather

    def exchange(parts: list[Tensor], sizes: list[int], group: Any) -> Tensor:
        """Part i to rank i; ``sizes`` of what comes back, one after the other."""
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

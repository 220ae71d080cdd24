"""Tests what is answered in place of CUDA while layers are built on the meta device."""

import pytest
import torch

from megatron_ssd.runtime.meta import on_meta
from tests.helpers.devices import without_gpu


@without_gpu
def test_cuda_seems_to_be_there_only_inside() -> None:
    before = dict(vars(torch.cuda))
    with on_meta():
        assert torch.cuda.is_available()
        assert torch.zeros(2).is_meta
        assert torch.zeros(2, device=torch.cuda.current_device()).is_meta
    assert vars(torch.cuda) == before
    assert not torch.zeros(2).is_meta


def test_nothing_is_left_answered_after_an_error() -> None:
    before = dict(vars(torch.cuda))
    with pytest.raises(RuntimeError, match="shape"), on_meta():
        torch.zeros(2).view(3)
    assert vars(torch.cuda) == before


def test_with_a_gpu_only_the_current_device_has_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = dict(vars(torch.cuda))
    with on_meta():
        assert {name for name, value in vars(torch.cuda).items() if before.get(name) is not value} == {"current_device"}
    assert vars(torch.cuda) == before

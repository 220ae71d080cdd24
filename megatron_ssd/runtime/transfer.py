"""Copies tensors from the host to the device of training."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_ssd.config.cluster import Device


def to_device(tensor: Tensor, device: Device | torch.device | str) -> Tensor:
    """``tensor`` on ``device``. A copy to a GPU starts from pinned memory, so that the host does not wait for it."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)

"""Random state of a training process."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_process(seed: int) -> None:
    """Seed Python, numpy, torch and Megatron-Core's tracker.

    Needs initialised process groups: Megatron-Core gives each tensor-parallel and expert-parallel rank a state of its
    own inside its tracker, and data-parallel replicas the same one.
    """
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed, force_reset_rng=True)

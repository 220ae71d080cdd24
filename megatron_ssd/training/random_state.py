"""The random states of a process, to keep in a checkpoint.

No part of training draws random numbers today (weights come from streams of their own, data order from the seed and the
epoch, no layer drops anything); they are kept so that a layer which does would resume where it was.
"""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker


def random_state() -> bytes:
    """Python's, numpy's, torch's and Megatron-Core's tracker's, of this process."""
    return pickle.dumps(
        {
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(),
            "tracker": get_cuda_rng_tracker().get_states(),
        }
    )


def set_random_state(saved: bytes) -> None:
    """Go on from what ``random_state`` returned, in a process of the same rank and layout."""
    state: dict[str, Any] = pickle.loads(saved)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.cuda.set_rng_state(state["cuda"])
    torch.set_rng_state(state["torch"])
    get_cuda_rng_tracker().set_states(state["tracker"])

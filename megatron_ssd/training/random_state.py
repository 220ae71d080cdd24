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
    """Python's, numpy's, torch's and Megatron-Core's tracker's, of this process.

    As arrays: Megatron-Core 0.19 has torch pickle tensors in a way that 0.16 cannot read.
    """
    return pickle.dumps(
        {
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "torch": torch.get_rng_state().numpy(),
            "cuda": torch.cuda.get_rng_state().numpy(),
            "tracker": {name: state.numpy() for name, state in get_cuda_rng_tracker().get_states().items()},
        }
    )


def set_random_state(saved: bytes) -> None:
    """Go on from what ``random_state`` returned, in a process of the same rank and layout."""
    state: dict[str, Any] = pickle.loads(saved)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.cuda.set_rng_state(torch.from_numpy(state["cuda"]))
    torch.set_rng_state(torch.from_numpy(state["torch"]))
    get_cuda_rng_tracker().set_states({name: torch.from_numpy(each) for name, each in state["tracker"].items()})

"""Computes the logits of a Hugging Face folder with transformers, in fp32 on the CPU.

    python -m megatron_ssd.export.reference FOLDER TOKENS.npy LOGITS.npy

It runs in a separate process, without Megatron-Core and without this project's patches, so that the logits are those
that a user of the folder gets.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM


def reference_logits(folder: Path, tokens_BS: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits [B, S, V] of ``tokens_BS``."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits_BSV: NDArray[np.float32] = model(torch.from_numpy(tokens_BS)).logits.numpy()
    return logits_BSV


if __name__ == "__main__":
    folder_name, tokens_name, logits_name = sys.argv[1:]
    np.save(logits_name, reference_logits(Path(folder_name), np.load(tokens_name)))

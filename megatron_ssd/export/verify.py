"""Compares the logits of the exported folder with those of the trained model.

Both run in fp32 on the same tokens: Megatron-Core in this process, transformers in another one on the exported files.
In fp32 they differ by rounding only, so the tolerance is tight. The comparison needs the model twice in memory in fp32.
For models above ``MAX_PARAMETERS`` it is skipped with a log line. At any size the files are read back and compared bit
by bit (``StateDictAdapter.check_folder``).
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_ssd.config.cluster import Device
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.errors import UserError
from megatron_ssd.export.state_dict_adapter import StateDictAdapter
from megatron_ssd.models.build import build_model
from megatron_ssd.process import run_child
from megatron_ssd.runtime.process_groups import process_groups

log = logging.getLogger(__name__)

MAX_PARAMETERS = 500_000_000
# Relative to the largest logit. Measured on tiny models of every family: below 2e-6.
RELATIVE_TOLERANCE = 1e-4
_BATCH, _LENGTH = 2, 64


def compare_logits(folder: Path, adapter: StateDictAdapter, *, device: Device) -> dict[str, Any]:
    """Facts for the manifest: the largest difference, the largest logit, and how many tokens were compared.

    Args:
        folder: the exported folder.
        adapter: the checkpoint that it was exported from.
        device: device of Megatron-Core; transformers runs on the CPU.

    Raises:
        UserError: they differ by more than rounding, or transformers cannot load the folder.
    """
    model = adapter.model
    parameters = model.num_parameters()
    if parameters > MAX_PARAMETERS:
        log.info("export: logits not compared: %d parameters, over the limit of %d", parameters, MAX_PARAMETERS)
        return {"tokens_compared": 0}
    generator = np.random.default_rng(0)
    length = min(_LENGTH, model.longest_sequence)
    tokens_BS = generator.integers(model.vocab_size, size=(_BATCH, length))
    ours_BSV = _megatron_logits(adapter, tokens_BS, device=device)
    theirs_BSV = _transformers_logits(folder, tokens_BS)
    difference, largest = float(np.abs(ours_BSV - theirs_BSV).max()), float(np.abs(theirs_BSV).max())
    log.info("export: logits differ by at most %.2e (largest logit %.2f)", difference, largest)
    if not difference <= RELATIVE_TOLERANCE * largest:  # fails for NaN too
        raise UserError(
            f"folder {folder}",
            rule=f"its logits differ from the trained model's by {difference:.2e} (largest logit {largest:.2f})",
            fix="report it with the model's config.json: the parameter mappings or the model's layers are wrong for it",
        )
    return {"tokens_compared": tokens_BS.size, "max_logit_difference": difference, "largest_logit": largest}


def _megatron_logits(adapter: StateDictAdapter, tokens_BS: NDArray[np.int64], *, device: Device) -> NDArray[np.float32]:
    """Logits [B, S, V] of the checkpoint's weights in fp32, as they are exported."""
    precision = PrecisionConfig(params_dtype="fp32", transformer_engine=False)
    tokens = torch.from_numpy(tokens_BS).to(device)
    with process_groups(ParallelConfig(), device=device), torch.no_grad():
        (exact,) = build_model(adapter.model, ParallelConfig(), precision, device=device, seed=None)
        adapter.load_into(exact)
        positions_BS = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
        logits_BSV: NDArray[np.float32] = exact.eval()(tokens, positions_BS, None).float().cpu().numpy()
    return logits_BSV


def _transformers_logits(folder: Path, tokens_BS: NDArray[np.int64]) -> NDArray[np.float32]:
    with tempfile.TemporaryDirectory() as scratch:
        tokens_path, logits_path = Path(scratch) / "tokens.npy", Path(scratch) / "logits.npy"
        np.save(tokens_path, tokens_BS)
        command = [sys.executable, "-m", "megatron_ssd.export.reference", folder, tokens_path, logits_path]
        if run_child([str(part) for part in command]) != 0:
            raise UserError(
                f"folder {folder}",
                rule="transformers cannot run it (its message is above)",
                fix="check that transformers supports the model and that there is enough memory",
            )
        logits_BSV: NDArray[np.float32] = np.load(logits_path)
    return logits_BSV

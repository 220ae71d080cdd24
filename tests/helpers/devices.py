"""The devices that tests need, and the one that tests/gpu runs on."""

from __future__ import annotations

import os

import pytest
import torch

from megatron_ssd.config.cluster import Device

NEEDS_NO_GPU = "tests a machine without a GPU: run it on one, or with an empty CUDA_VISIBLE_DEVICES"
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason=NEEDS_NO_GPU)
# A CPU rehearses the tests of GPUs: those that need no CUDA library run, the others are skipped.
GPU_TESTS_ON: Device = "cpu" if os.environ.get("MEGATRON_SSD_GPU_TESTS_ON") == "cpu" else "cuda"

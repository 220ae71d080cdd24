"""Marks of tests that depend on the devices of the machine."""

from __future__ import annotations

import pytest
import torch

NEEDS_NO_GPU = "tests a machine without a GPU: run it on one, or with an empty CUDA_VISIBLE_DEVICES"
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason=NEEDS_NO_GPU)

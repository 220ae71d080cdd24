"""Marks all tests here as gpu, and skips them if there is no CUDA device."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from tests.helpers.training_run import write_dataset

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and none is visible to torch"))


@pytest.fixture
def transformer_engine() -> None:
    """Skip if TransformerEngine is not installed."""
    if importlib.util.find_spec("transformer_engine") is None:
        pytest.skip("needs TransformerEngine, which is not installed")


@pytest.fixture(scope="session")
def progressions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the data set of the CPU suite's parity cases."""
    root = tmp_path_factory.mktemp("progressions")
    write_dataset(root)
    return root

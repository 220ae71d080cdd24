"""Marks all tests here as gpu, and skips them without a CUDA device, unless a CPU rehearses them."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers.devices import GPU_TESTS_ON
from tests.helpers.preloaded import fresh_interpreters
from tests.helpers.training_run import write_dataset

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if GPU_TESTS_ON == "cuda" and not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and none is visible to torch"))


@pytest.fixture
def transformer_engine() -> None:
    """Skip if TransformerEngine's layers cannot run."""
    if GPU_TESTS_ON == "cpu" or importlib.util.find_spec("transformer_engine") is None:
        pytest.skip("needs TransformerEngine and CUDA")


@pytest.fixture(autouse=True)
def _no_forks_with_cuda() -> Iterator[None]:
    """A fork cannot use CUDA if a library has started it in the process that was forked."""
    with fresh_interpreters() if GPU_TESTS_ON == "cuda" else contextlib.nullcontext():
        yield


@pytest.fixture(scope="session")
def progressions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the data set of the CPU suite's parity cases."""
    root = tmp_path_factory.mktemp("progressions")
    write_dataset(root)
    return root

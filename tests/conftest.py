"""Fixtures used by the tests of several packages."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import random
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from megatron_ssd.config.problems import MinicodeConfig
from megatron_ssd.nvidia_smi import visible_gpus
from megatron_ssd.problems.minicode.documents import corpus
from megatron_ssd.problems.minicode.tokenizer import save_tokenizer, train_tokenizer
from tests.helpers import preloaded

VOCAB_SIZE = 512
TOGETHER = ("tests/distributed", "tests/e2e")
# Of the shapes that tests.helpers.tiny_hf draws; set here, so that all processes of a test run draw the same.
SEED = os.environ.setdefault("MEGATRON_SSD_TEST_SEED", str(random.randrange(2**32)))

# Nothing is timed in tests, since the machine may be busy.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage while test modules are imported: what they import stays, and looking at it takes seconds."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes after their argument: two processes must give one name, and compressed bytes contain the time."""
    return argname if isinstance(val, bytes) else None


def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Fork the processes that run tests from one that has imported the libraries, instead of importing in each.

    Not with a GPU: a fork cannot use CUDA if a library has started it before.
    """
    if visible_gpus():
        return
    started = contextlib.ExitStack()
    started.enter_context(preloaded.forks())
    config.add_cleanup(started.close)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run tests that share an expensive fixture in the same process: a file, or a folder of ``TOGETHER``."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFixture(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.split("::")[0]
            return next((folder for folder in TOGETHER if path.startswith(f"{folder}/")), path)

    return ByFixture(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how to draw the same shapes again if a test failed."""
    if terminalreporter.stats.get("failed") or terminalreporter.stats.get("error"):
        terminalreporter.write_line(f"model shapes were drawn with MEGATRON_SSD_TEST_SEED={SEED}")


@pytest.fixture(scope="session", autouse=True)
def _forks() -> Iterator[None]:
    """Imports take a quarter of the suite's time, so scripts run as forks of a process that has done them."""
    with preloaded.forks():
        yield


@pytest.fixture
def fresh_interpreters() -> Iterator[None]:
    """Start fresh interpreters in this test."""
    with preloaded.fresh_interpreters():
        yield


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a SentencePiece tokenizer of 512 pieces and a chat template."""
    folder = tmp_path_factory.mktemp("tokenizer")
    documents = itertools.islice(corpus(MinicodeConfig(num_documents=200)), 200)
    save_tokenizer(train_tokenizer(documents, VOCAB_SIZE), folder, max_length=256)
    return folder


@pytest.fixture(scope="session")
def tiny_hf_model(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: a random Qwen3 of two small layers, context 256, with ``tiny_tokenizer``. Read only."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("model")
    end = AutoTokenizer.from_pretrained(tiny_tokenizer).eos_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=VOCAB_SIZE,
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=32,
                intermediate_size=128,
                max_position_embeddings=256,
                tie_word_embeddings=True,
                eos_token_id=end,
                bos_token_id=None,
                pad_token_id=end,
            )
        )
    model.generation_config.eos_token_id = [end]
    model.save_pretrained(folder)
    for file in tiny_tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [end]
    return folder

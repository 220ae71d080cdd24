"""Tests that a padded vocabulary changes neither loss nor gradients."""

from collections.abc import Iterator

import pytest
import torch
from megatron.core import parallel_state

from megatron_ssd.config.cluster import ClusterConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.models import build
from megatron_ssd.models.build import build_model
from megatron_ssd.models.vocabulary import num_local_tokens, padded_vocab_size
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import process_groups
from tests.helpers.tiny_hf import MODELS

ONE = ParallelConfig()
EXACT = PrecisionConfig(params_dtype="fp32", transformer_engine=False)
TOKENS_BS = torch.randint(63, (2, 32), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def one_process() -> Iterator[None]:
    with process_groups(ONE, device=prepare_device(ClusterConfig(device="cpu"))):
        yield


@pytest.mark.parametrize(("parts", "padded"), [(1, 63), (2, 64), (4, 64), (8, 64), (16, 64), (10, 70)])
def test_padded_size_is_the_next_multiple(parts: int, padded: int) -> None:
    parallel = ParallelConfig(world_size=parts, tensor_model_parallel_size=parts)
    assert padded_vocab_size(MODELS["qwen3_odd"], parallel) == padded


def test_each_token_is_on_exactly_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for rank in range(10):
        monkeypatch.setattr(parallel_state, "get_tensor_model_parallel_rank", lambda rank=rank: rank)
        counts.append(num_local_tokens(7, 43))
    assert counts == [7, 7, 7, 7, 7, 7, 1, 0, 0, 0]  # the last three ranks have only padding


@pytest.mark.parametrize("name", ["qwen3_odd", "qwen3_odd_tied"])
def test_padding_changes_neither_loss_nor_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS[name]
    (plain,) = build_model(model, ONE, EXACT, device="cpu", seed=1)
    monkeypatch.setattr(build, "padded_vocab_size", lambda *_: 80)
    (padded,) = build_model(model, ONE, EXACT, device="cpu", seed=1)
    positions_BS = torch.arange(32).expand_as(TOKENS_BS)
    losses = []
    for chunk in (plain, padded):
        loss_BS = chunk(TOKENS_BS, positions_BS, None, labels=TOKENS_BS.roll(-1, dims=1))
        loss_BS.sum().backward()
        losses.append(loss_BS.detach())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0.0)
    for (key, ours), theirs in zip(padded.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours[: len(theirs)], theirs), key  # the same initial weights
        torch.testing.assert_close(ours.grad[: len(theirs)], theirs.grad, rtol=1e-4, atol=2e-6)
        assert not ours[len(theirs) :].any()
        assert not ours.grad[len(theirs) :].any()

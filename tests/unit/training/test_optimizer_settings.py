"""Tests the optimizer's configuration, and where its number of updates is restored."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import Fp8Config, Fp8Recipe, PrecisionConfig
from megatron_ssd.config.training import OptimizerConfig
from megatron_ssd.models.transformer_config import transformer_config
from megatron_ssd.training.optimizer import megatron_config
from megatron_ssd.training.optimizer_state import set_updates
from tests.helpers.kernel_names import define_kernels
from tests.helpers.training_run import DENSE

ONE = ParallelConfig()


class OtherAdam(torch.optim.Optimizer):
    """An Adam that is not PyTorch's, such as TransformerEngine's."""

    def __init__(self) -> None:
        super().__init__([torch.zeros(1)], {})


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise", "mxfp8"])
def test_fp8_does_not_change_the_optimizer(recipe: Fp8Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    define_kernels(monkeypatch)
    configs = [
        megatron_config(OptimizerConfig(), ONE, transformer_config(DENSE, ONE, PrecisionConfig(fp8=fp8)))
        for fp8 in (None, Fp8Config(recipe=recipe))
    ]
    # With a recipe, Megatron-Core would keep fp32 copies of the weights in full, as for weights in FP8.
    assert configs[0] == configs[1]
    assert configs[1].fp8_recipe is None


def test_the_number_of_updates_is_written_where_each_adam_reads_it() -> None:
    for adam, has_common_step in ((torch.optim.AdamW([torch.zeros(1)]), True), (OtherAdam(), False)):
        state: dict[str, Any] = {"optimizer": {"param_groups": [{}, {}], "state": {0: {"exp_avg": torch.zeros(1)}}}}
        set_updates(state, adam, 7)
        assert [group["step"] for group in state["optimizer"]["param_groups"]] == [7, 7]
        assert ("common_step" in state["optimizer"]["state"]) == has_common_step

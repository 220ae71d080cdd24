"""Tests which variables are set for CUDA and torch's allocator."""

import pytest

from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.runtime.environment import chosen_variables

ONE = ParallelConfig()
CONTEXT = ParallelConfig(world_size=2, context_parallel_size=2)
TENSOR = ParallelConfig(world_size=2, tensor_model_parallel_size=2)
PIPELINE = ParallelConfig(world_size=2, pipeline_model_parallel_size=2)
HOPPER, BLACKWELL = (9, 0), (10, 0)


@pytest.mark.parametrize(
    ("parallel", "capability", "connections"),
    [
        (ONE, HOPPER, None),
        (PIPELINE, HOPPER, None),
        (CONTEXT, HOPPER, "1"),
        (TENSOR, HOPPER, "1"),
        (TENSOR, None, "1"),
        (ONE, BLACKWELL, "32"),
        (TENSOR, (10, 3), "32"),
        (CONTEXT, (12, 0), "32"),
    ],
)
def test_hardware_queues_follow_layout_and_device(
    parallel: ParallelConfig, capability: tuple[int, int] | None, connections: str | None
) -> None:
    assert chosen_variables(parallel, capability, {}).get("CUDA_DEVICE_MAX_CONNECTIONS") == connections


def test_the_allocator_grows_its_segments_unless_the_user_says_otherwise() -> None:
    assert chosen_variables(ONE, HOPPER, {}) == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        assert chosen_variables(ONE, HOPPER, {name: "max_split_size_mb:512"}) == {}


def test_a_number_of_queues_that_the_user_set_stays() -> None:
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in chosen_variables(TENSOR, HOPPER, {"CUDA_DEVICE_MAX_CONNECTIONS": "8"})

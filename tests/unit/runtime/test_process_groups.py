"""Tests for the process groups of a run."""

import socket
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.errors import UserError
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import (
    fake_process_group,
    joined_processes,
    on_rank_zero,
    process_groups,
)
from tests.helpers.training_run import CPU


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove torchrun's environment variables."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    prepare_device(CPU)


def test_one_process_needs_no_torchrun_and_destroys_its_groups() -> None:
    with process_groups(ParallelConfig(), device="cpu"):
        assert dist.get_world_size() == 1
        assert on_rank_zero(lambda: "here") == "here"
    assert not dist.is_initialized()


def test_all_groups_share_one_thread_that_polls_the_network() -> None:
    with process_groups(ParallelConfig(), device="cpu"):
        names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert names.count("gloo_tcp_loop") == 1


def test_a_user_error_on_rank_zero_is_raised_on_all_ranks() -> None:
    def refuse() -> None:
        raise UserError("key = 1", rule="must be 2", fix="use 2")

    with process_groups(ParallelConfig(), device="cpu"), pytest.raises(UserError, match="key = 1: must be 2; use 2"):
        on_rank_zero(refuse)


def test_groups_are_destroyed_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), process_groups(ParallelConfig(), device="cpu"):
        raise ZeroDivisionError
    assert not dist.is_initialized()


def test_a_wrong_number_of_processes_is_an_error_with_the_command() -> None:
    layout = ParallelConfig(world_size=8, tensor_model_parallel_size=2)
    with (
        pytest.raises(UserError, match=r"needs 8 processes and 1 was started.*--nproc-per-node=8"),
        process_groups(layout, device="cpu"),
    ):
        pass


def test_a_port_in_use_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", port)):
            monkeypatch.setenv(name, value)
        with (
            pytest.raises(UserError, match=f"MASTER_PORT = {port}: another program.*--master-port"),
            joined_processes("cpu"),
        ):
            pass


def test_a_fake_process_group_has_the_given_rank() -> None:
    from megatron.core import parallel_state

    with fake_process_group(ParallelConfig(world_size=8, tensor_model_parallel_size=2), rank=5):
        assert dist.get_rank() == 5
        assert parallel_state.get_tensor_model_parallel_rank() == 1
        assert parallel_state.get_data_parallel_rank() == 2
    assert not dist.is_initialized()

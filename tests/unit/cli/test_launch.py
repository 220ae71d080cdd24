"""Tests which command a single process becomes, and what is missing on a machine with too few GPUs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import torch

from megatron_ssd.cli import launch
from megatron_ssd.cli.compose import compose_config
from megatron_ssd.cli.launch import check_gpu_count, start_ranks_if_alone
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from megatron_ssd.nvidia_smi import VisibleGpu
from tests.helpers.devices import without_gpu

CPU = ["model=tiny", "cluster=cpu", "precision=cpu"]


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[list[str], dict[str, str]]]]:
    """Command and environment of each process that this one would have become.

    Signals are blocked before a process is replaced, and these tests go on in the same one.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    calls: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda path, command, environment: calls.append((command, environment)))
    yield calls
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@without_gpu
@pytest.mark.parametrize("under_torchrun", [False, True])
def test_one_process_becomes_the_launcher_of_the_layout(
    monkeypatch: pytest.MonkeyPatch, replaced: list[tuple[list[str], dict[str, str]]], under_torchrun: bool
) -> None:
    if under_torchrun:
        for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "x"}.items():
            monkeypatch.setenv(name, value)
    arguments = ["launch/train.py", "--traceback", *CPU, "parallel=dp2"]
    monkeypatch.setattr("sys.argv", arguments)
    start_ranks_if_alone(compose_config([*CPU, "parallel=dp2"]))
    ((command, environment),) = replaced
    assert command[-len(arguments) - 2 :] == ["--standalone", "--nproc-per-node=2", *arguments]
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"} & environment.keys()


@pytest.mark.parametrize(("layout", "started"), [("single", None), ("dp2", "2"), ("dp2", "4")])
def test_a_rank_and_a_layout_of_one_process_start_nothing(
    monkeypatch: pytest.MonkeyPatch, replaced: list[object], layout: str, started: str | None
) -> None:
    if started:
        monkeypatch.setenv("WORLD_SIZE", started)
    start_ranks_if_alone(compose_config([*CPU, f"parallel={layout}"]))
    assert replaced == []


def refusal(monkeypatch: pytest.MonkeyPatch, config: RunConfig, *, gpus: int, gigabytes: float) -> str:
    found = [VisibleGpu(memory_bytes=gigabytes * 1e9, capability=(9, 0))] * gpus
    monkeypatch.setattr(launch, "visible_gpus", lambda: found)
    with pytest.raises(UserError) as error:
        check_gpu_count(config, gpus)
    return str(error.value)


def test_too_few_gpus_are_one_line_with_a_layout_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    small = compose_config(["model=qwen3_0.6b", "parallel=tp2_dp4"])
    message = refusal(monkeypatch, small, gpus=2, gigabytes=80)
    missing, _, fix = message.partition("; use ")
    assert missing == "parallel.world_size = 8 (TP2 CP1 EP1 PP1 DP4): needs 8 GPUs and this machine has 2"
    assert "launch/slurm/train.sbatch" in fix
    assert "\n" not in message
    overrides = [word for word in fix.split() if word.startswith(("parallel.", "precision."))]
    assert compose_config(["model=qwen3_0.6b", "parallel=tp2_dp4", *overrides]).parallel.world_size == 2


def test_no_layout_is_named_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, compose_config(["model=qwen3_30b"]), gpus=2, gigabytes=80)
    assert message.endswith("needs 8 GPUs and this machine has 2; take more nodes with launch/slurm/train.sbatch, or "
                            "take an experiment for these GPUs (docs/guides/recipes.md)")  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "gigabytes", "warned"),
    [
        (["model=qwen3_30b", "precision=bf16"], 80, "take an experiment for such GPUs"),
        (["model=qwen3_4b", "parallel=dp2"], 80, "precision.recompute=full"),
        (["experiment=h100_64k"], 80, ""),
        (["experiment=b200_64k"], 180, ""),
    ],
)
def test_a_layout_that_will_not_fit_is_a_warning(
    arguments: list[str], gigabytes: int, warned: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpus = [VisibleGpu(memory_bytes=gigabytes * 1e9, capability=(9, 0))] * 8
    monkeypatch.setattr(launch, "visible_gpus", lambda: gpus)
    launch.warn_about_memory(compose_config(arguments), gpus)
    assert len(caplog.records) == bool(warned)
    assert warned in caplog.text


@pytest.mark.parametrize("found", [8, 9])
def test_enough_gpus_are_accepted(found: int) -> None:
    check_gpu_count(compose_config(["model=qwen3_30b"]), found)


def test_a_machine_without_a_gpu_says_so(replaced: list[object]) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is visible")
    with pytest.raises(UserError, match=r"cluster\.device = cuda: needs an NVIDIA GPU"):
        start_ranks_if_alone(compose_config(["model=qwen3_30b"]))
    assert replaced == []

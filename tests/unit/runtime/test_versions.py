"""Tests for the differences between releases of Megatron-Core, with the installed one."""

import importlib.metadata
import importlib.util
import inspect
import logging
import warnings
from pathlib import Path

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject

from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.runtime import versions
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import process_groups
from tests.helpers.devices import without_gpu
from tests.helpers.training_run import CPU

RELEASE = tuple(map(int, importlib.metadata.version("megatron-core").split(".")[:2]))


@pytest.mark.parametrize(("logger", "start"), versions._MESSAGES.items())
def test_only_developer_messages_are_dropped(caplog, logger, start):
    versions.quiet_megatron()
    log = logging.getLogger(f"megatron.core.{logger}")
    with caplog.at_level(logging.WARNING, logger=log.name):
        log.warning("%s and more", start)
        log.warning("something else")
    assert caplog.messages == ["something else"]


@pytest.mark.parametrize(("logger", "start"), versions._MESSAGES.items())
def test_only_newer_releases_log_the_message(logger, start):
    spec = importlib.util.find_spec(f"megatron.core.{logger}")
    assert spec
    assert spec.origin
    assert (start in Path(spec.origin).read_text(encoding="utf-8")) == (RELEASE >= (0, 19))


def test_quieting_twice_has_no_further_effect():
    log = logging.getLogger(f"megatron.core.{next(iter(versions._MESSAGES))}")
    with warnings.catch_warnings():
        versions.quiet_megatron()
        before = list(log.filters)
        versions.quiet_megatron()
    assert log.filters == before


def test_this_release_accepts_the_save_options():
    options = versions.save_options()
    assert options.keys() <= inspect.signature(dist_checkpointing.save).parameters.keys()
    assert options == ({"async_strategy": "mcore"} if RELEASE >= (0, 19) else {})


@without_gpu
def test_checkpoints_of_both_releases_load(tmp_path):
    common = {"lr": 0.5, "step": torch.tensor(3)}
    among = {"common_state": ShardedObject("common_state", common, (1,), (0,), replica_id=0)}
    rank = {"of rank": ShardedObject("of_rank", 7, (1,), (0,), replica_id=0)}
    old, new = tmp_path / "common_beside", tmp_path / "common_among_tensors"
    with process_groups(ParallelConfig(), device=prepare_device(CPU)):
        for folder in (old, new):
            folder.mkdir()
            given = among if folder == new and RELEASE < (0, 19) else common
            dist_checkpointing.save({**rank, **given}, str(folder), **versions.save_options())
        if RELEASE >= (0, 19):
            torch.save(common, old / "common.pt")
        else:
            (new / "common.pt").unlink()
        wanted = {"of rank": ShardedObject("of_rank", None, (1,), (0,), replica_id=0)}
        for folder in (old, new):
            assert dist_checkpointing.load(dict(wanted), str(folder), **versions.load_options(folder)) == {
                "of rank": 7, **common
            }  # fmt: skip

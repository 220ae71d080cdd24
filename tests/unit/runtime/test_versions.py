"""What is done for one release of Megatron-Core serves the one that is installed, whichever of the two that is."""

import importlib.metadata
import importlib.util
import inspect
import logging
import warnings
from pathlib import Path

import pytest
from megatron.core import dist_checkpointing

from megatron_ssd.runtime import versions

RELEASE = tuple(map(int, importlib.metadata.version("megatron-core").split(".")[:2]))


@pytest.mark.parametrize(("logger", "start"), versions._MESSAGES.items())
def test_a_message_to_developers_is_dropped_and_others_are_not(caplog, logger, start):
    versions.quiet_megatron()
    log = logging.getLogger(f"megatron.core.{logger}")
    with caplog.at_level(logging.WARNING, logger=log.name):
        log.warning("%s and more", start)
        log.warning("something else")
    assert caplog.messages == ["something else"]


@pytest.mark.parametrize(("logger", "start"), versions._MESSAGES.items())
def test_the_newer_release_says_it_there(logger, start):
    spec = importlib.util.find_spec(f"megatron.core.{logger}")
    assert spec
    assert spec.origin
    said = start in Path(spec.origin).read_text(encoding="utf-8")
    assert said == (RELEASE >= (0, 19))


def test_quieting_twice_adds_nothing():
    log = logging.getLogger(f"megatron.core.{next(iter(versions._MESSAGES))}")
    with warnings.catch_warnings():
        versions.quiet_megatron()
        before = list(log.filters)
        versions.quiet_megatron()
    assert log.filters == before


def test_save_options_are_what_this_release_takes():
    options = versions.save_options()
    assert options.keys() <= inspect.signature(dist_checkpointing.save).parameters.keys()
    assert options == ({"async_strategy": "mcore"} if RELEASE >= (0, 19) else {})

"""Tests that several workers share a run, also after some of them were killed."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from megatron_ssd.generation import stage
from megatron_ssd.generation.plan import request_seed
from tests.helpers.sampling_run import (
    NUM_SAMPLES,
    FakeSampler,
    elsewhere,
    generate,
    run_config,
    samples,
    worker,
)


@pytest.fixture(scope="module")
def alone(tiny_hf_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The shards of an uninterrupted run of a single worker."""
    config = run_config(tiny_hf_model, tmp_path_factory.mktemp("alone") / "run")
    generate(config)
    return shards(config)


def shards(config: RunConfig) -> dict[str, bytes]:
    """The published files except the manifest."""
    files = sorted((Path(config.run_dir) / "samples").iterdir())
    return {path.name: path.read_bytes() for path in files if path.name != "manifest.json"}


def test_the_last_worker_publishes_what_a_single_worker_would(
    config: RunConfig, alone: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = generate(worker(config, 0, 2))
    assert (
        f"worker 0 of 2 has finished its part; {NUM_SAMPLES - len(first.requests)} samples are still missing"
        in caplog.text
    )
    assert not (Path(config.run_dir) / "samples").exists()
    second = generate(worker(config, 1, 2))
    keys = [{request.key for request in sampler.requests} for sampler in (first, second)]
    assert [len(some) for some in keys] == [NUM_SAMPLES // 2] * 2
    assert not {problem for problem, _ in keys[0]} & {problem for problem, _ in keys[1]}
    assert shards(config) == alone
    assert not (Path(config.run_dir) / "samples.partial").exists()


def test_the_manifest_lists_the_workers_and_is_current_for_any_number_of_them(config: RunConfig) -> None:
    generate(worker(config, 1, 2))
    generate(worker(config, 0, 2))
    manifest = read_manifest(Path(config.run_dir) / "samples")
    assert set(manifest.facts["worker_seconds"]) == {"worker-0-of-2", "worker-1-of-2"}
    assert manifest.facts["tokens_per_second"] > 0
    assert manifest.counts["samples"] == NUM_SAMPLES
    assert stage.samples_stage(config).is_current()
    assert generate(worker(config, 2, 3)).requests == []


@dataclasses.dataclass(frozen=True)
class Group:
    """Workers of one group, started one after the other; each is stopped after some responses."""

    world: int
    stops: tuple[tuple[int, int], ...]  # rank, responses
    partial: int  # bytes of an incomplete record that a kill left at the end of a file


def groups() -> st.SearchStrategy[Group]:
    def of(world: int) -> st.SearchStrategy[Group]:
        stops = st.lists(st.tuples(st.integers(0, world - 1), st.integers(0, 25)), max_size=3)
        return st.builds(Group, world=st.just(world), stops=stops.map(tuple), partial=st.integers(0, 300))

    return st.integers(1, 5).flatmap(of)


@given(history=st.lists(groups(), max_size=3), world=st.integers(1, 7), order=st.randoms(use_true_random=False))
@settings(max_examples=10)
def test_any_interrupted_workers_together_make_a_complete_run(
    history: list[Group],
    world: int,
    order: random.Random,
    alone: dict[str, bytes],
    tiny_hf_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    config = run_config(tiny_hf_model, tmp_path_factory.mktemp("workers") / "run")
    requests = []
    for group in history:
        for rank, stop in group.stops:
            sampler = FakeSampler(stop_after=stop)
            with contextlib.suppress(KeyboardInterrupt):
                generate(worker(config, rank, group.world), sampler)
            requests += sampler.requests
        append_partial_record(config, group.partial, order)
    ranks = list(range(world))
    order.shuffle(ranks)
    for rank in ranks:
        requests += generate(worker(config, rank, world)).requests
    assert shards(config) == alone
    assert len({request.key for request in requests}) == len(requests) == NUM_SAMPLES
    assert all(one.seed == request_seed(5, *one.key) for one in samples(config))


def append_partial_record(config: RunConfig, size: int, order: random.Random) -> None:
    """Append the beginning of a record to a worker's file."""
    files = sorted((Path(config.run_dir) / "samples.partial").glob("worker-*.jsonl"))
    complete = [path for path in files if path.read_bytes().endswith(b"\n")]
    if complete:
        path = order.choice(complete)
        record = path.read_bytes().splitlines()[0]
        path.write_bytes(path.read_bytes() + record[: min(size, len(record) - 1)])


def test_other_workers_do_not_change_a_dead_workers_file(config: RunConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        generate(worker(config, 0, 2), FakeSampler(stop_after=5))
    (path,) = (Path(config.run_dir) / "samples.partial").glob("worker-*.jsonl")
    partial = path.read_bytes()[:-20]
    path.write_bytes(partial)
    generate(worker(config, 1, 2))
    assert path.read_bytes() == partial  # its worker might be alive on another machine
    again = generate(worker(config, 0, 2))
    assert len(again.requests) == NUM_SAMPLES // 2 - 4


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ((0, 2), r"worker\.rank = 0: worker 0 of 2 is already running in .*samples\.partial; "),
        ((1, 3), r"worker\.world = 3: worker 0 of 2 is running in .*; set worker\.world=2"),
        ((0, 1), r"worker\.world = 1: worker 0 of 2 is running"),
    ],
)
def test_the_same_worker_and_other_numbers_of_workers_are_refused_while_one_runs(
    config: RunConfig, alone: dict[str, bytes], other: tuple[int, int], message: str
) -> None:
    def meanwhile() -> None:
        with pytest.raises(UserError, match=message):
            generate(worker(config, *other))

    generate(worker(config, 0, 2), FakeSampler(meanwhile=meanwhile))
    generate(worker(config, 1, 2))
    assert shards(config) == alone


def test_another_worker_may_start_and_end_while_one_runs(config: RunConfig, alone: dict[str, bytes]) -> None:
    other = FakeSampler()
    meanwhile = FakeSampler(meanwhile=lambda: generate(worker(config, 1, 2), other))
    generate(worker(config, 0, 2), meanwhile)
    assert len(other.requests) + len(meanwhile.requests) == NUM_SAMPLES
    assert shards(config) == alone


@pytest.mark.parametrize("replace", [False, True])
def test_work_that_another_worker_uses_is_not_moved_aside(config: RunConfig, replace: bool) -> None:
    prompt = dataclasses.replace(config.prompt, system="Hi.")
    other = dataclasses.replace(worker(config, 1, 2), prompt=prompt, replace=replace)

    def meanwhile() -> None:
        with pytest.raises(UserError, match="another process is working on it"):
            generate(other)

    generate(worker(config, 0, 2), FakeSampler(meanwhile=meanwhile))
    generate(worker(config, 1, 2))
    assert len(samples(config)) == NUM_SAMPLES


def test_a_worker_succeeds_if_another_one_published_its_last_record(config: RunConfig, alone: dict[str, bytes]) -> None:
    generate(worker(config, 0, 3))
    generate(worker(config, 1, 3))
    # After worker 2 wrote its last record, worker 1 is the first to see that no sample is missing.
    generate(worker(config, 2, 3), FakeSampler(at_end=lambda: generate(worker(config, 1, 3))))
    assert shards(config) == alone
    assert not (Path(config.run_dir) / "samples.partial").exists()


def test_a_worker_that_starts_while_others_publish_finds_the_samples(
    config: RunConfig, alone: dict[str, bytes]
) -> None:
    make_store = stage._store

    def publish_first(*arguments: object) -> object:
        with patch.object(stage, "_store", make_store):
            generate(worker(config, 0, 2))
        return make_store(*arguments)  # type: ignore[arg-type]

    generate(worker(config, 1, 2))
    with patch.object(stage, "_store", publish_first):  # after worker 1 locked its file, before it reads
        assert generate(worker(config, 1, 2)).requests == []
    assert shards(config) == alone


@contextlib.contextmanager
def killed_at(step: int) -> Iterator[list[str]]:
    """Raise KeyboardInterrupt just before change number ``step`` of the disk; yields the changes before it."""
    changes: list[str] = []

    def counted(name: str, real: object) -> object:
        def call(*arguments: object) -> object:
            if len(changes) == step:
                raise KeyboardInterrupt
            changes.append(name)
            return real(*arguments)  # type: ignore[operator]

        return call

    with contextlib.ExitStack() as stack:
        for owner, name in ((Path, "replace"), (Path, "rename"), (Path, "unlink"), (os, "fsync")):
            stack.enter_context(patch.object(owner, name, counted(name, getattr(owner, name))))
        yield changes


def test_any_worker_can_finish_after_a_kill_at_any_step_of_publishing(
    config: RunConfig, alone: dict[str, bytes]
) -> None:
    """Kill the last worker at its first change to the disk, its second, and so on until it ends."""
    ready = elsewhere(config, "ready")
    generate(worker(ready, 0, 2))
    with patch.object(stage.SampleStore, "merge", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        generate(worker(ready, 1, 2))
    seen: list[str] = []
    for step in range(100):
        run = elsewhere(config, f"step-{step}")
        shutil.copytree(ready.run_dir, run.run_dir)
        try:
            with killed_at(step) as changes:
                generate(worker(run, 1, 2))
        except KeyboardInterrupt:
            resumed = generate(worker(run, step % 3, 3))
            assert resumed.requests == []
            assert {name: data for name, data in shards(run).items() if name in alone} == alone
            spans = {f"worker-{rank}-of-2.spans.json" for rank in range(2)}
            assert set(shards(run)) - set(alone) <= {"stage.json", *spans}  # left by a kill just after publishing
        else:
            seen = changes
            break
    assert shards(run) == alone
    # Three shards, the manifest, stage.json and two files of time spans; then the folder is renamed.
    assert (seen.count("replace"), seen.count("rename")) == (3 + 1 + 1 + 2, 1)

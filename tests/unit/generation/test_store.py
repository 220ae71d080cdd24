"""Tests the store of samples, also after a writer was killed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ssd.artifacts.jsonl import JsonlWriter, read_jsonl
from megatron_ssd.config.generation import WorkerConfig
from megatron_ssd.errors import UserError
from megatron_ssd.generation.store import (
    Key,
    SampleStore,
    remove_worker_files,
    running_workers,
    shard_plan,
    span_file,
    worker_file,
    worker_files,
    worker_lock,
    worker_name,
)
from megatron_ssd.schema import Sample

KEYS = [(f"p{number // 2}", number % 2) for number in range(25)]


def sample(key: tuple[str, int]) -> Sample:
    number = KEYS.index(key)
    return Sample(
        problem_id=key[0],
        sample_index=key[1],
        messages=[],
        prompt_token_ids=[number],
        response="é\n" * number,
        response_token_ids=list(range(number)),
        finish_reason="stop" if number % 3 else "length",
        seed=number,
        sampling_hash="h",
        model_revision="m",
    )


def single_file(path: Path, keys: list[Key] = KEYS) -> SampleStore:
    """A store of one file, which ``merge`` puts in order."""
    store = SampleStore([(path, keys)], lambda: [path] if path.exists() else [])
    store.update()
    return store


def write(path: Path, keys: list[Key]) -> None:
    """Append the samples of ``keys`` that are missing, and finish the file if all are there."""
    store = single_file(path)
    with JsonlWriter(path) as writer:
        for key in keys:
            if key not in store:
                writer.write(sample(key).to_json())
    store = single_file(path)
    if store.num_missing == 0:
        store.merge()


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of an uninterrupted run."""
    path = tmp_path_factory.mktemp("complete") / "one.jsonl"
    write(path, KEYS)
    return path.read_bytes()


def test_samples_are_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    write(path, KEYS)
    assert [Sample.from_json(record) for record in read_jsonl(path)] == [sample(key) for key in KEYS]


@given(seed=st.integers(min_value=0, max_value=10**6))
@settings(max_examples=20)
def test_the_order_of_arrival_does_not_matter(
    seed: int, complete: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("shuffled") / "one.jsonl"
    write(path, random.Random(seed).sample(KEYS, len(KEYS)))
    assert path.read_bytes() == complete


@given(seed=st.integers(min_value=0, max_value=10**6), stop=st.integers(0, 24), cut=st.integers(0, 400))
@settings(max_examples=40)
def test_a_file_that_was_cut_at_any_byte_is_resumed(
    seed: int, stop: int, cut: int, complete: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / "one.jsonl"
    order = random.Random(seed).sample(KEYS, len(KEYS))
    write(path, order[:stop])
    data = path.read_bytes()
    path.write_bytes(data[: max(0, len(data) - cut)])
    lost = data.count(b"\n") - path.read_bytes().count(b"\n")
    assert single_file(path).num_missing == len(KEYS) - stop + lost
    write(path, order)
    assert path.read_bytes() == complete


def test_a_kill_while_a_file_is_put_in_order_loses_nothing(tmp_path: Path, complete: bytes) -> None:
    path = tmp_path / "one.jsonl"
    with patch.object(Path, "replace", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        write(path, KEYS[::-1])
    assert (tmp_path / ".one.jsonl.tmp").exists()
    write(path, KEYS)
    assert path.read_bytes() == complete


def test_a_file_in_order_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    write(path, KEYS[::-1])
    assert single_file(path).merge() == {}


def test_records_of_another_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"problem_id": "p0", "sample_index": 0}\n')
    with pytest.raises(UserError, match="missing required field"):
        single_file(path)


def shards_of(folder: Path, keys: list[Key] = KEYS) -> SampleStore:
    """A store with shards of ten samples, from the files of all workers."""
    store = SampleStore(shard_plan(folder, keys, size=10), lambda: worker_files(folder))
    store.update()
    return store


def append(path: Path, keys: list[Key]) -> None:
    """Append the samples of ``keys``."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(sample(key).to_json(), ensure_ascii=False) + "\n" for key in keys)


def test_files_of_all_workers_count_and_updates_read_only_new_records(tmp_path: Path) -> None:
    first, second = tmp_path / "worker-0-of-2.jsonl", tmp_path / "worker-3-of-7.jsonl"
    append(first, KEYS[5:10])
    append(second, KEYS[20:])
    store = shards_of(tmp_path)
    assert store.num_missing == 15
    assert KEYS[5] in store
    assert KEYS[4] not in store
    first.write_bytes(first.read_bytes() + b'{"part')
    store.update()
    assert store.num_missing == 15
    first.write_bytes(first.read_bytes().removesuffix(b'{"part'))
    append(first, KEYS[:5])
    store.update()
    assert store.num_missing == 10
    assert store.counts == shards_of(tmp_path).counts


def test_shards_are_in_the_plans_order_and_worker_files_are_removed(tmp_path: Path) -> None:
    append(tmp_path / "worker-0-of-2.jsonl", KEYS[::-2])
    append(tmp_path / "worker-1-of-2.jsonl", KEYS[1::2])
    (tmp_path / ".worker-5-of-9.spans.json.tmp").write_text("{")
    store = shards_of(tmp_path)
    store.merge()
    remove_worker_files(tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"shard-0000{number}.jsonl" for number in range(3)]
    lines = [line for path in sorted(tmp_path.iterdir()) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [json.loads(line) for line in lines] == [sample(key).to_json() for key in KEYS]
    assert (
        shards_of(tmp_path).counts == store.counts == {"samples": 25, "response_tokens": 300, "stop": 16, "length": 9}
    )


def test_a_finished_shard_replaces_the_records_it_was_made_from(tmp_path: Path) -> None:
    append(tmp_path / "worker-0-of-1.jsonl", KEYS)
    store = shards_of(tmp_path)
    append(tmp_path / "shard-00001.jsonl", KEYS[10:20])  # left by a merge that was killed
    before = (tmp_path / "shard-00001.jsonl").stat().st_ino
    store.update()
    assert store.num_missing == 0
    assert set(store.merge()) == {"shard-00000.jsonl", "shard-00002.jsonl"}
    assert (tmp_path / "shard-00001.jsonl").stat().st_ino == before


@pytest.mark.parametrize("keys", [KEYS[:9], KEYS[:11], [*KEYS[1:10], KEYS[0]]])
def test_a_shard_without_exactly_its_samples_is_refused(tmp_path: Path, keys: list[Key]) -> None:
    append(tmp_path / "shard-00000.jsonl", keys)
    with pytest.raises(UserError, match="is not a finished shard of this plan; move it away"):
        shards_of(tmp_path)


def test_unplanned_and_repeated_records_are_named_by_file_and_line(tmp_path: Path) -> None:
    append(tmp_path / "worker-0-of-2.jsonl", KEYS[:3])
    append(tmp_path / "worker-1-of-3.jsonl", [KEYS[8], KEYS[2]])
    with pytest.raises(UserError, match=r"worker-1-of-3\.jsonl:2 with sample \('p1', 0\): .* is repeated"):
        shards_of(tmp_path)
    with pytest.raises(UserError, match=r"worker-0-of-2\.jsonl:1 with sample \('p0', 0\): .*not planned"):
        shards_of(tmp_path, KEYS[1:])


def test_a_broken_record_is_named_by_file_and_line(tmp_path: Path) -> None:
    append(tmp_path / "worker-0-of-1.jsonl", KEYS[:2])
    with (tmp_path / "worker-0-of-1.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(UserError, match=r"worker-0-of-1\.jsonl:3"):
        shards_of(tmp_path)


HOLD_LOCK = """
import sys, time
from pathlib import Path
from megatron_ssd.config.generation import WorkerConfig
from megatron_ssd.generation.store import worker_lock
with worker_lock(Path(sys.argv[1]), WorkerConfig(rank=1, world=2)):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_worker_lock_is_held_until_the_worker_ends(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        assert running_workers(tmp_path) == [tmp_path / "worker-1-of-2.jsonl"]
        with pytest.raises(UserError, match=r"worker 1 of 2 is already running"), worker_lock(tmp_path, worker(1, 2)):
            pass
        with pytest.raises(UserError, match=r"set worker\.world=2"), worker_lock(tmp_path, worker(1, 3)):
            pass
        with worker_lock(tmp_path, worker(0, 2)):
            assert len(running_workers(tmp_path)) == 2
        process.kill()
        process.wait()
    assert running_workers(tmp_path) == []
    with worker_lock(tmp_path, worker(1, 3)):
        assert running_workers(tmp_path) == [tmp_path / "worker-1-of-3.jsonl"]


def test_file_names_contain_rank_and_world(tmp_path: Path) -> None:
    files = [worker_file(tmp_path, worker(3, 16)), span_file(tmp_path, worker(3, 16))]
    assert [path.name for path in files] == ["worker-3-of-16.jsonl", "worker-3-of-16.spans.json"]
    assert {worker_name(path) for path in files} == {"worker-3-of-16"}


def worker(rank: int, world: int) -> WorkerConfig:
    return WorkerConfig(rank=rank, world=world)

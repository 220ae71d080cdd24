"""Tests the cache of hashes of large files."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ssd.artifacts import hashing


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of cached hashes; every file counts as large."""
    monkeypatch.setattr(hashing, "_CACHED_FROM", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "megatron_ssd" / "sha256"


def test_a_large_file_is_read_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"one")
    expected = hashing.hash_folder(folder)
    assert len(list(cache.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(hashing, "sha256_file", lambda path: pytest.fail("read again"))
        assert hashing.hash_folder(folder) == expected
    monkeypatch.setattr(hashing, "_CACHED_FROM", 1 << 40)
    assert hashing.hash_folder(folder) == expected


def test_a_changed_file_has_a_different_hash(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    hashes = []
    for content in (b"one", b"two"):
        (folder / "weights.new").write_bytes(content)
        (folder / "weights.new").replace(folder / "weights")
        hashes.append(hashing.hash_folder(folder))
    assert hashes[0] != hashes[1]


def test_a_truncated_cache_entry_is_written_again(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"one")
    expected = hashing.hash_folder(folder)
    (note,) = cache.iterdir()
    note.write_text("12")
    assert hashing.hash_folder(folder) == expected
    assert len(note.read_text()) == 64

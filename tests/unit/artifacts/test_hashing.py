"""Tests hashes of files, and the cache of hashes of large files."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megatron_ssd.artifacts import hashing
from megatron_ssd.artifacts.atomic import cache_entry


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of cached hashes; every file counts as large."""
    monkeypatch.setattr(hashing, "_CACHED_FROM", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "megatron_ssd" / "sha256"


def hash_all(folder: Path) -> str:
    return hashing.hash_files(folder, folder.iterdir())


def test_a_hash_covers_names_and_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = hash_all(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    second = hash_all(tmp_path)
    (tmp_path / "b").write_text("22")
    assert len({first, second, hash_all(tmp_path)}) == 3


def test_a_large_file_is_read_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"one")
    expected = hash_all(folder)
    assert len(list(cache.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(hashing, "sha256_file", lambda path: pytest.fail("read again"))
        assert hash_all(folder) == expected
    monkeypatch.setattr(hashing, "_CACHED_FROM", 1 << 40)
    assert hash_all(folder) == expected


def test_a_changed_file_has_a_different_hash(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    hashes = []
    for content in (b"one", b"two"):
        (folder / "weights.new").write_bytes(content)
        (folder / "weights.new").replace(folder / "weights")
        hashes.append(hash_all(folder))
    assert hashes[0] != hashes[1]


def test_a_truncated_cache_entry_is_written_again(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"one")
    expected = hash_all(folder)
    (note,) = cache.iterdir()
    note.write_text("12")
    assert hash_all(folder) == expected
    assert len(note.read_text()) == 64


def nobody_has_a_home(home: Path, patch: pytest.MonkeyPatch) -> None:
    def refuse(uid: int) -> None:
        raise KeyError(uid)

    patch.delenv("HOME")
    patch.setattr(pwd, "getpwuid", refuse)


def home_is_a_file(home: Path, patch: pytest.MonkeyPatch) -> None:
    home.touch()


def cache_has_a_folder_in_place_of_a_note(home: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hashing, "hash_json", lambda value: "note")
    (home / ".cache" / "megatron_ssd" / "sha256" / "note").mkdir(parents=True)


def cache_has_a_note_that_is_not_text(home: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hashing, "hash_json", lambda value: "note")
    cache = home / ".cache" / "megatron_ssd" / "sha256"
    cache.mkdir(parents=True)
    (cache / "note").write_bytes(b"\xff" * 64)


def home_is_forbidden(home: Path, patch: pytest.MonkeyPatch) -> None:
    (home / ".cache" / "megatron_ssd" / "sha256").mkdir(parents=True)
    home.chmod(0)


@pytest.mark.parametrize(
    "break_home",
    [
        nobody_has_a_home,
        home_is_a_file,
        cache_has_a_folder_in_place_of_a_note,
        cache_has_a_note_that_is_not_text,
        home_is_forbidden,
    ],
)
def test_a_cache_that_cannot_be_used_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, break_home: Callable[[Path, pytest.MonkeyPatch], None]
) -> None:
    path, home = tmp_path / "weights", tmp_path / "home"
    path.write_bytes(b"one")
    expected = hashing.sha256_file(path)
    monkeypatch.setattr(hashing, "_CACHED_FROM", 1)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(home))
    break_home(home, monkeypatch)
    try:
        with without_privileges(path):
            assert hashing.remembered_sha256(path) == expected
            (hashing.cache_folder() / "anything").write_text("can be written")
    finally:
        if home.is_dir():
            home.chmod(0o700)


@contextlib.contextmanager
def without_privileges(path: Path) -> Iterator[None]:
    """While entered, root acts as another user, who can read ``path``."""
    if os.geteuid() != 0:
        yield
        return
    folders = [folder for folder in path.parents if not folder.stat().st_mode & 0o001]
    for folder in folders:
        folder.chmod(0o711)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        for folder in folders:
            folder.chmod(0o700)


def test_the_first_of_two_writers_of_a_cache_entry_wins(tmp_path: Path) -> None:
    entry = tmp_path / "entry"
    for name in ("first", "second"):
        with cache_entry(entry) as late:
            late.mkdir()
            (late / name).touch()
            if name == "first":
                with cache_entry(entry) as early:
                    early.mkdir()
                    (early / "fastest").touch()
    assert [path.name for path in entry.iterdir()] == ["fastest"]
    assert list(tmp_path.iterdir()) == [entry]

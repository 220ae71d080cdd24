"""Manages folders of checkpoints, without torch.

Invariants:
- ``iter_0000250/`` is a checkpoint; ``.partial`` (being written) and ``.pruned`` (being removed) are not, and are
  removed when training starts again.
- ``checkpoint.json`` in it names every other file with its size and SHA-256. A folder that differs is broken.
- The newest checkpoint is never removed, nor one that is being read.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.artifacts.hashing import sha256_file
from megatron_ssd.artifacts.locks import try_lock, wait_for_shared_lock
from megatron_ssd.config.training import CheckpointConfig, OptimizerFormat
from megatron_ssd.errors import UserError

log = logging.getLogger(__name__)

FACTS_FILE = "checkpoint.json"
FORMAT_VERSION = 2  # of the training state in a checkpoint; checkpoints without this number have format 1
_NAME = re.compile(r"iter_(\d{7,})")
PARTIAL, _PRUNED = ".partial", ".pruned"  # endings of checkpoints that are being written or removed


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """Size and hash of one file of a checkpoint."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """Content of ``checkpoint.json``.

    ``layout`` is the grid of processes that wrote it, with the size of gradient buckets in parameters (0: one bucket).
    """

    iteration: int
    optimizer: str  # "distributed" or "non-distributed"; "none" if the checkpoint holds weights only
    layout: dict[str, int]
    versions: dict[str, str]
    files: dict[str, FileFacts] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    # Which other layouts can load the optimizer's state. Checkpoints without this fact can be loaded under any.
    optimizer_format: OptimizerFormat = "fully_reshardable"


class BrokenCheckpointError(UserError):
    """A checkpoint whose files differ from those that were written."""


def _broken(path: Path, reason: str) -> BrokenCheckpointError:
    fix = "set checkpoint.on_broken=previous to resume from the one before it, or remove it"
    return BrokenCheckpointError(f"checkpoint {path}", rule=f"is broken: {reason}", fix=fix)


def checkpoint_path(folder: Path, iteration: int) -> Path:
    """Path of the checkpoint of ``iteration``."""
    return folder / f"iter_{iteration:07d}"


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(iteration, folder) of every checkpoint below ``folder``, oldest first."""
    return sorted((int(match[1]), path) for path in folder.glob("iter_*") if (match := _NAME.fullmatch(path.name)))


def write_facts(path: Path, facts: CheckpointFacts, *, hashes: Mapping[str, str]) -> None:
    """Write ``path/checkpoint.json``: ``facts``, with the size and hash of every other file in ``path``.

    Args:
        hashes: SHA-256 of files by name, if it is known already; other files are hashed.
    """
    files = {
        file.name: FileFacts(bytes=file.stat().st_size, sha256=hashes.get(file.name) or sha256_file(file))
        for file in sorted(path.iterdir())
        if file.name != FACTS_FILE
    }
    text = json.dumps(dataclasses.asdict(dataclasses.replace(facts, files=files)), indent=1)
    write_atomically(path / FACTS_FILE, text + "\n")


def read_facts(path: Path) -> CheckpointFacts:
    """The facts of checkpoint ``path``, compared with the names and sizes of its files.

    Raises:
        BrokenCheckpointError: the facts cannot be read, or a file is missing or has another size.
    """
    try:
        facts = _facts_of(json.loads((path / FACTS_FILE).read_text(encoding="utf-8")))
    except OSError as error:
        raise _broken(path, f"{FACTS_FILE}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _broken(path, f"{FACTS_FILE} cannot be parsed ({error!r})") from None
    if checkpoint_path(path.parent, facts.iteration) != path:
        raise _broken(path, f"{FACTS_FILE} names iteration {facts.iteration}")
    for name, file in facts.files.items():
        if not (path / name).is_file():
            raise _broken(path, f"{name} is missing")
        if (found := (path / name).stat().st_size) != file.bytes:
            raise _broken(path, f"{name} has {found} bytes and {file.bytes} were written")
    return facts


def _facts_of(value: dict[str, Any]) -> CheckpointFacts:
    files = {str(name): FileFacts(**facts) for name, facts in value["files"].items()}
    if not files:
        raise ValueError("no files")
    return CheckpointFacts(**{"format_version": 1, **value, "files": files})


def check_content(path: Path, facts: CheckpointFacts, names: Sequence[str]) -> None:
    """Compare the content of the files ``names`` with their hashes, which reads all of it.

    Raises:
        BrokenCheckpointError: a file has another content.
    """
    for name in names:
        try:
            found = sha256_file(path / name)
        except OSError as error:
            raise _broken(path, f"{name}: {error.strerror}") from None
        if found != facts.files[name].sha256:
            raise _broken(path, f"{name} is not what was written (its SHA-256 differs)")


def remove_leftovers(folder: Path) -> None:
    """Remove checkpoints that a killed run left partially written or partially removed."""
    for path in [*folder.glob(f"iter_*{PARTIAL}"), *folder.glob(f"iter_*{_PRUNED}")]:
        shutil.rmtree(path)


def find_checkpoint(folder: Path, iteration: int | None) -> Path:
    """The checkpoint of ``iteration`` in ``folder``, by default the newest, after ``check_files``.

    Raises:
        UserError: there is no such checkpoint, or a file of it is missing or has another size.
    """
    found = dict(list_checkpoints(folder))
    if not found:
        raise UserError(f"folder {folder}", rule="has no checkpoint (iter_...)",
                        fix="run launch/train.py to its first checkpoint, or name another folder")  # fmt: skip
    if iteration is not None and iteration not in found:
        raise UserError(
            f"iteration = {iteration}",
            rule=f"{folder} has no {checkpoint_path(folder, iteration).name}",
            fix=f"choose one of {', '.join(map(str, sorted(found)))}",
        )
    path = found[max(found) if iteration is None else iteration]
    check_files(path)
    return path


def check_files(path: Path) -> None:
    """Compare names and sizes of a checkpoint's files with its ``checkpoint.json``, if it has one.

    Raises:
        UserError: a file is missing or has another size.
    """
    if not (path / FACTS_FILE).is_file():
        return  # for example Megatron-LM's; damage shows when its files are read
    try:
        read_facts(path)
    except BrokenCheckpointError as error:
        raise UserError(error.what, rule=error.rule, fix="use another checkpoint") from None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """While entered, no training run prunes checkpoint ``path``.

    A checkpoint without ``checkpoint.json`` is not locked: it is not of a training run.
    """
    if not (path / FACTS_FILE).is_file():
        yield
        return
    with (path / FACTS_FILE).open("rb") as file:
        wait_for_shared_lock(file)
        yield


def superfluous(iterations: Sequence[int], config: CheckpointConfig) -> list[int]:
    """Those of the ascending ``iterations`` that neither ``keep_last`` nor ``keep_every`` keeps; never the last."""
    if config.keep_last is None:
        return []
    older = iterations[: -config.keep_last]
    return [number for number in older if config.keep_every is None or number % config.keep_every != 0]


def prune(folder: Path, config: CheckpointConfig) -> None:
    """Remove superfluous checkpoints. Each is renamed first, so that a killed run never leaves part of a checkpoint.

    A checkpoint that is being read is kept until the next call.
    """
    found = dict(list_checkpoints(folder))
    for iteration in superfluous(sorted(found), config):
        path = found[iteration]
        if _is_read(path):
            log.info("checkpoints: %s is being read and is kept for now", path.name)
            continue
        pruned = path.with_suffix(_PRUNED)
        path.rename(pruned)
        shutil.rmtree(pruned)


def _is_read(path: Path) -> bool:
    if not (path / FACTS_FILE).exists():
        return False
    with (path / FACTS_FILE).open("rb+") as file:
        return not try_lock(file)

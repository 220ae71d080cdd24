"""One stage of a run: worked on under ``NAME.partial``, published as ``NAME`` in one rename, manifest inside.

Invariants:
- ``run_dir/NAME`` exists only whole, with its ``manifest.json``.
- A stage is current when its manifest's identity, a hash of (config, inputs), is the one asked for.
- Work left in ``NAME.partial`` is taken up again only by the same identity; anything else is refused or, with
  ``replace``, moved aside under a name that says so. Nothing is deleted, but for unfinished work of a stage that takes
  up none (``restarts``), and for folders in which nothing is finished yet (``is_work``).
- One process works on a stage (``begin`` to ``publish``), or several that look at its folders, take up its work and
  publish it only in turn (``turn``).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from megatron_ssd.artifacts import manifest as manifests
from megatron_ssd.artifacts.difference import difference
from megatron_ssd.artifacts.hashing import hash_json, sha256_file
from megatron_ssd.artifacts.manifest import Manifest
from megatron_ssd.artifacts.place import is_free, named_by
from megatron_ssd.errors import UserError

log = logging.getLogger(__name__)

_PLAN = "stage.json"  # in the work folder: what this work is for, and the seconds that earlier starts took
SECONDS_BETWEEN_NOTES = 5.0  # of the time spent, while a stage works
_POLL_SECONDS = 0.1
_SECONDS_IN_SILENCE = 3.0  # a start takes no time, publishing may


@dataclass(frozen=True, kw_only=True)
class Replaced:
    """A folder of the stage, published or not, that was moved aside, with what it was made for."""

    folder: Path
    config: dict[str, Any]
    inputs: dict[str, str]


class Stage:
    """A named folder of ``run_dir`` and what decides its content.

    Args:
        name: folder name, for example ``samples``.
        run_dir: the run's folder.
        config: the settings that decide the output, as JSON.
        inputs: role -> content hash of everything read.
        replace: move aside output of another identity where it stands in the way.
        restarts: a start takes up nothing that an earlier one left, so what that one was for does not matter.
        is_work: whether a file, by its path below the work folder, is worth keeping from another identity. Empty files
            and the stage's own plan never are.
        key: what the user sets to have the folder elsewhere.
        made_by: the command that makes it; by the folder's name unless said.
    """

    def __init__(
        self,
        *,
        name: str,
        run_dir: Path,
        config: dict[str, Any],
        inputs: dict[str, str],
        replace: bool = False,
        restarts: bool = False,
        is_work: Callable[[Path], bool] = lambda path: True,
        key: str = "run_dir",
        made_by: str | None = None,
    ) -> None:
        self.name = name
        self.final = Path(run_dir) / name
        self.work = Path(run_dir) / f"{name}.partial"
        # Through JSON once, so that tuples and lists of the same values are one identity.
        self.config: dict[str, Any] = json.loads(json.dumps(config))
        self.inputs = inputs
        self.identity = hash_json({"stage": name, "config": self.config, "inputs": inputs})
        self._replace = replace
        self._restarts = restarts
        self._is_work = is_work
        self._key = key
        self._made_by = made_by or manifests.MADE_BY.get(name, "this command")
        self._started = time.monotonic()
        self._noted = 0.0
        self._seconds_before = 0.0
        self._lock_file: IO[str] | None = None

    def is_current(self) -> bool:
        """Whether the published folder is what this stage would make.

        Raises:
            UserError: it was made with another configuration or other inputs, or is none of this stage's, and
                ``replace`` is off; or there cannot be such a folder.
        """
        with named_by(self._key, self.final):
            if is_free(self.final):
                return False
            is_published = (self.final / manifests.FILE_NAME).is_file()
        if not is_published:
            self._move_aside(self.final, f"exists and was not made by {self._made_by}")
            return False
        published = manifests.read_manifest(self.final)
        if published.identity == self.identity:
            log.info("%s: up to date (%s)", self.name, self.final)
            return True
        self._move_aside(self.final, self._made_with_another(published.config, published.inputs))
        return False

    def begin(self) -> Path:
        """The work folder, new or as an earlier start of the same identity left it, for this process alone.

        Raises:
            UserError: another process is at work on this stage, or the folder holds work of another identity.
        """
        self._lock_file = self._open_lock()
        if not _try_lock(self._lock_file):
            raise self._busy()
        return self.take_up()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Hold off every other process that starts on this stage or publishes it; waits for one that is doing so.

        Whoever dies in its turn ends it.
        """
        with self._open_lock() as lock:
            started, said = time.monotonic(), False
            while not _try_lock(lock):
                if not said and time.monotonic() - started > _SECONDS_IN_SILENCE:
                    log.info("%s: waiting for another process that starts or publishes", self.name)
                    said = True
                time.sleep(_POLL_SECONDS)
            yield

    def take_up(self, *, in_use: bool = False) -> Path:
        """The work folder, made or taken up. Of several processes one at a time, in its ``turn``.

        Args:
            in_use: others are at work in the folder, so it cannot be moved aside.

        Raises:
            UserError: the folder holds work of another identity, or cannot be made.
        """
        plan = self.work / _PLAN
        if self._restarts:
            shutil.rmtree(self.work, ignore_errors=True)
        if self.work.exists() and plan.is_file():
            earlier = json.loads(plan.read_text(encoding="utf-8"))
            if earlier["identity"] == self.identity:
                self._seconds_before = earlier["seconds"]
                log.info("%s: %s %s", self.name, "joining others in" if in_use else "resuming in", self.work)
            elif in_use:
                raise self._busy()
            elif self._holds_work():
                self._move_aside(self.work, self._made_with_another(earlier["config"], earlier["inputs"]))
            else:
                shutil.rmtree(self.work)
        with named_by(self._key, self.work):
            self.work.mkdir(parents=True, exist_ok=True)
        self._started = time.monotonic()
        self.note_time()
        return self.work

    def _holds_work(self) -> bool:
        """Whether anything in the work folder is finished: a start that failed at once leaves nothing of worth."""
        plan = self.work / _PLAN
        return any(
            path not in (plan, _temporary(plan))
            and path.stat().st_size > 0
            and self._is_work(path.relative_to(self.work))
            for path in self.work.rglob("*")
            if path.is_file()
        )

    def replaced(self) -> list[Replaced]:
        """What was moved aside for other identities, the newest first; folders that say nothing of theirs are left out.

        Raises:
            UserError: a manifest among them cannot be read.
        """
        found = []
        for folder in self.final.parent.glob(f"{self.name}*.replaced-*"):
            plan = folder / _PLAN
            if folder.name.startswith(self.work.name) and plan.is_file():
                made_for = json.loads(plan.read_text(encoding="utf-8"))
                found.append(Replaced(folder=folder, config=made_for["config"], inputs=made_for["inputs"]))
            elif folder.name.startswith(f"{self.name}.replaced-") and (folder / manifests.FILE_NAME).is_file():
                published = manifests.read_manifest(folder)
                found.append(Replaced(folder=folder, config=published.config, inputs=published.inputs))
        return sorted(found, key=lambda earlier: earlier.folder.stat().st_mtime_ns, reverse=True)

    def _open_lock(self) -> IO[str]:
        """``.NAME.lock``. A lock on it ends with this process, however that ends."""
        with named_by(self._key, self.final):
            self.final.parent.mkdir(parents=True, exist_ok=True)
            return (self.final.parent / f".{self.name}.lock").open("a")

    def _busy(self) -> UserError:
        return UserError(f"folder {self.work}", rule="another process is at work on it", fix="wait for it or stop it")

    def note_time(self, *, every: float = 0.0) -> None:
        """Record the time spent so far, so that a resumed stage reports the sum; at most once in ``every`` seconds."""
        if time.monotonic() - self._noted < every:
            return
        self._noted = time.monotonic()
        text = json.dumps(
            {
                "identity": self.identity,
                "config": self.config,
                "inputs": self.inputs,
                "seconds": self._seconds(),
            }
        )
        write_atomically(self.work / _PLAN, text)

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    def publish(
        self,
        *,
        engine: dict[str, str] | None = None,
        counts: dict[str, int] | None = None,
        dropped: dict[str, int] | None = None,
        facts: dict[str, Any] | None = None,
        known_hashes: dict[str, str] | None = None,
        notes: Collection[Path] = (),
        seconds: float | None = None,
    ) -> Manifest:
        """Hash the work, write its manifest, force it to disk and give it its final name.

        Args:
            known_hashes: path below the work folder -> SHA-256 of files that were hashed when they were written, so
                that large ones are not read again.
            notes: files of the work folder that are no output and go once it has its final name.
            seconds: spent in the stage, where this process alone does not know.
        """
        named = self.work / manifests.FILE_NAME
        not_output = {self.work / _PLAN, named, _temporary(named), *notes}
        files = sorted(path for path in self.work.rglob("*") if path.is_file() and path not in not_output)
        names = [path.relative_to(self.work).as_posix() for path in files]
        known = known_hashes or {}
        manifest = Manifest(
            stage=self.name,
            identity=self.identity,
            config=self.config,
            inputs=self.inputs,
            outputs=[
                {"path": name, "sha256": known.get(name) or sha256_file(path), "bytes": path.stat().st_size}
                for name, path in zip(names, files, strict=True)
            ],
            counts=counts or {},
            dropped=dropped or {},
            facts=facts or {},
            engine=engine or {},
            packages=manifests.package_versions(),
            code_version=manifests.code_version(),
            host=manifests.host_facts(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(self._seconds() if seconds is None else seconds, 3),
        )
        write_atomically(named, manifests.manifest_json(manifest))
        for path in files:
            fsync_path(path)
        fsync_path(self.work)
        self.work.rename(self.final)
        for path in (self.work / _PLAN, *notes):  # last: until the rename they tell a next start whose work this is
            (self.final / path.relative_to(self.work)).unlink()
        fsync_path(self.final.parent)
        if self._lock_file is not None:
            self._lock_file.close()
        log.info("%s: published %s (%.1f s)", self.name, self.final, manifest.seconds)
        return manifest

    def _made_with_another(self, config: dict[str, Any], inputs: dict[str, str]) -> str:
        return f"was made with another {difference(config, self.config, inputs, self.inputs)}"

    def _move_aside(self, folder: Path, why: str) -> None:
        """Rename ``folder``, which is not what this stage makes; refuse where ``replace`` is off."""
        if not self._replace:
            fix = f"use another {self._key}, or replace=true to move it aside and make it again"
            raise UserError(f"folder {folder}", rule=why, fix=fix)
        aside = move_aside(folder, "replaced")
        log.warning("%s: this %s; moved to %s", self.name, why, aside)


def move_aside(path: Path, why: str) -> Path:
    """Rename ``path`` to the first free ``NAME.why-1``, ``-2``, ...; returns its new name. Nothing is deleted."""
    number = 1
    while (aside := path.with_name(f"{path.name}.{why}-{number}")).exists():
        number += 1
    path.rename(aside)
    return aside


def _try_lock(file: IO[str]) -> bool:
    """Whether nobody held the file's lock; this process does then, until it closes the file or ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_atomically(path: Path, text: str) -> None:
    """Write ``path`` so that a reader sees the old text or the new, never a part."""
    temporary = _temporary(path)
    temporary.write_text(text, encoding="utf-8")
    fsync_path(temporary)
    temporary.replace(path)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def fsync_path(path: Path) -> None:
    """Force a file's content, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

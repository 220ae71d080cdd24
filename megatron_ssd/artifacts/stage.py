"""A stage of a run: written to ``NAME.partial``, then published as ``NAME`` with a manifest by one rename.

Invariants:
- If ``run_dir/NAME`` exists it is complete and has its ``manifest.json``.
- A stage is current if its manifest has the config and the inputs that are asked for. Config holds only what the output
  depends on, and a key that is null may be missing: a key that was added later does not matter to a run that does not
  use it.
- Work left in ``NAME.partial`` is resumed with the same config and inputs only; other work is refused or, with
  ``replace``, moved aside under a name that says so. Nothing is deleted, except unfinished work of a stage that does
  not resume (``restarts``) and folders in which nothing is finished yet (``is_work``).
- One process works on a stage (``begin`` to ``publish``), or several processes do, and each holds the stage's lock
  (``lock``) while it inspects the folders, opens the work folder or publishes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from megatron_ssd.artifacts import manifest as manifests
from megatron_ssd.artifacts.atomic import (
    folder_errors,
    fsync_path,
    is_absent_or_empty,
    move_aside,
    temporary_path,
    try_lock,
    write_atomically,
)
from megatron_ssd.artifacts.hashing import hash_json, sha256_file
from megatron_ssd.artifacts.manifest import Manifest, keys_that_are_set
from megatron_ssd.errors import UserError

log = logging.getLogger(__name__)

_PLAN = "stage.json"  # in the work folder: the identity of the work, and the seconds spent by earlier starts
SECONDS_BETWEEN_NOTES = 5.0  # while a stage works, it records the time spent this often
_POLL_SECONDS = 0.1
_SECONDS_BEFORE_MESSAGE = 3.0  # starting is quick, publishing may take longer


@dataclass(frozen=True, kw_only=True)
class Replaced:
    """A folder of the stage, published or not, that was moved aside, with its configuration and inputs."""

    folder: Path
    config: dict[str, Any]
    inputs: dict[str, str]


class Stage:
    """A named folder of ``run_dir`` and what decides its content.

    Args:
        name: folder name, for example ``samples``.
        run_dir: the folder of the run.
        config: the settings that decide the output, as JSON.
        unused: dotted keys that do not decide the output, although earlier versions recorded them in ``config``.
        inputs: role -> content hash of everything that is read.
        replace: move aside existing output of another identity.
        restarts: remove what an earlier start left, of any identity, and start again.
        is_work: whether a file, given by its path below the work folder, is worth keeping if it is from another
            identity. Empty files and the stage's own plan never are.
        key: the configuration key that names the parent folder.
        made_by: the command that makes the folder; by default, the one that ``MADE_BY`` has for ``name``.
    """

    def __init__(
        self,
        *,
        name: str,
        run_dir: Path,
        config: dict[str, Any],
        inputs: dict[str, str],
        unused: Collection[str] = (),
        replace: bool = False,
        restarts: bool = False,
        is_work: Callable[[Path], bool] = lambda path: True,
        key: str = "run_dir",
        made_by: str | None = None,
    ) -> None:
        self.name = name
        self.final = Path(run_dir) / name
        self.work = Path(run_dir) / f"{name}.partial"
        # Convert through JSON, so that tuples and lists of the same values have the same identity.
        self.config: dict[str, Any] = json.loads(json.dumps(config))
        self.inputs = inputs
        self._unused = frozenset(unused)
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
        """Whether the published folder is what this stage would publish.

        Raises:
            UserError: it was made with another configuration or other inputs, or by something else, and ``replace`` is
                off; or the folder cannot be read.
        """
        with folder_errors(self._key, self.final):
            if is_absent_or_empty(self.final):
                return False
            is_published = (self.final / manifests.FILE_NAME).is_file()
        if not is_published:
            self._move_aside(self.final, f"exists and was not made by {self._made_by}")
            return False
        published = manifests.read_manifest(self.final)
        if self._is_same(published.config, published.inputs):
            log.info("%s: up to date (%s)", self.name, self.final)
            return True
        self._move_aside(self.final, self._made_with_another(published.config, published.inputs))
        return False

    def begin(self) -> Path:
        """Lock the stage for this process until ``publish``, and open its work folder.

        Raises:
            UserError: another process is working on this stage, or the folder holds work of another identity.
        """
        self._lock_file = self._open_lock()
        if not try_lock(self._lock_file):
            raise self._busy()
        return self.open_work()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the stage's lock; waits for another process that holds it.

        The lock is released when its holder dies.
        """
        with self._open_lock() as lock:
            started, logged = time.monotonic(), False
            while not try_lock(lock):
                if not logged and time.monotonic() - started > _SECONDS_BEFORE_MESSAGE:
                    log.info("%s: waiting for another process that is starting or publishing", self.name)
                    logged = True
                time.sleep(_POLL_SECONDS)
            yield

    def open_work(self, *, in_use: bool = False) -> Path:
        """Create the work folder, or resume in it. The caller holds the stage's lock.

        Args:
            in_use: other processes are working in the folder, so it cannot be moved aside.

        Raises:
            UserError: the folder holds work of another identity, or cannot be created.
        """
        plan = self.work / _PLAN
        if self._restarts:
            shutil.rmtree(self.work, ignore_errors=True)
        if self.work.exists() and plan.is_file():
            earlier = json.loads(plan.read_text(encoding="utf-8"))
            if self._is_same(earlier["config"], earlier["inputs"]):
                self._seconds_before = earlier["seconds"]
                log.info("%s: %s %s", self.name, "joining other processes in" if in_use else "resuming in", self.work)
            elif in_use:
                raise self._busy()
            elif self._holds_work():
                self._move_aside(self.work, self._made_with_another(earlier["config"], earlier["inputs"]))
            else:
                shutil.rmtree(self.work)
        with folder_errors(self._key, self.work):
            self.work.mkdir(parents=True, exist_ok=True)
        self._started = time.monotonic()
        self.note_time()
        return self.work

    def _is_same(self, config: dict[str, Any], inputs: dict[str, str]) -> bool:
        """Whether the output of an earlier start, which recorded these, is what this stage would make."""
        earlier = keys_that_are_set(config, unused=self._unused)
        return earlier == keys_that_are_set(self.config) and inputs == self.inputs

    def _holds_work(self) -> bool:
        """Whether the work folder has anything worth keeping; a start that failed early has left nothing."""
        plan = self.work / _PLAN
        return any(
            path not in (plan, temporary_path(plan))
            and path.stat().st_size > 0
            and self._is_work(path.relative_to(self.work))
            for path in self.work.rglob("*")
            if path.is_file()
        )

    def replaced(self) -> list[Replaced]:
        """The folders that were moved aside, newest first; folders without a plan or a manifest are left out.

        Raises:
            UserError: a manifest in one of them cannot be read.
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
        """Open ``.NAME.lock``. A lock on it is released when this process ends, however it ends."""
        with folder_errors(self._key, self.final):
            self.final.parent.mkdir(parents=True, exist_ok=True)
            return (self.final.parent / f".{self.name}.lock").open("a")

    def _busy(self) -> UserError:
        return UserError(f"folder {self.work}", rule="another process is working on it", fix="wait for it or stop it")

    def note_time(self, *, every: float = 0.0) -> None:
        """Record the time spent so far, so that a resumed stage reports the sum; at most once per ``every`` seconds."""
        if time.monotonic() - self._noted < every:
            return
        self._noted = time.monotonic()
        plan = {"identity": self.identity, "config": self.config, "inputs": self.inputs, "seconds": self._seconds()}
        write_atomically(self.work / _PLAN, json.dumps(plan))

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
        """Hash the work, write its manifest, force it to disk and rename it to its final name.

        Args:
            known_hashes: path below the work folder -> SHA-256 of files that were hashed when they were written, so
                that large files are not read again.
            notes: files of the work folder that are not output; they are removed after the rename.
            seconds: spent in the stage, if other processes worked on it as well.
        """
        named = self.work / manifests.FILE_NAME
        not_output = {self.work / _PLAN, named, temporary_path(named), *notes}
        paths = sorted(path for path in self.work.rglob("*") if path.is_file() and path not in not_output)
        files = {path.relative_to(self.work).as_posix(): path for path in paths}
        known = known_hashes or {}
        manifest = Manifest(
            stage=self.name,
            identity=self.identity,
            config=self.config,
            inputs=self.inputs,
            outputs=[
                {"path": name, "sha256": known.get(name) or sha256_file(path), "bytes": path.stat().st_size}
                for name, path in files.items()
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
        for path in [*paths, self.work]:
            fsync_path(path)
        self.work.rename(self.final)
        for path in (self.work / _PLAN, *notes):  # until the rename, a next start needs them to identify the work
            (self.final / path.relative_to(self.work)).unlink()
        fsync_path(self.final.parent)
        if self._lock_file is not None:
            self._lock_file.close()
        log.info("%s: published %s (%.1f s)", self.name, self.final, manifest.seconds)
        return manifest

    def _made_with_another(self, config: dict[str, Any], inputs: dict[str, str]) -> str:
        difference = manifests.describe_difference(config, self.config, inputs, self.inputs, unused=self._unused)
        return f"was made with another {difference}"

    def _move_aside(self, folder: Path, why: str) -> None:
        """Rename ``folder``, which is not what this stage makes; refuse if ``replace`` is off."""
        if not self._replace:
            fix = f"use another {self._key}, or set replace=true to move it aside and make it again"
            raise UserError(f"folder {folder}", rule=why, fix=fix)
        aside = move_aside(folder, "replaced")
        log.warning("%s: this %s; moved to %s", self.name, why, aside)

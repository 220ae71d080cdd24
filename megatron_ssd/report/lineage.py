"""Traces the scores back to the base model.

The trace goes from the inputs in each manifest to the folders that published them. Each input hash must be the content
hash of an existing folder, whose files must exist with the sizes in its manifest. Contents are not hashed again. A
broken link is reported, never skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_ssd.artifacts.manifest import FILE_NAME, Manifest, read_manifest

LinkStatus = Literal["found", "source", "broken"]

BASE_ROLE = "model"  # the name of the base model among the inputs of a stage
STAGES = ("problems", "samples", "dataset", "checkpoints", "export", "eval")


@dataclass(frozen=True, kw_only=True)
class Link:
    """An input of a stage: ``found`` (made by ``folder``), ``source`` (from outside) or ``broken`` (``reason``)."""

    role: str
    hash: str
    status: LinkStatus
    folder: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A published folder in the chain, in its current state."""

    folder: str
    stage: str
    identity: str
    content_hash: str
    engine: str
    created: str
    seconds: float
    links: tuple[Link, ...]
    problem: str = ""  # what is wrong with its files; empty if they exist in full size


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """``steps`` lead from the scores back to the base model, which the samples call ``base_revision``.

    ``base_steps`` continue in the run that made the base model; empty if this project did not make it.
    """

    steps: tuple[Step, ...]
    base_revision: str
    base_steps: tuple[Step, ...] = ()
    conflict: str = ""  # stages that name different base models; empty if all name the same

    @property
    def is_complete(self) -> bool:
        """Whether every link and every folder of the chain is valid."""
        steps = (*self.steps, *self.base_steps)
        return not self.conflict and not any(
            step.problem or any(link.status == "broken" for link in step.links) for step in steps
        )


def trace(run_dir: Path, *, base_model: Path | None, base_revision: str) -> Lineage:
    """Follow the inputs of ``run_dir/eval`` back to their sources.

    Args:
        run_dir: the folder of the run, with every stage up to ``eval`` published.
        base_model: folder of the base model; if a run of this project published it, the trace continues in that run.
        base_revision: the name of the base model in the samples.

    Raises:
        UserError: the manifest of ``eval`` is missing or cannot be read.
    """
    known = {manifest.content_hash: (folder, manifest) for folder, manifest in _published(run_dir, base_model)}
    start = run_dir / "eval"
    steps: list[Step] = []
    waiting, seen = [(start, read_manifest(start))], {start}
    while waiting:
        folder, manifest = waiting.pop(0)
        steps.append(_step(folder, manifest, known, run_dir))
        for upstream_hash in manifest.inputs.values():
            upstream = known.get(upstream_hash)
            if upstream and upstream[0] not in seen:
                seen.add(upstream[0])
                waiting.append(upstream)
    own = [step for step in steps if "/" not in step.folder]
    return Lineage(
        steps=tuple(own),
        base_steps=tuple(step for step in steps if step not in own),
        base_revision=base_revision,
        conflict=_conflict(own),
    )


def _published(run_dir: Path, base_model: Path | None) -> Iterator[tuple[Path, Manifest]]:
    """Every published folder that may be part of the chain."""
    runs = [run_dir] if base_model is None else [run_dir, base_model.parent]
    for run in runs:
        for path in sorted(run.glob(f"[!.]*/{FILE_NAME}")):
            if not path.parent.suffix:  # skips work in progress and output that was moved aside
                yield path.parent, read_manifest(path.parent)


def _step(folder: Path, manifest: Manifest, known: dict[str, tuple[Path, Manifest]], run_dir: Path) -> Step:
    links = tuple(_link(role, value, known, folder.parent, run_dir) for role, value in sorted(manifest.inputs.items()))
    engine = f"{manifest.engine['name']} {manifest.engine['version']}" if manifest.engine else ""
    return Step(
        folder=_display_name(folder, run_dir), stage=manifest.stage, identity=manifest.identity,
        content_hash=manifest.content_hash, engine=engine, created=manifest.created, seconds=manifest.seconds,
        links=links, problem=_problem(folder, manifest),
    )  # fmt: skip


def _link(role: str, value: str, known: dict[str, tuple[Path, Manifest]], own_run: Path, run_dir: Path) -> Link:
    if value in known:
        return Link(role=role, hash=value, status="found", folder=_display_name(known[value][0], run_dir))
    if role in (*STAGES, "tokenizer"):
        exists = (own_run / role / FILE_NAME).is_file()
        reason = f"{role}/ has been published again since" if exists else f"{role}/ does not exist"
        return Link(role=role, hash=value, status="broken", reason=reason)
    return Link(role=role, hash=value, status="source")


def _conflict(steps: list[Step]) -> str:
    """The stages that name different base models.

    Sampling and evaluation name a commit if one was given, and training always names the hash of the files, so only
    names of the same length are compared.
    """
    named = {step.folder: link.hash for step in steps for link in step.links if link.role == BASE_ROLE}
    by_kind: dict[int, dict[str, str]] = {}
    for folder, value in named.items():
        by_kind.setdefault(len(value), {})[folder] = value
    for kind in by_kind.values():
        if len(set(kind.values())) > 1:
            return ", ".join(f"{folder} has {value[:12]}" for folder, value in sorted(kind.items()))
    return ""


def _problem(folder: Path, manifest: Manifest) -> str:
    """The first file of ``folder`` that differs from its manifest; empty if there is none."""
    for output in manifest.outputs:
        path = folder / output["path"]
        if not path.is_file():
            return f"{output['path']} is missing"
        if path.stat().st_size != output["bytes"]:
            return f"{output['path']} has {path.stat().st_size} bytes, {output['bytes']} were published"
    return ""


def _display_name(folder: Path, run_dir: Path) -> str:
    """The name of ``folder``; in another run, with the name of that run before it."""
    return folder.name if folder.parent == run_dir else f"{folder.parent.name}/{folder.name}"

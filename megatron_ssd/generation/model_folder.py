"""The frozen model as a folder: where it is, which revision it is, and what its config says about decoding."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.hashing import hash_folder
from megatron_ssd.errors import UserError
from megatron_ssd.problems.location import hub_error, is_hub_id

_KEY = "model.path"


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A Hugging Face model on this machine.

    ``revision`` is the commit where one was named or the Hub gave one, otherwise the hash of all files.
    """

    path: Path
    revision: str
    vocab_size: int
    max_position_embeddings: int
    end_token_ids: tuple[int, ...]


def open_model(path: str | None, revision: str | None = None, *, key: str = _KEY) -> ModelFolder:
    """Find a model and read its config; a Hub id is downloaded where it is not on this machine yet.

    Args:
        path: a folder, or a Hub id such as ``Qwen/Qwen3-4B-Instruct-2507``.
        revision: commit of the Hub repository. A local folder given with one is taken to be it, unhashed.
        key: what the user calls it.

    Raises:
        UserError: nothing is there, or the folder is no Hugging Face model.
    """
    folder, revision = locate_model(path, revision, key=key)
    config = _read(folder, "config.json", required=True)
    try:
        return ModelFolder(
            path=folder,
            revision=revision or hash_folder(folder),
            vocab_size=config["vocab_size"],
            max_position_embeddings=config["max_position_embeddings"],
            end_token_ids=_end_token_ids(folder, config),
        )
    except KeyError as error:
        raise UserError(
            f"file {folder / 'config.json'}", rule=f"has no {error}", fix="use the config.json of a causal model"
        ) from None


def locate_model(path: str | None, revision: str | None = None, *, key: str = _KEY) -> tuple[Path, str | None]:
    """(folder, commit where one was named or the Hub gave one) of a model, as ``open_model`` finds it, unread."""
    if path is None:
        raise UserError(
            f"{key} = null", rule="this needs a model that is trained", fix=f"set {key} to a Hugging Face folder"
        )
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder, revision
    folder = _download(path, revision, key=key)
    return folder, folder.name  # snapshots are kept under their commit


def _download(path: str, revision: str | None, *, key: str) -> Path:
    if not is_hub_id(path):
        raise UserError(f"{key} = {path}", rule="does not exist", fix=f"set {key} to a folder or a Hub id")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        return Path(snapshot_download(path, revision=revision, ignore_patterns=["*.pth", "*.bin", "original/*"]))
    except (OSError, ValueError, HTTPError) as error:
        raise hub_error(path, key=key, error=error) from error


def _end_token_ids(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """What ends a response: the generation config's ids, else the model config's."""
    for source in (_read(folder, "generation_config.json", required=False), config):
        ids = source.get("eos_token_id")
        if ids is not None:
            return tuple(ids) if isinstance(ids, list) else (ids,)
    raise UserError(
        f"model folder {folder}",
        rule="names no eos_token_id in generation_config.json or config.json, so no response would ever end",
        fix="add eos_token_id to generation_config.json",
    )


def _read(folder: Path, name: str, *, required: bool) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        if required:
            raise UserError(f"model folder {folder}", rule=f"has no {name}", fix="point model.path at a model's folder")
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"file {path}", rule=f"is not JSON ({error})", fix="copy it from the model again") from None
    return content

"""Finds a Hugging Face model folder and reads its configuration. Does not need torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.hub import locate_model
from megatron_ssd.errors import UserError


def resolve_model_folder(path: str | None, revision: str | None = None, *, key: str = "model.path") -> Path:
    """The local folder of a model, downloaded from the Hub if ``path`` is not a folder. Sampling uses the same rules.

    Args:
        path: a folder or a Hub id.
        revision: the Hub's commit; None for the newest.
        key: the user's name for it, for messages.

    Raises:
        UserError: there is no such model, or the folder has no ``config.json``.
    """
    folder, _ = locate_model(path, revision, key=key)
    if not (folder / "config.json").is_file():
        raise UserError(f"{key} = {path}", rule="has no config.json", fix=f"set {key} to a Hugging Face model's folder")
    return folder


def read_hf_config(folder: Path) -> dict[str, Any]:
    """Content of the folder's ``config.json``. Raises ``UserError`` if it is missing or not a JSON object."""
    return read_json_object(folder / "config.json", missing="name a Hugging Face model's folder")


def read_json_object(path: Path, *, missing: str) -> dict[str, Any]:
    """Content of a JSON file. Raises ``UserError``, with the fix ``missing`` if the file does not exist."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"file {path}", rule="does not exist", fix=missing) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"file {path}", rule=f"is not JSON ({error})", fix="download the model again") from None
    if not isinstance(values, dict):
        raise UserError(f"file {path}", rule="is not a JSON object", fix="download the model again")
    return values

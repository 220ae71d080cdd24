"""A Hugging Face model folder on disk: its configuration, and names, shapes and slices of its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from megatron_ssd.errors import UserError
from megatron_ssd.generation.model_folder import open_model

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def resolve_model_folder(path: str, revision: str | None = None) -> Path:
    """The folder that ``model.path`` names, found as sampling finds it: here, or downloaded from the Hub.

    Raises:
        UserError: there is no such model, or the folder holds no ``config.json``.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        folder = open_model(path, revision).path
    if not (folder / "config.json").is_file():
        raise UserError(
            f"model.path = {path}", rule="has no config.json", fix="set model.path to a Hugging Face model's folder"
        )
    return folder


def read_hf_config(folder: Path) -> dict[str, Any]:
    """Content of the folder's ``config.json``. Raises ``UserError`` where there is none or it is no JSON."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"file {path}", rule="does not exist", fix="set model.path to a Hugging Face model") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"file {path}", rule=f"is no JSON ({error})", fix="download the model again") from None
    assert isinstance(values, dict)
    return values


class HFWeights:
    """Names, shapes and slices of the safetensors files in ``folder``. Opening reads the headers only.

    Raises:
        UserError: there are no such files, the index names one that is not there, or one is not whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file_of: dict[str, Any] = {}
        for path in _weight_files(folder):
            file = _open(path)
            self._file_of.update(dict.fromkeys(file.keys(), file))

    @property
    def names(self) -> set[str]:
        """Every weight in the folder."""
        return set(self._file_of)

    def shape(self, name: str) -> Shape:
        """Shape of a weight."""
        return tuple(self._slice(name).get_shape())

    def read(self, name: str, *, dim: int | None = None, part: int = 0, parts: int = 1) -> Tensor:
        """Part ``part`` of a weight cut into ``parts`` equal ones along ``dim``; all of it where ``dim`` is None.

        Only the bytes of that part are read.
        """
        weight = self._slice(name)
        where: tuple[slice, ...] = (slice(None),)
        if dim is not None:
            length = weight.get_shape()[dim] // parts
            where = (slice(None),) * dim + (slice(part * length, (part + 1) * length),)
        value: Tensor = weight[where]
        return value

    def _slice(self, name: str) -> Any:
        return self._file_of[name].get_slice(name)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    paths = [folder / WEIGHTS_FILE]
    if index.is_file():
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        paths = [folder / name for name in sorted(set(weight_map.values()))]
    for path in paths:
        if not path.is_file():
            raise UserError(f"file {path}", rule="does not exist, and the weights are read from it",
                            fix="download the model again, as safetensors")  # fmt: skip
    return paths


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise UserError(
            f"file {path}", rule=f"is no whole safetensors file ({error})", fix="download or export it again"
        ) from None

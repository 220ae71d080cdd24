"""Copies the files of a Hugging Face folder that are not weights: configuration, tokenizer, licence.

The module does not import torch.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.hashing import hash_json, sha256_file
from megatron_ssd.artifacts.hub import BESIDE_TOKENIZER, TEMPLATE_FOLDER, TOKENIZER_FILES, model_folder
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError

_OTHER_FILES = (*BESIDE_TOKENIZER, "generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*")
# Weights in any format, and this project's records of how a folder was made.
_NOT_ASSETS = ("*.safetensors", "*.index.json", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", "*.gguf",
               "manifest.json", ".*")  # fmt: skip


@dataclass(frozen=True)
class Assets:
    """Sources of an export's files: the tokenizer's folder, and the base model's, None if there is no base model."""

    tokenizer: Path
    base: Path | None

    @property
    def files(self) -> list[Path]:
        """Files that are copied unchanged.

        Raises:
            UserError: there are no tokenizer files.
        """
        found = _matching(self.tokenizer, TOKENIZER_FILES)
        if not found:
            raise UserError(
                f"folder {self.tokenizer}",
                rule="has no tokenizer files",
                fix="download the model again" if self.base else "make the tokenizer with tools/build_minicode.py",
            )
        return sorted({*found, *_matching(self.tokenizer, _OTHER_FILES)})

    @property
    def content_hash(self) -> str:
        """Hash of all files that the export reads."""
        files = [*self.files, *([self.base / "config.json"] if self.base else [])]
        return hash_json([[path.name, sha256_file(path)] for path in files])

    def copy_to(self, folder: Path) -> None:
        """Copy ``files`` to ``folder``."""
        for path in self.files:
            shutil.copyfile(path, folder / path.name)


def find_assets(config: RunConfig, model: ModelConfig) -> Assets:
    """The base model's folder, or the run's tokenizer if the model was trained from random weights.

    Raises:
        UserError: there is no such folder.
    """
    if config.trains_from_base:
        base = model_folder(model.path, model.revision)
        return Assets(tokenizer=base, base=base)
    return Assets(tokenizer=Path(config.run_dir) / "tokenizer", base=None)


def copy_all_assets(source: Path, target: Path) -> None:
    """Copy every file of a Hugging Face folder that is not weights."""
    target.mkdir(exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_dir() and path.name == TEMPLATE_FOLDER:
            shutil.copytree(path, target / path.name, ignore=shutil.ignore_patterns(".*"))
        elif path.is_file() and not any(path.match(pattern) for pattern in _NOT_ASSETS):
            shutil.copyfile(path, target / path.name)


def set_dtype(values: dict[str, Any], dtype: str) -> None:
    """Set the type of the weights in ``values``, the content of ``config.json``, under each name that it has there.

    transformers 5 writes ``dtype``, transformers 4 ``torch_dtype``; both read both.
    """
    values |= dict.fromkeys([name for name in ("dtype", "torch_dtype") if name in values] or ["torch_dtype"], dtype)


def _matching(folder: Path, patterns: tuple[str, ...]) -> set[Path]:
    return {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}

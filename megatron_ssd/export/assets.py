"""Everything of a Hugging Face folder but the weights: configuration, tokenizer, licence.

A model trained from another's weights takes these from that one, byte for byte where nothing changed. A model trained
from random weights has a tokenizer folder in its run, and its ``config.json`` is written from the configuration.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.artifacts.hashing import hash_json, sha256_file
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from megatron_ssd.models.families import family_of
from megatron_ssd.models.hf_folder import read_hf_config, resolve_model_folder

_TOKENIZER_PATTERNS = ("tokenizer*", "vocab.*", "merges.txt", "*.tiktoken")
_OTHER_PATTERNS = (
    "special_tokens_map.json", "added_tokens.json", "chat_template*", "generation_config.json", "LICENSE*", "NOTICE*",
    "USE_POLICY*",
)  # fmt: skip
_DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Assets:
    """Where the files come from. ``base`` of None: no model stands behind the tokenizer."""

    tokenizer: Path
    base: Path | None

    @property
    def files(self) -> list[Path]:
        """Files that are copied as they are.

        Raises:
            UserError: there is no tokenizer among them.
        """
        found = _matching(self.tokenizer, _TOKENIZER_PATTERNS)
        if not found:
            raise UserError(
                f"folder {self.tokenizer}",
                rule="holds no tokenizer files",
                fix="download the model again" if self.base else "make the tokenizer with tools/build_minicode.py",
            )
        return sorted({*found, *_matching(self.tokenizer, _OTHER_PATTERNS)})

    @property
    def content_hash(self) -> str:
        """Hash of all that is read from here."""
        files = [*self.files, *([self.base / "config.json"] if self.base else [])]
        return hash_json([[path.name, sha256_file(path)] for path in files])

    def write(self, folder: Path, model: ModelConfig, *, params_dtype: str) -> None:
        """Put tokenizer, ``config.json`` and ``generation_config.json`` into ``folder``.

        Raises:
            UserError: ``model`` is not what the base's ``config.json`` says, or the tokenizer is larger than the model.
        """
        for path in self.files:
            shutil.copyfile(path, folder / path.name)
        values = self._config(model, _DTYPE_NAMES[params_dtype])
        if self.base is None:
            tokens = _special_tokens(self.tokenizer, model)
            values |= tokens
            _write_json(folder / "generation_config.json", tokens)
        _write_json(folder / "config.json", values)

    def _config(self, model: ModelConfig, dtype: str) -> dict[str, Any]:
        family = family_of(model.model_type)
        if self.base is None:
            return family.to_hf_config(model, dtype=dtype)
        values = read_hf_config(self.base)
        family.check_hf_config(values, model, source=self.base / "config.json")
        # transformers 5 says dtype where 4 said torch_dtype, and reads both.
        return {**values, "dtype" if "dtype" in values else "torch_dtype": dtype}


def find_assets(config: RunConfig, model: ModelConfig) -> Assets:
    """The base model's folder, or the run's tokenizer where it was trained from random weights.

    Raises:
        UserError: there is no such folder.
    """
    if config.trains_from_base:
        base = resolve_model_folder(model.path, model.revision)
        return Assets(tokenizer=base, base=base)
    return Assets(tokenizer=Path(config.run_dir) / "tokenizer", base=None)


def _matching(folder: Path, patterns: tuple[str, ...]) -> set[Path]:
    return {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}


def _special_tokens(folder: Path, model: ModelConfig) -> dict[str, int | None]:
    """Ids that end, begin and pad a text, by the keys of ``config.json``."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if len(tokenizer) > model.vocab_size:
        raise UserError(
            f"model.vocab_size = {model.vocab_size}",
            rule=f"wrong vocabulary size: the tokenizer in {folder} has {len(tokenizer)} entries",
            fix=f"set model.vocab_size to {len(tokenizer)} or more and train again",
        )
    return {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(values, indent=2) + "\n")

"""Reads the JSON files that describe a Hugging Face model.

Does not need torch.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from megatron_ssd.config.generation import SamplingParams
from megatron_ssd.errors import UserError

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
_TOKENIZER = "tokenizer.json"
_NAMES_OF_TOKENS = ("tokenizer_config.json", "special_tokens_map.json")
_LARGEST = (1 << 31) - 1  # token ids and lengths are 32 bits wide


def read_hf_config(folder: Path) -> dict[str, Any]:
    """Content of the folder's ``config.json``. Raises ``UserError`` if it is missing or not a JSON object."""
    return read_json_object(folder / CONFIG)


def read_json_object(path: Path) -> dict[str, Any]:
    """Content of a model's JSON file. Raises ``UserError`` if it is missing or not a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"file {path}", rule="does not exist", fix="copy it from the model again") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"file {path}", rule=f"is not JSON ({error})", fix="copy it from the model again") from None
    if not isinstance(content, dict):
        raise UserError(
            f"file {path} with {reprlib.repr(content)}", rule="is not a JSON object", fix="copy it from the model again"
        )
    return content


def config_size(folder: Path, config: dict[str, Any], name: str) -> int:
    """The positive integer ``name`` of ``config``, the content of ``config.json``. Raises ``UserError`` if not one."""
    path, fix = folder / CONFIG, "use the config.json of a causal model"
    if name not in config:
        raise UserError(f"file {path}", rule=f"has no {name!r}", fix=fix)
    value = config[name]
    if type(value) is not int or not 1 <= value <= _LARGEST:  # a bool is an int, but not a size
        raise UserError(
            f"file {path} with {name} = {reprlib.repr(value)}", rule=f"must be a whole number from 1 to {_LARGEST}",
            fix=fix,
        )  # fmt: skip
    return value


def end_token_ids(folder: Path, config: dict[str, Any], *, vocab_size: int) -> tuple[int, ...]:
    """The ids that end a response: those of the generation config, of the config and of the tokenizer together.

    A fine-tune often keeps its base's configs, which do not know the end token of its chat template. An id outside of
    the vocabulary cannot be drawn, so beside a valid one it is left out.

    Args:
        folder: of the model.
        config: content of its ``config.json``.
        vocab_size: of the model.

    Raises:
        UserError: no file names an end token, or the first that does names something else than ids of the vocabulary.
    """
    named = {
        GENERATION_CONFIG: _optional(folder / GENERATION_CONFIG).get("eos_token_id"),
        CONFIG: config.get("eos_token_id"),
        _TOKENIZER: _tokenizer_end_id(folder),
    }
    given = {name: value if isinstance(value, list) else [value] for name, value in named.items() if value is not None}
    if not given:
        raise UserError(
            f"model folder {folder}",
            rule=f"names no eos_token_id in {GENERATION_CONFIG} or {CONFIG}, so a response would never end",
            fix=f"add eos_token_id to {GENERATION_CONFIG}",
        )
    first = next(iter(given))
    if not given[first] or not all(_is_id(id_, vocab_size) for id_ in given[first]):
        raise UserError(
            f"file {folder / first} with eos_token_id = {reprlib.repr(named[first])}",
            rule=f"must be a token id, or a list of at least one, from 0 to vocab_size - 1 = {vocab_size - 1}",
            fix="give the ids that end a response of this model",
        )
    return tuple(dict.fromkeys(id_ for ids in given.values() for id_ in ids if _is_id(id_, vocab_size)))


def generation_config(folder: Path, params: SamplingParams, stop_token_ids: Sequence[int] = ()) -> dict[str, Any]:
    """The content of ``generation_config.json`` with which ``params`` are the defaults of the model in ``folder``.

    It also names every token that ends a response, as vLLM's server and transformers know no others. What else the
    folder's own file has stays.

    Args:
        folder: of the model.
        params: the default sampling parameters.
        stop_token_ids: ids that end a response besides the model's own.

    Raises:
        UserError: the model names no end token, or an invalid one.
    """
    config = read_hf_config(folder)
    ends = end_token_ids(folder, config, vocab_size=config_size(folder, config, "vocab_size"))
    # With ``_from_model_config``, transformers may replace all of it by values of config.json.
    kept = {key: value for key, value in _optional(folder / GENERATION_CONFIG).items() if not key.startswith("_")}
    return {
        **kept,
        "do_sample": params.temperature > 0,
        **asdict(params),
        "top_k": max(params.top_k, 0),  # where -1 is off here, 0 is off in transformers
        "eos_token_id": list(dict.fromkeys([*ends, *stop_token_ids])),
    }


def _is_id(value: object, vocab_size: int) -> bool:
    return type(value) is int and 0 <= value < vocab_size


def _tokenizer_end_id(folder: Path) -> int | None:
    """The id of the tokenizer's end token; None if its files name none. ``ChatTokenizer`` reports unreadable files."""
    tokens = [token for name in _NAMES_OF_TOKENS if (token := _optional(folder / name).get("eos_token"))]
    token = tokens[0].get("content") if tokens and isinstance(tokens[0], dict) else tokens[0] if tokens else None
    if not isinstance(token, str) or not (folder / _TOKENIZER).is_file():
        return None
    try:
        id_: int | None = Tokenizer.from_file(str(folder / _TOKENIZER)).token_to_id(token)
    except Exception:  # noqa: BLE001 (the library raises Exception itself)
        return None
    return id_


def _optional(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}

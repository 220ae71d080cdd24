"""Finds models or data sets by path: on this machine, or on the Hugging Face Hub.

Does not need torch.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

from megatron_ssd.artifacts.hashing import hash_files
from megatron_ssd.artifacts.hf_config import CONFIG, config_size, end_token_ids, read_hf_config
from megatron_ssd.errors import MissingModelError, UserError, first_line

_KEY = "model.path"
# Names of the files that make a model what it is. Any other may change: a licence, notes of a download, a .git folder.
TOKENIZER_FILES = ("tokenizer*.json", "tokenizer.model*", "vocab.*", "merges.txt", "*.tiktoken", "spiece.model")
BESIDE_TOKENIZER = ("special_tokens_map.json", "added_tokens.json", "chat_template*")
TEMPLATE_FOLDER = "additional_chat_templates"
_CONFIGS = (CONFIG, "generation_config.json", "*quant*_config.json", "quantize_config.json")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json", "*.pt")
_NOT_WEIGHTS = ("optimizer.pt", "scheduler.pt", "scaler.pt")  # a trainer's state beside them
_FIRST_BYTES_OF_POINTER = b"version https://git-lfs.github.com/spec/"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A Hugging Face model on this machine.

    ``revision`` is the commit if one was named or the Hub gave one, otherwise ``model_hash``.
    ``end_token_ids`` end a response.
    """

    path: Path
    revision: str
    vocab_size: int
    max_position_embeddings: int
    end_token_ids: tuple[int, ...]


def open_model(path: str | None, revision: str | None = None, *, key: str = _KEY) -> ModelFolder:
    """Find a model and read its config; a Hub id is downloaded if it is not on this machine yet.

    Args:
        path: a folder, or a Hub id such as ``Qwen/Qwen3-4B-Instruct-2507``.
        revision: commit of the Hub repository. A local folder with a revision is not hashed: the revision is
            believed.
        key: the configuration key of ``path``, for messages.

    Raises:
        UserError: there is no such model, the folder is not a Hugging Face model, or its config has an invalid value.
    """
    folder, revision = locate_model(path, revision, key=key)
    _check_model(folder, path, key=key)
    config = read_hf_config(folder)
    vocab_size = config_size(folder, config, "vocab_size")
    return ModelFolder(
        path=folder,
        revision=revision or model_hash(folder),
        vocab_size=vocab_size,
        max_position_embeddings=config_size(folder, config, "max_position_embeddings"),
        end_token_ids=end_token_ids(folder, config, vocab_size=vocab_size),
    )


def locate_model(path: str | None, revision: str | None = None, *, key: str = _KEY) -> tuple[Path, str | None]:
    """(folder, commit if one was named or the Hub gave one) of a model, without reading its config.

    Args:
        path: a folder or a Hub id, which is downloaded if it is not on this machine yet.
        revision: the Hub's commit; None for the newest.
        key: the configuration key of ``path``, for messages.

    Raises:
        UserError: there is no such model.
    """
    if path is None:
        raise MissingModelError(
            f"{key} = null", rule="this needs a trained model", fix=f"set {key} to a Hugging Face folder"
        )
    folder = local_path(path)
    if not folder.is_dir():
        folder = _download(path, revision, key=key)
        revision = folder.name  # snapshots are kept under their commit
        if not any(folder.glob("*.safetensors")):
            raise UserError(
                f"{key} = {path}",
                rule="the Hub has no safetensors of it, or not all of its files were downloaded",
                fix=f"download it again, or run {convert_command(path)} and set {key} to the new folder",
            )
    return folder, revision


def locate_config(path: str, revision: str | None = None, *, may_download: bool = True) -> Path | None:
    """``config.json`` of a model, found without its weights.

    Args:
        path: a folder or a Hub id.
        revision: the Hub's commit; None for the newest.
        may_download: whether the file of a Hub id is downloaded; if not, the answer for anything but a folder is None.

    Raises:
        UserError: there is no such model, or its weights are in a form that is not read.
    """
    folder = local_path(path)
    if folder.is_dir():
        _check_model(folder, path, key=_KEY)
        return folder / CONFIG
    return _download(path, revision, key=_KEY, only=CONFIG) / CONFIG if may_download else None


def model_folder(path: str | None, revision: str | None = None, *, key: str = _KEY) -> Path:
    """The folder of a model, found as by ``locate_model``, after a check that it has a config.

    Raises:
        UserError: there is no such model, or the folder has no ``config.json`` or a Git LFS pointer.
    """
    folder, _ = locate_model(path, revision, key=key)
    _check_model(folder, path, key=key)
    return folder


def model_hash(folder: Path) -> str:
    """Hash of the files that decide what a model computes: configs, tokenizer, chat templates and weights."""
    return hash_files(folder, model_files(folder))


def model_files(folder: Path) -> list[Path]:
    """The files of ``model_hash``, sorted."""
    patterns = (*_CONFIGS, *TOKENIZER_FILES, *BESIDE_TOKENIZER, f"{TEMPLATE_FOLDER}/*", *_WEIGHTS)
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    return sorted(
        path
        for path in found
        if path.is_file() and path.name not in _NOT_WEIGHTS and not is_hidden(path.relative_to(folder))
    )


def _check_model(folder: Path, path: str | None, *, key: str) -> None:
    """Raise ``UserError`` if ``folder``, which the user named as ``path``, has no config or weights of another form."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"{key} = {path}", rule=f"has no {CONFIG}", fix=f"set {key} to a Hugging Face model's folder")
    for file in model_files(folder):
        refuse_lfs_pointer(file)
    other = next(folder.glob("pytorch_model*.bin"), None)
    if other is not None and not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{key} = {path}",
            rule=f"has its weights as {other.name}, and only safetensors are read",
            fix=f"run {convert_command(str(path))} and set {key} to the new folder",
        )


def convert_command(path: str) -> str:
    """The command that writes a model that transformers loads, with its tokenizer, in the files that are read here."""
    return (
        'python -c "import sys, transformers as t; old, new = sys.argv[1:]; '
        "t.AutoModelForCausalLM.from_pretrained(old, dtype='auto').save_pretrained(new); "
        f't.AutoTokenizer.from_pretrained(old).save_pretrained(new)" {shlex.quote(path)} NEW_FOLDER'
    )


def _download(path: str, revision: str | None, *, key: str, only: str | None = None) -> Path:
    """The folder of a Hub snapshot. Raises ``UserError``.

    Args:
        path: a Hub id.
        revision: its commit; None for the newest.
        key: the configuration key of ``path``, for messages.
        only: the one file to download; None for all that are read here.
    """
    if not is_hub_id(path):
        raise UserError(f"{key} = {path}", rule="does not exist", fix=f"set {key} to a folder or a Hub id")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        return Path(
            snapshot_download(
                path, revision=revision, allow_patterns=only, ignore_patterns=["*.pth", "*.bin", "original/*"]
            )
        )
    except (OSError, ValueError, HTTPError) as error:
        raise hub_error(path, key=key, error=error) from error


def find_files(path: str, *, key: str, ending: str | tuple[str, ...]) -> list[Path] | None:
    """Files of a data set, sorted by path; None if ``path`` is not a local path and looks like a Hub id.

    Args:
        path: a file, a folder (searched with its subfolders, without hidden ones), or ``owner/name``.
        key: the configuration key of ``path``, for messages.
        ending: the ending of the files' names, for example ``.parquet``, or several.

    Raises:
        UserError: nothing is at ``path``, a file's name has another ending, the folder has no such file, or one of them
            is a broken link or a Git LFS pointer.
    """
    named = local_path(path)
    endings = ending if isinstance(ending, str) else " or ".join(ending)
    if not (named.is_file() or named.is_dir()):  # a pipe or a device is not a data set
        if not named.exists() and is_hub_id(path):
            return None
        raise UserError(f"{key} = {path}", rule="does not exist", fix=f"set {key} to a file, a folder or a Hub id")
    if named.is_file() and not named.name.endswith(ending):
        raise UserError(f"{key} = {path}", rule=f"its name must end with {endings}", fix="convert it, or rename it")
    found = [named] if named.is_file() else [file for file in named.rglob("*") if file.name.endswith(ending)]
    found = sorted(file for file in found if not is_hidden(file.relative_to(named)))
    for file in found:
        if not file.exists():
            raise UserError(f"{file}", rule="is a broken link", fix=f"download {path} again")
    files = [file for file in found if file.is_file()]
    if not files:
        rule = f"the folder has no {endings} file"
        raise UserError(f"{key} = {path}", rule=rule, fix=f"point {key} at the folder that does")
    for file in files:
        refuse_lfs_pointer(file)
    return files


def refuse_lfs_pointer(path: Path) -> None:
    """Raise ``UserError`` if the file is a Git LFS pointer, which a clone without Git LFS has in place of a large file.

    Says nothing about a file that cannot be read.
    """
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(_FIRST_BYTES_OF_POINTER)) == _FIRST_BYTES_OF_POINTER
    except OSError:
        return
    if is_pointer:
        raise UserError(
            f"file {path}",
            rule="is a Git LFS pointer, which stands for a file that was not downloaded",
            fix="run git lfs pull in its folder, or download the file itself",
        )


def local_path(path: str) -> Path:
    """``path`` with the home folder in place of ``~``. Raises ``UserError`` if the user has none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"path {path}", rule="there is no such home folder", fix="write the complete path") from None


def is_hidden(path: PurePath) -> bool:
    """Whether a name in the relative ``path`` begins with a dot, as what editors, git and downloads leave behind does.

    Such files are copies or notes, such as ``.ipynb_checkpoints/rows-checkpoint.jsonl`` and ``._rows.jsonl``, and no
    data.
    """
    return any(part.startswith(".") for part in path.parts)


def is_hub_id(path: str) -> bool:
    """Whether ``path`` has the form ``owner/name``."""
    return _HUB_ID.fullmatch(path) is not None


def hub_error(path: str, *, key: str, error: Exception, repo_type: Literal["model", "dataset"] = "model") -> UserError:
    """The error to report if ``path`` is not a local path and the Hub does not serve it either."""
    return UserError(
        f"{key} = {path}",
        rule="is not on this machine, and the Hugging Face Hub did not serve it "
        f"({type(error).__name__}: {first_line(error)})",
        fix="check the spelling, or on a machine with a network run "
        f"hf download {path} --repo-type {repo_type} --local-dir FOLDER and set {key} to the folder",
    )

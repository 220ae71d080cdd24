"""A model's own tokenizer and chat template: messages or text to the exact ids the model is given, and ids to text.

Ids go to the engine as they are made here, so that what is recorded is what the model read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import tokenizers

from megatron_ssd.artifacts.hashing import hash_json, sha256_file
from megatron_ssd.errors import UserError

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt",
          "merges.txt", "added_tokens.json", "special_tokens_map.json")  # fmt: skip

Message = dict[str, str]  # role and content

# A template is a program from elsewhere: besides Jinja's errors it may raise what Python's operators and methods do.
_TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError,
                    RecursionError, MemoryError)  # fmt: skip
_PROBE = "probe"


class ChatTokenizer:
    """The Hugging Face tokenizer of a model folder, with its chat template where it has one.

    Raises:
        UserError: the folder holds no tokenizer that loads, or one without tokens.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = _load(folder)
        self._folder = folder
        vocabulary = self._tokenizer.get_vocab()
        if not vocabulary:
            raise UserError(f"tokenizer of {folder}", rule="has no token", fix="copy it from the model again")
        self.size = 1 + max(vocabulary.values())
        self._shown: set[tuple[str, ...]] = set()  # roles of conversations that the chat template is known to show

    def prompt_ids(self, messages: list[Message], *, enable_thinking: bool | None = None) -> list[int]:
        """Token ids of ``messages`` in the chat template, up to and including the marker that opens the answer.

        Args:
            messages: the conversation.
            enable_thinking: handed to the chat template where it is not None; templates that know it are Qwen3's.

        Raises:
            UserError: there is no chat template, it refuses the messages, or it shows nothing of one of them.
        """
        if not self._tokenizer.chat_template:
            raise UserError(
                f"tokenizer of {self._folder}",
                rule="has no chat template, so messages cannot become a prompt",
                fix="set prompt.mode=raw, use an instruction-tuned model, or add chat_template to its "
                "tokenizer_config.json",
            )
        options = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self._check_shows(messages, options)
        return [int(id_) for id_ in self._apply(messages, options, tokenize=True)]

    def _apply(self, messages: list[Message], options: dict[str, bool], *, tokenize: bool) -> Any:
        """Ids of the messages in the chat template, or its text."""
        try:
            return self._tokenizer.apply_chat_template(
                messages, tokenize=tokenize, add_generation_prompt=True, return_dict=False, **options
            )
        except _TEMPLATE_ERRORS as error:
            raise UserError(
                f"chat template of {self._folder}",
                rule=f"refuses messages of {_roles(messages)} ({str(error) or type(error).__name__})",
                fix="leave prompt.system out, or use a model whose template takes it",
            ) from None

    def _check_shows(self, messages: list[Message], options: dict[str, bool]) -> None:
        """Raise ``UserError`` where the text stays the same whatever a message says; once for the same roles."""
        roles = tuple(_roles(messages))
        if roles in self._shown:
            return
        text = self._apply(messages, options, tokenize=False)
        for place, message in enumerate(messages):
            changed = [*messages]
            changed[place] = {**message, "content": f"{message['content']} {_PROBE}"}
            if self._apply(changed, options, tokenize=False) == text:
                raise UserError(
                    f"chat template of {self._folder}",
                    rule=f"renders {'the same' if text else 'nothing'}, whatever the {message['role']} message says",
                    fix="leave prompt.system out, or use a model whose template shows it"
                    if message["role"] == "system"
                    else "use the chat template that belongs to the model, or set prompt.mode=raw",
                )
        self._shown.add(roles)

    def text_ids(self, text: str) -> list[int]:
        """Token ids of plain text, with the special tokens that the tokenizer itself puts before a text.

        An end token that it puts behind is left out: the text is a beginning that a model goes on with.
        """
        ids = [int(id_) for id_ in self._tokenizer.encode(text, add_special_tokens=True)]
        return ids[:-1] if ids and ids[-1] == self._tokenizer.eos_token_id else ids

    def response_ids(self, text: str) -> list[int]:
        """Token ids of ``text`` alone: no special token is added, and none that ``text`` spells is taken for one."""
        return list(self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def text(self, token_ids: Sequence[int]) -> str:
        """Plain text of ``token_ids``: special tokens left out, spaces untouched."""
        decoded: str = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return decoded

    def check_fits(self, vocab_size: int) -> None:
        """Raise ``UserError`` where the tokenizer knows ids that a model of ``vocab_size`` has no row for."""
        if self.size > vocab_size:
            raise UserError(
                f"tokenizer of {self._folder} with ids up to {self.size - 1}",
                rule=f"the model's vocabulary has {vocab_size} entries, so ids must be below that",
                fix="use the tokenizer that belongs to these weights",
            )


def _roles(messages: list[Message]) -> list[str]:
    return [message["role"] for message in messages]


def tokenizer_hash(folder: Path) -> str:
    """Hash of the files of a model folder that decide how text becomes ids."""
    files = [folder / name for name in _FILES if (folder / name).is_file()]
    return hash_json([[path.name, sha256_file(path)] for path in files])


def fast_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a model folder as the tokenizers library has it: text to ids and back, many at a time.

    It adds no special tokens of its own and takes text for text: a special token's name in it is tokenized like any
    other word. Nothing is cut or padded.

    Raises:
        UserError: the folder holds no tokenizer that loads, or only one that is written in Python.
    """
    tokenizer = getattr(_load(folder), "backend_tokenizer", None)
    if not isinstance(tokenizer, tokenizers.Tokenizer):
        raise UserError(
            f"tokenizer of {folder}",
            rule="is no fast one, which tokenizing and decoding whole data sets takes",
            fix="save it as tokenizer.json with transformers' convert_slow_tokenizer",
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer_from_json(tokenizer.to_str())


def tokenizer_from_json(text: str) -> tokenizers.Tokenizer:
    """The tokenizer that ``fast_tokenizer(...).to_str()`` is, in another process."""
    tokenizer = tokenizers.Tokenizer.from_str(text)
    tokenizer.encode_special_tokens = True  # the one setting that the JSON does not have
    return tokenizer


def _load(folder: Path) -> Any:
    if not folder.is_dir():
        raise UserError(f"tokenizer {folder}", rule="no such folder is here", fix="name the folder of the model")

    from transformers import AutoTokenizer  # seconds to import; readers of this module's types have no use for it

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # noqa: BLE001 (the tokenizers library raises Exception itself)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"model folder {folder}",
            rule=f"holds no tokenizer that loads ({reason})",
            fix="put the model's tokenizer files beside its weights",
        ) from None

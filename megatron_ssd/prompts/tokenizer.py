"""Converts messages or text to token ids, or back, as a model's own chat template says.

The engine gets the ids that are made here, so the recorded ids are those that the model read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import tokenizers

from megatron_ssd.artifacts.hashing import hash_json, sha256_file
from megatron_ssd.errors import UserError, first_line
from megatron_ssd.prompts.clock import RunClock

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt",
          "merges.txt", "added_tokens.json", "special_tokens_map.json")  # fmt: skip

Message = dict[str, str]  # role and content

# A chat template is code of the model: it may raise Jinja's errors, and all that Python's operators and methods raise.
_TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError,
                    RecursionError, MemoryError)  # fmt: skip
_PROBE = "probe"
_RANDOM = re.compile(r"\{[{%](?:(?![}%]\}).)*?(?:\|\s*random\b|\blipsum\s*\()", re.DOTALL)  # inside a tag of Jinja


class ChatTokenizer:
    """The Hugging Face tokenizer of a model folder, with its chat template if it has one.

    Args:
        folder: of the model.
        clock: the time that the chat template sees; None for tokenizers outside of a run, which see the time now.

    Raises:
        UserError: the folder has no tokenizer that loads, or one without tokens.
    """

    def __init__(self, folder: Path, clock: RunClock | None = None) -> None:
        self._tokenizer = _load(folder)
        self._time = {} if clock is None else {"strftime_now": clock.strftime}
        self._folder = folder
        vocabulary = self._tokenizer.get_vocab()
        if not vocabulary:
            raise UserError(f"tokenizer of {folder}", rule="has no tokens", fix="copy it from the model again")
        self.size = 1 + max(vocabulary.values())
        self._shown: set[tuple[str, ...]] = set()  # roles of conversations that the chat template renders

    def prompt_ids(self, messages: list[Message], *, enable_thinking: bool | None = None) -> list[int]:
        """Token ids of ``messages`` in the chat template, up to and including the marker that opens the answer.

        Args:
            messages: the conversation.
            enable_thinking: passed to the chat template if it is not None; Qwen3's templates use it.

        Raises:
            UserError: there is no chat template, it draws at random, it refuses the messages, or it does not render one
                of them.
        """
        if not self._tokenizer.chat_template:
            raise UserError(
                f"tokenizer of {self._folder}",
                rule="has no chat template, so messages cannot become a prompt",
                fix="set prompt.mode=raw, use an instruction-tuned model, or add chat_template to its "
                "tokenizer_config.json",
            )
        if _RANDOM.search(str(self._tokenizer.chat_template)):
            raise UserError(
                f"chat template of {self._folder}",
                rule="draws at random, so the same messages have different prompts",
                fix="remove the filter random or lipsum() from it",
            )
        options = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self._check_shows(messages, options)
        return [int(id_) for id_ in self._apply(messages, options, tokenize=True)]

    def _apply(self, messages: list[Message], options: dict[str, bool], *, tokenize: bool) -> Any:
        """The messages in the chat template, as ids or as text."""
        try:
            return self._tokenizer.apply_chat_template(
                messages, tokenize=tokenize, add_generation_prompt=True, return_dict=False, **self._time, **options
            )
        except _TEMPLATE_ERRORS as error:
            raise UserError(
                f"chat template of {self._folder}",
                rule=f"refuses messages of {_roles(messages)} ({str(error) or type(error).__name__})",
                fix="leave prompt.system out, or use a model whose template accepts it",
            ) from None

    def _check_shows(self, messages: list[Message], options: dict[str, bool]) -> None:
        """Raise ``UserError`` if the rendered text ignores a message's content. Checks each list of roles once."""
        roles = tuple(_roles(messages))
        if roles in self._shown:
            return
        text = self._apply(messages, options, tokenize=False)
        for index, message in enumerate(messages):
            changed = [*messages]
            changed[index] = {**message, "content": f"{message['content']} {_PROBE}"}
            if self._apply(changed, options, tokenize=False) == text:
                what = "the same" if text else "nothing"
                raise UserError(
                    f"chat template of {self._folder}",
                    rule=f"renders {what} for any content of the {message['role']} message",
                    fix="leave prompt.system out, or use a model whose template renders it"
                    if message["role"] == "system"
                    else "use the chat template that belongs to the model, or set prompt.mode=raw",
                )
        self._shown.add(roles)

    def text_ids(self, text: str) -> list[int]:
        """Token ids of plain text, with the special tokens that the tokenizer itself puts before a text.

        An end token after the text is left out, since the model continues the text.
        """
        ids = [int(id_) for id_ in self._tokenizer.encode(text, add_special_tokens=True)]
        return ids[:-1] if ids and ids[-1] == self._tokenizer.eos_token_id else ids

    def response_ids(self, text: str) -> list[int]:
        """Token ids of ``text`` alone: no special token is added, and the name of one in it is plain text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def text(self, token_ids: Sequence[int]) -> str:
        """Plain text of ``token_ids``: without special tokens, spaces unchanged."""
        decoded: str = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return decoded

    def check_fits(self, vocab_size: int) -> None:
        """Raise ``UserError`` if the tokenizer has ids that a vocabulary of ``vocab_size`` does not."""
        if self.size > vocab_size:
            raise UserError(
                f"tokenizer of {self._folder} with ids up to {self.size - 1}",
                rule=f"the model's vocabulary has {vocab_size} entries, so ids must be below that",
                fix="use the tokenizer that belongs to these weights",
            )

    def check_ends(self, end_token_ids: Sequence[int]) -> None:
        """Raise ``UserError`` unless the tokenizer's end token is among the ids that end a response."""
        id_ = self._tokenizer.eos_token_id
        if id_ is not None and id_ not in end_token_ids:
            raise UserError(
                f"tokenizer of {self._folder} with the end token {self._tokenizer.eos_token} ({id_})",
                rule=f"responses end at the ids {list(end_token_ids)} only, so they would run past it",
                fix="add the id to eos_token_id in the model's generation_config.json",
            )


def _roles(messages: list[Message]) -> list[str]:
    return [message["role"] for message in messages]


def tokenizer_hash(folder: Path) -> str:
    """Hash of the files of a model folder that define its tokenizer."""
    files = [folder / name for name in _FILES if (folder / name).is_file()]
    return hash_json([[path.name, sha256_file(path)] for path in files])


def fast_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a model folder as an object of the tokenizers library, which works in batches.

    It adds no special tokens, and tokenizes the name of a special token in a text like any other word. Nothing is
    truncated or padded.

    Raises:
        UserError: the folder has no tokenizer that loads, or only one that is written in Python.
    """
    tokenizer = getattr(_load(folder), "backend_tokenizer", None)
    if not isinstance(tokenizer, tokenizers.Tokenizer):
        raise UserError(
            f"tokenizer of {folder}",
            rule="is not a fast tokenizer, which data sets need",
            fix="save it as tokenizer.json with transformers' convert_slow_tokenizer",
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer_from_json(tokenizer.to_str())


def tokenizer_from_json(text: str) -> tokenizers.Tokenizer:
    """The tokenizer of ``fast_tokenizer(...).to_str()``, in another process."""
    tokenizer = tokenizers.Tokenizer.from_str(text)
    tokenizer.encode_special_tokens = True  # the only setting that is not in the JSON
    return tokenizer


def _load(folder: Path) -> Any:
    if not folder.is_dir():
        raise UserError(f"tokenizer {folder}", rule="does not exist", fix="use the folder of the model")

    from transformers import AutoTokenizer  # takes seconds to import, and not every user of this module needs it

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # noqa: BLE001 (the tokenizers library raises Exception itself)
        raise UserError(
            f"model folder {folder}",
            rule=f"has no tokenizer that loads ({first_line(error)})",
            fix="put the model's tokenizer files beside its weights",
        ) from None

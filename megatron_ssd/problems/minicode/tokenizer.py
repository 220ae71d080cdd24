"""Trains the minicode tokenizer: SentencePiece BPE with byte fallback, saved as a Hugging Face folder.

Invariants:
- Ids are those of sentencepiece, for every text. Any text survives encode and decode, except that U+2581 (the character
  that SentencePiece writes for a space) becomes a space.
- A line break with its indentation, a code fence, and a chat marker with its role are one token each. So the boundaries
  of prompt, response and every line of code are token boundaries.
- Only the chat markers are special tokens; the other symbols stay in the text when special tokens are skipped.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from megatron_ssd.errors import require
from megatron_ssd.problems.minicode.documents import Document, words

END = "<|im_end|>"
_START = "<|im_start|>"
_CHAT_MARKERS = (_START, END, *(f"{_START}{role}\n" for role in ("system", "user", "assistant")))
_SYMBOLS = ("```python\n", "\n```", "\n", "\n" + 4 * " ", "\n" + 8 * " ", "\n" + 12 * " ")
_ADDED = frozenset((*_CHAT_MARKERS, *_SYMBOLS))
_UNKNOWN = "<unk>"
_SPACE = "\u2581"
_BORDER = "\x00"  # only in training texts; SentencePiece removes it
_SMALLEST_VOCABULARY = 1 + len(_ADDED) + 256

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chat_text(document: Document) -> str:
    """``document`` in the chat template, up to the end token, as a base model reads it."""
    return f"{_START}user\n{document.prompt}{END}\n{_START}assistant\n{document.response}{END}"


def train_tokenizer(documents: Iterable[Document], vocab_size: int) -> bytes:
    """A SentencePiece model of exactly ``vocab_size`` pieces, none of which crosses a word border.

    The same documents give the same bytes.
    """
    require(vocab_size > _SMALLEST_VOCABULARY, f"minicode.vocab_size = {vocab_size}",
            rule=f"must exceed the number of bytes and symbols, {_SMALLEST_VOCABULARY}", fix="use 512")  # fmt: skip
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(_BORDER.join(words(line)) for line in _lines(documents)),
        pretokenization_delimiter=_BORDER,
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        character_coverage=1.0,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        user_defined_symbols=[symbol.replace(" ", _SPACE) for symbol in (*_CHAT_MARKERS, *_SYMBOLS)],
        unk_id=0,
        unk_piece=_UNKNOWN,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def save_tokenizer(model: bytes, folder: Path, *, max_length: int) -> None:
    """Write ``tokenizer.model``, and the files with chat template that AutoTokenizer and vLLM load instead."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    _fast_tokenizer(sentencepiece.SentencePieceProcessor(model_proto=model)).save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "unk_token": _UNKNOWN,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _lines(documents: Iterable[Document]) -> Iterator[str]:
    """The texts to learn besides the symbols."""
    for document in documents:
        yield from document.prompt.splitlines()
        yield from (line.strip() for line in document.response.splitlines() if not line.startswith("```"))


def _fast_tokenizer(processor: sentencepiece.SentencePieceProcessor) -> Tokenizer:
    """The same model for the tokenizers library."""
    vocabulary = {_plain_piece(processor.id_to_piece(index)): index for index in range(processor.get_piece_size())}
    model = models.BPE(vocab=vocabulary, merges=_merges(processor), byte_fallback=True, unk_token=_UNKNOWN)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(marker, normalized=False) for marker in (_UNKNOWN, *_CHAT_MARKERS)])
    tokenizer.add_tokens([AddedToken(symbol, normalized=False) for symbol in _SYMBOLS])
    return tokenizer


def _merges(processor: sentencepiece.SentencePieceProcessor) -> list[tuple[str, str]]:
    """Pairs that form a piece, by the piece's rank: SentencePiece merges the pair that forms the best piece."""
    learnt = [
        piece
        for index in range(processor.get_piece_size())
        if not processor.is_byte(index)
        and not processor.is_unknown(index)
        and _plain_piece(piece := processor.id_to_piece(index)) not in _ADDED
    ]
    known = set(learnt)
    pairs = ((piece[:cut], piece[cut:]) for piece in learnt for cut in range(1, len(piece)))
    return [(left, right) for left, right in pairs if left in known and right in known]


def _plain_piece(piece: str) -> str:
    """The tokenizers library searches for added tokens in the raw text, which has real spaces."""
    plain = piece.replace(_SPACE, " ")
    return plain if plain in _ADDED else piece

"""Tests that minicode's tokenizer gives the same ids in sentencepiece and in Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ssd.config.problems import MinicodeConfig
from megatron_ssd.errors import UserError
from megatron_ssd.problems import minicode
from megatron_ssd.problems.minicode.documents import Document
from megatron_ssd.problems.minicode.tokenizer import END, chat_text, save_tokenizer, train_tokenizer

CONFIG = MinicodeConfig(seed=2, num_documents=1500, noise=0.0, num_test_problems=30)
_PLAIN = st.text(st.characters(exclude_characters="\u2581\x00", exclude_categories=["Cs"]))
_CODE = st.text("x y\n()[]:,=<>`0123 defrturnxs    |_", max_size=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(minicode.corpus(CONFIG), 512), folder, max_length=256)
    return folder


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_the_vocabulary_has_the_configured_size(processor: Any, tokenizer: Any) -> None:
    assert processor.vocab_size() == len(tokenizer) == 512
    assert tokenizer.eos_token == END
    assert (
        tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id) == processor.id_to_piece(tokenizer.eos_token_id) == END
    )


def test_training_is_repeatable(folder: Path) -> None:
    assert train_tokenizer(minicode.corpus(CONFIG), 512) == (folder / "tokenizer.model").read_bytes()


@settings(max_examples=300)
@given(text=_PLAIN | _CODE)
def test_both_tokenizers_agree_on_any_text_and_restore_it(processor: Any, tokenizer: Any, text: str) -> None:
    ids = processor.encode(text)
    assert tokenizer.encode(text, add_special_tokens=False) == ids
    assert processor.decode(ids) == text
    assert tokenizer.decode(ids) == text


def test_both_tokenizers_agree_on_noisy_documents(processor: Any, tokenizer: Any) -> None:
    noisy = MinicodeConfig(seed=2, num_documents=300, noise=2.0)
    for document in minicode.corpus(noisy):
        text = chat_text(document)
        assert tokenizer.encode(text) == processor.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_corpus_is_written_in_the_chat_template(tokenizer: Any) -> None:
    document = Document("keep even numbers", "```python\ndef f(xs):\n    return xs\n```")
    user = {"role": "user", "content": document.prompt}
    prompt = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    full = tokenizer.apply_chat_template([user, {"role": "assistant", "content": document.response}], tokenize=False)
    assert full == chat_text(document)
    assert prompt + document.response + END == chat_text(document)
    assert tokenizer.encode(prompt) + tokenizer.encode(document.response + END) == tokenizer.encode(full)


def test_skipping_special_tokens_keeps_the_layout(tokenizer: Any) -> None:
    response = "```python\ndef f(xs):\n    for x in xs:\n        pass\n\n    return xs\n```"
    assert tokenizer.decode(tokenizer.encode(response + END), skip_special_tokens=True) == response


def test_every_labelled_unit_is_a_token(processor: Any) -> None:
    for problem in minicode.test_problems(CONFIG):
        document = minicode.document_with_labels(problem, 1)
        units = [position.unit for position in document.positions(processor.encode)]
        assert units == processor.encode(document.response)


def test_common_words_are_single_tokens(processor: Any) -> None:
    pieces = processor.encode("```python\ndef f(xs):\n    return sorted(xs)\n```", out_type=str)
    assert pieces[0] == "```python\n"
    assert pieces[-1] == "\n```"
    assert {"def", "return", "sorted"} <= {piece.strip("\u2581") for piece in pieces}


def test_a_vocabulary_that_is_too_small_is_refused() -> None:
    with pytest.raises(UserError, match=r"minicode\.vocab_size = 200"):
        train_tokenizer(minicode.corpus(CONFIG), 200)

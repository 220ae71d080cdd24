"""Tests the token ids of responses that are tokenized again, and how differences are reported."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from megatron_ssd.config.problems import MinicodeConfig
from megatron_ssd.dataset.convert import Difference, retokenize
from megatron_ssd.errors import UserError
from megatron_ssd.problems.minicode.documents import corpus
from megatron_ssd.prompts.tokenizer import ChatTokenizer, fast_tokenizer, tokenizer_hash
from megatron_ssd.schema import FinishReason, Sample
from tests.helpers.samples_run import sample as make_sample


def sample(response: str, ids: list[int], finish_reason: FinishReason = "stop") -> Sample:
    return replace(make_sample(response, finish_reason, tuple(ids)), sample_index=3)


def test_retokenized_ids_have_the_end_token_exactly_if_the_model_stopped(tiny_tokenizer: Path) -> None:
    tokenizer = fast_tokenizer(tiny_tokenizer)
    end = tokenizer.token_to_id("<|im_end|>")
    responses = [document.response for document in itertools.islice(corpus(MinicodeConfig(num_documents=9)), 9)]
    ids = [tokenizer.encode(response, add_special_tokens=False).ids for response in responses]
    samples = [sample(text, [*own, end]) for text, own in zip(responses, ids, strict=True)]
    samples.append(sample(responses[0], ids[0], "length"))
    again = retokenize(tokenizer.to_str(), samples)
    assert again == [one.response_token_ids for one in samples]


def test_the_name_of_a_special_token_is_text(tiny_tokenizer: Path) -> None:
    text = "a <|im_end|> b"
    (ids,) = retokenize(fast_tokenizer(tiny_tokenizer).to_str(), [sample(text, [], "length")])
    assert fast_tokenizer(tiny_tokenizer).token_to_id("<|im_end|>") not in ids
    assert ChatTokenizer(tiny_tokenizer).text(ids) == text


def test_text_that_cannot_be_tokenized_is_named(tiny_tokenizer: Path) -> None:
    samples = [sample("fine", [1]), sample("ab\ud83d", [1])]
    with pytest.raises(UserError, match=r"sample 3 of problem p: .*surrogates not allowed at character 2.*ids=sampled"):
        retokenize(fast_tokenizer(tiny_tokenizer).to_str(), samples)


def test_the_tokenizer_hash_covers_the_files_that_determine_ids(tiny_tokenizer: Path, tmp_path: Path) -> None:
    for file in tiny_tokenizer.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert tokenizer_hash(tmp_path) == tokenizer_hash(tiny_tokenizer)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert tokenizer_hash(tmp_path) != tokenizer_hash(tiny_tokenizer)


@pytest.mark.parametrize(
    ("sampled", "again", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], None),
        ([], [], None),
        ([1, 2, 3, 4], [1, 9, 4], (1, 2)),  # two tokens where the tokenizer writes one
        ([1, 9, 4], [1, 2, 3, 4], (1, 1)),
        ([1, 2], [1, 2, 3], (2, 0)),  # the text has more tokens
        ([1, 2, 3], [1, 2], (2, 1)),
        ([5, 5, 5], [5, 5], (2, 1)),
        ([1], [], (0, 1)),
    ],
)
def test_the_first_and_last_difference_are_found(
    sampled: list[int], again: list[int], expected: tuple[int, int] | None
) -> None:
    assert Difference.between(sampled, again) == expected


ids = st.lists(st.integers(0, 3), max_size=12)


@given(sampled=ids, again=ids)
def test_a_difference_excludes_the_common_beginning_and_end(sampled: list[int], again: list[int]) -> None:
    found = Difference.between(sampled, again)
    if found is None:
        assert sampled == again
        return
    assert sampled[: found.position] == again[: found.position]
    assert sampled[found.position : found.position + 1] != again[found.position : found.position + 1]
    rest = len(sampled) - found.position - found.length
    assert 0 <= found.length <= len(sampled) - found.position
    assert sampled[len(sampled) - rest :] == again[len(again) - rest :]


def test_the_record_of_a_difference() -> None:
    sampled, again = list(range(100, 120)), [*range(100, 110), 7, *range(112, 120)]
    assert Difference(10, 2).record(sample("r", sampled), again) == {
        "problem_id": "p", "sample_index": 3, "position": 10,
        "sampled": [106, 107, 108, 109, 110, 111, 112, 113, 114],
        "retokenized": [106, 107, 108, 109, 7, 112, 113, 114, 115],
        "sampled_tokens": 20, "retokenized_tokens": 19, "differing_tokens": 2,
    }  # fmt: skip

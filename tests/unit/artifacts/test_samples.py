"""Tests the fast reader of samples against the writer, and its error messages."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from megatron_ssd.artifacts.jsonl import JsonlWriter, iter_jsonl
from megatron_ssd.artifacts.samples import iter_samples
from megatron_ssd.errors import UserError
from megatron_ssd.schema import Sample
from tests.helpers.jsonl import write_jsonl

SAMPLE = Sample(problem_id="p", sample_index=0, messages=[{"role": "user", "content": "c"}], prompt_token_ids=[1],
                response="r", response_token_ids=[2, 3], finish_reason="stop", seed=1, sampling_hash="h",
                model_revision="m")  # fmt: skip

# Includes lone surrogates, which are not valid UTF-8 but which Python's JSON writes and reads.
any_text = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)
ids = st.lists(st.integers(0, 1 << 20), max_size=5)
samples = st.builds(
    Sample,
    problem_id=any_text,
    sample_index=st.integers(0, 99),
    messages=st.lists(st.fixed_dictionaries({"role": any_text, "content": any_text}), max_size=2),
    prompt_token_ids=ids.filter(len),
    response=any_text,
    response_token_ids=ids.filter(len),
    finish_reason=st.sampled_from(["stop", "length"]),
    seed=st.integers(0, (1 << 63) - 1),
    sampling_hash=any_text,
    model_revision=any_text,
)
skips = st.builds(
    lambda sample, prompt, reason: replace(
        sample, prompt_token_ids=prompt, response="", response_token_ids=[], finish_reason="skipped", skip_reason=reason
    ),
    samples, ids, any_text,
)  # fmt: skip


@given(written=st.lists(samples | skips, max_size=4))
@example(written=[replace(SAMPLE, response="cut \ud83d")])
def test_samples_are_read_as_written(tmp_path_factory: pytest.TempPathFactory, written: list[Sample]) -> None:
    path = tmp_path_factory.mktemp("samples") / "shard.jsonl"
    with JsonlWriter(path) as writer:
        for sample in written:
            writer.write(sample.to_json())
    assert list(iter_samples(path)) == written == [Sample.from_json(record) for record in iter_jsonl(path)]


def test_a_field_with_a_default_may_be_missing(tmp_path: Path) -> None:
    record = SAMPLE.to_json()
    del record["skip_reason"]
    assert list(iter_samples(write_jsonl(tmp_path / "s.jsonl", [record]))) == [SAMPLE]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"temperature": 1}, "s.jsonl:2: is not a sample: object contains unknown field `temperature`"),
        (
            {"response_token_ids": [1, "2"]},
            r"s.jsonl:2: is not a sample: expected `int`, got `str`.*response_token_ids",
        ),
        ({"finish_reason": "eos"}, r"s.jsonl:2: is not a sample: invalid enum value 'eos'"),
    ],
)
def test_a_line_that_is_not_a_sample_is_named(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    records = [SAMPLE.to_json(), SAMPLE.to_json() | change]
    path = write_jsonl(tmp_path / "s.jsonl", records)
    with pytest.raises(UserError, match=match):
        list(iter_samples(path))


@pytest.mark.parametrize(
    ("line", "match"), [(b'{"problem', r"s.jsonl:2.*must be one JSON object"), (b"[]", "not an object")]
)
def test_a_line_that_is_not_an_object_is_named(tmp_path: Path, line: bytes, match: str) -> None:
    (tmp_path / "s.jsonl").write_bytes(json.dumps(SAMPLE.to_json()).encode() + b"\n" + line + b"\n")
    with pytest.raises(UserError, match=match):
        list(iter_samples(tmp_path / "s.jsonl"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        list(iter_samples(tmp_path / "nothing.jsonl"))

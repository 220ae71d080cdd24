"""Tests the bytes of .bin and .idx files, and compares them with those of Megatron-Core."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

from megatron_ssd.dataset.indexed import IndexedWriter, id_type, join_indexed, open_indexed, read_index, read_indexed
from megatron_ssd.errors import UserError
from tests.helpers.megatron_texts import write_megatron_texts

DOCUMENTS = [([5, 6, 7], [8, 9]), ([258], [])]
HEADER = "4d4d494449445800 00  0100000000000000 {code}  0400000000000000  0300000000000000"  # 4 sequences, 3 indices
LENGTHS = "03000000 02000000 01000000 00000000"
DOCUMENT_INDICES = "0000000000000000 0200000000000000 0400000000000000"
GOLDEN = {  # vocabulary: (.bin, id type, offsets)
    65499: ("0500 0600 0700 0800 0900 0201", "08",
            "0000000000000000 0600000000000000 0a00000000000000 0c00000000000000"),
    65500: ("05000000 06000000 07000000 08000000 09000000 02010000", "04",
            "0000000000000000 0c00000000000000 1400000000000000 1800000000000000"),
}  # fmt: skip


@pytest.mark.parametrize("vocab_size", GOLDEN)
def test_the_bytes_of_two_documents(tmp_path: Path, vocab_size: int) -> None:
    ids, code, offsets = GOLDEN[vocab_size]
    with IndexedWriter(tmp_path / "data", vocab_size=vocab_size) as writer:
        for prompt, response in DOCUMENTS:
            writer.add(prompt, response)
    assert (tmp_path / "data.bin").read_bytes() == bytes.fromhex(ids)
    golden = bytes.fromhex(" ".join([HEADER.format(code=code), LENGTHS, offsets, DOCUMENT_INDICES]))
    assert (tmp_path / "data.idx").read_bytes() == golden
    (tmp_path / "literal.bin").write_bytes(bytes.fromhex(ids))
    (tmp_path / "literal.idx").write_bytes(golden)
    dataset = IndexedDataset(str(tmp_path / "literal"))
    assert [sequence.tolist() for sequence in dataset[0:4]] == [[5, 6, 7], [8, 9], [258], []]
    assert dataset.document_indices.tolist() == [0, 2, 4]


def test_the_id_type_is_the_one_that_megatron_core_chooses() -> None:
    for vocab_size in (1, 512, 32000, 65499, 65500, 65536, 151936):
        assert id_type(vocab_size) == DType.optimal_dtype(vocab_size)


documents = st.lists(st.lists(st.lists(st.integers(0, 299), max_size=6), max_size=4), max_size=8)


@settings(max_examples=40)
@given(documents=documents, cut=st.integers(0, 8), vocab_size=st.sampled_from([300, 70000]))
def test_files_written_at_once_or_joined_equal_those_of_megatron_core(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[list[int]]], cut: int, vocab_size: int
) -> None:
    folder = tmp_path_factory.mktemp("data")
    write_megatron_texts(folder / "megatron", documents, vocab_size=vocab_size)
    for name, part in (("complete", documents), ("first", documents[:cut]), ("second", documents[cut:])):
        with IndexedWriter(folder / name, vocab_size=vocab_size) as writer:
            for sequences in part:
                writer.add(*sequences)
    join_indexed([folder / "first", folder / "second"], folder / "joined")
    for ending in ("bin", "idx"):
        expected = (folder / f"megatron.{ending}").read_bytes()
        assert (folder / f"complete.{ending}").read_bytes() == expected
        assert (folder / f"joined.{ending}").read_bytes() == expected
    index = read_index(folder / "complete.idx")
    assert index.num_documents == len(documents)
    assert index.lengths.tolist() == [len(sequence) for sequences in documents for sequence in sequences]


def test_missing_and_broken_files_are_one_line(tmp_path: Path) -> None:
    prefix = tmp_path / "data"
    with pytest.raises(UserError, match=r"data.idx: does not exist"):
        open_indexed(prefix)
    with IndexedWriter(prefix, vocab_size=100) as writer:
        writer.add([1, 2, 3], [2])
    Path(f"{prefix}.bin").write_bytes(b"12")
    with pytest.raises(UserError, match="has 2 bytes, but its index counts 8"):
        open_indexed(prefix)
    for junk in (b"", b"junk", b"junk" * 9):
        Path(f"{prefix}.idx").write_bytes(junk)
        with pytest.raises(UserError, match="not a complete Megatron index"):
            open_indexed(prefix)


@pytest.mark.parametrize(
    ("offset", "value", "match"),
    [
        (17, struct.pack("<B", 7), "type 7 is not a type of token ids"),
        (34, struct.pack("<i", -3), "negative length"),
        (34, struct.pack("<i", 2), "sequence 1 begins at byte 6, but the sequences before it end at 4"),
        (34 + 4 * 4 + 8, struct.pack("<q", 8), "sequence 1 begins at byte 8, but the sequences before it end at 6"),
        (34 + 4 * 12, struct.pack("<q", 1), "do not rise from 0 to the 4 sequences"),
        (34 + 4 * 12 + 8, struct.pack("<q", 5), "do not rise from 0 to the 4 sequences"),
        (34 + 4 * 12 + 16, struct.pack("<q", 3), "do not rise from 0 to the 4 sequences"),
    ],
)
def test_an_index_that_contradicts_itself_is_named(tmp_path: Path, offset: int, value: bytes, match: str) -> None:
    with IndexedWriter(tmp_path / "data", vocab_size=1000) as writer:
        for prompt, response in DOCUMENTS:
            writer.add(prompt, response)
    path = tmp_path / "data.idx"
    content = bytearray(path.read_bytes())
    content[offset : offset + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(UserError, match=match):
        read_indexed(tmp_path / "data")


@pytest.mark.parametrize("outside", [100, -1, 1 << 40])
def test_ids_outside_the_vocabulary_are_refused(tmp_path: Path, outside: int) -> None:
    with (
        pytest.raises(UserError, match=f"token id {outside}: is outside"),
        IndexedWriter(tmp_path / "x", vocab_size=100) as writer,
    ):
        writer.add([1], [2, outside])
    assert not (tmp_path / "x.idx").exists()


def test_a_data_set_without_a_token_is_named(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "data", vocab_size=100) as writer:
        writer.add([])
    with pytest.raises(UserError, match="contains no token"):
        open_indexed(tmp_path / "data")


@pytest.mark.parametrize("modes", [[0, 0], [0, 1]])
def test_a_multimodal_data_set_opens_only_if_it_is_all_text(tmp_path: Path, modes: list[int]) -> None:
    builder = IndexedDatasetBuilder(str(tmp_path / "data.bin"), dtype=np.int32, multimodal=True)
    builder.add_document(np.array([1, 2, 3]), [2, 1], modes)
    builder.finalize(str(tmp_path / "data.idx"))
    index = read_indexed(tmp_path / "data")
    assert index.modes is not None
    assert index.modes.tolist() == modes
    if any(modes):
        with pytest.raises(UserError, match="is multimodal: sequence 1 has mode 1"):
            open_indexed(tmp_path / "data")
    else:
        dataset = open_indexed(tmp_path / "data")
        assert [ids.tolist() for ids in dataset[0:2]] == [[1, 2], [3]]

"""Tests what ``tools/inspect_dataset.py`` prints, and which inconsistencies it finds."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_ssd.artifacts.hashing import sha256_file
from megatron_ssd.artifacts.manifest import FILE_NAME, manifest_json, read_manifest
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.tools import InspectConfig
from megatron_ssd.dataset.indexed import IndexedWriter
from megatron_ssd.dataset.inspection import run_inspect
from megatron_ssd.errors import ConfigError, UserError
from megatron_ssd.prompts.tokenizer import fast_tokenizer
from tests.helpers.megatron_texts import write_megatron_texts
from tests.helpers.scripts import run_script

PAIRS = [("solve it", "x = 1"), ("again", "\x1b[31my = 2"), ("more", "")]


@pytest.fixture
def run_dir(tmp_path: Path, tiny_tokenizer: Path) -> Path:
    """A run with a published data set of three pairs."""
    tokenizer = fast_tokenizer(tiny_tokenizer)
    stage = Stage(name="dataset", run_dir=tmp_path / "run", config={"vocab_size": 512}, inputs={})
    work, lengths = stage.begin(), [0, 0]
    with IndexedWriter(work / "samples", vocab_size=512) as writer, (work / "ids.jsonl").open("w") as names:
        for number, pair in enumerate(PAIRS):
            ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in pair]
            writer.add(*ids)
            lengths = [total + len(part) for total, part in zip(lengths, ids, strict=True)]
            names.write(json.dumps({"problem_id": f"p{number}", "sample_index": 0}) + "\n")
    counts = {"samples": 5, "documents": 3, "length_capped": 1} | dict(
        zip(("prompt_tokens", "response_tokens"), lengths, strict=True)
    )
    stage.publish(counts=counts, dropped={"empty": 2})
    return tmp_path / "run"


def show(capsys: pytest.CaptureFixture[str], **keys: Any) -> str:
    run_inspect(InspectConfig(**keys))
    return capsys.readouterr().out


def test_counts_lengths_and_ids_are_shown(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = show(capsys, run_dir=str(run_dir), examples=1)
    for part in ("3, pairs of [prompt, response]", "uint16, all below 512",
                 "1 of the responses sampled have no end token",
                 "2 of 5 samples: empty 2", "with hashes", "length of responses in tokens: median",
                 "document 0, sample 0 of problem p0"):  # fmt: skip
        assert part in shown, shown
    numbers = np.memmap(run_dir / "dataset" / "samples.bin", dtype=np.uint16)
    assert str(numbers[0]) in shown.split("[prompt, no loss]")[1]  # no tokenizer: ids


def test_examples_are_decoded_with_marks_and_without_control_characters(
    run_dir: Path, tiny_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = show(capsys, run_dir=str(run_dir), tokenizer=str(tiny_tokenizer), examples=3)
    assert "[prompt, no loss]\nsolve it\n[loss]\nx = 1" in shown
    assert "\\x1b[31my = 2" in shown
    assert "\x1b" not in shown
    (run_dir / "tokenizer").symlink_to(tiny_tokenizer)
    assert "solve it" in show(capsys, run_dir=str(run_dir))


def test_a_terminal_gets_colours_unless_no_color_is_set(
    run_dir: Path, tiny_tokenizer: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    keys = {"run_dir": str(run_dir), "tokenizer": str(tiny_tokenizer)}
    assert "\x1b[2msolve it\x1b[0m\n\x1b[32mx = 1\x1b[0m" in show(capsys, **keys)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in show(capsys, **keys)


def test_the_middle_of_long_texts_is_left_out(
    run_dir: Path, tiny_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = show(capsys, run_dir=str(run_dir), tokenizer=str(tiny_tokenizer), max_characters=4, examples=1)
    assert "sol\n... 4 characters ...\nt" in shown


def rewrite_manifest(folder: Path, **changes: Any) -> None:
    """Change fields of the manifest, and update its sizes and hashes."""
    outputs = [{"path": o["path"], "sha256": sha256_file(folder / o["path"]),
                "bytes": (folder / o["path"]).stat().st_size} for o in read_manifest(folder).outputs]  # fmt: skip
    manifest = dataclasses.replace(read_manifest(folder), outputs=outputs, **changes)
    (folder / FILE_NAME).write_text(manifest_json(manifest))


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "samples.bin").read_bytes())
    content[0] ^= 1
    (folder / "samples.bin").write_bytes(content)


def write_too_large_an_id(folder: Path) -> None:
    content = bytearray((folder / "samples.bin").read_bytes())
    content[2:4] = b"\x00\x02"
    (folder / "samples.bin").write_bytes(content)
    rewrite_manifest(folder)


def drop_a_name(folder: Path) -> None:
    lines = (folder / "ids.jsonl").read_text().splitlines()
    (folder / "ids.jsonl").write_text("\n".join(lines[1:]) + "\n")
    rewrite_manifest(folder)


def cut_the_bin(folder: Path) -> None:
    (folder / "samples.bin").write_bytes((folder / "samples.bin").read_bytes()[:-2])


def move_a_pointer(folder: Path) -> None:
    content = bytearray((folder / "samples.idx").read_bytes())
    content[34 + 6 * 4 + 8] += 2
    (folder / "samples.idx").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (cut_the_bin, r"samples.bin: has \d+ bytes, but its index counts"),
        (move_a_pointer, r"samples.idx: sequence 1 begins at byte"),
        (flip_a_bit, r"samples.bin: is not what was published: its SHA-256 differs"),
        (write_too_large_an_id, r"samples.bin: token 1 has id 512, outside the vocabulary of 512"),
        (drop_a_name, r"ids.jsonl: has 2 lines for 3 documents"),
        (lambda folder: (folder / "ids.jsonl").unlink(), r"ids.jsonl: is missing"),
        (lambda folder: (folder / "ids.jsonl").write_text("{}\n"), r"ids.jsonl: has 3 bytes; \d+ were published"),
        (lambda folder: rewrite_manifest(folder, counts={"documents": 4}),
         r"samples.idx: counts 3 documents but the manifest has 4"),
        (lambda folder: rewrite_manifest(folder, counts={"response_tokens": 1}),
         r"samples.idx: counts \d+ response tokens but the manifest has 1"),
    ],
)  # fmt: skip
def test_inconsistent_files_are_named(run_dir: Path, damage: Any, match: str) -> None:
    damage(run_dir / "dataset")
    with pytest.raises(UserError, match=match):
        run_inspect(InspectConfig(run_dir=str(run_dir)))


def test_hashes_can_be_left_out(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip_a_bit(run_dir / "dataset")
    assert "without hashes" in show(capsys, run_dir=str(run_dir), hashes=False)


def test_a_data_set_of_megatron_lm_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [[[1, 2, 3, 70000]], [[4], [5, 70000]]]
    prefix = write_megatron_texts(tmp_path / "text_document", texts, vocab_size=100_000)
    shown = show(capsys, path=str(prefix))
    for part in ("2, 3 sequences", "int32, largest 70,000", "there is no manifest", "document 1: 1 + 2 tokens",
                 "[loss]\n1 2 3 70000", "4 to         7           1"):  # fmt: skip
        assert part in shown, shown
    assert "no loss" not in shown


def test_the_script_prints_the_result_or_one_line(run_dir: Path) -> None:
    script = "tools/inspect_dataset.py"
    done = run_script(script, f"run_dir={run_dir}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "3, pairs" in done.stdout
    cut_the_bin(run_dir / "dataset")
    done = run_script(script, f"run_dir={run_dir}")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "run_dir" in run_script(script, "--help").stdout
    with pytest.raises(ConfigError, match="one of them must name the data set"):
        InspectConfig()

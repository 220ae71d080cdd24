"""Tests data sets that Megatron-LM's own tool wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.cli.compose import compose_config
from megatron_ssd.config.run import RunConfig
from megatron_ssd.config.tools import InspectConfig
from megatron_ssd.dataset.inspection import run_inspect
from megatron_ssd.dataset.stage import dataset_stage, run_preprocess
from megatron_ssd.errors import ConfigError, UserError
from megatron_ssd.training.data import open_dataset
from tests.helpers.megatron_texts import write_megatron_texts

TEXTS = [[5, 6, 7, 8, 2], [9, 2], [10, 11, 12, 2]]


def write_texts(prefix: Path, *, vocab_size: int = 512, sentences: tuple[int, ...] = (1, 1, 1)) -> Path:
    """Write ``TEXTS`` like Megatron-LM; ``sentences`` has the number of sentences of each text."""
    texts = [
        [*([id_] for id_ in ids[: count - 1]), ids[count - 1 :]] for ids, count in zip(TEXTS, sentences, strict=True)
    ]
    return write_megatron_texts(prefix, texts, vocab_size=vocab_size)


def config_of(run_dir: Path, prefix: Path, *overrides: str) -> RunConfig:
    return compose_config(["model=tiny", "parallel=single", "objective=pretrain", "training.seq_length=16",
                           f"run_dir={run_dir}", f"preprocess.indexed={prefix}", *overrides])  # fmt: skip


@pytest.mark.parametrize(("vocab_size", "sentences"), [(512, (1, 1, 1)), (70000, (1, 1, 1)), (512, (1, 2, 3))])
def test_texts_are_published_inspected_and_trained_on(
    tmp_path: Path, vocab_size: int, sentences: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = write_texts(tmp_path / "my_text_document", vocab_size=vocab_size, sentences=sentences)
    config = config_of(tmp_path / "run", prefix)
    run_preprocess(config)
    assert dataset_stage(config).is_current()
    manifest = read_manifest(tmp_path / "run" / "dataset")
    assert manifest.counts == {"documents": 3, "tokens": 11}
    assert [output["path"] for output in manifest.outputs] == ["samples.bin", "samples.idx"]
    dataset = open_dataset(config, config.model)
    sequences = [dataset.sequence(0, index) for index in range(dataset.num_sequences(0))]
    texts = [[*packed["tokens"][: int(packed["loss_weights"].sum())].tolist(), 2] for packed in sequences]
    assert sorted(texts) == sorted(TEXTS)
    run_inspect(InspectConfig(run_dir=str(tmp_path / "run")))
    assert "3, " in capsys.readouterr().out


def test_texts_are_refused_for_fine_tuning(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run", write_texts(tmp_path / "texts"), "objective=sft")
    run_preprocess(config)
    with pytest.raises(UserError, match=r"must be pairs of \[prompt, response\].*set objective=pretrain"):
        open_dataset(config, config.model)


@pytest.mark.parametrize("ending", [".bin", ".idx"])
def test_the_path_may_include_the_file_ending(tmp_path: Path, ending: str) -> None:
    prefix = write_texts(tmp_path / "texts")
    run_preprocess(config_of(tmp_path / "run", Path(f"{prefix}{ending}")))
    assert dataset_stage(config_of(tmp_path / "run", prefix)).is_current()


def test_changed_files_are_an_error(tmp_path: Path) -> None:
    prefix = write_texts(tmp_path / "texts")
    run_preprocess(config_of(tmp_path / "run", prefix))
    write_texts(prefix, vocab_size=70000)
    with pytest.raises(UserError, match=r"another input \(indexed changed since\)"):
        dataset_stage(config_of(tmp_path / "run", prefix)).is_current()


def test_invalid_files_and_settings_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing.idx: does not exist; set preprocess.indexed"):
        run_preprocess(config_of(tmp_path / "run", tmp_path / "nothing"))
    prefix = write_texts(tmp_path / "texts")
    with pytest.raises(UserError, match=r"texts.bin: token 9 has id 12, outside the vocabulary of 12"):
        run_preprocess(config_of(tmp_path / "run", prefix, "model.vocab_size=12"))
    assert not (tmp_path / "run" / "dataset.partial").exists()
    with pytest.raises(ConfigError, match=r"preprocess.indexed = .*is used without changes"):
        config_of(tmp_path / "run", prefix, "preprocess.compare=true")

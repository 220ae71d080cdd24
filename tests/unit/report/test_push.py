"""Tests for uploads to the Hub, which a server on this machine replaces."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

from megatron_ssd.artifacts.cards import model_card
from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.config.run import RunConfig
from megatron_ssd.config.training import PushConfig
from megatron_ssd.errors import UserError
from megatron_ssd.report.push import run_push
from megatron_ssd.schema import Sample
from tests.helpers.fake_hub import TOKEN, FakeHub, fake_hub
from tests.helpers.report_run import run_config

REPO = "someone/a-model"
WEIGHTS = {"data.bin", "config.json"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def pushing(run_dir: Path, **changes: Any) -> RunConfig:
    dry_run = changes.pop("dry_run", False)
    return dataclasses.replace(run_config(run_dir), push=PushConfig(**{"repo": REPO, **changes}), dry_run=dry_run)


def front_matter(card: str) -> dict[str, Any]:
    return dict(yaml.safe_load(card.split("---\n")[1]))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_lists_the_files_that_an_upload_sends(
    run_dir: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    run_push(pushing(run_dir, dry_run=True))
    *lines, total = capsys.readouterr().out.splitlines()
    listed = {line.split()[0]: int(line.split()[1].replace(",", "")) for line in lines}
    assert "private" in total
    assert hub.files == {}
    run_push(pushing(run_dir))
    assert {path: len(content) for path, content in hub.files[f"models/{REPO}"].items()} == listed
    assert listed.keys() == WEIGHTS | {"README.md", "generation_config.json", "manifest.json"}


def test_a_model_is_uploaded_with_its_scores_and_its_chosen_decode_setting(run_dir: Path, hub: FakeHub) -> None:
    export = contents(run_dir / "export")
    run_push(pushing(run_dir, base_model="Qwen/Qwen3-4B-Instruct-2507"))
    sent = hub.files[f"models/{REPO}"]
    assert hub.private == {f"models/{REPO}": True}
    assert {name: sent[name] for name in WEIGHTS} == {name: export[name] for name in WEIGHTS}
    assert contents(run_dir / "export") == export
    generation = json.loads(sent["generation_config.json"])
    assert generation == {"do_sample": True, "temperature": 1.5, "top_k": 20, "top_p": 0.6, "min_p": 0.0,
                          "repetition_penalty": 1.0, "eos_token_id": [2, 5]}  # fmt: skip
    card = sent["README.md"].decode()
    assert front_matter(card) == {
        "base_model": "Qwen/Qwen3-4B-Instruct-2507", "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["self-distillation", "code", "megatron-ssd"],
    }  # fmt: skip
    for text in ("T1.5-k20-p0.6", "SSD at its best", "30.8 to 38.2", "150 problems", "95 % intervals", "none is named"):
        assert text in card
    inputs = json.loads(sent["manifest.json"])["inputs"]
    assert inputs == {name: read_manifest(run_dir / name).content_hash for name in ("export", "eval")}


def test_an_upload_that_was_refused_is_resumed_and_sends_nothing_twice(run_dir: Path, hub: FakeHub) -> None:
    hub.refusal = 403
    with pytest.raises(UserError, match=r"push\.repo = someone/a-model: the Hub .*403.*same command.*push/model"):
        run_push(pushing(run_dir))
    made = contents(run_dir / "push" / "model")
    hub.refusal = None
    run_push(pushing(run_dir))
    run_push(pushing(run_dir))
    assert [set(paths) for paths in hub.uploads] == [set(made)]
    (run_dir / "eval").rename(run_dir / "eval.away")
    run_push(dataclasses.replace(pushing(run_dir), replace=True))
    assert set(hub.uploads[1]) == {"README.md", "generation_config.json", "manifest.json"}
    assert json.loads(hub.files[f"models/{REPO}"]["generation_config.json"]) == {
        "eos_token_id": [2, 5], "temperature": 1.5,
    }  # fmt: skip


def test_samples_are_uploaded_as_a_data_set(run_dir: Path, hub: FakeHub) -> None:
    run_push(pushing(run_dir, what="samples", private=False))
    sent = hub.files[f"datasets/{REPO}"]
    assert hub.private == {f"datasets/{REPO}": False}
    assert sent.keys() == {"data.bin", "shard-00000.jsonl", "shard-00001.jsonl", "README.md", "manifest.json"}
    first = json.loads(sent["shard-00000.jsonl"].splitlines()[0])
    assert Sample.from_json(first).problem_id == "train-0-0"
    card = sent["README.md"].decode()
    assert front_matter(card)["configs"] == [{"config_name": "default", "data_files": "shard-*.jsonl"}]
    assert "600 samples" in card
    assert str(run_dir.parent) not in card


def _no_token(run_dir: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(run_dir / "none"))


def _other_token(run_dir: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_expired")


def _offline(run_dir: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def _public(run_dir: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files[f"models/{REPO}"], hub.private[f"models/{REPO}"] = {}, False


def _damaged(run_dir: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    (run_dir / "export" / "data.bin").write_bytes(b"other")


def _other_export(run_dir: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(run_dir / "export")
    shutil.copytree(run_dir / "dataset", run_dir / "export")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (_no_token, r"there is none; run `hf auth login` or set HF_TOKEN"),
        (_other_token, r"401.*check network, token and name"),
        (_offline, r"cannot be reached.*[Oo]ffline"),
        (_public, r"push\.private = true: someone/a-model exists and is public; set push\.private=false"),
        (_damaged, r"data\.bin: has 5 bytes"),
        (_other_export, r"eval: does not measure the model in export/; run launch/evaluate\.py"),
    ],
)
def test_what_cannot_be_uploaded_is_refused_in_one_line(
    run_dir: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, change: Callable[..., None], error: str
) -> None:
    change(run_dir, hub, monkeypatch)
    with pytest.raises(UserError, match=error) as caught:
        run_push(pushing(run_dir))
    assert "\n" not in str(caught.value)
    assert hub.uploads == []


@pytest.mark.parametrize("changes", [{"repo": None}, {"repo": "no owner"}, {"base_model": "/models/base"}])
def test_names_that_the_hub_does_not_have_are_refused(run_dir: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"push\.(repo|base_model) = .*OWNER/NAME"):
        run_push(pushing(run_dir, **changes))


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# Base", {"license": "apache-2.0"}),
        ("---\nlicense: other\nlicense_name: x\nlicense_link: https://x\nbase_model: y\n---\n",
         {"license": "other", "license_name": "x", "license_link": "https://x"}),
        ("---\n]\n---\n", {}),
        ("# Base without metadata", {}),
        (None, {}),
    ],
)  # fmt: skip
def test_a_model_has_the_licence_of_its_base_or_says_that_none_is_named(
    run_dir: Path, card: str | None, licence: dict[str, str]
) -> None:
    if card is not None:
        (run_dir / "README.md").write_text(card)
    config = run_config(run_dir)
    assert config.model is not None
    of_hub = dataclasses.replace(config, model=dataclasses.replace(config.model, path="Qwen/Qwen3-0.6B"))
    written = model_card(of_hub, run_dir, exported={})
    values = front_matter(written)
    assert {key: value for key, value in values.items() if key.startswith("license")} == licence
    assert values["base_model"] == "Qwen/Qwen3-0.6B"
    assert ("names none" in written) == (not licence)

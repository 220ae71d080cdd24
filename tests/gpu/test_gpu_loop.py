"""The demo on a GPU, script by script; the training of its base model is killed after a checkpoint and resumed.

A CPU rehearses it without vLLM, on made-up samples.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from megatron_ssd.artifacts.manifest import MADE_BY
from megatron_ssd.training.checkpoint_folder import list_checkpoints
from tests.gpu.demo import base_overrides, loop_overrides
from tests.helpers.devices import GPU_TESTS_ON
from tests.helpers.killed import kill_when
from tests.helpers.paths import ROOT
from tests.helpers.samples_run import SHARDS, publish_samples
from tests.helpers.scripts import run_script
from tests.helpers.training_run import metrics

READS = {"dataset": "samples", "checkpoints": "dataset", "export": "checkpoints", "eval": "export", "report": "eval"}
STAGES = ["problems", pytest.param("samples", marks=pytest.mark.timeout(80)), "dataset", "checkpoints", "export",
          pytest.param("eval", marks=pytest.mark.timeout(120)), "report"]  # vLLM starts once, and twice  # fmt: skip
PACKAGES = {"samples": "vllm", "eval": "vllm", "report": "altair"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.mark.timeout(60)
class TestLoop:
    """Each test needs what the tests before it have made."""

    def test_the_corpus_is_made(self, folder: Path) -> None:
        publish(folder / "base", "tokenizer", base_overrides(folder, GPU_TESTS_ON))
        assert (folder / "base" / "dataset" / "manifest.json").is_file()

    def test_training_is_killed_after_a_checkpoint(self, folder: Path) -> None:
        run = folder / "base"
        command = [sys.executable, str(ROOT / MADE_BY["checkpoints"]), *base_overrides(folder, GPU_TESTS_ON)]
        kill_when(command, lambda: bool(list_checkpoints(run / "checkpoints.partial")), folder / "killed.log")
        assert not (run / "checkpoints").exists()

    def test_training_goes_on_from_the_checkpoint(self, folder: Path) -> None:
        run = folder / "base"
        publish(run, "checkpoints", base_overrides(folder, GPU_TESTS_ON))
        iterations = [record["iteration"] for record in metrics(run)]
        assert iterations == list(range(1, len(iterations) + 1))

    def test_the_base_model_is_exported(self, folder: Path) -> None:
        publish(folder / "base", "export", base_overrides(folder, GPU_TESTS_ON))

    @pytest.mark.parametrize("stage", STAGES)
    def test_a_stage_of_the_loop(self, folder: Path, stage: str) -> None:
        run = folder / "loop"
        if GPU_TESTS_ON == "cpu" and stage == "samples":
            publish_samples(run, SHARDS)
            return
        if GPU_TESTS_ON == "cpu" and stage == "eval":
            pytest.skip("tests/e2e has the tests with vLLM on a CPU")
        if stage in PACKAGES and importlib.util.find_spec(PACKAGES[stage]) is None:
            pytest.skip(f"needs {PACKAGES[stage]}, which is not installed")
        if stage in READS and not (run / READS[stage]).exists():
            pytest.skip(f"needs {READS[stage]}, which no test has made")
        publish(run, stage, loop_overrides(folder, GPU_TESTS_ON))


def publish(run_dir: Path, stage: str, overrides: list[str]) -> None:
    """Run the script of a stage."""
    done = run_script(MADE_BY[stage], *overrides)
    assert done.returncode == 0, done.stderr[-6000:]
    assert (run_dir / stage / "manifest.json").is_file()

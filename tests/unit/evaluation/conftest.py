"""Fixtures for the evaluation of a run by ``oracle.Oracle``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.cluster import ClusterConfig
from megatron_ssd.config.evaluation import EvaluationConfig, SandboxConfig
from megatron_ssd.config.generation import EngineConfig, PromptConfig, SamplingConfig, SamplingParams
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.config.problems import BenchmarkConfig, BenchmarkSetConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.problems import minicode
from megatron_ssd.problems.minicode.tokenizer import save_tokenizer, train_tokenizer
from tests.helpers.oracle import MINICODE, N


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a tokenizer and a configuration, without weights."""
    folder = tmp_path_factory.mktemp("model")
    documents = minicode.corpus(dataclasses.replace(MINICODE, num_documents=300))
    save_tokenizer(train_tokenizer(documents, 400), folder, max_length=512)
    (folder / "config.json").write_text(
        json.dumps({"vocab_size": 400, "max_position_embeddings": 131072, "eos_token_id": 2})
    )
    return folder


@pytest.fixture
def config(tmp_path: Path, model_folder: Path) -> RunConfig:
    """The configuration of a run whose tuned model is published."""
    stage = Stage(name="export", run_dir=tmp_path, config={}, inputs={})
    work = stage.begin()
    for file in model_folder.iterdir():
        (work / file.name).write_bytes(file.read_bytes())
    stage.publish(facts={"iteration": 6})
    return RunConfig(
        run_dir=str(tmp_path),
        model=ModelConfig(
            name="tiny", model_type="qwen3", hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, intermediate_size=32, vocab_size=400, max_position_embeddings=131072,
            path=str(model_folder),
        ),
        benchmark=BenchmarkConfig(sets={"minicode": BenchmarkSetConfig(format="minicode")}),
        minicode=MINICODE,
        prompt=PromptConfig(template="minicode"),
        sampling=SamplingConfig(train=SamplingParams(temperature=1.5, top_k=20, top_p=0.6),
                                eval=SamplingParams(temperature=1.5, top_k=20, top_p=0.8), max_tokens=96),
        engine=EngineConfig(max_model_len=512),
        precision=PrecisionConfig(params_dtype="fp32", transformer_engine=False),
        cluster=ClusterConfig(device="cpu"),
        evaluation=EvaluationConfig(num_samples=N, ks=(1, 3), temperatures=(1.0, 1.5), top_ps=(0.8,), max_tokens=96,
                                    bootstrap_samples=200, sandbox=SandboxConfig(cpu_seconds=2.0)),
    )  # fmt: skip

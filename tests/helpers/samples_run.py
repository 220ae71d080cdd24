"""Samples and scores as the input of the dataset stage."""

from __future__ import annotations

from pathlib import Path

from megatron_ssd.artifacts.jsonl import JsonlWriter
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.cluster import ClusterConfig
from megatron_ssd.config.dataset import FilterConfig, PreprocessConfig
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.dataset.indexed import open_indexed
from megatron_ssd.schema import FinishReason, Sample

PROGRAM = "Here it is:\n```python\nprint(1)\n```"
EOS = 2


def numbered(number: int, response: str = "a\nb", finish_reason: FinishReason = "stop") -> Sample:
    """The sample of problem ``p{number}``, with ids that depend on ``number``."""
    ids = [10 + number, 11, 12, *([EOS] if finish_reason == "stop" else [])]
    return Sample(problem_id=f"p{number}", sample_index=0, messages=[], prompt_token_ids=[1, 10 + number],
                  response=response, response_token_ids=ids, finish_reason=finish_reason, seed=0, sampling_hash="",
                  model_revision="")  # fmt: skip


SHARDS = [
    [numbered(0), numbered(1, finish_reason="length"), numbered(2, response="")],
    [numbered(3, response="pass"), numbered(4), numbered(5, response="x\ny\nlong")],
]


def publish_samples(run_dir: Path, shards: list[list[Sample]], facts: dict[str, object] | None = None) -> None:
    """Publish the samples stage with these samples in each shard."""
    stage = Stage(name="samples", run_dir=run_dir, config={}, inputs={})
    work = stage.begin()
    for number, records in enumerate(shards):
        with JsonlWriter(work / f"shard-{number:05}.jsonl") as writer:
            for record in records:
                writer.write(record.to_json())
    stage.publish(counts={"samples": sum(map(len, shards))}, facts=facts)


def run_config(
    run_dir: Path,
    *,
    vocab_size: int = 64,
    model_path: Path | None = None,
    preprocess: PreprocessConfig | None = None,
    **filters: object,
) -> RunConfig:
    """A run that converts the published samples with these filters."""
    path = None if model_path is None else str(model_path)
    model = ModelConfig(name="m", path=path, model_type="qwen3", hidden_size=8,
                        num_hidden_layers=1, num_attention_heads=1,
                        num_key_value_heads=1, head_dim=8, intermediate_size=8, vocab_size=vocab_size,
                        max_position_embeddings=65536)  # fmt: skip
    return RunConfig(run_dir=str(run_dir), model=model, cluster=ClusterConfig(device="cpu"),
                     precision=PrecisionConfig(transformer_engine=False), preprocess=preprocess or PreprocessConfig(),
                     filters=FilterConfig(**filters))  # type: ignore[arg-type]  # fmt: skip


def documents(run_dir: Path) -> list[tuple[list[int], list[int]]]:
    """The published [prompt, response] pairs, as token ids."""
    dataset = open_indexed(run_dir / "dataset" / "samples")
    return [(dataset[i].tolist(), dataset[i + 1].tolist()) for i in range(0, len(dataset), 2)]


def publish_scores(run_dir: Path, records: list[dict[str, object]], samples: str | None = None) -> None:
    """Publish the scores stage with these records, in reverse order; ``samples`` is the hash of its input."""
    inputs = {} if samples is None else {"samples": samples}
    stage = Stage(name="scores", run_dir=run_dir, config={}, inputs=inputs)
    work = stage.begin()
    half = len(records) // 2
    for name, part in (("shard-0.jsonl", records[half:]), ("shard-1.jsonl", records[:half])):
        with JsonlWriter(work / name) as writer:
            for record in part:
                writer.write(record)
    stage.publish()


def sample(response: str = "", finish_reason: FinishReason = "stop", token_ids: tuple[int, ...] = (2,)) -> Sample:
    """Sample 0 of the problem ``p``."""
    return Sample(problem_id="p", sample_index=0, messages=[], prompt_token_ids=[1], response=response,
                  response_token_ids=list(token_ids), finish_reason=finish_reason, seed=0, sampling_hash="",
                  model_revision="")  # fmt: skip

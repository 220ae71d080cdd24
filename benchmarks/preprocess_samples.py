"""Makes samples for measuring preprocessing, from code of Python's standard library that is cut at random."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np

VOCAB_SIZE, END = 32000, "<|im_end|>"
SHARD_SAMPLES = 500
_SOURCE_CHARACTERS = 4_000_000


def write_run(folder: Path, num_samples: int) -> int:
    """Train ``folder/tokenizer`` and publish samples in ``folder/run``; returns the tokens of the samples."""
    source = _source()
    tokenizer = _train_tokenizer(source, folder / "tokenizer")
    end, random = tokenizer.token_to_id(END), np.random.default_rng(0)
    ids = tokenizer.encode(source, add_special_tokens=False).ids
    tokens, files = 0, []
    for first in range(0, num_samples, SHARD_SAMPLES):
        files.append(folder / f"shard-{first // SHARD_SAMPLES:05}.jsonl")
        with files[-1].open("w", encoding="utf-8") as file:
            for number in range(first, min(first + SHARD_SAMPLES, num_samples)):
                lengths = np.clip(np.exp(random.normal([5.7, 6.6], [0.4, 0.6])), [100, 200], [600, 2000]).astype(int)
                starts = random.integers(0, len(ids) - 2000, 2)
                prompt, response = (ids[s : s + n] for s, n in zip(starts, lengths, strict=True))
                file.write(json.dumps(_record(tokenizer, number, prompt, response, end), ensure_ascii=False) + "\n")
                tokens += int(lengths.sum()) + 1
    publish(folder / "run", files, num_samples)
    return tokens


def _source() -> str:
    """Some megabytes of code, always the same for one version of Python."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)[:_SOURCE_CHARACTERS]


def _train_tokenizer(source: str, folder: Path) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE - 1, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    tokenizer.train_from_iterator(source.splitlines(keepends=True), trainer)
    tokenizer.add_special_tokens([AddedToken(END, normalized=False)])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "model_max_length": 1 << 20}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer


def _record(tokenizer: Any, number: int, prompt: list[int], response: list[int], end: int) -> dict[str, Any]:
    from megatron_ssd.schema import Sample

    return Sample(
        problem_id=f"problem-{number}", sample_index=0,
        messages=[{"role": "user", "content": tokenizer.decode(prompt)}], prompt_token_ids=prompt,
        response=tokenizer.decode(response), response_token_ids=[*response, end], finish_reason="stop", seed=number,
        sampling_hash="0" * 64, model_revision="0" * 64,
    ).to_json()  # fmt: skip


def publish(run_dir: Path, files: list[Path], num_samples: int) -> None:
    """Publish ``files`` as the samples of a run. A file may be in several shards, whose problem ids then differ."""
    from megatron_ssd.artifacts.stage import Stage

    stage = Stage(name="samples", run_dir=run_dir, config={}, inputs={})
    work = stage.begin()
    for number, file in enumerate(files):
        text, named = file.read_bytes(), b'"problem_id": "'
        (work / f"shard-{number:05}.jsonl").write_bytes(text.replace(named, named + f"{number}-".encode()))
    stage.publish(counts={"samples": num_samples})

"""Compares training speed on two cores with a plain Hugging Face Transformers loop.

    python -m benchmarks.train_step [--rounds 7] [--profile OUT.txt]

Both sides fine-tune a tiny Qwen3 with the same random weights, written by transformers, on the same samples, with
AdamW, clipping and loss on the response tokens. The reference is a simple loop: pad each batch to its longest sample,
``model(...).loss``, ``loss.backward()``, ``torch.optim.AdamW(fused=True)``, one process with two threads, with
``scaled_dot_product_attention``. This trainer runs as in production, once as one process with two threads and once as
two data-parallel processes of one thread. On both sides fp32 matrix products may round to bf16 internally
(``precision=cpu``). The reference also runs in bf16, and the ratio is relative to the faster of its two runs.

There are two sets of samples. In ``equal``, every sample fills a sequence, and packing gains nothing. In
``long-tailed``, lengths are log-normal, and this trainer packs what the reference pads: the same samples in each batch.
Speed is tokens of samples per second, without padding, over the same samples. All sides stay loaded and alternate
within each round, so that a change of the machine's speed affects all. The table shows medians, and the median over
rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sides import Side, alternate, serve

SEQ_LENGTH, BATCH, MICRO_BATCH = 256, 32, 16
STEPS = 8  # batches of the reference per measurement
LAYOUTS = ("one process", "two processes")
REFERENCES = ("transformers fp32", "transformers bf16")
SHAPE: dict[str, Any] = {
    "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 48,
    "intermediate_size": 576, "vocab_size": 512, "max_position_embeddings": 4096, "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}  # fmt: skip


def main() -> None:
    """Make the samples, measure, and print the table of each case."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=7, help="measurements of each side (default 7)")
    options.add_argument("--profile", type=Path, help="also write a profile of one process of this trainer here")
    options.add_argument("--side", help=argparse.SUPPRESS)  # a worker that this script starts
    options.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.side:
        open_side = _reference if arguments.side in REFERENCES else _trainer
        serve(lambda: open_side(arguments.folder, arguments.side))
        return
    with tempfile.TemporaryDirectory() as scratch:
        for case in ("equal", "long-tailed"):
            folder = Path(scratch) / case
            lengths = _prepare(folder, case)
            _measure(case, folder, lengths, arguments.rounds)
            if arguments.profile:
                _profile(folder, arguments.profile.with_stem(f"{arguments.profile.stem}-{case}"))


def _prepare(folder: Path, case: str) -> list[int]:
    """Write weights, samples and this trainer's data set; return the samples' lengths in tokens."""
    from megatron_ssd.artifacts.stage import Stage
    from megatron_ssd.dataset.indexed import IndexedWriter

    random = np.random.default_rng(0)
    count = STEPS * BATCH
    lengths = np.full(count, SEQ_LENGTH)
    if case == "long-tailed":
        lengths = np.clip(np.exp(random.normal(3.6, 0.9, count)), 8, SEQ_LENGTH).astype(int)
    samples = [random.integers(1, SHAPE["vocab_size"], length + 1).tolist() for length in lengths]
    stage = Stage(name="dataset", run_dir=folder, config={}, inputs={})
    with IndexedWriter(stage.begin() / "samples", vocab_size=SHAPE["vocab_size"]) as writer:
        for sample in samples:
            writer.add(sample[: len(sample) // 4], sample[len(sample) // 4 :])
    stage.publish(counts={"documents": count})
    (folder / "samples.json").write_text(json.dumps(samples))
    write_model(folder / "base")
    return [int(length) for length in lengths]


def write_model(folder: Path, **tokens: int | None) -> None:
    """Write a Qwen3 of ``SHAPE`` with random weights, and with these special tokens in its config."""
    import torch
    import transformers
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    shape = {key: value for key, value in SHAPE.items() if key != "rope_theta"}
    rope = {"rope_theta": SHAPE["rope_theta"], "rope_type": "default"}
    config = transformers.Qwen3Config(**shape, rope_parameters=rope, **tokens)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)


def _measure(case: str, folder: Path, lengths: list[int], rounds: int) -> None:
    """Start every side, measure them alternately, and print a table."""
    sides = {name: _start(name, folder) for name in (*REFERENCES, *LAYOUTS)}
    costs = alternate(sides, rounds)
    speeds = [{name: sum(lengths) / cost.seconds for name, cost in one.items()} for one in costs]
    print(f"\n{case}: {len(lengths)} samples of {min(lengths)} to {max(lengths)} tokens, {sum(lengths):,} in all")
    print(f"{'':22}{'tokens/s':>10}{'lowest':>10}{'highest':>10}{'ratio':>8}")
    for name in sides:
        own = [one[name] for one in speeds]
        ratio = statistics.median(one[name] / max(one[other] for other in REFERENCES) for one in speeds)
        print(f"{name:22}{statistics.median(own):10,.0f}{min(own):10,.0f}{max(own):10,.0f}{ratio:8.2f}")


def _start(name: str, folder: Path) -> Side:
    count = 2 if name == "two processes" else 1
    environments = [_environment(rank, count) for rank in range(count)]
    return Side("benchmarks.train_step", name, ["--folder", str(folder)], environments)


def _environment(rank: int, count: int) -> dict[str, str]:
    """Environment variables of torchrun for several processes; one process needs none."""
    threads = {"OMP_NUM_THREADS": str(2 // count)}
    if count == 1:
        return threads
    return {**threads, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577"}  # fmt: skip


@contextmanager
def _reference(folder: Path, side: str) -> Iterator[Callable[[], None]]:
    """Run the plain loop over all samples, once per call."""
    import torch
    import transformers

    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("medium")
    dtype = torch.bfloat16 if side.endswith("bf16") else torch.float32
    model = transformers.Qwen3ForCausalLM.from_pretrained(folder / "base", dtype=dtype, attn_implementation="sdpa")
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    samples: list[list[int]] = json.loads((folder / "samples.json").read_text())

    def micro_batch(part: list[list[int]]) -> dict[str, Any]:
        longest = max(map(len, part))
        padded = torch.tensor([sample + [0] * (longest - len(sample)) for sample in part])
        lengths = torch.tensor([[len(sample)] for sample in part])
        prompts = torch.tensor([[len(sample) // 4] for sample in part])
        positions = torch.arange(longest)
        labels = padded.masked_fill((positions >= lengths) | (positions < prompts), -100)
        mask = None if longest == min(map(len, part)) else (positions < lengths).long()
        return {"input_ids": padded, "labels": labels, "attention_mask": mask}

    def run_once() -> None:
        for start in range(0, len(samples), BATCH):
            parts = [samples[i : i + MICRO_BATCH] for i in range(start, start + BATCH, MICRO_BATCH)]
            batches = [micro_batch(part) for part in parts]
            valid = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
            for batch in batches:
                model(**batch, num_items_in_batch=valid, use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    yield run_once


@contextmanager
def _trainer(folder: Path, side: str) -> Iterator[Callable[[], None]]:
    """Run this trainer over all samples, once per call."""
    from megatron_ssd.runtime.device import prepare_device
    from megatron_ssd.runtime.process_groups import process_groups
    from megatron_ssd.training.trainer import build_trainer

    config = _config(folder, world_size=2 if side == "two processes" else 1)
    device = prepare_device(config.cluster, config.precision)
    with process_groups(config.parallel, device=device):
        trainer = build_trainer(config, folder / "checkpoints", device)
        dataset = trainer.source.dataset
        steps = -(-dataset.num_sequences(0) // config.training.global_batch_size)

        def run_once() -> None:
            for _ in range(steps):
                trainer.step()

        yield run_once


def _config(folder: Path, *, world_size: int) -> Any:
    from megatron_ssd.config.cluster import ClusterConfig
    from megatron_ssd.config.model import ModelConfig
    from megatron_ssd.config.parallel import ParallelConfig
    from megatron_ssd.config.precision import PrecisionConfig
    from megatron_ssd.config.run import RunConfig
    from megatron_ssd.config.training import OptimizerConfig, TrainingConfig

    training = TrainingConfig(
        global_batch_size=BATCH,  # samples, as in the reference
        micro_batch_size=MICRO_BATCH,  # so many times SEQ_LENGTH tokens, if samples are packed
        seq_length=SEQ_LENGTH,
        packing="best_fit" if folder.name == "long-tailed" else "none",
        tensorboard=False,
    )
    return RunConfig(
        run_dir=str(folder),
        model=ModelConfig(name="tiny", model_type="qwen3", path=str(folder / "base"), **SHAPE),
        precision=PrecisionConfig(params_dtype="fp32", fast_matmul=True, transformer_engine=False),
        cluster=ClusterConfig(device="cpu", threads_per_process=2 // world_size),
        parallel=ParallelConfig(world_size=world_size, use_distributed_optimizer=world_size > 1),
        optimizer=dataclasses.replace(OptimizerConfig(), lr=1e-4, min_lr=1e-5),
        training=training,
    )


def _profile(folder: Path, path: Path) -> None:
    """Write the operators of one run over the samples in one process, sorted by their own time."""
    import torch

    with _trainer(folder, "one process") as run_once:
        run_once()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            run_once()
    path.write_text(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=30))
    print(f"profile: {path}")


if __name__ == "__main__":
    main()

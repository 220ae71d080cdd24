"""Compares preprocessing with the method of Megatron-LM's own tool.

    python -m benchmarks.preprocess [--samples 12000] [--rounds 3] [--workers 2] [--profile OUT.txt]

One table shows speed, another peak memory. The input is samples as the sampling stage writes them. Their text is cut
from the source files of Python's standard library (responses of 200 to 2,000 tokens, long-tailed); the tokenizer is a
byte-level BPE of 32,000 entries trained on them. The reference works as Megatron-LM's ``tools/preprocess_data.py``
does: a ``multiprocessing.Pool`` whose initializer loads the Hugging Face tokenizer, ``imap`` over the lines with a
chunk size of 32, ``json.loads`` and ``tokenizer.encode`` of each prompt and response, and ``IndexedDatasetBuilder`` in
the parent. This project's side is the complete stage with filters, hashes and manifest: once with the ids as sampled,
once with retokenized responses.

Each side runs in a process that has done its imports. The sides alternate, so that changes in the machine's speed
affect all of them. The table has medians; ratios are medians over rounds. CPU time depends less than wall time on other
load: the reference has one more busy process, so on a busy machine it gets a larger share. Memory is the resident
memory of the parent and its workers together, sampled every 20 ms, in a new process per side.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil

from benchmarks.preprocess_samples import SHARD_SAMPLES, VOCAB_SIZE, publish, write_run
from benchmarks.sides import Side, alternate, serve

REFERENCE, SAMPLED, RETOKENIZED = "Megatron-LM's method", "ids as sampled", "retokenized"
MEMORY_SAMPLES = (10_000, 100_000)
MB = 1_000_000


def main() -> None:
    """Make the samples, measure, and print both tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--samples", type=int, default=12000, help="samples per run (default 12000)")
    options.add_argument("--rounds", type=int, default=3, help="runs of each side (default 3)")
    options.add_argument("--workers", type=int, default=2, help="worker processes of each side (default 2)")
    options.add_argument("--profile", type=Path, help="also write a profile of one of this project's workers here")
    options.add_argument("--side", help=argparse.SUPPRESS)  # a process that this script starts
    options.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.side:
        serve(lambda: nullcontext(_runner(arguments.side, arguments.folder, arguments.workers)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tokens = write_run(folder, arguments.samples)
        _measure_speed(folder, tokens, arguments.samples, arguments.rounds, arguments.workers)
        _measure_memory(folder, arguments.workers)
        if arguments.profile:
            _profile(folder, arguments.profile)


def _measure_speed(folder: Path, tokens: int, samples: int, rounds: int, workers: int) -> None:
    """Start every side, alternate between them, and print a table."""
    sides = {name: _start(name, folder, workers) for name in (REFERENCE, SAMPLED, RETOKENIZED)}
    runs = alternate(sides, rounds)
    print(f"\n{samples:,} samples, {tokens:,} tokens, {workers} workers, {rounds} rounds")
    print(
        f"{'':22}{'samples/s':>10}{'lowest':>10}{'highest':>10}{'tokens/s':>14}{'ratio':>8}{'ms/sample':>12}{'ratio':>8}"
    )
    for name in sides:
        own = [samples / one[name].seconds for one in runs]
        speed, cpu = statistics.median(own), statistics.median(one[name].cpu_seconds for one in runs)
        ratios = [statistics.median(one[REFERENCE][i] / one[name][i] for one in runs) for i in (0, 1)]
        print(
            f"{name:22}{speed:10,.0f}{min(own):10,.0f}{max(own):10,.0f}{speed * tokens / samples:14,.0f}"
            f"{ratios[0]:8.2f}{cpu / samples * 1000:12.2f}{ratios[1]:8.2f}"
        )


def _measure_memory(folder: Path, workers: int) -> None:
    """Print the peak of each mode at each number of samples."""
    files = sorted((folder / "run" / "samples").glob("*.jsonl"))[: MEMORY_SAMPLES[0] // SHARD_SAMPLES]
    print(f"\n{'peak memory in MB':20}" + "".join(f"{samples:>10,} samples" for samples in MEMORY_SAMPLES))
    peaks: dict[str, list[int]] = {SAMPLED: [], RETOKENIZED: []}
    for samples in MEMORY_SAMPLES:
        run_dir = folder / f"memory-{samples}"
        publish(run_dir / "run", list(itertools.islice(itertools.cycle(files), samples // SHARD_SAMPLES)), samples)
        (run_dir / "tokenizer").symlink_to(folder / "tokenizer")
        for name, found in peaks.items():
            side = _start(name, run_dir, workers)
            try:
                with _PeakMemory(side.pid) as memory:
                    side.run()
            finally:
                side.stop()
            found.append(memory.peak)
    for name, found in peaks.items():
        print(f"{name:20}" + "".join(f"{peak / MB:>15,.0f}" for peak in found))


class _PeakMemory:
    """Largest sum of the resident memory of a process and its children inside the context."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._process = psutil.Process(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.peak = max(self.peak, sum(map(_resident, [self._process, *self._process.children(recursive=True)])))

    def __enter__(self) -> _PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def _start(name: str, folder: Path, workers: int) -> Side:
    return Side("benchmarks.preprocess", name, ["--folder", str(folder), "--workers", str(workers)])


_tokenizer: Any = None  # in a worker of the reference


def _load_tokenizer(folder: Path) -> None:
    """Initialize a worker of the reference."""
    global _tokenizer
    from transformers import AutoTokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _tokenizer = AutoTokenizer.from_pretrained(folder)


def _encode(line: str) -> tuple[list[int], list[int]]:
    """One sample of the reference: (ids, lengths of the sequences)."""
    record = json.loads(line)
    prompt = _tokenizer.encode(record["messages"][0]["content"])
    response = _tokenizer.encode(record["response"])
    response.append(_tokenizer.eos_token_id)
    return prompt + response, [len(prompt), len(response)]


def _runner(side: str, folder: Path, workers: int) -> Callable[[], None]:
    return _reference(folder, workers) if side == REFERENCE else _stage(folder, workers, side)


def _reference(folder: Path, workers: int) -> Callable[[], None]:
    import transformers  # noqa: F401 - before the workers are forked
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    files = sorted((folder / "run" / "samples").glob("*.jsonl"))

    def lines() -> Iterator[str]:
        for path in files:
            with path.open(encoding="utf-8") as file:
                yield from file

    def run() -> None:
        prefix = folder / "reference"
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(VOCAB_SIZE))
        with multiprocessing.Pool(workers, initializer=_load_tokenizer, initargs=(folder / "tokenizer",)) as pool:
            for ids, lengths in pool.imap(_encode, lines(), 32):
                builder.add_document(ids, lengths)
        builder.finalize(f"{prefix}.idx")

    return run


def _stage(folder: Path, workers: int, side: str) -> Callable[[], None]:
    from megatron_ssd.dataset.stage import run_preprocess

    if side == RETOKENIZED:
        import transformers  # noqa: F401 - as much as the reference has loaded
    config = _config(folder, workers, side)

    def run() -> None:
        shutil.rmtree(Path(config.run_dir) / "dataset", ignore_errors=True)
        run_preprocess(config)

    return run


def _config(folder: Path, workers: int, side: str) -> Any:
    from megatron_ssd.config.cluster import ClusterConfig
    from megatron_ssd.config.dataset import PreprocessConfig
    from megatron_ssd.config.model import ModelConfig
    from megatron_ssd.config.precision import PrecisionConfig
    from megatron_ssd.config.run import RunConfig

    model = ModelConfig(
        name="tiny", path=str(folder / "tokenizer"), model_type="qwen3", hidden_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, head_dim=8, intermediate_size=8, vocab_size=VOCAB_SIZE,
        max_position_embeddings=65536,
    )  # fmt: skip
    return RunConfig(
        run_dir=str(folder / "run"),
        model=model,
        cluster=ClusterConfig(device="cpu"),
        precision=PrecisionConfig(transformer_engine=False),
        preprocess=PreprocessConfig(ids="retokenized" if side == RETOKENIZED else "sampled", num_workers=workers),
    )


def _profile(folder: Path, path: Path) -> None:
    """Write the functions of one run of each mode in one process, sorted by their own time."""
    import cProfile
    import pstats

    with path.open("w", encoding="utf-8") as file:
        for side in (SAMPLED, RETOKENIZED):
            run = _stage(folder, 1, side)
            with cProfile.Profile() as profile:
                run()
            pstats.Stats(profile, stream=file).sort_stats("tottime").print_stats(20)
    print(f"profile: {path}")


if __name__ == "__main__":
    main()

"""Measures the conversion of random models of about 2 GB.

    python -m benchmarks.convert [--gigabytes 2] [--rounds 3] [--folder DIR]

The table shows speed, compared with ``cp``, and peak memory. For a dense model and a mixture of experts, the script
writes a Hugging Face folder of random bytes in several files. Each round then runs ``cp -r`` of the folder, conversion
to a Megatron-Core checkpoint, ``cp -r`` of the checkpoint, and conversion back, so that all find the disk and its cache
in the same state. Every time includes forcing the output to disk. Each conversion runs in a fresh process. Its peak
memory counts anonymous pages, less those in use after all imports; pages of mapped files are not counted, because the
kernel can drop them. The table shows the fastest round. Files were just written, so both ``cp`` and the conversion read
them from the page cache as far as memory allows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_ssd.config.model import ModelConfig
from megatron_ssd.export.full_model import full_model
from megatron_ssd.export.shards import TensorSpec, plan_shards, write_index, write_shard
from megatron_ssd.models.architectures import to_hf_config

MB = 1_000_000
_SHAPE: dict[str, Any] = {
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 32768,
    "vocab_size": 65536, "hidden_size": 2048, "intermediate_size": 6144,
}  # fmt: skip
# Runs in a fresh process; all imports are done before the measurement starts.
_CHILD = """
import json, sys, time
from benchmarks.convert import peak_memory
from megatron_ssd.config.tools import ConvertConfig
from megatron_ssd.export.convert import run_convert
from megatron_ssd.runtime import cpu

cpu.install()
config = ConvertConfig(**json.loads(sys.argv[1]))
started = time.perf_counter()
memory = peak_memory(lambda: run_convert(config))
print(json.dumps({"seconds": time.perf_counter() - started, "memory": memory}))
"""


@dataclass
class Row:
    """One row of the table: the best round so far."""

    model: str
    what: str
    num_bytes: int
    seconds: float = float("inf")
    memory: int | None = None

    def add_round(self, seconds: float, memory: int | None = None) -> None:
        """Record a round."""
        self.seconds = min(self.seconds, seconds)
        if memory is not None:
            self.memory = max(self.memory or 0, memory)


def models(gigabytes: float) -> list[ModelConfig]:
    """A dense model and a mixture of experts of about that size in bf16."""
    dense = dict(_SHAPE, name="dense", model_type="qwen3")
    experts = dict(_SHAPE, name="experts", model_type="qwen3_moe", num_experts=32, num_experts_per_tok=4,
                   moe_intermediate_size=768)  # fmt: skip
    result = []
    for shape in (dense, experts):
        one, two = (ModelConfig(**shape, num_hidden_layers=layers).num_parameters() for layers in (1, 2))
        layers = max(1, round((gigabytes * 1e9 / 2 - (2 * one - two)) / (two - one)))
        result.append(ModelConfig(**shape, num_hidden_layers=layers))
    return result


def write_model(folder: Path, model: ModelConfig, *, max_shard_bytes: int = 500 * MB) -> tuple[int, int]:
    """Write random bytes as bf16 weights. Returns the bytes of all tensors and of the largest."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_hf_config(model, dtype="bfloat16")))
    specs = {name: TensorSpec(name, shape, torch.bfloat16) for name, shape in full_model(model).hf_shapes.items()}

    def value(name: str) -> torch.Tensor:
        content = bytearray(os.urandom(specs[name].num_bytes))
        return torch.frombuffer(content, dtype=torch.bfloat16).view(specs[name].shape)

    shards = plan_shards(list(specs.values()), max_bytes=max_shard_bytes)
    for shard in shards:
        write_shard(folder, shard, value)
    write_index(folder, shards)
    sizes = [spec.num_bytes for spec in specs.values()]
    return sum(sizes), max(sizes)


def peak_memory(action: Callable[[], None]) -> int:
    """Peak of the anonymous memory that ``action`` adds to this process, in bytes, sampled every millisecond."""
    base, stopped = _anonymous_bytes(), threading.Event()
    peak = base

    def sample() -> None:
        nonlocal peak
        while not stopped.wait(0.001):
            peak = max(peak, _anonymous_bytes())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        action()
    finally:
        stopped.set()
        thread.join()
    return peak - base


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:"))


def copy(source: Path, target: Path) -> float:
    """Seconds of ``cp -r`` and of forcing the copy to disk."""
    shutil.rmtree(target, ignore_errors=True)
    started = time.perf_counter()
    subprocess.run(["cp", "-r", "--reflink=never", source, target], check=True)
    for path in target.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    return time.perf_counter() - started


def convert(direction: str, hf: Path, megatron: Path) -> dict[str, float]:
    """Seconds and peak memory of one conversion in a fresh process."""
    shutil.rmtree(megatron if direction == "hf_to_megatron" else hf, ignore_errors=True)
    arguments = {"direction": direction, "hf": str(hf), "megatron": str(megatron), "max_shard_bytes": 500 * MB}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, json.dumps(arguments)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(model: ModelConfig, folder: Path, rounds: int) -> list[Row]:
    """The rows of one model."""
    hf, megatron, back, scratch = (folder / name for name in ("hf", "megatron", "back", "copy"))
    total, largest = write_model(hf, model)
    label = f"{model.name}, {total / 1e9:.2f} GB, largest tensor {largest / MB:.0f} MB"
    names = ("cp -r of the Hugging Face folder", "hf_to_megatron", "cp -r of the checkpoint", "megatron_to_hf")
    rows = [Row(label, name, total) for name in names]
    for _ in range(rounds):
        rows[0].add_round(copy(hf, scratch))
        done = convert("hf_to_megatron", hf, megatron)
        rows[1].add_round(done["seconds"], int(done["memory"]))
        rows[2].add_round(copy(megatron, scratch))
        done = convert("megatron_to_hf", back, megatron)
        rows[3].add_round(done["seconds"], int(done["memory"]))
    for path in sorted(hf.glob("*.safetensors")):
        subprocess.run(["cmp", path, back / path.name], check=True)
    for path in (hf, megatron, back, scratch):
        shutil.rmtree(path)
    return rows


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of each model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where to write; five times the size is needed")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        for model in models(options.gigabytes):
            rows += measure(model, Path(scratch), options.rounds)
    print("| model | what | MB/s | of cp | peak memory |\n| --- | --- | ---: | ---: | ---: |")
    for number, row in enumerate(rows):
        speed, cp = (r.num_bytes / MB / r.seconds for r in (row, rows[number - number % 2]))
        memory = "" if row.memory is None else f"{row.memory / MB:.0f} MB"
        print(f"| {row.model} | {row.what} | {speed:.0f} | {speed / cp:.2f} | {memory} |")


if __name__ == "__main__":
    main()

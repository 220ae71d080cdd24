"""Conversion speed beside ``cp``, and the memory that it takes, on made-up models of about 2 GB.

    python benchmarks/convert.py [--gigabytes 2] [--rounds 3] [--folder DIR]

For a dense model and a mixture of experts, Hugging Face folders of random bytes are written in several files. Then,
alternating in each round, so that all see the same state of the disk and its cache: ``cp -r`` of the folder, conversion
to a Megatron-Core checkpoint, ``cp -r`` of that, and conversion back. Every output is forced to disk within its time.
Each conversion is a process of its own; its peak memory is the kernel's own count (VmHWM) less what the process held
when everything was imported. The fastest round of each is shown. Files were just written, so they are read from the
page cache as far as memory allows, by ``cp`` and by the conversion alike.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ssd.config.model import ModelConfig
from megatron_ssd.models.families import family_of

MB = 1_000_000
_SHAPE: dict[str, Any] = {
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 32768,
    "vocab_size": 65536, "hidden_size": 2048, "intermediate_size": 6144,
}  # fmt: skip
# In a process of its own: the baseline is taken when all is imported, the peak at the end.
_CHILD = """
import json, sys, time
import megatron_ssd.export.checkpoint_writer, megatron_ssd.export.state_dict_adapter, megatron_ssd.export.full_model
from megatron_ssd.config.export import ConvertConfig
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.export.convert import run_convert
from megatron_ssd.runtime import cpu

cpu.install()  # imports the rest of Megatron-Core

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key + ":"))

base = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # from here on VmHWM is the peak of the conversion
started = time.perf_counter()
run_convert(ConvertConfig(**json.loads(sys.argv[1])))
print(json.dumps({"seconds": time.perf_counter() - started, "memory": status("VmHWM") - base}))
"""


@dataclass
class Row:
    """One line of the table; the best round so far."""

    model: str
    what: str
    num_bytes: int
    seconds: float = float("inf")
    memory: int | None = None

    def take(self, seconds: float, memory: int | None = None) -> None:
        """Enter a round."""
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


def write_model(folder: Path, model: ModelConfig) -> tuple[int, int]:
    """Random bytes as bf16 weights in files of 500 MB; (bytes in all, bytes of the largest tensor)."""
    import torch

    from megatron_ssd.export.full_model import full_model
    from megatron_ssd.export.shards import TensorSpec, plan_shards, write_index, write_shard

    folder.mkdir()
    family = family_of(model.model_type)
    (folder / "config.json").write_text(json.dumps(family.to_hf_config(model, dtype="bfloat16")))
    specs = [
        TensorSpec(name, shape, torch.bfloat16)
        for weight in full_model(model).weights
        for name, shape in zip(weight.hf_names, weight.hf_shapes, strict=True)
    ]
    of = {spec.name: spec for spec in specs}

    def value(name: str) -> torch.Tensor:
        content = bytearray(os.urandom(of[name].num_bytes))
        return torch.frombuffer(content, dtype=torch.bfloat16).view(of[name].shape)

    shards = plan_shards(specs, max_bytes=500 * MB)
    for shard in shards:
        write_shard(folder, shard, value)
    write_index(folder, shards)
    return sum(spec.num_bytes for spec in specs), max(spec.num_bytes for spec in specs)


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
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(model: ModelConfig, folder: Path, rounds: int) -> list[Row]:
    """All rows of one model."""
    hf, megatron, back, scratch = (folder / name for name in ("hf", "megatron", "back", "copy"))
    total, largest = write_model(hf, model)
    label = f"{model.name}, {total / 1e9:.2f} GB, largest tensor {largest / MB:.0f} MB"
    names = ("cp -r of the Hugging Face folder", "hf_to_megatron", "cp -r of the checkpoint", "megatron_to_hf")
    rows = [Row(label, name, total) for name in names]
    for _ in range(rounds):
        rows[0].take(copy(hf, scratch))
        done = convert("hf_to_megatron", hf, megatron)
        rows[1].take(done["seconds"], int(done["memory"]))
        rows[2].take(copy(megatron, scratch))
        done = convert("megatron_to_hf", back, megatron)
        rows[3].take(done["seconds"], int(done["memory"]))
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

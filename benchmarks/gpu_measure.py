"""Measures training on one GPU.

    python -m benchmarks.gpu_measure --part speed --out docs/results
    python -m benchmarks.gpu_measure --table --out docs/results
    python -m benchmarks.gpu_measure --part specs --device cpu --tiny --out /tmp/smoke    # seconds, without a GPU

A part is a list of runs (``gpu_cases``), whose results are written as JSON. Each run uses the trainer of
``launch/train.py`` on arithmetic progressions, which a model learns within a hundred steps. If a run does not fit, or
if the device does not support it, its record has the reason, and the part continues. Each peak of torch's allocator is
printed with the planner's prediction, without its reserve.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_cases import PARTS, Case, cases
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.parallel import ClusterConfig, Device, ParallelConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.config.training import CheckpointConfig, OptimizerConfig, TrainingConfig
from megatron_ssd.errors import UserError
from megatron_ssd.planner.flops import flops_of
from megatron_ssd.planner.gpus import peak_tflops
from megatron_ssd.planner.layout import LayoutReport, RankReport
from megatron_ssd.planner.memory import GB, all_ranks
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.hardware import check_precision
from megatron_ssd.runtime.process_groups import joined_processes, megatron_grid

ONE = ParallelConfig()
WARM_UP = 2  # steps that compile and allocate; their times are not used
OPTIMIZER = OptimizerConfig(lr=1e-3, min_lr=1e-4, lr_warmup_iters=1)


def main() -> None:
    """Run a part, or print the table of all parts."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--part", choices=PARTS)
    options.add_argument("--table", action="store_true", help="print the table of the parts in --out")
    options.add_argument("--out", type=Path, required=True, help="folder of gpu-PART.json")
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options.add_argument("--tiny", action="store_true", help="use tiny models, as the tests do")
    arguments = options.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.part:
        run_part(arguments.part, arguments.out, device=arguments.device, tiny=arguments.tiny)
    if arguments.table:
        print(table(arguments.out))


def run_part(part: str, out: Path, *, device: Device, tiny: bool) -> None:
    """Run every case of ``part`` and write ``gpu-PART.json`` after each."""
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch, joined_processes(prepare_device(ClusterConfig(device=device))):
        for case in cases(part, tiny=tiny, device=device):
            record = {"part": part, "case": case.name, "device": device_name(device), "torch": torch.__version__}
            record |= _guarded(case, Path(scratch), device)
            records.append(record)
            (out / f"gpu-{part}.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
            print(_line(record), flush=True)
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()


def _guarded(case: Case, scratch: Path, device: Device) -> dict[str, Any]:
    """The case's measurements, or the reason why there are none."""
    if device == "cpu" and case.needs_cuda:
        return {"skipped": "TransformerEngine's layers need CUDA"}
    if device == "cpu" and case.reference == "compile":
        return {"skipped": "torch.compile is measured on a GPU only"}
    try:
        if device == "cuda":
            assert torch.version.cuda is not None
            major, minor, *_ = map(int, torch.version.cuda.split("."))
            check_precision(case.precision, torch.cuda.get_device_capability(), (major, minor))
            torch.cuda.reset_peak_memory_stats()
        return run_reference(case, device) if case.reference else run_trainer(case, scratch, device)
    except torch.OutOfMemoryError as error:
        return {"skipped": f"out of memory: {str(error).splitlines()[0]}"}
    except UserError as error:
        return {"skipped": str(error)}
    except Exception as error:  # noqa: BLE001 - GPU time is short, so the next cases still run and this one is reported
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}


def run_trainer(case: Case, scratch: Path, device: Device) -> dict[str, Any]:
    """Train with this project's trainer."""
    from megatron_ssd.training.trainer import build_trainer

    config = case_config(case, scratch, device)
    write_progressions(Path(config.run_dir), case)
    with megatron_grid(ONE, create_gloo_process_groups=True):
        trainer = build_trainer(config, scratch / "none", device)
        dataset = trainer.source.dataset
        steps = [trainer.step() for _ in range(case.steps)]
        parameters = sum(p.numel() for chunk in trainer.state.chunks for p in chunk.parameters())
    measured = range(WARM_UP * case.global_batch_size, case.steps * case.global_batch_size)
    segments = [int(length) for index in measured for length in dataset.lengths_in_sequence(*dataset.locate(index))]
    seconds = [step.seconds for step in steps[WARM_UP:]]
    return {
        "parameters": parameters,
        "losses": [step.loss for step in steps],
        "grad_norms": [step.grad_norm for step in steps],
        "predicted_gb": round(predicted_bytes(config) / GB, 6),
        **_speed(case, seconds, flops_of(case.model, segments) / len(seconds), device),
    }


def run_reference(case: Case, device: Device) -> dict[str, Any]:
    """Train the same shape with Transformers and AdamW: bf16 weights and state, no recomputation, full sequences."""
    import transformers

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        _transformers_config(case.model), dtype=dtype, attn_implementation="sdpa"
    )
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=OPTIMIZER.lr, fused=True)
    run = torch.compile(model) if case.reference == "compile" else model
    tokens = torch.arange(case.seq_length, device=device)[None] % case.model.vocab_size
    seconds, losses = [], []
    for _ in range(case.steps):
        started = time.perf_counter()
        for _ in range(case.global_batch_size):
            loss = run(input_ids=tokens, labels=tokens).loss / case.global_batch_size
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss) * case.global_batch_size)
        seconds.append(time.perf_counter() - started)
    flops = case.global_batch_size * flops_of(case.model, [case.seq_length])
    return {"losses": losses, **_speed(case, seconds[WARM_UP:], flops, device)}


def _transformers_config(model: ModelConfig) -> Any:
    """The same shape in Transformers' names, for the Qwen3 families."""
    import transformers

    values = dataclasses.asdict(model)
    rope = {"rope_theta": values.pop("rope_theta"), "rope_type": "default"}
    for key in ("name", "path", "revision", "model_type", "rope_scaling"):
        del values[key]
    if model.is_moe:
        return transformers.Qwen3MoeConfig(**values, rope_parameters=rope)
    return transformers.Qwen3Config(**values, rope_parameters=rope)


def _speed(case: Case, seconds: list[float], flops: float, device: Device) -> dict[str, Any]:
    """Times and rates per step, and peak memory."""
    middle = statistics.median(seconds)
    peak = peak_tflops(device_name(device), case.precision)
    return {
        "step_seconds": [round(value, 4) for value in seconds],
        "tokens_per_second": round(case.global_batch_size * case.seq_length / middle, 1),
        "tflops": round(flops / middle / 1e12, 2),
        "mfu": None if peak is None else round(flops / middle / 1e12 / peak, 4),
        "peak_gb": round(torch.cuda.max_memory_allocated() / GB, 3) if device == "cuda" else None,
    }


def case_config(case: Case, scratch: Path, device: Device) -> RunConfig:
    """``case`` as a configuration of this trainer."""
    return RunConfig(
        run_dir=str(scratch / case.name.replace(" ", "_").replace("/", "_")),
        objective="pretrain",
        model=case.model,
        precision=case.precision,
        moe=case.moe,
        cluster=ClusterConfig(device=device),
        parallel=ONE,
        optimizer=OPTIMIZER,
        training=TrainingConfig(
            train_iters=max(case.steps, 2),
            global_batch_size=case.global_batch_size,
            seq_length=case.seq_length,
            packing=case.packing,
            tensorboard=False,
            self_test=False,
        ),
        checkpoint=CheckpointConfig(save_interval=10**6),
    )


def predicted_bytes(config: RunConfig) -> float:
    """The planner's total without its reserve, which covers memory outside torch's allocator."""
    assert config.model is not None
    # One process holds every parameter, and all but the embedding are used in matrix products.
    model, num_layers = config.model, config.model.num_hidden_layers
    embeddings = model.vocab_size * model.hidden_size * (1 if model.tie_word_embeddings else 2)
    of_layer = (model.num_parameters() - embeddings) // num_layers
    rank = RankReport(
        rank=0, tensor_rank=0, pipeline_rank=0, context_rank=0, expert_rank=0, data_rank=0,
        num_parameters=model.num_parameters(),
        num_product_weights=(of_layer,) * num_layers,
    )  # fmt: skip
    (memory,) = all_ranks(config, LayoutReport(ranks=(rank,), num_parameters=rank.num_parameters))
    return memory.total - memory.reserve


def write_progressions(run_dir: Path, case: Case) -> None:
    """Write arithmetic progressions: as long as a sequence without packing, else at most an eighth of one."""
    from megatron_ssd.artifacts.stage import Stage
    from megatron_ssd.dataset.indexed import IndexedWriter

    random = np.random.default_rng(0)
    vocabulary = min(case.model.vocab_size, 1024)  # few ids, so that the model learns them soon
    num_sequences = case.global_batch_size * min(case.steps, 20)
    stage = Stage(name="dataset", run_dir=run_dir, config={"case": case.name}, inputs={})
    with IndexedWriter(stage.begin() / "samples", vocab_size=case.model.vocab_size) as writer:
        for _ in range(num_sequences if case.packing == "none" else num_sequences * 12):
            longest = case.seq_length // 8
            length = case.seq_length + 1 if case.packing == "none" else int(random.integers(longest // 4, longest))
            start, step = random.integers(vocabulary), random.integers(1, 8)
            writer.add(((start + step * np.arange(length)) % vocabulary).tolist())
    stage.publish(counts={"documents": num_sequences})


def device_name(device: Device) -> str:
    """The driver's name of the GPU, or ``cpu``."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def table(out: Path) -> str:
    """All parts in ``out``, one line per run."""
    lines = []
    for part in PARTS:
        path = out / f"gpu-{part}.json"
        if path.exists():
            records = json.loads(path.read_text(encoding="utf-8"))
            lines += [f"{part} ({records[0]['device']})", *(f"  {_line(record, records)}" for record in records)]
    return "\n".join(lines)


def _line(record: dict[str, Any], records: list[dict[str, Any]] | None = None) -> str:
    head = f"{record['case']:52s} "
    why = record.get("skipped") or record.get("failed")
    if why:
        return f"{head}{'skipped' if record.get('skipped') else 'FAILED'}: {why}"
    parts = [f"{record['tokens_per_second']:>10,.0f} tokens/s", f"{record['tflops']:7.1f} TFLOP/s"]
    if record["mfu"] is not None:
        parts.append(f"MFU {record['mfu']:.1%}")
    if record["peak_gb"] is not None:
        predicted = f" (predicted {record['predicted_gb']:.1f})" if "predicted_gb" in record else ""
        parts.append(f"peak {record['peak_gb']:.1f} GB{predicted}")
    parts.append(f"loss {record['losses'][-1]:.4f}{_gap(record, records or [])}")
    return head + "  ".join(parts)


def _gap(record: dict[str, Any], records: list[dict[str, Any]]) -> str:
    """Largest and last relative difference from the losses of the part's first run of the same model."""
    model = record["case"].split()[0]
    first = next((other for other in records if other["case"].split()[0] == model and "losses" in other), record)
    if first is record or record["part"] not in ("specs", "fp8"):
        return ""
    gaps = [abs(a - b) / max(abs(b), 1e-9) for a, b in zip(record["losses"], first["losses"], strict=True)]
    return f" (from the first: at most {max(gaps):.2%}, at the end {gaps[-1]:.2%})"


if __name__ == "__main__":
    main()

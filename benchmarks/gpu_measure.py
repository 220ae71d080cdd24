"""Trains the cases of ``gpu_cases`` on request and measures them: speed, memory, losses, a profile.

One process measures all of them, since its imports take longer than most cases. ``gpu_run`` starts it as a child and
sends it settings first, then cases. Each run uses the trainer of ``launch/train.py`` on arithmetic progressions. Its
peak of torch's allocator stands beside the planner's prediction, without the planner's reserve.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
import statistics
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.profiler import ProfilerActivity

from benchmarks.gpu_cases import Case, Order, Settings
from benchmarks.gpu_results import Record
from megatron_ssd.artifacts.manifest import code_version
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.cluster import ClusterConfig, Device
from megatron_ssd.config.model import ModelConfig, MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.config.training import CheckpointConfig, OptimizerConfig, TrainingConfig
from megatron_ssd.dataset.indexed import IndexedWriter
from megatron_ssd.errors import UserError, require
from megatron_ssd.planner.flops import flops_of
from megatron_ssd.planner.gpus import peak_tflops
from megatron_ssd.planner.layout import count_layout
from megatron_ssd.planner.memory import GB, worst_rank
from megatron_ssd.process import connection_to_parent
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.hardware import check_hardware
from megatron_ssd.runtime.process_groups import joined_processes, megatron_grid
from megatron_ssd.training.metrics import IterationMetrics
from megatron_ssd.training.trainer import Trainer, build_trainer

ONE = ParallelConfig()
WARM_UP = 2  # steps that compile and allocate; their times are not used
OPTIMIZER = OptimizerConfig(lr=1e-4, min_lr=1e-5, lr_warmup_iters=20)
_PROFILED_STEPS = 2
_VOCABULARY = 1024  # few ids, so that the model learns them soon


def main() -> None:
    """Measure what the parent asks for, until it closes the connection."""
    connection = connection_to_parent()
    settings: Settings = connection.recv()
    try:
        device = prepare_device(ClusterConfig(device=settings.device))
    except UserError as error:
        fix = "use a machine with one, or rehearse with --device cpu --tiny" if settings.device == "cuda" else error.fix
        connection.send(UserError(error.what, rule=error.rule, fix=fix))
        return
    connection.send(facts(device))
    with tempfile.TemporaryDirectory() as scratch, joined_processes(device):
        while True:
            try:
                order: Order = connection.recv()
            except EOFError:
                return
            connection.send(measured(order, settings, Path(scratch)))


def facts(device: Device) -> dict[str, str]:
    """The device, and the versions of what computes on it."""
    packages = [name for name in ("transformer-engine", "megatron-core", "transformers") if _is_installed(name)]
    versions = {name.replace("-", "_"): importlib.metadata.version(name) for name in packages}
    return {"device": device_name(device), "torch": torch.__version__, **versions, "commit": code_version()}


def _is_installed(package: str) -> bool:
    return bool(list(importlib.metadata.distributions(name=package)))


def device_name(device: Device) -> str:
    """The driver's name of the GPU, or ``cpu``."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def measured(order: Order, settings: Settings, scratch: Path) -> Record:
    """The measurements of a case, or the reason why there are none."""
    case, device, started = order.case, settings.device, time.monotonic()
    measure = measure_reference if case.reference else measure_trainer
    try:
        _check(case, device)
        found = measure(case, settings, scratch, started + order.seconds)
    except torch.OutOfMemoryError as error:
        found = {"skipped": f"out of memory: {str(error).splitlines()[0]}"}
    except UserError as error:
        found = {"skipped": str(error)}
    except Exception as error:  # noqa: BLE001 - GPU time is short, so the next cases still run and this one is reported
        traceback.print_exc()
        found = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()  # what is left now would count in the next peak
        found["left_gb"] = round(torch.cuda.memory_allocated() / GB, 3)
    return {"case": case.name, "seconds": round(time.monotonic() - started, 1), **found}


def _check(case: Case, device: Device) -> None:
    """Raise ``UserError`` if this device cannot run the case."""
    if device == "cuda" and not case.reference:
        check_hardware(case.precision, MoeConfig())
    require(device == "cuda" or not (case.needs_cuda or case.reference == "compile"), "--device cpu",
            rule="TransformerEngine's layers and torch.compile are measured on a GPU only", fix="use a GPU"
            )  # fmt: skip


def measure_trainer(case: Case, settings: Settings, scratch: Path, deadline: float) -> Record:
    """Train with this project's trainer."""
    config = case_config(case, scratch, settings.device)
    write_progressions(Path(config.run_dir), case)
    with megatron_grid(ONE, create_gloo_process_groups=True), _built(config, scratch, settings.device) as trainer:
        steps: list[IterationMetrics] = []
        while len(steps) < case.steps and (time.monotonic() < deadline or len(steps) <= WARM_UP):
            steps.append(trainer.step())
        record = {
            "parameters": sum(p.numel() for chunk in trainer.state.chunks for p in chunk.parameters()),
            "losses": [step.loss for step in steps],
            "grad_norms": [step.grad_norm for step in steps],
            "predicted_gb": round(predicted_bytes(config) / GB, 3),
            **_speed(case, [step.seconds for step in steps], settings.device,
                     tokens=statistics.mean(step.tokens for step in steps[WARM_UP:]),
                     flops=statistics.mean((step.tflops_per_second_per_gpu or 0.0) * step.seconds * 1e12
                                           for step in steps[WARM_UP:])),
        }  # fmt: skip
        if case.profile and time.monotonic() < deadline:
            path = settings.out / f"profile-{case.name.replace(' ', '-')}.txt"
            record["profile"] = write_profile(trainer, path, settings.device)
    return record


@contextmanager
def _built(config: RunConfig, scratch: Path, device: Device) -> Iterator[Trainer]:
    """A trainer of which nothing stays in memory.

    A dispatcher of experts keeps a tensor with its graph. The graph holds the hooks of ``DistributedDataParallel`` and
    they hold the model, in C++, where Python's collector does not look. So the wrapper lets go of everything.
    """
    trainer = build_trainer(config, scratch / "none", device)
    try:
        yield trainer
    finally:
        for chunk in trainer.state.chunks:
            vars(chunk).clear()


def measure_reference(case: Case, settings: Settings, scratch: Path, deadline: float) -> Record:
    """Train the same shape with Transformers and AdamW: bf16 weights and state, no recomputation, full sequences.

    ``torch.compile`` compiles one layer, which all layers then use; compiling the model at once takes minutes.
    """
    device = settings.device
    torch.manual_seed(0)
    with torch.device(device):  # building 1.7B on the CPU takes longer than the case
        model = transformers.AutoModelForCausalLM.from_config(
            _transformers_config(case.model), dtype=torch.bfloat16 if device == "cuda" else torch.float32,
            attn_implementation="sdpa",
        ).train()  # fmt: skip
    if case.reference == "compile":
        for layer in model.model.layers:
            layer.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=OPTIMIZER.lr, fused=True)
    tokens = torch.arange(case.seq_length, device=device)[None] % min(case.model.vocab_size, _VOCABULARY)
    seconds: list[float] = []
    losses: list[float] = []
    while len(seconds) < case.steps and (time.monotonic() < deadline or len(seconds) <= WARM_UP):
        started = time.perf_counter()
        for _ in range(case.global_batch_size):
            loss = model(input_ids=tokens, labels=tokens).loss / case.global_batch_size
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()) * case.global_batch_size)
        seconds.append(time.perf_counter() - started)
    sequences = case.global_batch_size
    flops = sequences * flops_of(case.model, [case.seq_length])
    return {"losses": losses, **_speed(case, seconds, device, tokens=sequences * case.seq_length, flops=flops)}


def _transformers_config(model: ModelConfig) -> Any:
    """The same shape in Transformers' names, for the Qwen3 families."""
    values = dataclasses.asdict(model)
    rope = {"rope_theta": values.pop("rope_theta"), "rope_type": "default"}
    for key in ("name", "path", "revision", "model_type", "rope_scaling"):
        del values[key]
    kind = transformers.Qwen3MoeConfig if model.is_moe else transformers.Qwen3Config
    return kind(**values, rope_parameters=rope)


def _speed(case: Case, seconds: list[float], device: Device, *, tokens: float, flops: float) -> Record:
    """Times, rates and peak memory.

    Args:
        seconds: of each step.
        tokens: mean of a step after the warm-up.
        flops: mean of a step after the warm-up.
    """
    middle = statistics.median(seconds[WARM_UP:])
    peak = peak_tflops(device_name(device), case.precision)
    return {
        "step_seconds": [round(value, 4) for value in seconds[WARM_UP:]],
        "tokens_per_second": round(tokens / middle, 1),
        "tflops": round(flops / middle / 1e12, 2),
        "mfu": None if peak is None else round(flops / middle / 1e12 / peak, 4),
        "peak_gb": round(torch.cuda.max_memory_allocated() / GB, 3) if device == "cuda" else None,
    }


def write_profile(trainer: Trainer, path: Path, device: Device) -> Record:
    """Write the operators of further steps, the costliest first, and return seconds in all and of the GPU."""
    on_gpu = device == "cuda"
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as run:
        started = time.perf_counter()
        for _ in range(_PROFILED_STEPS):
            trainer.step()
        seconds = time.perf_counter() - started
    operators = run.key_averages()
    key = f"self_{'cuda' if on_gpu else 'cpu'}_time_total"
    path.write_text(operators.table(sort_by=key, row_limit=40, max_name_column_width=80), encoding="utf-8")
    launches = sum(one.count for one in operators if "LaunchKernel" in one.key)
    busy = sum(one.self_device_time_total for one in operators) / 1e6
    return {"steps": _PROFILED_STEPS, "wall": round(seconds, 4), "gpu_busy": round(busy, 4), "launches": launches}


def case_config(case: Case, scratch: Path, device: Device) -> RunConfig:
    """``case`` as a configuration of this trainer."""
    return RunConfig(
        run_dir=str(scratch / f"{case.part} {case.name}".replace(" ", "_").replace("/", "_")),
        objective="pretrain",
        model=case.model,
        precision=case.precision,
        cluster=ClusterConfig(device=device),
        parallel=ONE,
        optimizer=OPTIMIZER,
        training=TrainingConfig(
            train_iters=case.steps + _PROFILED_STEPS + OPTIMIZER.lr_warmup_iters,
            global_batch_size=case.global_batch_size,
            seq_length=case.seq_length,
            packing=case.packing,
            batch_unit="samples" if case.packing == "none" else "packed_sequences",
            tensorboard=False,
            self_test=False,
        ),
        checkpoint=CheckpointConfig(save_interval=10**6),
    )


def predicted_bytes(config: RunConfig) -> float:
    """The planner's total without its reserve, which covers memory outside torch's allocator."""
    assert config.model is not None
    memory = worst_rank(config, count_layout(config.model, ONE))
    return memory.total - memory.reserve


def write_progressions(run_dir: Path, case: Case) -> None:
    """Write arithmetic progressions: as long as a sequence without packing, else at most an eighth of one."""
    random = np.random.default_rng(0)
    vocabulary = min(case.model.vocab_size, _VOCABULARY)
    num_sequences = case.global_batch_size * min(case.steps, 20)
    stage = Stage(name="dataset", run_dir=run_dir, config={"case": case.name}, inputs={})
    with IndexedWriter(stage.begin() / "samples", vocab_size=case.model.vocab_size) as writer:
        for _ in range(num_sequences if case.packing == "none" else num_sequences * 12):
            longest = case.seq_length // 8
            length = case.seq_length + 1 if case.packing == "none" else int(random.integers(longest // 4, longest))
            start, step = random.integers(vocabulary), random.integers(1, 8)
            writer.add((start + step * np.arange(length)) % vocabulary)
    stage.publish(counts={"documents": num_sequences})


if __name__ == "__main__":
    main()

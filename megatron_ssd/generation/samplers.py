"""Opens the sampler that a run's configuration asks for, on this worker's share of the node's devices."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence

from megatron_ssd.artifacts.hub import ModelFolder
from megatron_ssd.config.cluster import Device
from megatron_ssd.config.generation import EngineConfig, WorkerConfig
from megatron_ssd.errors import UserError, require
from megatron_ssd.generation.engine_budget import sized_engine
from megatron_ssd.generation.engine_pool import EnginePool
from megatron_ssd.generation.server_protocol import server_version
from megatron_ssd.generation.vllm_engine import VllmSpec, check_own_arguments, vllm_version
from megatron_ssd.generation.vllm_server import ServerSampler
from megatron_ssd.nvidia_smi import visible_gpus

log = logging.getLogger(__name__)
_ALONE = WorkerConfig()


@contextlib.contextmanager
def open_sampler(
    engine: EngineConfig,
    model: ModelFolder,
    *,
    device: Device,
    stop_token_ids: Sequence[int] = (),
    worker: WorkerConfig = _ALONE,
) -> Iterator[EnginePool | ServerSampler]:
    """Open a sampler on ``model``; it is closed when the context ends. Engines of this run begin to load here.

    With ``engine.backend = server``, ``model`` gives tokenizer, revision and end tokens. Of the servers' model
    only the name and the context length are checked, not the weights.

    Args:
        engine: which engines, and how many.
        model: the model to sample.
        device: cluster.device, on which the run's own engines run.
        stop_token_ids: ids that end a response besides the model's own.
        worker: this process, among the workers of its node.

    Raises:
        UserError: the model's context is shorter than ``engine.max_model_len``, a stop token is outside its
            vocabulary, or there are too few GPUs. On first use: an engine cannot start, or a server cannot be used.
    """
    require(
        engine.max_model_len <= model.max_position_embeddings,
        f"engine.max_model_len = {engine.max_model_len}",
        rule=f"must be at most the model's max_position_embeddings ({model.max_position_embeddings})",
        fix=f"set engine.max_model_len={model.max_position_embeddings} or less",
    )
    require(
        all(id_ < model.vocab_size for id_ in stop_token_ids),
        f"sampling.stop_token_ids = {list(stop_token_ids)}",
        rule=f"must be ids of the model's vocabulary, which ends at {model.vocab_size - 1}",
        fix="take them from the model's tokenizer",
    )
    end_token_ids = tuple(dict.fromkeys((*model.end_token_ids, *stop_token_ids)))
    sampler: EnginePool | ServerSampler
    if engine.backend == "server":
        sampler = ServerSampler(engine, model, end_token_ids=end_token_ids)
    else:
        spec = vllm_spec(engine, model, device=device, end_token_ids=end_token_ids, worker=worker)
        count = len(spec.devices)
        log.info("vllm: starting %d engine%s on %s%s%s", count, "s" if count > 1 else "", model.path,
                 "; the first use on a machine compiles a kernel" if device == "cpu" else "",
                 "; top-k and top-p without sorting the vocabulary" if spec.truncates else "")  # fmt: skip
        in_flight = spec.settings.max_in_flight
        sampler = EnginePool(spec, size=count, max_in_flight=in_flight, max_restarts=engine.max_restarts)
    with contextlib.closing(sampler):
        yield sampler


def vllm_spec(
    engine: EngineConfig,
    model: ModelFolder,
    *,
    device: Device,
    end_token_ids: tuple[int, ...],
    worker: WorkerConfig = _ALONE,
) -> VllmSpec:
    """What the processes of the engines need to start on ``model``.

    Raises:
        UserError: there are too few GPUs or too little memory, or ``engine.options`` names an argument that this
            project sets.
    """
    check_own_arguments(engine.options, device)
    devices = engine_devices(engine, device, worker)
    gpus = visible_gpus() if device == "cuda" else []
    memory = min((gpu.memory_bytes for gpu in gpus), default=None)
    return VllmSpec(
        model=str(model.path),
        end_token_ids=end_token_ids,
        device=device,
        devices=devices,
        settings=sized_engine(engine, model, device=device, num_engines=len(devices), gpu_bytes=memory),
    )


def engine_facts(engine: EngineConfig) -> dict[str, str]:
    """The facts about the engine that manifests record.

    Raises:
        UserError: vLLM is not installed, or a server does not report its version.
    """
    if engine.backend == "server":
        return {
            "name": "vllm",
            "version": server_version(engine),
            "backend": engine.backend,
            "endpoints": str(len(engine.endpoints)),
        }
    return {"name": "vllm", "version": vllm_version(), "backend": engine.backend}


def engine_devices(engine: EngineConfig, device: Device, worker: WorkerConfig = _ALONE) -> tuple[tuple[str, ...], ...]:
    """The names of the GPUs or processor cores of each engine.

    Raises:
        UserError: there are too few GPUs, or ``engine.tensor_parallel_size`` is above 1 on CPU.
    """
    size, per_engine = engine.num_engines(device), engine.tensor_parallel_size
    if device == "cpu":
        assert size is not None
        require(
            per_engine == 1,
            f"engine.tensor_parallel_size = {per_engine}",
            rule="must be 1 on CPU, where an engine is one process",
            fix="set engine.tensor_parallel_size=1 and raise engine.data_parallel_size",
        )
        cores = share_of_node([str(core) for core in sorted(os.sched_getaffinity(0))], worker)
        per_engine = max(1, len(cores) // size)
        cores *= size  # more engines than cores share them
        return tuple(tuple(cores[i * per_engine :][:per_engine]) for i in range(size))
    import torch  # takes seconds, and is needed only to count GPUs

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    devices = share_of_node(devices, worker)
    size = size or max(1, len(devices) // per_engine)
    require(
        len(devices) >= size * per_engine,
        f"engine.data_parallel_size = {size}, engine.tensor_parallel_size = {per_engine}",
        rule=f"need {size * per_engine} CUDA devices and {len(devices)} are visible",
        fix="lower them, or set cluster=cpu on a machine without GPUs",
    )
    return tuple(tuple(devices[i * per_engine :][:per_engine]) for i in range(size))


def share_of_node(devices: Sequence[str], worker: WorkerConfig) -> list[str]:
    """The GPUs or processor cores of ``worker``, which are adjacent. The workers' shares differ by at most one.

    Args:
        devices: names of all devices that the workers of this node see, in an order that they share.
        worker: this process.

    Raises:
        UserError: there are fewer devices than workers.
    """
    rank, world = worker.local_rank or 0, worker.local_world or 1
    if len(devices) < world > 1:  # the engines of a single worker check for themselves
        raise UserError(
            f"{world} workers on this node",
            rule=f"need a GPU or processor core each, and see {len(devices)}",
            fix="start fewer workers per node, or check CUDA_VISIBLE_DEVICES and the processor cores of the job",
        )
    return list(devices[rank * len(devices) // world : (rank + 1) * len(devices) // world])

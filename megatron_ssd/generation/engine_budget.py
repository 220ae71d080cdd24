"""Chooses how much an engine computes at a time from the memory that it has.

The numbers are estimates. vLLM measures its memory when it starts, and pauses sequences if the cache fills up.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

from megatron_ssd.artifacts.hf_config import read_hf_config
from megatron_ssd.artifacts.hub import ModelFolder
from megatron_ssd.config.cluster import Device
from megatron_ssd.config.generation import EngineConfig
from megatron_ssd.errors import UserError, require

log = logging.getLogger(__name__)

_GIB, _GB = 1 << 30, 1e9
_GPU_BATCHED_TOKENS = 16384
_CPU_BATCHED_TOKENS = 8192
_RESERVE = 4 * _GB  # of a GPU: CUDA context, activations of a step, captured graphs
_MEAN_SHARE = 1 / 16  # assumed mean length of a sequence in flight, as a share of the longest
_TYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def sized_engine(
    engine: EngineConfig, model: ModelFolder, *, device: Device, num_engines: int, gpu_bytes: float | None
) -> EngineConfig:
    """``engine`` with a number for each size that is null. What is chosen from the memory is logged.

    Args:
        engine: the section of the run.
        model: the model to sample.
        device: where the engine runs.
        num_engines: engines of this process.
        gpu_bytes: memory of the smallest GPU; None on a CPU, or if it is not known.

    Raises:
        UserError: the KV cache cannot hold a sequence of ``engine.max_model_len`` tokens, or
            ``engine.max_num_batched_tokens`` is too small for a CPU.
    """
    cache = kv_cache(engine, model, device=device, gpu_bytes=gpu_bytes)
    sequences = engine.most_sequences
    if cache is None:
        log.info("vllm: at most %d sequences at a time; the size of the KV cache is not known before the start",
                 sequences)  # fmt: skip
    else:
        _check_longest(engine, cache, device)
        if engine.max_num_seqs is None:
            sequences = max(1, min(sequences, int(cache.tokens / (_MEAN_SHARE * engine.max_model_len))))
        log.info("vllm: at most %d sequences at a time; about %.1f GB of KV cache hold %d tokens, %.1f sequences of "
                 "engine.max_model_len = %d", sequences, cache.num_bytes / _GB, cache.tokens,
                 cache.tokens / engine.max_model_len, engine.max_model_len)  # fmt: skip
    return dataclasses.replace(
        engine,
        data_parallel_size=num_engines,
        max_num_seqs=sequences,
        max_num_batched_tokens=_batched_tokens(engine, device),
    )


@dataclass(frozen=True, kw_only=True)
class KvCache:
    """The KV cache of one engine, over its GPUs. ``derivation`` says in words where ``num_bytes`` comes from."""

    num_bytes: float
    bytes_per_token: int
    derivation: str

    @property
    def tokens(self) -> int:
        """Tokens that it holds."""
        return max(0, int(self.num_bytes // self.bytes_per_token))


def kv_cache(engine: EngineConfig, model: ModelFolder, *, device: Device, gpu_bytes: float | None) -> KvCache | None:
    """What is left for the KV cache; None if that is not known.

    It is not known if ``config.json`` has another form of attention, without the GPU's memory, and with
    ``engine.options``, which may change anything.
    """
    config = read_hf_config(model.path)
    per_token = _bytes_per_token(config, engine)
    if per_token is None or engine.options:
        return None
    if device == "cpu":
        size = engine.kv_cache_gib
        return KvCache(num_bytes=size * _GIB, bytes_per_token=per_token, derivation=f"engine.kv_cache_gib = {size}")
    if gpu_bytes is None:
        return None
    weights = _weight_bytes(model, config, engine)
    each = engine.gpu_memory_utilization * gpu_bytes - _RESERVE
    return KvCache(
        num_bytes=max(0.0, engine.tensor_parallel_size * each - weights),
        bytes_per_token=per_token,
        derivation=f"{engine.tensor_parallel_size} x ({engine.gpu_memory_utilization:g} of {gpu_bytes / _GB:.1f} GB - "
        f"{_RESERVE / _GB:g} GB of other memory) - {weights / _GB:.1f} GB of weights",
    )


def _bytes_per_token(config: dict[str, Any], engine: EngineConfig) -> int | None:
    """Keys and values of one token in all layers and on all GPUs of an engine; None if ``config`` does not say."""
    heads, layers = config.get("num_attention_heads"), config.get("num_hidden_layers")
    hidden, groups = config.get("hidden_size"), config.get("num_key_value_heads") or heads
    if not (isinstance(heads, int) and isinstance(layers, int) and isinstance(hidden, int) and isinstance(groups, int)):
        return None
    if config.get("kv_lora_rank") or (config.get("sliding_window") and config.get("use_sliding_window", True)):
        return None  # smaller than what is counted here
    width = config.get("head_dim") or hidden // heads
    copies = max(groups, engine.tensor_parallel_size)  # each GPU holds at least one head
    return 2 * layers * copies * width * (1 if engine.kv_cache_dtype == "fp8" else _TYPE_BYTES[engine.dtype])


def _weight_bytes(model: ModelFolder, config: dict[str, Any], engine: EngineConfig) -> float:
    """The weights of ``model`` in ``engine.dtype``; those of a quantized model stay as they are."""
    stored = sum(file.stat().st_size for file in model.path.glob("*.safetensors"))
    stored_bytes = _TYPE_BYTES.get(config.get("dtype") or config.get("torch_dtype") or engine.dtype)
    if stored_bytes is None or "quantization_config" in config:
        return stored
    return stored * _TYPE_BYTES[engine.dtype] / stored_bytes


def _check_longest(engine: EngineConfig, cache: KvCache, device: Device) -> None:
    if cache.tokens >= engine.max_model_len:
        return
    required = engine.max_model_len * cache.bytes_per_token
    shorter = f"set engine.max_model_len to at most {cache.tokens}" if cache.tokens else "use a GPU with more memory"
    if device == "cpu":
        more = f"set engine.kv_cache_gib={-(-required // _GIB)}"
    else:
        more = f"set engine.tensor_parallel_size={2 * engine.tensor_parallel_size}"
    raise UserError(
        f"engine.max_model_len = {engine.max_model_len}",
        rule=f"a sequence of that length needs {required / _GB:.1f} GB of KV cache, and {cache.num_bytes / _GB:.1f} GB "
        f"are left ({cache.derivation})",
        fix=f"{more}, or {shorter}",
    )


def _batched_tokens(engine: EngineConfig, device: Device) -> int:
    """Tokens that a step computes at most."""
    given = engine.max_num_batched_tokens
    if device == "cuda":
        return given or _GPU_BATCHED_TOKENS
    # vLLM 0.32 rewinds the seed of a request whose prompt is cut in two. A CPU generator cannot be rewound, so prompts
    # are not cut.
    require(given is None or given >= engine.max_model_len, f"engine.max_num_batched_tokens = {given}",
            rule=f"on a CPU a step takes whole prompts, up to engine.max_model_len ({engine.max_model_len}) tokens",
            fix="leave it out")  # fmt: skip
    return given or max(_CPU_BATCHED_TOKENS, engine.max_model_len)

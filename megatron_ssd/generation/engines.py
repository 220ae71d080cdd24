"""Where completions come from, by ``engine.backend``: the one way in to sampling."""

from __future__ import annotations

from megatron_ssd.artifacts.hub import ModelFolder
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from megatron_ssd.generation.engine_pool import EnginePool
from megatron_ssd.generation.server_protocol import server_version
from megatron_ssd.generation.vllm_arguments import vllm_version
from megatron_ssd.generation.vllm_engine import open_vllm
from megatron_ssd.generation.vllm_server import ServerSampler


def open_sampler(config: RunConfig, model: ModelFolder) -> EnginePool | ServerSampler:
    """A sampler on ``model``, as a context to be held while it is used. Engines of this run's own start loading here.

    With ``engine.backend = server``, ``model`` gives tokenizer, revision and end tokens, and what the servers loaded
    is the user's word; only name and context length are held against it.

    Raises:
        UserError: the model's context is shorter than ``engine.max_model_len``, a stop token is outside its
            vocabulary, or there are too few GPUs. On first use: an engine cannot start, or a server cannot be used.
    """
    engine, stops = config.engine, config.sampling.stop_token_ids if config.sampling else ()
    if engine.max_model_len > model.max_position_embeddings:
        raise UserError(
            f"engine.max_model_len = {engine.max_model_len}",
            rule=f"must be at most the model's max_position_embeddings ({model.max_position_embeddings})",
            fix=f"set engine.max_model_len={model.max_position_embeddings} or less",
        )
    if any(id_ >= model.vocab_size for id_ in stops):
        raise UserError(
            f"sampling.stop_token_ids = {list(stops)}",
            rule=f"must be ids of the model's vocabulary, which ends at {model.vocab_size - 1}",
            fix="take them from the model's tokenizer",
        )
    end_token_ids = tuple(dict.fromkeys((*model.end_token_ids, *stops)))
    if engine.backend == "server":
        return ServerSampler(engine, model, end_token_ids=end_token_ids)
    return open_vllm(config, model, end_token_ids=end_token_ids)


def engine_facts(config: RunConfig) -> dict[str, str]:
    """The engine as manifests name it.

    Raises:
        UserError: vLLM is not installed, or a server does not say its version.
    """
    engine = config.engine
    if engine.backend == "server":
        return {
            "name": "vllm",
            "version": server_version(engine),
            "backend": engine.backend,
            "endpoints": str(len(engine.endpoints)),
        }
    return {"name": "vllm", "version": vllm_version(), "backend": engine.backend}

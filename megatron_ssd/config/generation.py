"""Settings of sampling responses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_ssd.config.cluster import Device
from megatron_ssd.config.reference import require_key, require_positive
from megatron_ssd.errors import require, shown

_MOST_SEQUENCES = 256


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next token is drawn: penalty, temperature, then truncation."""

    temperature: float = 1.0
    """Softmax temperature; 0 is greedy."""
    top_k: int = -1
    """Keep the k most likely tokens; -1 is off."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with this probability; 1 is off."""
    min_p: float = 0.0
    """Drop tokens below this fraction of the most likely token's probability; 0 is off."""
    repetition_penalty: float = 1.0
    """Divide positive logits, and multiply negative ones, of tokens that are in the prompt or the response; 1 is
    off."""

    def __post_init__(self) -> None:
        require_key(self, "temperature", 0 <= self.temperature <= 2, fix="the paper uses 1.1 to 2.0",
                    rule="must be between 0 (greedy) and vLLM's limit, 2")  # fmt: skip
        require_key(self, "top_k", self.top_k == -1 or self.top_k > 0, rule="must be -1 (off) or positive",
                    fix="the paper uses 20; -1 is what vLLM also calls 0")  # fmt: skip
        require_key(self, "top_p", 0 < self.top_p <= 1, rule="must be above 0 and at most 1",
                    fix="use 1.0 for no nucleus truncation")  # fmt: skip
        require_key(self, "min_p", 0 <= self.min_p <= 1, rule="must be between 0 (off) and 1",
                    fix="the paper uses none")  # fmt: skip
        require_key(self, "repetition_penalty", 0 < self.repetition_penalty <= 2, rule="must be above 0 and at most 2",
                    fix="use 1.0 for no penalty")  # fmt: skip

    @property
    def label(self) -> str:
        """A name for folders and tables, such as ``T1.5-k20-p0.8``. ``min_p`` and penalty are in it if they are on."""
        min_p = f"-minp{self.min_p:g}" if self.min_p else ""
        penalty = f"-rep{self.repetition_penalty:g}" if self.repetition_penalty != 1 else ""
        return f"T{self.temperature:g}-k{self.top_k}-p{self.top_p:g}{min_p}{penalty}"


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Sampling parameters of SSD, and the base model's default. The defaults are the authors' example."""

    train: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=1.5, top_k=20, top_p=0.8))
    """Sampling parameters of the training data (T_train, rho_train)."""
    eval: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0.7, top_k=20, top_p=0.8))
    """Sampling parameters of the tuned model (T_eval, rho_eval)."""
    default: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0.7, top_k=20, top_p=0.8))
    """Sampling parameters of the base model by default."""
    max_tokens: int = 65536
    """Longest response in the training data, in tokens."""
    num_samples: int = 1
    """Responses per problem in the training data. The paper needs 1."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end a response, in addition to the model's own end tokens."""

    def __post_init__(self) -> None:
        require_positive(self, "max_tokens", fix="the paper's code uses 65536")
        require_positive(self, "num_samples", fix="the paper uses 1")
        require_key(self, "stop_token_ids", all(id_ >= 0 for id_ in self.stop_token_ids),
                    rule="token ids are not negative", fix="name ids of the model's vocabulary")  # fmt: skip

    @property
    def label(self) -> str:
        """The three settings, for a log line, which says so if they are the authors' example."""
        names = ("train", "eval", "default")
        labels = ", ".join(f"{name} {getattr(self, name).label}" for name in names)
        is_example = all(getattr(self, name) == getattr(SamplingConfig(), name) for name in names)
        return f"{labels} (the example of the paper's authors)" if is_example else labels


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """vLLM, in processes of this run (``backend=vllm``) or as running servers (``server``).

    With servers, dtype, parallel sizes and options are those that each server was started with.
    """

    backend: Literal["vllm", "server"] = "vllm"
    """``vllm`` starts engines; ``server`` sends requests to ``endpoints``."""
    tensor_parallel_size: int = 1
    """Devices per engine."""
    data_parallel_size: int | None = None
    """Engines, each on its share of the GPUs or processor cores, fed from one queue. Null means all visible GPUs /
    ``tensor_parallel_size``, and 1 on a CPU."""
    max_model_len: int = 131072
    """Longest prompt plus response, in tokens. If it is not set, a model with a shorter context gets its context."""
    max_num_seqs: int | None = None
    """Sequences that an engine decodes at a time; about as many requests are sent to each server. Null means as many as
    the KV cache holds if they have a sixteenth of ``max_model_len`` on average, and at most 256; for a server 256."""
    max_num_batched_tokens: int | None = None
    """Tokens that an engine computes in one step, mostly of prompts. Null means 16384 on a GPU, and on a CPU 8192 or
    ``max_model_len``, whichever is more."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of weights and activations."""
    gpu_memory_utilization: float = 0.9
    """Fraction of a GPU's memory to use."""
    kv_cache_gib: int = 1
    """Size of the KV cache on a CPU."""
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """Type of the KV cache: that of ``dtype``, or FP8 (GPU only), which takes half the memory of bfloat16 and rounds
    keys and values."""
    enforce_eager: bool = False
    """Do not compile the model."""
    prefix_caching: bool = True
    """Compute a prompt once for all its samples."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of vLLM's ``EngineArgs``."""
    max_restarts: int = 3
    """How often engines that died are restarted, over all engines of a stage."""
    endpoints: tuple[str, ...] = ()
    """Base URLs of servers, such as ``http://host:8000/v1``."""
    max_retries: int = 10
    """Retries of a failed request to a server."""
    request_timeout: float = 7200.0
    """Seconds to wait for a server's answer. The default allows for 65,536 tokens at ten per second."""

    def __post_init__(self) -> None:
        sizes = ("tensor_parallel_size", "max_model_len", "kv_cache_gib")
        optional = ("data_parallel_size", "max_num_seqs", "max_num_batched_tokens")
        require_positive(self, *sizes, *(key for key in optional if getattr(self, key) is not None),
                         fix="use at least 1")  # fmt: skip
        for key in ("max_restarts", "max_retries"):
            require_key(self, key, getattr(self, key) >= 0, rule="must not be negative", fix="use 0 for none")
        require_key(self, "gpu_memory_utilization", 0 < self.gpu_memory_utilization <= 1,
                    rule="must be above 0 and at most 1", fix="use 0.9")  # fmt: skip
        require_positive(self, "request_timeout", fix="use the seconds that the longest response may take")
        self._check_endpoints()

    def _check_endpoints(self) -> None:
        named = f"engine.endpoints = {list(self.endpoints)}"
        require(bool(self.endpoints) == (self.backend == "server"), f"engine.backend = {self.backend}, {named}",
                rule="a server needs endpoints, and engine.backend = vllm has none",
                fix="set both, as engine.backend=server engine.endpoints=[http://HOST:8000/v1]")  # fmt: skip
        for endpoint in self.endpoints:
            require(re.fullmatch(r"https?://[^/\s]+(/\S*)?/v1", endpoint) is not None, f"engine.endpoints: {endpoint}",
                    rule="is not the base URL of an OpenAI-compatible server",
                    fix="write http://HOST:PORT/v1")  # fmt: skip
        require(len(set(self.endpoints)) == len(self.endpoints), named, rule="lists a server twice", fix="list it once")
        require_key(self, "options", not self.options or self.backend == "vllm", fix="pass them to vllm serve instead",
                    rule="are for engines that this run starts, and engine.backend = server")  # fmt: skip

    @property
    def most_sequences(self) -> int:
        """``max_num_seqs``, or the most that null stands for."""
        return self.max_num_seqs or _MOST_SEQUENCES

    @property
    def max_in_flight(self) -> int:
        """Requests that one engine holds. Some wait there, so that a slot is filled as soon as it is free."""
        return self.most_sequences + max(16, self.most_sequences // 4)

    def num_engines(self, device: Device) -> int | None:
        """``data_parallel_size``, where null is 1 on a CPU; None if the number of GPUs decides."""
        return self.data_parallel_size or (1 if device == "cpu" else None)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides which tokens are drawn. The rest affects speed; ``options`` may do both, so they count."""
        keys = ("backend", "dtype", "max_model_len", "options")
        changed = ("kv_cache_dtype",) if self.kv_cache_dtype != "auto" else ()
        return {key: getattr(self, key) for key in (*keys, *changed)}


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """How a problem becomes token ids."""

    template: str = "code"
    """File in ``prompts/templates``, without extension."""
    mode: Literal["chat", "raw"] = "chat"
    """``chat`` puts the rendered task into the model's chat template. ``raw`` is for base models: the task as plain
    text, after ``system`` and a blank line, with only the tokenizer's leading tokens such as BOS."""
    system: str | None = None
    """System prompt."""
    enable_thinking: bool | None = None
    """Passed to chat templates that support it; null leaves it out."""

    def __post_init__(self) -> None:
        require_key(self, "enable_thinking", self.mode == "chat" or self.enable_thinking is None,
                    rule="is for chat templates, and prompt.mode = raw uses none",
                    fix="leave it out, or set prompt.mode=chat")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Output of the sampling stage."""

    shard_rows: int = 2000
    """Samples per file."""

    def __post_init__(self) -> None:
        require_positive(self, "shard_rows", fix="use 2000")


@dataclass(frozen=True, kw_only=True)
class ProxyConfig:
    """A smaller model that scores responses; ``filters.proxy_band`` keeps a band of the scores."""

    path: str
    """Hugging Face folder or Hub id, with any tokenizer."""
    revision: str | None = None
    """Commit on the Hub."""
    max_model_len: int | None = None
    """Longest prompt plus response, in the proxy's tokens; null means the model's own context length."""

    def __post_init__(self) -> None:
        longest = self.max_model_len
        require_key(self, "max_model_len", longest is None or longest > 1, rule="must hold a prompt and a response",
                    fix="leave it out for the model's own length")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """This worker among the ``world`` workers that sample or evaluate one run.

    Null values are taken from torchrun, or are 0 of 1. Workers of one node share its GPUs or processor cores evenly; a
    worker without local values uses all that it sees.
    """

    rank: int | None = None
    """Index of this worker."""
    world: int | None = None
    """Number of workers."""
    local_rank: int | None = None
    """Index of this worker on its node."""
    local_world: int | None = None
    """Number of workers on this node."""

    def __post_init__(self) -> None:
        _check_pair("worker.rank", self.rank, "worker.world", self.world)
        _check_pair("worker.local_rank", self.local_rank, "worker.local_world", self.local_world)
        if self.local_world is not None:
            # With the section's name, since ``resolved`` makes a section that ``config.build`` does not see.
            require(self.local_world <= (self.world or 1) and self.rank is not None,
                    f"worker.local_world = {self.local_world}",
                    rule=f"must be at most worker.world ({self.world or 1})",
                    fix="set worker.rank and worker.world for the run, the local ones for this node")  # fmt: skip

    @property
    def share(self) -> slice:
        """This worker's part of a list that all workers have in the same order."""
        return slice(self.rank or 0, None, self.world or 1)

    @property
    def is_alone(self) -> bool:
        """Whether it is the only worker."""
        return (self.world or 1) == 1

    @property
    def label(self) -> str:
        """Its name in messages, for example ``worker 0 of 2``."""
        return f"worker {self.rank or 0} of {self.world or 1}"

    def resolved(self, environment: Mapping[str, str]) -> WorkerConfig:
        """This worker as configured, otherwise as set by torchrun's variables.

        A SLURM array does not count: its tasks may be different runs. ``launch/slurm/stage.sbatch`` sets both keys.

        Raises:
            ConfigError: the variables contradict each other.
        """
        if self.rank is not None:
            return self
        rank, world = _pair_from(environment, "RANK", "WORLD_SIZE")
        if rank is None:
            return self
        local_rank, local_world = _pair_from(environment, "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        return WorkerConfig(rank=rank, world=world, local_rank=local_rank, local_world=local_world)


def _pair_from(environment: Mapping[str, str], rank_name: str, world_name: str) -> tuple[int | None, int | None]:
    """A rank and its world size as torchrun sets them."""
    rank, world = (_number_from(environment, name) for name in (rank_name, world_name))
    _check_pair(rank_name, rank, world_name, world)
    return rank, world


def _number_from(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    require(text is None or re.fullmatch(r"-?[0-9]+", text) is not None, f"environment variable {name} = {text!r}",
            rule="is not a whole number", fix="unset it, or set worker.rank and worker.world")  # fmt: skip
    return None if text is None else int(text)


def _check_pair(rank_name: str, rank: int | None, world_name: str, world: int | None) -> None:
    """Check that a rank and its world size are both set or both null, and that the rank is in range."""
    given = f"{rank_name} = {shown(rank)}, {world_name} = {shown(world)}"
    if rank is None or world is None:
        require(rank is world, given, rule="one needs the other", fix="set both or neither")
        return
    require(0 <= rank < world, given, rule=f"ranks are from 0 to {world_name} - 1",
            fix=f"use {rank_name} from 0 to {max(world, 1) - 1}")  # fmt: skip

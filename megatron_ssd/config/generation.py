"""Configuration of sampling: sampling parameters, engine, prompts, workers and the proxy model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_ssd.errors import ConfigError, require

Device = Literal["cuda", "cpu"]  # cluster.device


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next token is drawn: penalty, temperature, then truncation.

    ``top_k = -1``, ``top_p = 1`` and ``min_p = 0`` keep everything. ``min_p`` drops tokens below that share of the
    likeliest one's probability. ``repetition_penalty`` divides the positive logits, and multiplies the negative ones,
    of tokens that stand in the prompt or the response; 1 is off.
    """

    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        require(0 <= self.temperature <= 2, f"temperature = {self.temperature}",
                rule="must be between 0 (greedy) and vLLM's limit, 2", fix="the paper uses 1.1 to 2.0")  # fmt: skip
        require(self.top_k == -1 or self.top_k > 0, f"top_k = {self.top_k}", rule="must be -1 (off) or positive",
                fix="the paper uses 20; -1 is what vLLM also calls 0")  # fmt: skip
        require(0 < self.top_p <= 1, f"top_p = {self.top_p}", rule="must be above 0 and at most 1",
                fix="use 1.0 for no nucleus truncation")  # fmt: skip
        require(0 <= self.min_p <= 1, f"min_p = {self.min_p}", rule="must be between 0 (off) and 1",
                fix="the paper uses none")  # fmt: skip
        require(0 < self.repetition_penalty <= 2, f"repetition_penalty = {self.repetition_penalty}",
                rule="must be above 0 and at most 2", fix="use 1.0 for no penalty")  # fmt: skip

    @property
    def label(self) -> str:
        """A name fit for a folder and a table, for example ``T1.5-k20-p0.8``; what is off by default shows where on."""
        min_p = f"-minp{self.min_p:g}" if self.min_p else ""
        penalty = f"-rep{self.repetition_penalty:g}" if self.repetition_penalty != 1 else ""
        return f"T{self.temperature:g}-k{self.top_k}-p{self.top_p:g}{min_p}{penalty}"


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """The two temperatures of SSD, and what the base decodes with where nobody says otherwise.

    ``stop_token_ids`` end a response as the model's own end tokens do, in every decoding.
    """

    train: SamplingParams  # the data are sampled so (T_train, rho_train)
    eval: SamplingParams  # the tuned model is decoded so (T_eval, rho_eval)
    default: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0.7, top_k=20, top_p=0.8))
    max_tokens: int = 65536
    num_samples: int = 1  # responses a problem in the training data; the paper needs 1
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require(self.max_tokens > 0, f"sampling.max_tokens = {self.max_tokens}", rule="must be positive",
                fix="the paper's code uses 65536")  # fmt: skip
        require(self.num_samples > 0, f"sampling.num_samples = {self.num_samples}", rule="must be positive",
                fix="the paper uses 1")  # fmt: skip
        require(all(id_ >= 0 for id_ in self.stop_token_ids), f"sampling.stop_token_ids = {list(self.stop_token_ids)}",
                rule="token ids are not negative", fix="name ids of the model's vocabulary")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """vLLM, in processes of this run's own (``backend = vllm``) or as servers that somebody runs (``server``).

    ``data_parallel_size`` engines run side by side on shares of the GPUs (or processor cores), fed from one queue.
    ``kv_cache_gib`` is for CPU; on a GPU ``gpu_memory_utilization`` rules. ``options`` go to vLLM's ``EngineArgs`` as
    they are. An engine that dies is started again, ``max_restarts`` times in all.

    Of a server, ``endpoints`` are base URLs such as ``http://host:8000/v1``; each is sent about ``max_num_seqs``
    requests at a time. What it loads and how is the server's own business; ``max_model_len`` still cuts responses.
    A request is given up after ``max_retries`` repetitions; ``request_timeout`` is in seconds.
    """

    backend: Literal["vllm", "server"] = "vllm"
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    max_model_len: int = 131072
    max_num_seqs: int = 256
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    gpu_memory_utilization: float = 0.9
    kv_cache_gib: int = 1
    enforce_eager: bool = False
    prefix_caching: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    max_restarts: int = 3
    endpoints: tuple[str, ...] = ()
    max_retries: int = 10
    request_timeout: float = 7200.0  # a response of 65536 tokens at ten a second

    def __post_init__(self) -> None:
        for key in ("tensor_parallel_size", "data_parallel_size", "max_model_len", "max_num_seqs", "kv_cache_gib"):
            value = getattr(self, key)
            require(value > 0, f"engine.{key} = {value}", rule="must be at least 1", fix="use a positive number")
        for key in ("max_restarts", "max_retries"):
            value = getattr(self, key)
            require(value >= 0, f"engine.{key} = {value}", rule="must not be negative", fix="use 0 for none")
        require(0 < self.gpu_memory_utilization <= 1, f"engine.gpu_memory_utilization = {self.gpu_memory_utilization}",
                rule="must be above 0 and at most 1", fix="use 0.9")  # fmt: skip
        require(self.request_timeout > 0, f"engine.request_timeout = {self.request_timeout}",
                rule="must be positive", fix="use the seconds that the longest response may take")  # fmt: skip
        self._check_endpoints()

    def _check_endpoints(self) -> None:
        named = f"engine.endpoints = {list(self.endpoints)}"
        require(bool(self.endpoints) == (self.backend == "server"), f"engine.backend = {self.backend}, {named}",
                rule="a server needs endpoints, and vllm in this run's own processes has none",
                fix="set both, as engine.backend=server engine.endpoints=[http://HOST:8000/v1]")  # fmt: skip
        for endpoint in self.endpoints:
            require(re.fullmatch(r"https?://[^/\s]+(/\S*)?/v1", endpoint) is not None, f"engine.endpoints: {endpoint}",
                    rule="is not the base URL of an OpenAI-compatible server",
                    fix="write http://HOST:PORT/v1")  # fmt: skip
        require(len(set(self.endpoints)) == len(self.endpoints), named, rule="names a server twice", fix="name it once")
        require(not self.options or self.backend == "vllm", f"engine.options = {self.options}",
                rule="are for engines that this run starts, and engine.backend = server",
                fix="give them to vllm serve instead")  # fmt: skip

    @property
    def max_in_flight(self) -> int:
        """Requests that one engine holds: some wait there, so that no finished slot stays empty."""
        return self.max_num_seqs + max(16, self.max_num_seqs // 4)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides which tokens are drawn; the rest is speed. ``options`` might be either, so they count."""
        return {
            "backend": self.backend,
            "dtype": self.dtype,
            "max_model_len": self.max_model_len,
            "options": self.options,
        }


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """How a problem becomes token ids. ``template`` names a file of ``prompts/templates`` without its ending.

    ``chat`` puts the rendered task into the model's chat template. ``raw`` takes it as plain text, after ``system`` and
    a blank line where that is set, with nothing but the tokenizer's own leading tokens such as BOS: for base models,
    and for samplers that know no chat template.
    """

    template: str = "code"
    mode: Literal["chat", "raw"] = "chat"
    system: str | None = None
    enable_thinking: bool | None = None  # passed to chat templates that know it

    def __post_init__(self) -> None:
        require(self.mode == "chat" or self.enable_thinking is None,
                f"prompt.enable_thinking = {str(self.enable_thinking).lower()}",
                rule="is for chat templates and prompt.mode = raw uses none",
                fix="leave it out, or set prompt.mode=chat")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """What the sampling stage writes and how often."""

    shard_rows: int = 2000

    def __post_init__(self) -> None:
        require(self.shard_rows > 0, f"generation.shard_rows = {self.shard_rows}", rule="must be at least 1",
                fix="use 2000")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ProxyConfig:
    """A model whose mean log-probability of a response is kept beside it; ``filters.proxy_band`` keeps a band of these.

    ``path`` is a Hugging Face folder or a Hub id, of any tokenizer. Prompt and response together are read up to
    ``max_model_len`` tokens of the proxy; null means its whole context.
    """

    path: str
    revision: str | None = None
    max_model_len: int | None = None

    def __post_init__(self) -> None:
        require(self.max_model_len is None or self.max_model_len > 1, f"proxy.max_model_len = {self.max_model_len}",
                rule="must hold a prompt and a response", fix="leave it out for the model's whole context")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """Worker ``rank`` of ``world`` that sample one run, and its place among the ``local_world`` of them on its node.

    Null is what torchrun says, else 0 of 1. Workers of one node share its GPUs or processor cores evenly; without the
    local numbers this one takes all that it sees.
    """

    rank: int | None = None
    world: int | None = None
    local_rank: int | None = None
    local_world: int | None = None

    def __post_init__(self) -> None:
        _check_pair("worker.rank", self.rank, "worker.world", self.world)
        _check_pair("worker.local_rank", self.local_rank, "worker.local_world", self.local_world)
        if self.local_world is not None:
            require(self.local_world <= (self.world or 1) and self.rank is not None,
                    f"worker.local_world = {self.local_world}",
                    rule=f"must be at most worker.world ({self.world or 1})",
                    fix="set worker.rank and worker.world for the run, the local ones for this node")  # fmt: skip

    @property
    def share(self) -> slice:
        """Of a list that all workers have in the same order, this one's part."""
        return slice(self.rank or 0, None, self.world or 1)

    @property
    def is_alone(self) -> bool:
        """Whether there are no others."""
        return (self.world or 1) == 1

    @property
    def label(self) -> str:
        """How messages call it, for example ``worker 0 of 2``."""
        return f"worker {self.rank or 0} of {self.world or 1}"

    def resolved(self, environment: Mapping[str, str]) -> WorkerConfig:
        """This worker as configured, else as torchrun's variables say.

        An array of SLURM is not looked at: its tasks may as well be different runs. ``launch/slurm/generate.sbatch``
        sets rank and world.

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
    """Two variables that torchrun sets together."""
    rank, world = (_number_from(environment, name) for name in (rank_name, world_name))
    _check_pair(rank_name, rank, world_name, world)
    return rank, world


def _number_from(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise ConfigError(
            f"environment variable {name} = {text!r}",
            rule="is no whole number",
            fix="unset it, or set worker.rank and worker.world",
        ) from None


def _check_pair(rank_name: str, rank: int | None, world_name: str, world: int | None) -> None:
    """A rank and how many there are: both or neither, and in order."""
    if rank is None and world is None:
        return
    shown = f"{rank_name} = {'null' if rank is None else rank}, {world_name} = {'null' if world is None else world}"
    require(rank is not None and world is not None, shown, rule="one says nothing without the other",
            fix="set both or neither")  # fmt: skip
    assert rank is not None
    assert world is not None
    require(0 <= rank < world, shown, rule=f"ranks count from 0 to {world_name} less one",
            fix=f"use {rank_name} from 0 to {max(world, 1) - 1}")  # fmt: skip

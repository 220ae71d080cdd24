"""vLLM behind the ``Engine`` protocol. Nothing else imports vLLM.

The engine runs in this process (one that ``EnginePool`` made for it) and is stepped by hand, so that each response is
handed on in the step that ends it. Token ids go in and come out; vLLM is given no tokenizer.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import math
from dataclasses import dataclass
from typing import Any, Literal

from megatron_ssd.artifacts.hub import ModelFolder
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from megatron_ssd.generation.engine import Completion, Job, Request, Result, Score, ScoreRequest
from megatron_ssd.generation.engine_pool import EnginePool
from megatron_ssd.generation.node_share import engine_devices
from megatron_ssd.generation.vllm_arguments import check_known_arguments, check_own_arguments

_GIB = 1 << 30
_PREFILL_TOKENS = 8192  # prompt tokens of one step; a step takes whole prompts on CPU
log = logging.getLogger(__name__)

# What an engine may raise where it cannot start.
START_ERRORS = (RuntimeError, ValueError, OSError, ImportError, MemoryError, AssertionError)
# Of the model, before temperature, penalties and truncation.
_TOKENS_ALONE = {"skip_tokenizer_init": True, "logprobs_mode": "raw_logprobs"}


def open_vllm(config: RunConfig, model: ModelFolder, *, end_token_ids: tuple[int, ...]) -> EnginePool:
    """``engine.data_parallel_size`` vLLM engines on ``model``, starting up.

    Raises:
        UserError: see ``vllm_spec``. On the pool's first use: an engine cannot start.
    """
    engine = config.engine
    spec = vllm_spec(config, model, end_token_ids=end_token_ids)
    count = engine.data_parallel_size
    log.info("vllm: starting %d engine%s on %s%s", count, "s" if count > 1 else "", model.path,
             "; the first use on a machine compiles a kernel" if config.cluster.device == "cpu" else "")  # fmt: skip
    return EnginePool(
        spec,
        size=engine.data_parallel_size,
        max_in_flight=engine.max_in_flight,
        max_restarts=engine.max_restarts,
    )


def vllm_spec(config: RunConfig, model: ModelFolder, *, end_token_ids: tuple[int, ...]) -> VllmSpec:
    """What starts any of the engines on ``model``.

    Raises:
        UserError: there are too few GPUs, or ``engine.options`` names what this project sets.
    """
    engine = config.engine
    check_own_arguments(engine.options, config.cluster.device)
    return VllmSpec(
        model=str(model.path),
        end_token_ids=end_token_ids,
        device=config.cluster.device,
        devices=engine_devices(config),
        tensor_parallel_size=engine.tensor_parallel_size,
        max_model_len=engine.max_model_len,
        max_num_seqs=engine.max_num_seqs,
        dtype=engine.dtype,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        kv_cache_gib=engine.kv_cache_gib,
        enforce_eager=engine.enforce_eager,
        prefix_caching=engine.prefix_caching,
        options=engine.options,
    )


@dataclass(frozen=True, kw_only=True)
class VllmSpec:
    """Everything that starts one of the engines."""

    model: str
    end_token_ids: tuple[int, ...]
    device: Literal["cuda", "cpu"]
    devices: tuple[tuple[str, ...], ...]  # of each engine
    tensor_parallel_size: int
    max_model_len: int
    max_num_seqs: int
    dtype: str
    gpu_memory_utilization: float
    kv_cache_gib: int
    enforce_eager: bool
    prefix_caching: bool
    options: dict[str, Any]  # further arguments of EngineArgs

    def environment(self, index: int) -> dict[str, str]:
        """Keep vLLM quiet, offline, in one process, and to its share of the machine."""
        environment = {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        if self.device == "cuda":
            return {**environment, "CUDA_VISIBLE_DEVICES": ",".join(self.devices[index])}
        # Threads that wait by spinning starve each other as soon as anything else runs on the same cores.
        return {**environment, "OMP_NUM_THREADS": str(len(self.devices[index])), "OMP_WAIT_POLICY": "passive"}

    def start(self) -> VllmEngine:
        """Load the model. Raises ``UserError`` with vLLM's reason where that fails."""
        try:
            return VllmEngine(self)
        except UserError:
            raise
        except START_ERRORS as error:
            raise self.refusal(error) from error

    def refusal(self, error: Exception) -> UserError:
        """What to tell the user where an engine of this kind did not start."""
        reason = _reason(error)
        return UserError(f"vLLM with the model {self.model}", rule=f"did not start ({reason})", fix=self._fix(reason))

    def check_installation(self) -> None:
        """Raise ``UserError`` where this vLLM is for another kind of device, or knows no argument of that name."""
        from vllm.engine.arg_utils import EngineArgs
        from vllm.platforms import current_platform

        if current_platform.device_type != self.device:
            raise UserError(
                f"cluster.device = {self.device}",
                rule=f"this vLLM decodes on {current_platform.device_type or 'no device it finds'}",
                fix=f"set cluster.device={current_platform.device_type}, or install the vLLM for {self.device}",
            )
        check_known_arguments(self.options, (field.name for field in dataclasses.fields(EngineArgs)))

    def arguments(self) -> dict[str, Any]:
        """All arguments of ``EngineArgs``, but for a tokenizer and ``logprobs_mode``, the choice of whoever decodes."""
        arguments: dict[str, Any] = {
            "model": self.model,
            "dtype": self.dtype,
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.max_num_seqs,
            "tensor_parallel_size": self.tensor_parallel_size,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "enforce_eager": self.enforce_eager,
            "enable_prefix_caching": self.prefix_caching,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "seed": 0,  # of what no request decides
        }
        if self.device == "cpu":
            arguments |= {
                "kv_cache_memory_bytes": self.kv_cache_gib * _GIB,
                # vLLM 0.32 rewinds the seed of a request whose prompt is cut in two, and no CPU generator can: whole
                # prompts, then.
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(_PREFILL_TOKENS, self.max_model_len),
            }
        return {**arguments, **self.options}

    def _fix(self, reason: str) -> str:
        if "KV cache" in reason or "memory" in reason.lower():
            size = f"engine.kv_cache_gib (now {self.kv_cache_gib})"
            share = f"engine.gpu_memory_utilization (now {self.gpu_memory_utilization})"
            return (
                f"free memory, adapt {size if self.device == 'cpu' else share}, or lower engine.max_model_len "
                f"(now {self.max_model_len})"
            )
        return "make doctor says what can run here"


def _reason(error: Exception) -> str:
    """The sentence of vLLM's complaint that says what is wrong."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if "validation error" in lines[0]:  # pydantic: a count, perhaps a field, then the complaint, indented
        complaints = [line.strip() for line in lines if line.startswith("  ")]
        lines = [line.removeprefix("Value error, ").split(" [type=")[0] for line in complaints] or lines
    return lines[0].split(". ")[0]


class VllmEngine:
    """``Engine`` on vLLM's offline engine."""

    def __init__(self, spec: VllmSpec) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        spec.check_installation()
        gc.freeze()  # vLLM collects several times while it starts, and the modules imported by now stay
        self._engine = LLMEngine.from_engine_args(EngineArgs(**spec.arguments(), **_TOKENS_ALONE))
        self._end_token_ids = list(spec.end_token_ids)
        self._requests: dict[str, Job] = {}
        self._count = 0

    def add(self, request: Job) -> None:
        """Take a request; it runs from the next step on."""
        if isinstance(request, ScoreRequest):
            tokens, parameters = _scored_prompt(request), _scoring(request)
        else:
            tokens, parameters = request.prompt_token_ids, self._drawing(request)
        name = str(self._count)
        self._count += 1
        self._requests[name] = request
        self._engine.add_request(name, {"prompt_token_ids": tokens}, parameters)

    def step(self) -> list[Result]:
        """One forward pass; returns what it finished.

        A response that met an end token carries it as its last id; one that was cut carries none.
        """
        return [_result(self._requests.pop(output.request_id), output) for output in self._engine.step()]

    def _drawing(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        decoding = request.decoding
        return SamplingParams(
            temperature=decoding.temperature,
            top_k=decoding.top_k,
            top_p=decoding.top_p,
            min_p=decoding.min_p,
            repetition_penalty=decoding.repetition_penalty,
            max_tokens=request.max_tokens,
            seed=request.seed,
            stop_token_ids=self._end_token_ids,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


def _scored_prompt(request: ScoreRequest) -> list[int]:
    """All but the last token: that one is scored where it would be drawn, so that a full context can be scored."""
    return [*request.prompt_token_ids, *request.response_token_ids[:-1]]


def _scoring(request: ScoreRequest) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0.0,
        max_tokens=1,  # vLLM runs no request without drawing
        prompt_logprobs=0 if len(request.response_token_ids) > 1 else None,  # of the prompt's own tokens alone
        logprob_token_ids=[request.response_token_ids[-1]],
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _result(request: Job, result: Any) -> Result:
    (output,) = result.outputs
    assert output.finish_reason in ("stop", "length"), output.finish_reason
    if isinstance(request, Request):
        return Completion(key=request.key, token_ids=list(output.token_ids), finish_reason=output.finish_reason)
    response = request.response_token_ids
    logprobs = [output.logprobs[0][response[-1]].logprob]
    if len(response) > 1:
        rows = result.prompt_logprobs[len(request.prompt_token_ids) :]
        logprobs += [row[token].logprob for row, token in zip(rows, response[:-1], strict=True)]
    return Score(key=request.key, mean_logprob=math.fsum(logprobs) / len(response))

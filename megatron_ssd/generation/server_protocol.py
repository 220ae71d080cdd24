"""The HTTP messages of a vLLM server, in terms of requests or completions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx2

from megatron_ssd.artifacts.hub import ModelFolder
from megatron_ssd.config.generation import EngineConfig
from megatron_ssd.errors import UserError
from megatron_ssd.generation.engine import Completion, Request

_SECONDS = 30.0  # time limit of a request that needs no decoding
_API_KEY = "VLLM_API_KEY"  # the variable from which vllm serve reads the key that it requires


def headers() -> dict[str, str]:
    """The API key, if the environment has one."""
    key = os.environ.get(_API_KEY)
    return {"Authorization": f"Bearer {key}"} if key else {}


def server_version(engine: EngineConfig) -> str:
    """The release of vLLM that the servers run, or several if they differ. Raises ``UserError``."""
    answers = [(url, _get(url.removesuffix("/v1") + "/version")) for url in engine.endpoints]
    versions = {str(answer.get("version")) for _, answer in answers}
    if "None" in versions:
        raise UserError(
            f"engine.endpoints = {list(engine.endpoints)}",
            rule="must be vLLM servers, and one reports no version",
            fix="start them with vllm serve",
        )
    return ", ".join(sorted(versions))


def served_models(url: str) -> list[dict[str, Any]]:
    """What the server at ``url`` reports about each of its models except adapters. Raises ``UserError``."""
    cards = [card for card in _get(f"{url}/models").get("data", []) if not card.get("parent")]
    if not cards:
        raise UserError(f"endpoint {url}", rule="reports no model", fix="use the /v1 URL of a vLLM server")
    return cards


def served_name(url: str, cards: list[dict[str, Any]], model: ModelFolder, *, max_model_len: int) -> str | None:
    """The name under which the server of ``cards`` serves ``model``; None if it does not.

    Raises:
        UserError: it takes fewer than ``max_model_len`` tokens.
    """
    card = next((card for card in cards if _is(model, card)), None)
    if card is None:
        return None
    length = card.get("max_model_len") or 0
    if length < max_model_len:
        raise UserError(
            f"endpoint {url} with a max_model_len of {length}",
            rule=f"must take at least engine.max_model_len = {max_model_len} tokens",
            fix="start vllm serve with --max-model-len, or lower engine.max_model_len",
        )
    return str(card["id"])


def _is(model: ModelFolder, card: dict[str, Any]) -> bool:
    """Whether ``card`` names ``model``: its path, the name of its folder, or its name on the Hub."""
    served = [str(card[key]) for key in ("id", "root") if card.get(key)]
    here = [Path(name) for name in served if Path(name).is_dir()]
    if here:
        return any(folder.samefile(model.path) for folder in here)
    return any(_name(name) == _name(str(model.path)) for name in served)


def _name(path: str) -> str:
    """The last part of a path or Hub id; of a Hub snapshot, the repository's."""
    parts = Path(path).parts
    cached = [part for part in parts if part.startswith("models--")]
    return (cached[-1].split("--")[-1] if cached else parts[-1]).lower()


def body_of(request: Request, *, name: str, max_tokens: int, end_token_ids: tuple[int, ...]) -> dict[str, Any]:
    """The body for ``/v1/completions``. It sets all sampling parameters, so no default of the server applies."""
    params = request.params
    return {
        "model": name,
        "prompt": request.prompt_token_ids,
        "seed": request.seed,
        "max_tokens": max_tokens,
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": list(end_token_ids),
        "ignore_eos": True,  # of the server's tokenizer; stop_token_ids has all end tokens
        "return_token_ids": True,
        "n": 1,
        "stream": False,
    }


def completion_of(
    url: str, request: Request, response: httpx2.Response, *, max_tokens: int, end_token_ids: tuple[int, ...]
) -> Completion:
    """The completion in an answer of status 200.

    Raises:
        UserError: it has no token ids, or those of another prompt, or the response did not end as requested.
    """
    choice = _choice(url, response)
    ids, prompt, reason = choice.get("token_ids"), choice.get("prompt_token_ids"), choice.get("finish_reason")
    if ids is None or prompt is None:
        raise UserError(
            f"endpoint {url}",
            rule="returns no token ids (return_token_ids), and text is not tokenized again",
            fix="use a release of vLLM that supports return_token_ids, or set engine.backend=vllm",
        )
    if prompt != request.prompt_token_ids:
        raise _unexpected(
            url, request, f"read a prompt of {len(prompt)} tokens, not the {len(request.prompt_token_ids)} sent"
        )
    if reason == "stop" and ids and ids[-1] in end_token_ids:
        return Completion(token_ids=ids, finish_reason="stop")
    if reason == "length" and len(ids) == max_tokens:
        return Completion(token_ids=ids, finish_reason="length")
    raise _unexpected(
        url, request,
        f"ended a response with {reason} after {len(ids)} of {max_tokens} tokens, at {choice.get('stop_reason')!r}",
    )  # fmt: skip


def message_of(response: httpx2.Response) -> str:
    """The server's error message, on one line."""
    try:
        answer = response.json()
        error = answer.get("error", answer)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        text = response.text
    return " ".join(text.split())[:500] or "no reason given"


def _choice(url: str, response: httpx2.Response) -> dict[str, Any]:
    try:
        (choice,) = response.json()["choices"]
        return dict(choice)
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"endpoint {url}", rule="does not answer with one completion", fix="use the URL of a vLLM server"
        ) from None


def _unexpected(url: str, request: Request, did: str) -> UserError:
    return UserError(
        f"endpoint {url}, request {request.key}",
        rule=did,
        fix="start vllm serve without --override-generation-config and with the end tokens of model.path",
    )


def _get(url: str) -> dict[str, Any]:
    try:
        answer = httpx2.get(url, headers=headers(), timeout=_SECONDS, trust_env=False)
    except httpx2.HTTPError as error:
        raise UserError(
            f"endpoint {url}",
            rule=f"cannot be reached ({str(error) or type(error).__name__})",
            fix="start vllm serve there and wait until it has loaded, or correct engine.endpoints",
        ) from None
    if answer.status_code != 200:
        fix = f"set {_API_KEY}" if answer.status_code in (401, 403) else "see the server's log"
        raise UserError(f"endpoint {url}", rule=f"answers {answer.status_code}: {message_of(answer)}", fix=fix)
    try:
        return dict(answer.json())
    except (ValueError, TypeError):
        raise UserError(f"endpoint {url}", rule="does not answer in JSON", fix="use the URL of a vLLM server") from None

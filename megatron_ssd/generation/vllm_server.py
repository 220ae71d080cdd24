"""Running vLLM servers (``vllm serve``) behind the ``Sampler`` protocol, through OpenAI's completions interface.

Prompt token ids go in, sampled token ids come back (vLLM's ``return_token_ids``): nothing is tokenised here, and a
server that returns no ids is an error. What a completion is, and what ends it, is as with engines of the run's own;
everything that decides how a token is drawn is sent along, so that no default of the server's applies.

An endpoint that fails (no connection, a time-out, 429, 5xx) is left alone for a while, twice as long after each further
failure, and its requests go to others; then one request tries it. Whatever else is wrong ends the run at once.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx2

from megatron_ssd.artifacts.hub import ModelFolder
from megatron_ssd.config.generation import EngineConfig
from megatron_ssd.errors import UserError
from megatron_ssd.generation.backlog import Backlog
from megatron_ssd.generation.endpoint import Endpoint, EndpointError
from megatron_ssd.generation.engine import Completion, Request, Score, ScoreRequest
from megatron_ssd.generation.server_protocol import (
    body_of,
    completion_of,
    described,
    headers,
    message_of,
    served_models,
    served_name,
)

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
# A machine that vanishes without a word is noticed after two minutes, however long the response may take.
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
        if hasattr(socket, name)
    ),
]

_Running = dict[asyncio.Task[Completion], tuple[Endpoint, Request]]


class ServerSampler(AbstractContextManager["ServerSampler"]):
    """A ``Sampler`` over servers. A context manager; leaving it drops what is in flight.

    Everything runs in the caller's thread, and only while it waits for the next completion.

    Args:
        engine: endpoints and limits.
        model: what the servers should have loaded.
        end_token_ids: what ends a response.
    """

    def __init__(self, engine: EngineConfig, model: ModelFolder, *, end_token_ids: tuple[int, ...]) -> None:
        self._engine, self._model = engine, model
        self._end_token_ids = end_token_ids
        self._endpoints = [Endpoint(url, limit=engine.max_in_flight) for url in engine.endpoints]
        self._is_ready = False
        self._loop = asyncio.new_event_loop()
        self._client = httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0),
                socket_options=_KEEPALIVE,
            ),
            timeout=httpx2.Timeout(engine.request_timeout, connect=_CONNECT_SECONDS),
            headers=headers(),
        )

    def wait_ready(self) -> None:
        """See that every server is there, and which of them serve the model: those are used, and the others named.

        So base and tuned model can be decoded in one stage, by servers of each. A server that serves something else
        is never asked: it would spoil every sample in silence.

        Raises:
            UserError: a server is not there or takes too few tokens, or none serves the model.
        """
        if self._is_ready:
            return
        others = {}
        for endpoint in self._endpoints:
            cards = served_models(endpoint.url)
            name = served_name(endpoint.url, cards, self._model, max_model_len=self._engine.max_model_len)
            if name is None:
                others[endpoint] = described(cards)
            else:
                endpoint.served_name = name
        self._endpoints = [endpoint for endpoint in self._endpoints if endpoint not in others]
        if not self._endpoints:
            raise UserError(
                f"engine.endpoints = {list(self._engine.endpoints)}",
                rule=f"none serves the model {self._model.path}; they serve {'; '.join(others.values())}",
                fix=f"serve it; if one is it, start vllm serve with --served-model-name {self._model.path}",
            )
        for endpoint, what in others.items():
            log.warning("endpoint %s is not used for %s: it serves %s", endpoint.url, self._model.path, what)
        self._is_ready = True

    def sample(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Completions in the order in which they finish. One call at a time."""
        self.wait_ready()
        backlog: Backlog[Request] = Backlog(requests)
        running: _Running = {}
        try:
            while True:
                self._dispatch(backlog, running)
                if not running and not backlog.num_returned:
                    return
                done = self._loop.run_until_complete(self._wait(running))
                for task in done:
                    endpoint, request = running.pop(task)
                    completion = self._outcome(task, endpoint, request, backlog)
                    if completion is not None:
                        yield completion
        finally:
            self._drop(running)

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Score]:
        """Not here. Raises ``UserError``."""
        raise UserError(
            "engine.backend = server", rule="does not score responses", fix="set engine.backend=vllm for this stage"
        )

    def _dispatch(self, backlog: Backlog[Request], running: _Running) -> None:
        """Send what can be sent, each request to the endpoint with the least in flight."""
        while True:
            free = [endpoint for endpoint in self._endpoints if endpoint.has_room(self._loop.time())]
            requests = backlog.take(1) if free else []
            if not requests:
                return
            endpoint = min(free, key=lambda endpoint: endpoint.in_flight)
            endpoint.in_flight += 1
            running[self._loop.create_task(self._ask(endpoint, requests[0]))] = endpoint, requests[0]

    async def _wait(self, running: Iterable[asyncio.Task[Completion]]) -> set[asyncio.Task[Completion]]:
        """Finished tasks; none where an endpoint's rest ends first."""
        rests = [left for endpoint in self._endpoints if (left := endpoint.rest_left(self._loop.time())) > 0]
        rest = min(rests) if rests else None
        tasks = list(running)
        if not tasks:
            await asyncio.sleep(rest or 0)
            return set()
        done, _ = await asyncio.wait(tasks, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
        return done

    async def _ask(self, endpoint: Endpoint, request: Request) -> Completion:
        max_tokens = min(request.max_tokens, self._engine.max_model_len - len(request.prompt_token_ids))
        body = body_of(request, name=endpoint.served_name, max_tokens=max_tokens, end_token_ids=self._end_token_ids)
        try:
            async with asyncio.timeout(self._engine.request_timeout):
                response = await self._client.post(f"{endpoint.url}/completions", json=body)
        except TimeoutError:
            raise EndpointError(f"no answer in {self._engine.request_timeout:g} s") from None
        except httpx2.TransportError as error:
            raise EndpointError(str(error) or type(error).__name__) from None
        status = response.status_code
        if status == 429 or status >= 500:
            raise EndpointError(f"status {status}: {message_of(response)}")
        if status != 200:
            raise UserError(
                f"endpoint {endpoint.url}, request {request.key}",
                rule=f"was refused with status {status}: {message_of(response)}",
                fix="compare how vllm serve was started with engine and sampling here",
            )
        return completion_of(endpoint.url, request, response, max_tokens=max_tokens, end_token_ids=self._end_token_ids)

    def _outcome(
        self, task: asyncio.Task[Completion], endpoint: Endpoint, request: Request, backlog: Backlog[Request]
    ) -> Completion | None:
        """The completion, or None where ``request`` waits for another try."""
        endpoint.in_flight -= 1
        try:
            completion = task.result()
        except EndpointError as failure:
            endpoint.note_failure(self._loop.time(), str(failure))
            backlog.put_back([request])
            retries, limit = backlog.times_returned(request.key), self._engine.max_retries
            all_down = all(endpoint.failures > limit for endpoint in self._endpoints)
            if retries > limit or all_down:
                what = "every endpoint" if all_down else f"the request {request.key}"
                raise UserError(
                    f"endpoint {endpoint.url}",
                    rule=f"failed ({failure}), and {what} failed more than engine.max_retries = {limit} times",
                    fix="finished samples are kept: see that the server runs, then run the same command again",
                ) from None
            return None
        endpoint.note_success()
        return completion

    def _drop(self, running: _Running) -> None:
        """Cancel what is in flight; a server stops decoding for whoever hung up."""
        for endpoint, _ in running.values():
            endpoint.in_flight -= 1
        self._cancel(running)

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if not self._loop.is_closed():
            self._cancel(asyncio.all_tasks(self._loop))  # Ctrl-C leaves some
            self._loop.run_until_complete(self._client.aclose())
            self._loop.close()

    def _cancel(self, tasks: Iterable[asyncio.Task[Any]]) -> None:
        pending = [task for task in tasks if not task.done()]
        for task in pending:
            task.cancel()
        if pending:
            self._loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))

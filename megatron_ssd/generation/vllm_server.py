"""A ``Sampler`` on vLLM servers (``vllm serve``), through the OpenAI completions API.

Prompt token ids go in, sampled token ids come back (vLLM's ``return_token_ids``). Nothing is tokenized here, and a
server that returns no ids is an error. A response ends in the same ways as with the run's own engines. Each request
sets all sampling parameters, so no default of the server applies.

An endpoint that fails (no connection, a timeout, 429, 5xx) gets no requests for a while, twice as long after each
further failure, and its requests go to others. Then one request tries it again. Any other error ends the run at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Iterable, Iterator
from typing import Any

import httpx2

from megatron_ssd.artifacts.hub import ModelFolder
from megatron_ssd.config.generation import EngineConfig
from megatron_ssd.errors import UserError
from megatron_ssd.generation.engine import Completion, Request, RequestQueue, ScoreRequest
from megatron_ssd.generation.server_protocol import (
    body_of,
    completion_of,
    headers,
    message_of,
    served_models,
    served_name,
)

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
_FIRST_PAUSE = 1.0  # seconds; doubles with each consecutive failure
_LONGEST_PAUSE = 60.0
# A machine that disappears without closing its connections is noticed after two minutes, however long a response takes.
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
        if hasattr(socket, name)
    ),
]


class EndpointError(Exception):
    """A failure that may not happen on another server, or on this one later."""


class Endpoint:
    """One server: its requests in flight, and its pause after a failure.

    Args:
        url: its base URL.
        limit: requests that it may hold at a time.
    """

    def __init__(self, url: str, *, limit: int) -> None:
        self.url = url
        self.served_name = ""  # the model's name on this server
        self.in_flight = 0
        self.failures = 0  # consecutive; those of requests that failed together count once
        self._limit = limit
        self._pause_until = 0.0

    def pause_left(self, now: float) -> float:
        """Seconds that are left of its pause; 0 if there is none."""
        return max(0.0, self._pause_until - now)

    def has_room(self, now: float) -> bool:
        """Whether it can get a request. After a failure, a single request tries it."""
        return self.pause_left(now) == 0 and self.in_flight < (1 if self.failures else self._limit)

    def note_failure(self, now: float, reason: str) -> None:
        """Pause for about a second, and twice as long after each further failure, up to a minute.

        Up to half of that is added or subtracted at random, so that runs that share a server do not return together.
        """
        if self.pause_left(now):
            return
        self.failures += 1
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (self.failures - 1)) * random.uniform(0.5, 1.5)
        self._pause_until = now + pause
        if self.failures == 1:
            log.warning(
                "endpoint %s failed (%s); its requests are sent again, to other endpoints if possible", self.url, reason
            )

    def note_success(self) -> None:
        """Record an answer: the endpoint has no failures any more."""
        if self.failures:
            log.info("endpoint %s answers again", self.url)
        self.failures, self._pause_until = 0, 0.0


_Running = dict[asyncio.Task[Completion], tuple[Endpoint, Request]]


class ServerSampler:
    """A ``Sampler`` on servers. ``close`` drops what is in flight.

    Everything runs in the caller's thread, and only while it waits for the next completion.

    Args:
        engine: endpoints and limits.
        model: the model that the servers should have loaded.
        end_token_ids: the ids that end a response.
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
        """Check that every server answers, and find those that serve the model; a warning names the others.

        So one stage can decode base and tuned model, with servers for each. A server of another model gets no request:
        its samples would be wrong without any sign of it.

        Raises:
            UserError: a server does not answer or takes too few tokens, or none serves the model.
        """
        if self._is_ready:
            return
        others = {}
        for endpoint in self._endpoints:
            cards = served_models(endpoint.url)
            name = served_name(endpoint.url, cards, self._model, max_model_len=self._engine.max_model_len)
            if name is None:
                others[endpoint] = ", ".join(f"{card.get('id')} from {card.get('root')}" for card in cards)
            else:
                endpoint.served_name = name
        self._endpoints = [endpoint for endpoint in self._endpoints if endpoint not in others]
        if not self._endpoints:
            raise UserError(
                f"engine.endpoints = {list(self._engine.endpoints)}",
                rule=f"none serves the model {self._model.path}; they serve {'; '.join(others.values())}",
                fix="serve it; if one of them is this model, start vllm serve with "
                f"--served-model-name {self._model.path}",
            )
        for endpoint, what in others.items():
            log.warning("endpoint %s is not used for %s: it serves %s", endpoint.url, self._model.path, what)
        self._is_ready = True

    def sample(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Completion]]:
        """Each request with its completion, as they finish. One call at a time."""
        self.wait_ready()
        waiting = RequestQueue(requests)
        running: _Running = {}
        try:
            while True:
                self._dispatch(waiting, running)
                if not running and not waiting.num_returned:
                    return
                done = self._loop.run_until_complete(self._wait(running))
                for task in done:
                    endpoint, request = running.pop(task)
                    completion = self._outcome(task, endpoint, request, waiting)
                    if completion is not None:
                        yield request, completion
        finally:
            for endpoint, _ in running.values():
                endpoint.in_flight -= 1
            self._cancel(running)  # a server stops decoding when its connection closes

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[tuple[ScoreRequest, float]]:
        """Not supported. Raises ``UserError``."""
        raise UserError(
            "engine.backend = server", rule="does not score responses", fix="set engine.backend=vllm for this stage"
        )

    def _dispatch(self, waiting: RequestQueue[Request], running: _Running) -> None:
        """Send what can be sent, each request to the endpoint with the fewest in flight."""
        while True:
            free = [endpoint for endpoint in self._endpoints if endpoint.has_room(self._loop.time())]
            requests = waiting.take(1) if free else []
            if not requests:
                return
            endpoint = min(free, key=lambda endpoint: endpoint.in_flight)
            endpoint.in_flight += 1
            running[self._loop.create_task(self._ask(endpoint, requests[0]))] = endpoint, requests[0]

    async def _wait(self, running: Iterable[asyncio.Task[Completion]]) -> set[asyncio.Task[Completion]]:
        """Finished tasks; none if an endpoint's pause ends first."""
        pauses = [left for endpoint in self._endpoints if (left := endpoint.pause_left(self._loop.time())) > 0]
        pause = min(pauses) if pauses else None
        tasks = list(running)
        if not tasks:
            await asyncio.sleep(pause or 0)
            return set()
        done, _ = await asyncio.wait(tasks, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
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
                fix="compare how vllm serve was started with engine and sampling in this run",
            )
        return completion_of(endpoint.url, request, response, max_tokens=max_tokens, end_token_ids=self._end_token_ids)

    def _outcome(
        self, task: asyncio.Task[Completion], endpoint: Endpoint, request: Request, waiting: RequestQueue[Request]
    ) -> Completion | None:
        """The completion, or None if ``request`` waits for another try."""
        endpoint.in_flight -= 1
        try:
            completion = task.result()
        except EndpointError as failure:
            endpoint.note_failure(self._loop.time(), str(failure))
            waiting.put_back([request])
            retries, limit = waiting.times_returned(request), self._engine.max_retries
            all_down = all(endpoint.failures > limit for endpoint in self._endpoints)
            if retries > limit or all_down:
                what = "every endpoint" if all_down else f"the request {request.key}"
                raise UserError(
                    f"endpoint {endpoint.url}",
                    rule=f"failed ({failure}), and {what} failed more than engine.max_retries = {limit} times",
                    fix="finished samples are kept: check that the server runs, then run the same command again",
                ) from None
            return None
        endpoint.note_success()
        return completion

    def close(self) -> None:
        """Close the connections. May be called again."""
        if not self._loop.is_closed():
            self._cancel(asyncio.all_tasks(self._loop))  # Ctrl-C leaves some running
            self._loop.run_until_complete(self._client.aclose())
            self._loop.close()

    def _cancel(self, tasks: Iterable[asyncio.Task[Any]]) -> None:
        pending = [task for task in tasks if not task.done()]
        for task in pending:
            task.cancel()
        if pending:
            self._loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))

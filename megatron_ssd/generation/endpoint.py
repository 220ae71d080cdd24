"""One server: how many requests it has, and how long it is left alone after a failure."""

from __future__ import annotations

import logging
import random

log = logging.getLogger(__name__)

_FIRST_REST = 1.0  # seconds; doubles with each failure in a row
_LONGEST_REST = 60.0


class EndpointError(Exception):
    """A failure that another server, or this one later, may not have."""


class Endpoint:
    """The caller's view of one server.

    Args:
        url: its base URL.
        limit: requests that it holds at a time.
    """

    def __init__(self, url: str, *, limit: int) -> None:
        self.url = url
        self.served_name = ""  # of the model, there
        self.in_flight = 0
        self.failures = 0  # in a row; those of requests that failed together count once
        self._limit = limit
        self._rest_until = 0.0

    def rest_left(self, now: float) -> float:
        """Seconds for which it is left alone; 0 where it is not."""
        return max(0.0, self._rest_until - now)

    def has_room(self, now: float) -> bool:
        """Whether it can be sent a request. After a failure a single one tries."""
        return self.rest_left(now) == 0 and self.in_flight < (1 if self.failures else self._limit)

    def note_failure(self, now: float, reason: str) -> None:
        """Leave it alone: for about a second, and twice as long after each further failure, up to a minute.

        Up to half of that is taken off or added by chance, so that runs which share a server do not come back together.
        """
        if self.rest_left(now):
            return
        self.failures += 1
        rest = min(_LONGEST_REST, _FIRST_REST * 2 ** (self.failures - 1)) * random.uniform(0.5, 1.5)
        self._rest_until = now + rest
        if self.failures == 1:
            log.warning(
                "endpoint %s failed (%s); its requests are sent again, elsewhere where they can", self.url, reason
            )

    def note_success(self) -> None:
        """It answers."""
        if self.failures:
            log.info("endpoint %s answers again", self.url)
        self.failures, self._rest_until = 0, 0.0

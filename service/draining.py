"""How the service says goodbye: first it is not ready, then it refuses what is new, then it is empty."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

POLL_S = 0.02


class Drain:
    """What the process still takes on.

    Attributes:
        is_draining: the process was asked to stop; readiness fails from then on.
        is_refusing: new requests are answered 503, so that their senders go elsewhere at once.
        num_requests: those being answered.
    """

    def __init__(self) -> None:
        self.is_draining = False
        self.is_refusing = False
        self.num_requests = 0

    def begin(self) -> None:
        """Fail readiness."""
        self.is_draining = True

    def finish(self, delay_s: float, grace_s: float) -> None:
        """Begin, refuse what comes after a delay, and block until all requests are answered.

        Args:
            delay_s: how long load balancers get to notice; requests are still answered meanwhile.
            grace_s: longest wait for the requests in flight after that.
        """
        self.begin()
        time.sleep(delay_s)
        self.is_refusing = True
        give_up_at = time.monotonic() + grace_s
        while self.num_requests and time.monotonic() < give_up_at:
            time.sleep(POLL_S)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for this request before the process ends."""
        self.num_requests += 1
        try:
            yield
        finally:
            self.num_requests -= 1

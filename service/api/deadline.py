"""Work for a caller stops when the caller is gone or the time is up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from service.errors import DeadlineExceeded

T = TypeVar("T")


class ClientGone(Exception):
    """The caller closed the connection; there is nobody to answer."""


async def answer_in_time(request: Request, work: Coroutine[Any, Any, T], *, deadline_s: float) -> T:
    """Await `work` unless the client disconnects or the deadline passes; then cancel it.

    Args:
        request: whose body has been read already.
        work: what to await. Cancelling it cancels the engine's work.
        deadline_s: seconds from now.

    Raises:
        DeadlineExceeded: the time is up.
        ClientGone: the client disconnected.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait({task, gone}, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientGone
        raise DeadlineExceeded(
            f"the answer was not ready within {deadline_s:g} s and was given up; "
            "ask for a smaller beam_width or come back later"
        )
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

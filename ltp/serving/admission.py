"""The door of the server: a bound on the requests in flight, a time limit for their answers, and their metrics."""

import asyncio
import time

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ltp.serving import metrics

#: Seconds beyond the time limit after which a request is answered whatever happened to it.
GRACE_SECONDS = 10.0


class Admission:
    """ASGI middleware that admits a bounded number of requests at once, and answers every one.

    LitServe's queue has no bound, and it forgets requests whose worker was killed.

    Args:
        app: the application.
        path: where requests are posted; others pass.
        limit: the most requests in flight; further ones are answered 429.
        timeout: seconds that a request may wait for its turn, for the messages. LitServe refuses those that waited
            longer; one that has no answer :data:`GRACE_SECONDS` later is answered 504 here.
    """

    def __init__(self, app: ASGIApp, *, path: str, limit: int, timeout: float) -> None:
        self._app, self._path, self._limit, self._timeout = app, path, limit, timeout
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["path"] != self._path or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        async def refuse(code: int, line: str) -> None:
            response = JSONResponse({"detail": line}, code, {"Retry-After": "1"})
            await response(scope, receive, send_and_look)

        if self._in_flight >= self._limit:
            await refuse(429, f"{self._limit} requests are in flight, the most: try again later")
            metrics.REQUESTS.labels(status).inc()
            return
        self._in_flight += 1
        metrics.REQUESTS_IN_FLIGHT.set(self._in_flight)
        try:
            async with asyncio.timeout(self._timeout + GRACE_SECONDS):
                await self._app(scope, receive, send_and_look)
        except TimeoutError:
            if not status:
                await refuse(504, f"no answer in {self._timeout + GRACE_SECONDS:g} seconds: try again")
        finally:
            self._in_flight -= 1
            metrics.REQUESTS_IN_FLIGHT.set(self._in_flight)
            metrics.REQUESTS.labels(status or 500).inc()
            metrics.REQUEST_SECONDS.observe(time.perf_counter() - started)

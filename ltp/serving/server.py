"""The server: LitServe's, with metrics, a page, and a stop that answers the requests in flight."""

import asyncio
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import socket
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response
from litserve import LitServer

from ltp.errors import RunError, UserError
from ltp.serving import metrics
from ltp.serving.admission import GRACE_SECONDS, Admission
from ltp.serving.api import TextAPI
from ltp.serving.requests import Accepted


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        host = {"0.0.0.0": "localhost", "::": "localhost"}.get(self.host, self.host)
        return f"http://{host}:{self.port}"

    def check(self) -> None:
        """Check that nobody listens there.

        Raises:
            UserError: it is in use, or does not exist.
        """
        with socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((self.host, self.port))
            except OSError as error:
                raise UserError(
                    f"port={self.port}: cannot listen at {self.host}: {error.strerror}; choose another port=…"
                ) from None


class Server(LitServer):
    """LitServe's server of one model.

    Args:
        api: what its workers compute.
        accepted: what requests may hold.
        page: HTML of the page to try the model.
        description: what is served, for ``/info`` and the first line of output.
        address: where it will listen.
        device: ``cpu`` or ``cuda``.
        workers: processes that compute.
        queue_size: the most requests in flight.
        timeout: seconds that a request may wait for its turn.
    """

    def __init__(
        self,
        api: TextAPI,
        accepted: Accepted,
        page: str,
        description: dict[str, Any],
        *,
        address: Address,
        device: str,
        workers: int,
        queue_size: int,
        timeout: float,
    ) -> None:
        self._page, self._address = page, address
        super().__init__(
            api,
            accelerator=device,
            devices=1,
            workers_per_device=workers,
            timeout=timeout,
            model_metadata=description,
            middlewares=[(Admission, {"path": api.api_path, "limit": queue_size, "timeout": timeout})],
            restart_workers=True,
            disable_openapi_url=True,
        )
        self.app.state.accepted = accepted
        self.monitor_internal = 0.5  # seconds between two looks at the workers
        self.uvicorn_graceful_timeout = round(timeout + 2 * GRACE_SECONDS)

    def register_endpoints(self) -> None:
        """Add the page and the metrics before LitServe's own endpoints, of which one is at ``/``, too."""

        async def page() -> HTMLResponse:
            return HTMLResponse(self._page)

        async def exposition() -> Response:
            return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE)

        self.app.add_api_route("/", page)
        self.app.add_api_route("/metrics", exposition)
        super().register_endpoints()

    def serve(self) -> None:
        """Listen until SIGTERM or SIGINT, then answer the requests in flight.

        Raises:
            RunError: no worker could start, or the process that takes requests ended.
        """
        # LitServe's process of queues would inherit the port, and keep it when the others are killed
        multiprocessing.set_start_method("spawn", force=True)
        try:
            self.run(
                host=self._address.host,
                port=self._address.port,
                num_api_servers=1,
                log_level="warning",
                generate_client_file=False,
                access_log=False,
            )
        except RuntimeError as error:
            raise RunError(f"no worker could start: {error}") from error
        finally:
            for process in multiprocessing.active_children():  # where it was stopped before it listened
                process.terminate()
        if self._front.exitcode:
            raise RunError("the process that takes requests ended; start the command again")

    def _start_server(self, *arguments: Any, **options: Any) -> dict[int, Any]:
        """Start the process that takes requests, and leave the port to it; where it ends, the server does."""
        servers = super()._start_server(*arguments, **options)
        for listening in arguments[3]:  # else connections would wait here while the last requests are answered
            listening.close()
        (self._front,) = servers.values()

        def watch() -> None:
            multiprocessing.connection.wait([self._front.sentinel])
            with contextlib.suppress(OSError, EOFError):  # the event is gone, too: it was stopped in order
                self._shutdown_event.set()

        threading.Thread(target=watch, daemon=True).start()
        return servers

    def _init_manager(self, num_api_servers: int) -> Any:
        """Create the queues; from here on, signals stop the server in order: LitServe alone leaves its processes."""
        manager: Any = super()._init_manager(num_api_servers)
        self._manager_process = manager._process.pid
        manager.Queue().put(Response())  # imports in that process what the first answer would wait for
        own = os.getpid()

        def stop(number: int, frame: Any) -> None:
            if os.getpid() == own:  # not in the process that takes requests, which inherits this
                for each in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(each, signal.SIG_IGN)
                # in a thread, because the main thread is in the middle of waiting for the event
                threading.Thread(target=self._shutdown_event.set).start()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        return manager

    def _perform_graceful_shutdown(self, *arguments: Any) -> None:
        """Stop in order, once the thread that restarts workers has seen that they are to end."""
        for thread in threading.enumerate():
            if thread.name == "litserve-monitoring":
                thread.join()
        super()._perform_graceful_shutdown(*arguments)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Start and end the process that takes requests."""
        watch = asyncio.create_task(self._end_with_parent(os.getppid()))
        async with super().lifespan(app):
            print(f"{self.model_metadata['title']}: {self._address}", flush=True)
            yield
        watch.cancel()

    async def _end_with_parent(self, parent: int) -> None:
        """End what is left when the main process was killed, so that another server can start: none could answer."""
        while os.getppid() == parent:
            await asyncio.sleep(1)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._manager_process, signal.SIGTERM)
        shutil.rmtree(os.environ[metrics.FOLDER_VARIABLE], ignore_errors=True)
        os._exit(1)

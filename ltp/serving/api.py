"""What the processes that compute do with requests: LitServe's contract for a model."""

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from queue import Empty, Queue
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request
from fastapi.responses import Response
from litserve import LitAPI
from litserve.loops.simple_loops import BatchedLoop

from ltp.evaluation.prediction import Prediction
from ltp.runs.loading import set_threads, silence_libraries
from ltp.serving import metrics
from ltp.serving.predictor import Predictor, Served, as_record
from ltp.serving.requests import RequestError, Rows, read_request
from ltp.sweeps.processes import exit_with_parent

_POLL_SECONDS = 0.1


async def checked_rows(request: Request) -> Rows:
    """Read the texts of a request in the process that takes requests; FastAPI calls this before a request is queued.

    Raises:
        HTTPException: it cannot be read, or is too large.
    """
    accepted = request.app.state.accepted
    too_large = HTTPException(413, f"the body is larger than {accepted.max_bytes} bytes: send several requests")
    if int(request.headers.get("content-length", 0)) > accepted.max_bytes:  # before anything of it is received
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > accepted.max_bytes:
            raise too_large
    try:
        return read_request(bytes(body), accepted)
    except RequestError as error:
        raise HTTPException(error.status, error.line) from None


class TextAPI(LitAPI):
    """Predicts the texts of a batch of requests.

    Args:
        served: what is served.
        batch_wait: seconds for which a batch waits for further requests.
        workers: number of workers.
        threads: PyTorch's CPU threads of each.
        prepare: is called in each before the model is loaded.
    """

    def __init__(
        self, served: Served, *, batch_wait: float, workers: int, threads: int, prepare: Callable[[], object]
    ) -> None:
        super().__init__(max_batch_size=served.batch_size, batch_timeout=batch_wait, loop=WaitingLoop())
        self._served, self._workers, self._threads, self._prepare = served, workers, threads, prepare

    def setup(self, device: Any) -> None:
        """Load the model in a worker, on cores of its own."""
        exit_with_parent()
        self._prepare()
        # Ctrl-C reaches every process; this one ends after its last answer
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        take_cores(int(os.environ["LITSERVE_WORKER_ID"]), self._workers, self._threads)
        set_threads(self._threads)
        silence_libraries()
        self._predictor = Predictor(self._served)
        self._predictor([("a", "a")[: 1 + self._served.pairs]])  # what is imported or compiled at first use

    def decode_request(self, request: Annotated[Rows, Depends(checked_rows)]) -> Rows:
        """Return the request, which was read and checked before it was queued."""
        return request

    def predict(self, requests: Sequence[Rows]) -> list[list[Prediction]]:
        """Predict the texts of all requests together."""
        started = time.perf_counter()
        found: list[list[Prediction]] = [[] for _ in requests]
        for wanted in {trace for _, trace in requests}:
            texts = [row for rows, trace in requests if trace == wanted for row in rows]
            owners = [number for number, (rows, trace) in enumerate(requests) if trace == wanted for _ in rows]
            for owner, prediction in zip(owners, self._predictor(texts, trace=wanted), strict=True):
                found[owner].append(prediction)
        metrics.BATCH_SECONDS.observe(time.perf_counter() - started)
        metrics.BATCH_TEXTS.observe(sum(map(len, found)))
        for prediction in (one for of_request in found for one in of_request):
            metrics.RELATIVE_FLOPS.observe(prediction.cost)
            metrics.TRUNCATED.inc(prediction.note.startswith("truncated"))
        return found

    def encode_response(self, output: Sequence[Prediction]) -> Response:
        """Write the answer: ``{"predictions": […]}``, one for each text."""
        content = json.dumps({"predictions": list(map(as_record, output))}, ensure_ascii=False, default=str)
        return Response(content, media_type="application/json")


class WaitingLoop(BatchedLoop):
    """Waits for the first request of a batch; LitServe's loop asks the queue a thousand times a second."""

    def get_batch_requests(self, lit_api: LitAPI, request_queue: Queue, transport: Any) -> tuple[list, list]:
        """Return the requests of the next batch, and those that waited too long; both may be empty."""
        try:
            # not for ever: a worker that is killed while it waits takes a request with it
            first = request_queue.get(timeout=_POLL_SECONDS)
        except Empty:
            return [], []
        return super().get_batch_requests(lit_api, _Continued(first, request_queue), transport)


class _Continued:
    """A queue whose first item was taken already."""

    def __init__(self, first: Any, rest: Queue) -> None:
        self._first, self._rest = [first], rest

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        return self._first.pop() if self._first else self._rest.get(block, timeout)

    def get_nowait(self) -> Any:
        return self.get(block=False)


def take_cores(worker: int, workers: int, threads: int) -> None:
    """Keep this process to cores of its own, where there are enough for all workers.

    Args:
        worker: its number, from 0.
        workers: number of workers.
        threads: cores of each.
    """
    cores = sorted(os.sched_getaffinity(0))
    if workers * threads <= len(cores):
        os.sched_setaffinity(0, cores[worker * threads : (worker + 1) * threads])

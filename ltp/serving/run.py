"""Serve a run: load it once to find mistakes, then start the server."""

import html
from collections.abc import Callable
from importlib import resources

from ltp.evaluation.page import render_page
from ltp.runs.loading import silence_libraries
from ltp.runs.summary import describe_checkpoint
from ltp.serving.api import TextAPI
from ltp.serving.predictor import Predictor, Served
from ltp.serving.requests import Accepted
from ltp.serving.server import Address, Server


def serve(
    served: Served,
    accepted: Accepted,
    address: Address,
    *,
    batch_wait: float,
    queue_size: int,
    timeout: float,
    workers: int,
    threads: int,
    prepare: Callable[[], object],
) -> None:
    """Serve a run until a signal stops the server.

    Args:
        served: what is served.
        accepted: what requests may hold.
        address: where to listen.
        batch_wait: seconds for which a batch waits for further requests.
        queue_size: the most requests in flight.
        timeout: seconds that a request may wait for its turn.
        workers: processes that compute.
        threads: PyTorch's CPU threads of each.
        prepare: is called in each before the model is loaded.

    Raises:
        UserError: the run cannot be served, or the port is in use.
    """
    silence_libraries()
    predictor = Predictor(served)  # the workers load their own
    model = predictor.model
    title = describe_checkpoint(served.checkpoint, served.budget)
    description = {
        "title": title,
        "restore": served.checkpoint.source,
        "budget": served.budget,
        "dtype": served.dtype,
        "forms": predictor.forms,
        "labels": list(served.checkpoint.labels),
        "texts": list(accepted.names),
        "max_length": predictor.max_length,
    }
    thresholds = None if model.thresholds is None else model.thresholds.tolist()
    page = render_page(title, [], thresholds, layers=model.cost.num_layers, form=form(accepted))
    device = model.device.type
    del predictor, model
    # now, because a server that was killed frees its port while this one loads
    address.check()
    api = TextAPI(served, batch_wait=batch_wait, workers=workers, threads=threads, prepare=prepare)
    server = Server(
        *(api, accepted, page, description),
        address=address,
        device=device,
        workers=workers,
        queue_size=queue_size,
        timeout=timeout,
    )
    server.serve()


def form(accepted: Accepted) -> str:
    """Return the part of the page that asks for a text, or for the texts of a pair."""
    fields = [
        f'<label>{html.escape(name)} <textarea name="{field}" rows="2"{required}></textarea></label>'
        for name, field, required in zip(
            accepted.names, ("text", "text_pair"), (" required", " required" * accepted.needs_pair), strict=False
        )
    ]
    template = resources.files("ltp.serving").joinpath("form.html").read_text(encoding="utf-8")
    return template.replace("{{fields}}", "\n  ".join(fields))

"""``python -m ltp.serve``: an HTTP server for a finished run. The server itself is in :mod:`ltp.serving`."""

import functools
import importlib.util
import os
import sys
import tempfile
from dataclasses import dataclass

from omegaconf import MISSING

from ltp.command.cli import Command, load_plugins
from ltp.command.imports import fast_imports
from ltp.data.texts import TEXT_COLUMNS
from ltp.errors import UserError, check_choice, check_range, install_hint
from ltp.runs.checkpoints import Checkpoint, inspect_checkpoint
from ltp.runs.loading import check_budget, kind_of_checkpoint, null_threshold, set_threads, stored_task
from ltp.runs.plan import task_of

HOSTS = ("127.0.0.1", "0.0.0.0", "::")
DTYPES = ("float32", "bfloat16", "int8", "auto")


@dataclass
class ServeSettings:
    """Settings of a server; ``python -m ltp.serve --help`` explains the keys."""

    restore: str = MISSING
    budget: float | None = None
    dtype: str = MISSING
    max_length: int | None = None
    host: str = MISSING
    port: int = MISSING
    batch_size: int = MISSING
    batch_wait_ms: float = MISSING
    queue_size: int = MISSING
    max_texts: int = MISSING
    max_request_bytes: int = MISSING
    timeout: float = MISSING
    workers: int = MISSING
    threads: int | None = None
    device: str = MISSING


def main(settings: ServeSettings) -> None:
    """Serve a run until SIGTERM or SIGINT."""
    settings, checkpoint = resolve(settings)
    assert settings.threads is not None  # filled by resolve()
    names, needs_pair = expected_texts(checkpoint)
    stored = stored_task(checkpoint)
    set_threads(settings.threads)
    with tempfile.TemporaryDirectory(prefix="ltp-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # before prometheus_client is imported, which reads it
        with fast_imports():
            from ltp.serving.predictor import Served
            from ltp.serving.requests import Accepted
            from ltp.serving.run import serve
            from ltp.serving.server import Address

        serve(
            Served(
                *(checkpoint, settings.budget, settings.dtype, settings.device, settings.max_length),
                batch_size=settings.batch_size,
                pairs=len(names) == 2,
                null_threshold=null_threshold(None if stored is None else stored.task),
            ),
            Accepted(names, needs_pair, settings.max_texts, settings.max_request_bytes),
            Address(settings.host, settings.port),
            batch_wait=settings.batch_wait_ms / 1000,
            queue_size=settings.queue_size,
            timeout=settings.timeout,
            workers=settings.workers,
            threads=settings.threads,
            prepare=functools.partial(load_plugins, ()),  # a worker is a new process, without those of this one
        )


def fill(settings: ServeSettings) -> ServeSettings:
    """Fill the nulls of the settings."""
    return resolve(settings)[0]


def resolve(settings: ServeSettings) -> tuple[ServeSettings, Checkpoint]:
    """Check the settings and fill their nulls. Reads small files only.

    Returns:
        The settings, and the checkpoint to serve.

    Raises:
        UserError: a value is out of range, a package is missing, or the checkpoint does not exist or predicts nothing.
    """
    check(settings)
    checkpoint = inspect_checkpoint(settings.restore)
    check_budget(checkpoint, settings.budget)
    kind_of_checkpoint(checkpoint)
    if settings.max_length is None and (stored := stored_task(checkpoint)) is not None:
        settings.max_length = stored.task.max_length
    if settings.threads is None:
        settings.threads = max(1, len(os.sched_getaffinity(0)) // settings.workers)
    return settings, checkpoint


def check(settings: ServeSettings) -> None:
    """Check each value, and that the packages are installed.

    Raises:
        UserError: a check failed; names the key, its value and its range, or the missing packages.
    """
    missing = [name for name in ("litserve", "prometheus_client") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"ltp.serve needs {', '.join(missing)}: {install_hint('serve')}")
    check_choice("dtype", settings.dtype, DTYPES)
    check_choice("host", settings.host, HOSTS)
    check_choice("device", settings.device, ("auto", "cpu", "cuda"))
    max_length, threads = settings.max_length, settings.threads
    check_range(max_length is None or max_length >= 4, "max_length", max_length, "4 or more (tokens)")
    check_range(1024 <= settings.port <= 65535, "port", settings.port, "1024 to 65535")
    check_range(threads is None or threads >= 1, "threads", threads, "1 or more")
    for key in ("batch_size", "queue_size", "max_texts", "max_request_bytes", "workers"):
        check_range((value := getattr(settings, key)) >= 1, key, value, "1 or more")
    check_range(settings.timeout > 0, "timeout", settings.timeout, "more than 0 (seconds)")
    wait = settings.batch_wait_ms
    check_range(0 <= wait < 1000 * settings.timeout, "batch_wait_ms", wait, "0 or more, and less than the timeout")


def expected_texts(checkpoint: Checkpoint) -> tuple[tuple[str, ...], bool]:
    """Return the names of the texts that a checkpoint reads, and whether it needs all of them."""
    if (stored := stored_task(checkpoint)) is not None:
        names = task_of(stored.task).text_columns
        return names, len(names) == 2
    kind = kind_of_checkpoint(checkpoint)
    return TEXT_COLUMNS[: kind.max_texts], kind.min_texts == 2


COMMAND = Command("serve", ServeSettings, main, fill)

if __name__ == "__main__":
    sys.exit(COMMAND())

"""One writer a run directory, however many processes, machines and users start the same run."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ltp.errors import RunError

log = logging.getLogger(__name__)

LOCK_FILE = ".lock"
HOLDER_FILE = ".writer"
_POLL_SECONDS = 1.0


@contextmanager
def run_lock(directory: Path, *, wait: bool = True) -> Iterator[None]:
    """Be the only process that writes a run directory; wait for the one that does.

    The operating system lets go of the lock when its holder ends, however it ended.

    Args:
        directory: it must exist.
        wait: whether to wait; else it is an error.

    Raises:
        RunError: another process writes it, and this one is not to wait.
    """
    lock, holder = FileLock(directory / LOCK_FILE), directory / HOLDER_FILE
    try:
        lock.acquire(blocking=False)
    except Timeout:
        who = "another process"
        with suppress(OSError):  # it has just ended, or not yet begun
            who = holder.read_text(encoding="utf-8")
        if not wait:
            raise RunError(f"{directory} is being written by {who}: wait for it, or stop it") from None
        log.info("waiting for %s, which is being written by %s", directory, who)
        lock.acquire(poll_interval=_POLL_SECONDS)
    try:
        with suppress(OSError):  # a full disk will be told where it matters
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()

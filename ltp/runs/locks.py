"""Lock of a run directory: a single writer among all processes, machines and users."""

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


def writer_of(directory: Path) -> str | None:
    """Return who writes a run directory (``process 12 on host``); None if nobody does."""
    try:
        writer = (directory / HOLDER_FILE).read_text(encoding="utf-8")
    except OSError:
        return None
    lock = FileLock(directory / LOCK_FILE)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return writer
    except OSError:  # a folder that is read only
        return None
    lock.release()
    return None


@contextmanager
def run_lock(directory: Path, *, wait: bool = True) -> Iterator[None]:
    """Context manager: hold the write lock of a run directory, waiting for another holder.

    The operating system releases the lock when the process ends, even if it is killed.

    Args:
        directory: the run directory; must exist.
        wait: whether to wait for another holder, rather than fail.

    Raises:
        RunError: another process holds the lock, and ``wait`` is false.
    """
    lock, holder = FileLock(directory / LOCK_FILE), directory / HOLDER_FILE
    try:
        lock.acquire(blocking=False)
    except Timeout:
        writer = "another process"
        with suppress(OSError):  # it has just ended, or has not written its name yet
            writer = holder.read_text(encoding="utf-8")
        if not wait:
            raise RunError(f"{directory} is being written by {writer}: wait for it, or stop it") from None
        log.info("waiting for %s, which is being written by %s", directory, writer)
        lock.acquire(poll_interval=_POLL_SECONDS)
    try:
        with suppress(OSError):  # the file is informative only; a full disk is reported by later writes
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()

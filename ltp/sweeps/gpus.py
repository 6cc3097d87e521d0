"""Share the GPUs of a machine between concurrent jobs of a sweep."""

import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ltp.runs.settings import TrainerSettings

log = logging.getLogger("ltp")

_POLL_SECONDS = 2.0


def lock_folder() -> Path:
    """Return the folder of lock files, one per GPU, that all sweeps of a user share on this machine."""
    return Path(tempfile.gettempdir()) / f"ltp-gpus-{os.getuid()}"


def gpus_wanted(trainer: TrainerSettings) -> int:
    """Return the number of GPUs to reserve for a job; 0 if it uses none, all or specific ones."""
    if trainer.accelerator not in ("auto", "gpu", "cuda") or not isinstance(trainer.devices, int):
        return 0
    return max(0, trainer.devices)  # -1 means all


def visible_gpus() -> list[str]:
    """Return the ids of the GPUs that this process may use, in the format of ``CUDA_VISIBLE_DEVICES``."""
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    if variable is None:
        from torch.cuda import device_count  # takes seconds to import; only jobs that share GPUs need it

        return list(map(str, range(device_count())))
    return [gpu.strip() for gpu in variable.split(",") if gpu.strip() not in ("", "-1")]


@contextmanager
def reserve_gpus(wanted: int, folder: Path) -> Iterator[str | None]:
    """Context manager: reserve GPUs for one job, waiting until enough are free.

    The operating system releases them when this process ends, even if it is killed.

    Args:
        wanted: number of GPUs, of those that this process may use.
        folder: folder of the lock files; jobs that share GPUs must share it.

    Yields:
        The job's ``CUDA_VISIBLE_DEVICES``; None if nothing is reserved: no GPU is wanted, or fewer are visible.
    """
    visible = visible_gpus() if wanted else []
    if not visible or wanted > len(visible):
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    locks = _lock_gpus(wanted, visible, folder)
    if not locks:
        log.info("waiting for %s: %d wanted", "a free GPU" if wanted == 1 else "free GPUs", wanted)
    while not locks:
        time.sleep(_POLL_SECONDS)
        locks = _lock_gpus(wanted, visible, folder)
    try:
        yield ",".join(locks)
    finally:
        for lock in locks.values():
            lock.release()


def _lock_gpus(wanted: int, visible: Sequence[str], folder: Path) -> dict[str, FileLock]:
    """Lock as many GPUs as are wanted; return the locks by GPU, or none if too few are free."""
    locks: dict[str, FileLock] = {}
    with FileLock(folder / "dealing.lock"):  # one job at a time, else two could each hold half of what they need
        for gpu in visible:
            lock = FileLock(folder / f"{gpu.replace('/', '-')}.lock")
            with suppress(Timeout):
                lock.acquire(blocking=False)
                locks[gpu] = lock
            if len(locks) == wanted:
                return locks
        for lock in locks.values():
            lock.release()
    return {}

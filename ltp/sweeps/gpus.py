"""The GPUs of one machine, dealt out to the jobs of a sweep that run on it at once."""

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
    """The machine's folder of lock files, one a GPU: all sweeps of a user share it."""
    return Path(tempfile.gettempdir()) / f"ltp-gpus-{os.getuid()}"


def gpus_wanted(trainer: TrainerSettings) -> int:
    """How many GPUs a job must be given: 0 without GPUs, and where it takes all of them or names its own."""
    if trainer.accelerator not in ("auto", "gpu", "cuda") or not isinstance(trainer.devices, int):
        return 0
    return max(0, trainer.devices)  # -1 is all


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        from torch.cuda import device_count  # seconds to import, which only jobs that share GPUs need

        return list(map(str, range(device_count())))
    return [word.strip() for word in named.split(",") if word.strip() not in ("", "-1")]


@contextmanager
def reserve_gpus(wanted: int, folder: Path) -> Iterator[str | None]:
    """GPUs for one job alone, until it ends; wait until as many are free.

    The operating system lets go of them when this process ends, however it ends.

    Args:
        wanted: how many, of those that this process may use.
        folder: of the lock files; jobs that share GPUs must share it.

    Yields:
        The job's ``CUDA_VISIBLE_DEVICES``; None where there is nothing to deal: none wanted, or not as many there.
    """
    visible = visible_gpus() if wanted else []
    if not visible or wanted > len(visible):
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    taken = _take(wanted, visible, folder)
    if not taken:
        log.info("waiting for %s: %d wanted", "a free GPU" if wanted == 1 else "free GPUs", wanted)
    while not taken:
        time.sleep(_POLL_SECONDS)
        taken = _take(wanted, visible, folder)
    try:
        yield ",".join(taken)
    finally:
        for lock in taken.values():
            lock.release()


def _take(wanted: int, visible: Sequence[str], folder: Path) -> dict[str, FileLock]:
    """As many free GPUs as are wanted, with their locks; none where there are fewer."""
    taken: dict[str, FileLock] = {}
    with FileLock(folder / "dealing.lock"):  # two jobs that each took half of what they want would both go without
        for gpu in visible:
            lock = FileLock(folder / f"{gpu.replace('/', '-')}.lock")
            with suppress(Timeout):
                lock.acquire(blocking=False)
                taken[gpu] = lock
            if len(taken) == wanted:
                return taken
        for lock in taken.values():
            lock.release()
    return {}

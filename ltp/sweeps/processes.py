"""A process for each run, and what keeps processes from outliving each other."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltp.errors import LTPError, RunError, TerminatedError, UserError

TRAIN_MODULE = "ltp.train"

#: Set by launchers for each rank; a process of another run must not inherit them.
_RANK_VARIABLES = (
    *("LOCAL_RANK", "RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED"),
    "SUBMITIT_EXECUTOR",
)
#: Where a process started here leaves the message of its error for the one that started it.
_ERROR_FILE = "LTP_ERROR_FILE"
_WATCHER = "follow-starter"
_GRACE_SECONDS = 30.0  # enough to write a checkpoint


def start_run(overrides: Sequence[str], gpus: str | None = None, *, as_rank: bool = False) -> None:
    """Train one run in a process of its own, and wait for it.

    A process a run keeps runs apart: a rank of one cannot join another, and what fails in one stays there.

    Args:
        overrides: the run's command line.
        gpus: the run's ``CUDA_VISIBLE_DEVICES``; None leaves it the ones of this process.
        as_rank: whether each of several tasks of a cluster's job starts the run, which are its ranks then.

    Raises:
        UserError, RunError: it failed; the message is its own.
        KeyboardInterrupt, TerminatedError: this process got the signal, passed it on, and the run stopped.
    """
    command = [sys.executable, "-m", TRAIN_MODULE, *overrides, "hydra.mode=RUN"]
    with tempfile.TemporaryDirectory(prefix="ltp-") as folder:
        error_file = Path(folder) / "error"
        environment = {key: value for key, value in os.environ.items() if key not in _dropped(as_rank)}
        environment[_ERROR_FILE] = str(error_file)
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpus
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        code, received = _wait(process)
        # the first of several ranks to fail knows why; the others only that it is gone
        messages = error_file.read_text(encoding="utf-8").split("\0") if error_file.is_file() else []
    if code and received:
        raise KeyboardInterrupt if signal.SIGINT in received else TerminatedError
    if code:
        kind = UserError if code == UserError.exit_code else RunError
        raise kind(messages[0] if messages else f"its process {_ending(code)}")


def is_first_task() -> bool:
    """Whether this process is the first, or the only, task of a cluster's job."""
    return os.environ.get("SLURM_PROCID", "0") == "0"


def _dropped(as_rank: bool) -> tuple[str, ...]:
    """The variables of this process that a run's process must not inherit."""
    if as_rank and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        return _RANK_VARIABLES
    return (*_RANK_VARIABLES, "SLURM_NTASKS")  # where it stands, Lightning waits for ranks that srun would start


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, set[int]]:
    """Wait for a process that leads a session, and pass SIGINT and SIGTERM on to all of it.

    Returns:
        Its exit code, and the signals that were passed on.
    """
    received: set[int] = set()

    def forward(number: int, frame: Any) -> None:
        received.add(number)
        _signal_session(process, number)

    forwarded: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
    if "SUBMITIT_EXECUTOR" in os.environ:  # it waits out SIGTERM, and requeues the job at the signal that follows
        forwarded = (signal.SIGINT,)
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        forwarded = ()
    before = {number: signal.signal(number, forward) for number in forwarded}
    try:
        code = process.wait()
    except BaseException:  # a handler of somebody else's ends this process, as a cluster's does before it requeues
        _signal_session(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
        _signal_session(process, signal.SIGKILL)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code:
        _signal_session(process, signal.SIGKILL)  # ranks that still wait for one that failed
    return code, received


def _signal_session(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def report_to_parent(error: BaseException) -> bool:
    """Leave an error's message to the process that started this one.

    Returns:
        Whether there is one: it then tells the user.
    """
    if _ERROR_FILE not in os.environ:
        return False
    text = str(error) if isinstance(error, LTPError) else f"{type(error).__name__}: {error}"
    with contextlib.suppress(OSError), open(os.environ[_ERROR_FILE], "a", encoding="utf-8") as file:
        file.write(text + "\0")
        return True
    return False


def has_parent_process() -> bool:
    """Whether another process of ltp's or a launcher of ranks started this one."""
    return _ERROR_FILE in os.environ or "LOCAL_RANK" in os.environ


def exit_with_parent() -> None:
    """End after the process that started this one, however that ended: one that was killed cannot pass it on."""
    if any(thread.name == _WATCHER for thread in threading.enumerate()):
        return
    parent_process = os.getppid()

    def watch() -> None:
        while os.getppid() == parent_process:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_SECONDS)
        os._exit(143)  # it hangs, waiting for ranks that are gone

    threading.Thread(target=watch, name=_WATCHER, daemon=True).start()

"""Train runs in subprocesses: signal forwarding, error reports to the parent, and exit with the parent."""

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

#: Variables that launchers set for each rank; the process of another run must not inherit them.
_RANK_VARIABLES = (
    *("LOCAL_RANK", "RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED"),
    "SUBMITIT_EXECUTOR",
)
#: Variable with the path of the file to which a subprocess writes its error message for this process.
_ERROR_FILE = "LTP_ERROR_FILE"
_WATCHER = "exit-with-parent"  # name of the thread
_GRACE_SECONDS = 30.0  # enough to write a checkpoint


def start_run(overrides: Sequence[str], gpus: str | None = None, *, as_rank: bool = False) -> None:
    """Train one run in a subprocess, and wait for it.

    Separate processes isolate runs: a rank of one run cannot join another, and a failure does not affect other runs.

    Args:
        overrides: command line of the run.
        gpus: the run's ``CUDA_VISIBLE_DEVICES``; None inherits that of this process.
        as_rank: whether every task of a cluster job starts this run, so that the tasks are its ranks.

    Raises:
        UserError, RunError: the run failed; the message is that of its own error.
        KeyboardInterrupt, TerminatedError: this process received SIGINT or SIGTERM, forwarded it, and the run stopped.
    """
    command = [sys.executable, "-m", TRAIN_MODULE, *overrides, "hydra.mode=RUN"]
    with tempfile.TemporaryDirectory(prefix="ltp-") as folder:
        error_file = Path(folder) / "error"
        environment = {key: value for key, value in os.environ.items() if key not in _variables_to_drop(as_rank)}
        environment[_ERROR_FILE] = str(error_file)
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpus
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        code, received = _wait_and_forward_signals(process)
        # the first message is that of the rank that failed first; later ones only report the loss of that rank
        messages = error_file.read_text(encoding="utf-8").split("\0") if error_file.is_file() else []
    if code and received:
        raise KeyboardInterrupt if signal.SIGINT in received else TerminatedError
    if code:
        error = UserError if code == UserError.exit_code else RunError
        raise error(messages[0] if messages else f"its process {_describe_exit(code)}")


def is_first_task() -> bool:
    """Whether this process is the first or only task of a cluster job."""
    return os.environ.get("SLURM_PROCID", "0") == "0"


def _variables_to_drop(as_rank: bool) -> tuple[str, ...]:
    """Return the environment variables that a run's process must not inherit."""
    if as_rank and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        return _RANK_VARIABLES
    return (*_RANK_VARIABLES, "SLURM_NTASKS")  # makes Lightning wait for ranks that srun would start


def _wait_and_forward_signals(process: subprocess.Popen[bytes]) -> tuple[int, set[int]]:
    """Wait for a session leader, and forward SIGINT and SIGTERM to its session.

    Returns:
        Its exit code, and the signals that were forwarded.
    """
    received: set[int] = set()

    def forward(number: int, frame: Any) -> None:
        received.add(number)
        _signal_session(process, number)

    forwarded: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
    if "SUBMITIT_EXECUTOR" in os.environ:  # submitit ignores SIGTERM, and requeues the job on the signal that follows
        forwarded = (signal.SIGINT,)
    if threading.current_thread() is not threading.main_thread():  # Python allows signal handlers only there
        forwarded = ()
    previous = {number: signal.signal(number, forward) for number in forwarded}
    try:
        code = process.wait()
    except BaseException:  # raised by another signal handler, such as submitit's before it requeues the job
        _signal_session(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
        _signal_session(process, signal.SIGKILL)
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if code:
        _signal_session(process, signal.SIGKILL)  # ranks that still wait for the failed one
    return code, received


def _signal_session(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def report_to_parent(error: BaseException) -> bool:
    """Write an error's message to the file of the parent process, if there is one.

    Returns:
        Whether the message was written; the parent then shows it to the user.
    """
    if _ERROR_FILE not in os.environ:
        return False
    text = str(error) if isinstance(error, LTPError) else f"{type(error).__name__}: {error}"
    with contextlib.suppress(OSError), open(os.environ[_ERROR_FILE], "a", encoding="utf-8") as file:
        file.write(text + "\0")
        return True
    return False


def has_parent_process() -> bool:
    """Whether another process of ltp or a launcher of ranks started this process."""
    return _ERROR_FILE in os.environ or "LOCAL_RANK" in os.environ


def exit_with_parent() -> None:
    """End this process when its parent ends, even if the parent was killed and could not forward a signal."""
    if any(thread.name == _WATCHER for thread in threading.enumerate()):
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_SECONDS)
        os._exit(143)  # still alive: blocked waiting for ranks that are gone

    threading.Thread(target=watch, name=_WATCHER, daemon=True).start()

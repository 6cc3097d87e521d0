"""Progress bars, and a check before the work starts that an output file can be written."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ltp.errors import UserError, printable

log = logging.getLogger("ltp")

_SECONDS_A_LINE = 30.0


class PrintableFormatter(logging.Formatter):
    """Formats log records without control characters: a message may hold names from files."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).expandtabs().split("\n")))


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error, and remove it at the end; without a terminal, a line now and then.

    Yields:
        A function to call with the number of examples done since its last call.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _logged(total)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("", total=total)

        def advance(count: int) -> None:
            bars.advance(bar, count)
            if speed := bars.tasks[bar].speed:
                bars.update(bar, description=f"{speed:,.0f} a second")

        yield advance


def _logged(total: int) -> Callable[[int], None]:
    """Return a function that counts examples, and logs every half minute how many are done, and the pace."""
    started = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal last, done
        done += count
        if (now := time.monotonic()) - last >= _SECONDS_A_LINE and 0 < done < total:
            last = now
            speed = done / (now - started)
            left = max(1, (total - done) / speed / 60)
            log.info("%s of %s, %s a second, about %.0f min left", f"{done:,}", f"{total:,}", f"{speed:,.0f}", left)

    return advance


@contextlib.contextmanager
def step_progress() -> Iterator[Callable[[int, int, str], None]]:
    """Show a progress bar on standard error with a changing total and description, and remove it at the end.

    Yields:
        A function to call with the number of steps done, the total, and a description of the last step.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=None)

        yield lambda done, total, step: progress.update(bar, completed=done, total=total, description=step)


def run_until_broken_pipe(run: Callable[[], int]) -> int:
    """Run a command whose output may lose its reader (``… | head``).

    Args:
        run: runs the command and returns its exit code.

    Returns:
        Its exit code; 141 after a broken pipe.
    """
    try:
        code = run()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout again at exit
        return 141
    return code


def check_writable(setting: str, path: Path, remedy: str = "") -> None:
    """Check that a file can be written; creates its folder.

    Args:
        setting: the key and its value, for the error message.
        path: the file.
        remedy: the end of the error message: what to do instead.

    Raises:
        UserError: it cannot be written.
    """
    if path.is_dir():
        raise UserError(f"{setting} is a directory; give a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        trial = path.with_name(f".{path.name}.trial")  # fail now rather than after minutes of computing
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise UserError(f"{setting}: cannot write {path}: {error.strerror}{remedy}") from error

"""Progress bars, and the check that an output file can be written before the work begins."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from ltp.errors import UserError


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, where that is a terminal; it is gone afterwards.

    Yields:
        What to call with the number of examples done since the last call.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("", total=total)
        yield lambda count: bars.advance(bar, count)


@contextlib.contextmanager
def step_progress() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on standard error whose length and text change; it is gone afterwards.

    Yields:
        What to call with the steps done, the steps in all, and what was done last.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=None)

        yield lambda done, total, what: progress.update(bar, completed=done, total=total, description=what)


def check_writable(what: str, path: Path, remedy: str = "") -> None:
    """Check that a file can be written; its folder is made.

    Args:
        what: the key and its value, for messages.
        path: the file.
        remedy: what to do instead, for messages.

    Raises:
        UserError: it cannot.
    """
    if path.is_dir():
        raise UserError(f"{what} is a directory; give a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        trial = path.with_name(f".{path.name}.trial")  # minutes of computing should not end in a write that fails
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise UserError(f"{what}: cannot write {path}: {error.strerror}{remedy}") from error

"""``python -m ltp.list``: list the runs of a folder. Finding and printing them is in :mod:`ltp.reporting.listing`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from rich.console import Console

from ltp.command.cli import Command
from ltp.command.output import check_writable
from ltp.command.overrides import existing_folders, folders_as_key

_WIDTH = 1000  # paths are not cut: a terminal wraps them


@dataclass
class ListSettings:
    """Settings of a listing; ``python -m ltp.list --help`` explains the keys.

    ``folders`` is a str or a list of str: :func:`fill` makes it a list.
    """

    output_root: str = MISSING
    folders: Any = MISSING
    output: str | None = None


def main(settings: ListSettings) -> None:
    """List the runs, on the terminal or as JSON."""
    from ltp.reporting.listing import as_json, list_runs, print_runs
    from ltp.runs.directory import write_atomically

    settings = fill(settings)
    if settings.output not in (None, "-"):
        check_writable(f"output={settings.output}", Path(str(settings.output)))
    runs = list_runs([Path(folder) for folder in settings.folders])
    if settings.output == "-":
        print(as_json(runs), end="")
    elif settings.output is not None:
        write_atomically(Path(settings.output), as_json(runs))
    else:
        console = Console()
        console.width = _WIDTH
        print_runs(runs, console)


def fill(settings: ListSettings) -> ListSettings:
    """Check the settings.

    Raises:
        UserError: a folder does not exist.
    """
    settings.folders = existing_folders(settings.folders, "list")
    return settings


COMMAND = Command("list", ListSettings, main, fill, prepare=folders_as_key)

if __name__ == "__main__":
    sys.exit(COMMAND())

"""How a run was started: the command line that a user gave, and where."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

#: Variable with the command line that a user gave; the processes that it starts inherit it.
COMMAND_VARIABLE = "LTP_COMMAND"
#: Keys of ``config.yaml`` that say how a run was started; they are no part of its identity.
STARTED_BY = ("command", "working_directory")


def remember_command(name: str, arguments: Sequence[str]) -> None:
    """Remember the command line of this process, unless it was started by one that is remembered."""
    os.environ.setdefault(COMMAND_VARIABLE, shlex.join(["python", "-m", f"ltp.{name}", *arguments]))


def started_by() -> dict[str, str | None]:
    """Return :data:`STARTED_BY`: the command that leads to a run when it is given again, and where."""
    values = (os.environ.get(COMMAND_VARIABLE), str(Path.cwd()))
    return dict(zip(STARTED_BY, values, strict=True))

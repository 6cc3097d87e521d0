"""Errors that a command reports in one line, and the checks of values that raise them."""

import difflib
import math
from collections.abc import Collection
from typing import Any

#: The name to install by; the package index's ``ltp`` is somebody else's.
DISTRIBUTION = "learned-token-pruning"


class LTPError(Exception):
    """Base class: its text is the whole message that a command prints, without a traceback."""

    exit_code = 1


class UserError(LTPError):
    """Bad input, found before any work is done. Names the key, file or row at fault and the remedy."""

    exit_code = 2


class RunError(LTPError):
    """A failure while running (a loss that is not finite, a parent run that did not finish)."""


class TerminatedError(SystemExit):
    """SIGTERM ended the command. It is a ``SystemExit``, so that no ``except Exception`` takes it for a failure."""

    def __init__(self) -> None:
        super().__init__(143)


def format_number(value: float | None) -> str:
    """A number as run directories write it: ``2e-05``, ``0.01``, ``-0.2``."""
    assert value is not None
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def format_value(value: Any) -> str:
    """A value as a command line has it: lists as ``[0.3,0.5]``."""
    if isinstance(value, list):
        return f"[{','.join(map(format_value, value))}]"
    return format_number(value) if isinstance(value, float) and math.isfinite(value) else str(value)


def check_range(ok: bool, key: str, value: Any, range_: str) -> None:
    """Check a value's range.

    Args:
        ok: whether it is in its range.
        key: its key, value: itself, range_: what it must be, as the message has them.

    Raises:
        UserError: it is not.
    """
    if not ok:
        raise UserError(f"{key}={format_value(value)} is out of range: it must be {range_}")


def check_choice(key: str, value: Any, options: Collection[str]) -> None:
    """Check that a value is one of a few, or None.

    Raises:
        UserError: it is another; names those that are spelled alike, and all.
    """
    if value is not None and value not in options:
        raise UserError(unknown_option(key, value, options))


def unknown_option(key: str, value: Any, options: Collection[str]) -> str:
    """The message of a value that is none of a few."""
    return f"{key}={value}: no such option.{suggest(value, options)} Options: {', '.join(options)}"


def suggest(name: Any, known: Collection[str]) -> str:
    """`` Did you mean …?`` with at most two names that are spelled alike; empty where there is none."""
    near = difflib.get_close_matches(str(name), known, n=2)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def install_hint(extra: str) -> str:
    """The command that installs one of the optional extras: ``pip install 'learned-token-pruning[onnx]'``."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"

"""Errors that a command reports in one line, and checks of values that raise them."""

import difflib
import math
from collections.abc import Collection
from typing import Any

#: The distribution's name for pip; ``ltp`` on PyPI is an unrelated project.
DISTRIBUTION = "learned-token-pruning"


class LTPError(Exception):
    """Base class: a command prints the message without a traceback and exits with ``exit_code``."""

    exit_code = 1


class UserError(LTPError):
    """Invalid input, found before any work is done. The message names the key, file or row, and the remedy."""

    exit_code = 2


class RunError(LTPError):
    """A failure while running, such as a loss that is not finite or a parent run that did not finish."""


class TerminatedError(SystemExit):
    """SIGTERM ended the command. A ``SystemExit``, so that ``except Exception`` does not catch it."""

    def __init__(self) -> None:
        super().__init__(143)


def printable(text: str) -> str:
    """Replace characters that are not printable by spaces: names in files may hold terminal escapes."""
    return "".join(character if character.isprintable() else " " for character in text)


def format_number(value: float | None) -> str:
    """Format a number as in names of run directories: ``2e-05``, ``0.01``, ``-0.2``."""
    assert value is not None
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def format_value(value: Any) -> str:
    """Format a value as on the command line: lists as ``[0.3,0.5]``."""
    if isinstance(value, list):
        return f"[{','.join(map(format_value, value))}]"
    return format_number(value) if isinstance(value, float) and math.isfinite(value) else str(value)


def check_range(ok: bool, key: str, value: Any, range_: str) -> None:
    """Raise an error if a value is out of range.

    Args:
        ok: whether the value is in range.
        key: the value's key, for the message.
        value: the value, for the message.
        range_: the valid range in words, for the message.

    Raises:
        UserError: the value is out of range.
    """
    if not ok:
        raise UserError(f"{key}={format_value(value)} is out of range: it must be {range_}")


def check_choice(key: str, value: Any, options: Collection[str]) -> None:
    """Check that a value is one of the options, or None.

    Raises:
        UserError: it is not; names the options, and those with similar spelling.
    """
    if value is not None and value not in options:
        raise UserError(unknown_option(key, value, options))


def unknown_option(key: str, value: Any, options: Collection[str]) -> str:
    """The error message for a value that is not one of the options."""
    return f"{key}={value}: no such option.{suggest(value, options)} Options: {', '.join(options)}"


def suggest(name: Any, known: Collection[str]) -> str:
    """`` Did you mean …?`` with at most two names of similar spelling; empty if there are none."""
    matches = difflib.get_close_matches(str(name), known, n=2)
    return f" Did you mean {' or '.join(matches)}?" if matches else ""


def install_hint(extra: str) -> str:
    """The command that installs an optional extra: ``pip install 'learned-token-pruning[onnx]'``."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"

"""The two ways a command ends early: a mistake of the user's, or a failure while running."""


class LTPError(Exception):
    """Base class: its text is the whole message that a command prints, without a traceback."""

    exit_code = 1


class UserError(LTPError):
    """Bad input, found before any work is done. Names the key, file or row at fault and the remedy."""

    exit_code = 2


class RunError(LTPError):
    """A failure while running (a loss that is not finite, a parent run that did not finish)."""

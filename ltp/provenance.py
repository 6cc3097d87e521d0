"""Which code made a result: the commit it was, and the versions of what it builds on."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

_PACKAGES = (
    *("ltp", "torch", "pytorch-lightning", "transformers", "datasets", "torchmetrics"),
    *("hydra-core", "omegaconf", "numpy"),
)


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide a result."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def git_state(file: Path) -> dict[str, Any] | None:
    """The commit that a source file belongs to.

    Returns:
        ``commit``, and whether a tracked file differs from it (``dirty``); None where git knows no such file, as in an
        installed package.
    """

    def git(*arguments: str) -> str:
        # without the optional locks, reading never stands in the way of a commit
        return subprocess.run(
            ["git", *arguments],
            cwd=file.parent,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # an environment may lie in somebody else's repository
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


#: Of the code as it was imported, not as it may be when a long run ends.
GIT_STATE = git_state(Path(__file__))

"""What made a result: the commit, the versions of the packages, and the hardware."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltp import __version__

if TYPE_CHECKING:
    import torch

_PACKAGES = (
    *("torch", "pytorch-lightning", "transformers", "datasets", "torchmetrics"),
    *("hydra-core", "omegaconf", "numpy"),
)


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide a result."""
    return {"python": platform.python_version(), "ltp": __version__, **{name: version(name) for name in _PACKAGES}}


def hardware(device: "torch.device") -> dict[str, Any]:
    """The machine: processor, cores this process may use, threads, memory, and the GPU where it is used."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts: dict[str, Any] = {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": _processor(),
    }
    if device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
    return facts


def device_name(device: "torch.device") -> str:
    """The hardware in words, as results have it: the GPU's name, or the processor's and its threads."""
    facts = hardware(device)
    return str(facts["device"]) if device.type == "cuda" else f"{facts['processor']}, {facts['threads']} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


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

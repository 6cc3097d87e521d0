"""Provenance of results: git commit, package versions and hardware."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltp import __version__
from ltp.deploy.machine import cpu_name

if TYPE_CHECKING:
    import torch

_PACKAGES = (
    *("torch", "pytorch-lightning", "transformers", "datasets", "torchmetrics"),
    *("hydra-core", "omegaconf", "numpy"),
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results."""
    return {"python": platform.python_version(), "ltp": __version__, **{name: version(name) for name in _PACKAGES}}


def hardware(device: "torch.device") -> dict[str, Any]:
    """Describe the machine: processor, cores available to this process, threads, and the GPU if it is used."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts: dict[str, Any] = {
        "processor": cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": cpu_name(),
    }
    if device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
    return facts


def device_name(device: "torch.device") -> str:
    """Return the device name for results: the GPU's name, or the processor's name and thread count."""
    facts = hardware(device)
    return str(facts["device"]) if device.type == "cuda" else f"{facts['processor']}, {facts['threads']} threads"


def git_state(file: Path) -> dict[str, Any] | None:
    """Return the git commit of a source file.

    Returns:
        ``commit`` and ``dirty`` (whether a tracked file differs from the commit); None if git does not track the file,
        as in an installed package.
    """

    def git(*arguments: str) -> str:
        # without optional locks, these reads cannot block a concurrent commit
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
        git("ls-files", "--error-unmatch", file.name)  # the environment may be inside an unrelated repository
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


#: Read at import, because the working tree may change during a long run.
GIT_STATE = git_state(Path(__file__))

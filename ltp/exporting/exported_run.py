"""The finished run that is exported."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltp.errors import UserError
from ltp.runs.checkpoints import Checkpoint, run_config


@dataclass(frozen=True)
class ExportedRun:
    """A finished run, as far as an export needs it.

    Attributes:
        model: its folder in Hugging Face format.
        results: its ``results.json``.
        settings: its ``config.yaml``; empty where it is missing.
        base_model: the hub id of the model that the line of runs began with, if it began with one.
    """

    model: Path
    results: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    base_model: str | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "ExportedRun":
        """What a restored checkpoint tells.

        Raises:
            UserError: it is no run's.
        """
        if checkpoint.run_dir is None or checkpoint.results is None:
            raise UserError(
                f"restore={checkpoint.source} is no run directory: it has no results.json. Only finished runs of "
                "python -m ltp.train are exported, with what they measured."
            )
        settings = run_config(checkpoint.run_dir)
        return cls(Path(checkpoint.path), checkpoint.results, settings, _base_model(settings))


def _base_model(settings: dict[str, Any]) -> str | None:
    """The hub id at the root of a line of runs: a run names its parent, the first one a pretrained model."""
    seen: set[str] = set()
    while name := (settings.get("parent") or {}).get("name") or (settings.get("model") or {}).get("name_or_path"):
        if name in seen:
            return None
        seen.add(name)
        if not Path(name).is_dir():
            return name if _is_hub_id(name) else None
        settings = run_config(Path(name))
    return None


def _is_hub_id(name: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True

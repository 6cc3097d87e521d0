"""The finished run that is exported."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltp.errors import UserError
from ltp.runs.checkpoints import Checkpoint, run_config
from ltp.runs.results import read_results


@dataclass(frozen=True)
class ExportedRun:
    """The files and facts of a finished run that an export uses.

    Attributes:
        model: folder of the model in Hugging Face format.
        results: ``results.json`` of the run.
        settings: ``config.yaml`` of the run; empty if it is missing.
        base_model: hub id of the pretrained model that the run and its parents started from; None if unknown.
    """

    model: Path
    results: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    base_model: str | None = None

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> "ExportedRun":
        """Read the run of a checkpoint.

        Raises:
            UserError: the checkpoint does not belong to a run, or a file of the run is damaged.
        """
        if checkpoint.run_dir is None or checkpoint.results is None:
            raise UserError(
                f"restore={checkpoint.source} is no run directory: it has no results.json. Only finished runs of "
                "python -m ltp.train are exported, with what they measured."
            )
        read_results(checkpoint.run_dir, required=("task", "model"))  # for the card
        settings = run_config(checkpoint.run_dir)
        return cls(Path(checkpoint.path), checkpoint.results, settings, _base_model(settings))


def check_weights(folder: Path) -> None:
    """Check that a folder holds whole files of weights. Reads their headers only.

    Raises:
        UserError: there is none, or one is damaged.
    """
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no model.safetensors: train the run again")
    for file in files:
        try:
            with safe_open(file, framework="np"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file} is damaged: {error}") from error


def _base_model(settings: dict[str, Any]) -> str | None:
    """Follow the parents of a run to the first one, and return the hub id of its pretrained model."""
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

"""Where a run's metrics go: always ``metrics.jsonl`` in its directory, and the loggers of group ``logger``."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from ltp.errors import UserError, install_hint
from ltp.runs.directory import METRICS_FILE


class MetricsFile(Logger):
    """Appends one JSON object a logged step: ``{"step": 100, "val/accuracy": 0.93, …}``.

    Lightning's CSVLogger starts its file afresh when a run resumes; this one goes on.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.path = directory / METRICS_FILE

    @property
    def name(self) -> str:
        """Lightning's name for the logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """There is one file a run."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a line."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: they stand in the run's ``config.yaml``."""


def build_loggers(chosen: dict[str, Any], directory: Path) -> list[Logger]:
    """The metrics file and the chosen loggers.

    Args:
        chosen: by name, a ``_target_`` and its arguments, in which ``{run_dir}`` and ``{run_name}`` are filled in.
        directory: the run directory.

    Raises:
        UserError: a logger's package is not installed.
    """
    loggers: list[Logger] = [MetricsFile(directory)]
    indices = {"{run_dir}": str(directory), "{run_name}": str(directory)}
    for name, arguments in chosen.items():
        filled = {
            key: indices.get(value, value) if isinstance(value, str) else value for key, value in arguments.items()
        }
        try:
            loggers.append(instantiate(filled))
        except Exception as error:  # Hydra wraps whatever a logger's constructor raises
            cause = error.__cause__ or error
            if isinstance(cause, ModuleNotFoundError):
                raise UserError(f"logger={name} needs its package: {install_hint(name)}") from error
            raise UserError(f"logger={name} cannot start: {cause}") from error
    return loggers

"""Loggers of a run: ``metrics.jsonl`` in the run directory, and those of config group ``logger``."""

import hashlib
import json
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from ltp.errors import UserError, install_hint
from ltp.runs.checkpoints import METRICS_FILE


class MetricsFile(Logger):
    """Append one JSON object per logged step: ``{"step": 100, "val/accuracy": 0.93, …}``.

    Lightning's CSVLogger overwrites its file when a run resumes; this logger appends.

    Args:
        directory: the run directory.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.path = directory / METRICS_FILE

    @property
    def name(self) -> str:
        """Name of the logger, for Lightning."""
        return "metrics"

    @property
    def version(self) -> str:
        """Empty: each run has one metrics file."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one line; a value that is not a number, such as an undefined metric's, is null."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: ``config.yaml`` in the run directory holds the hyperparameters."""


def mlflow_logger(run_id: str, experiment_name: str, tracking_uri: str, **arguments: Any) -> Logger:
    """Create MLflow's logger; a run that is started again goes on in MLflow's run that it had.

    Args:
        run_id: id of the run, which is kept as a tag.
        experiment_name, tracking_uri, arguments: see Lightning's ``MLFlowLogger``.
    """
    from pytorch_lightning.loggers import MLFlowLogger

    tag, found = "ltp_run_id", []
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # set when Lightning is imported
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri)
        if (experiment := client.get_experiment_by_name(experiment_name)) is not None:
            found = client.search_runs([experiment.experiment_id], f"tags.{tag} = '{run_id}'", max_results=1)
    return MLFlowLogger(
        experiment_name=experiment_name,
        tracking_uri=tracking_uri,
        run_id=found[0].info.run_id if found else None,
        tags={tag: run_id},
        **arguments,
    )


def build_loggers(configs: dict[str, Any], directory: Path, output_root: Path) -> list[Logger]:
    """Instantiate the metrics file and the configured loggers.

    Args:
        configs: by logger name, a ``_target_`` and its arguments. ``{run_dir}`` is replaced by the run directory,
            ``{run_name}`` by its path below ``output_root``, and ``{run_id}`` by an id that is the same each time the
            run is started.
        directory: the run directory.
        output_root: folder of all runs.

    Raises:
        UserError: a logger's package is not installed, or its constructor fails.
    """
    loggers: list[Logger] = [MetricsFile(directory)]
    placeholders = {
        "{run_dir}": str(directory),
        "{run_name}": str(directory.relative_to(output_root) if directory.is_relative_to(output_root) else directory),
        "{run_id}": hashlib.sha256(str(directory.absolute()).encode()).hexdigest()[:16],
    }
    loggers += build("logger", configs, placeholders)
    return loggers


def build(group: str, configs: dict[str, Any], placeholders: dict[str, str]) -> list[Any]:
    """Instantiate the objects of a configuration group.

    Args:
        group: name of the group, for messages.
        configs: by name, a ``_target_`` and its arguments.
        placeholders: replacements for arguments.

    Raises:
        UserError: a package is not installed, or a constructor fails.
    """
    made = []
    for name, config in configs.items():
        if not isinstance(config, dict) or "_target_" not in config:
            raise UserError(f"{group}.{name} names no class: give {group}.{name}._target_=package.Class")
        arguments = {
            key: placeholders.get(value, value) if isinstance(value, str) else value for key, value in config.items()
        }
        try:
            made.append(instantiate(arguments))
        except Exception as error:  # Hydra wraps every exception of a constructor
            cause = error.__cause__ or error
            if isinstance(cause, ModuleNotFoundError) and group == "logger":
                raise UserError(f"{group}={name} needs its package: {install_hint(name)}") from error
            raise UserError(f"{group}={name} cannot start: {' '.join(str(cause).split())}") from error
    return made

"""The start and the end of a sweep: its jobs, its record, and jobs that would be one run."""

import contextlib
import copy
import logging
import signal
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from ltp.command import cli
from ltp.command.planning import plan
from ltp.errors import LTPError, TerminatedError, UserError
from ltp.runs.layout import is_placed
from ltp.runs.settings import TrainSettings, typed_as, unknown_key
from ltp.sweeps.record import SweepRecord

log = logging.getLogger("ltp")


class SweepCallback(Callback):
    """Hydra callback that creates and closes the record of a sweep. Registered in ``conf/train.yaml``."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the jobs, create the record, and raise an exception on SIGTERM as on Ctrl-C, so that launchers end."""

        def end(number: int, frame: Any) -> None:
            raise TerminatedError

        signal.signal(signal.SIGTERM, end)
        loader = GlobalHydra.instance().config_loader()
        jobs = jobs_of_grid(config.hydra.sweeper, config.hydra.overrides.task, loader)
        try:
            check_distinct(config, jobs or [], loader)
        except UserError as error:
            raise SystemExit(cli.report_error(error)) from error  # Hydra turns exceptions of callbacks into warnings
        trials = config.hydra.sweeper.get("n_trials")
        total = len(jobs) if jobs is not None else None if trials is None else int(trials)
        SweepRecord.start(Path(config.hydra.sweep.dir), total)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Log the final progress, if the jobs logged theirs in other processes."""
        record = SweepRecord.current()
        if record is not None and not str(config.hydra.launcher._target_).endswith("BasicLauncher"):
            log.info(record.progress())


def jobs_of_grid(
    sweeper: Mapping[str, Any], overrides: Sequence[str], loader: ConfigLoader | None = None
) -> list[list[str]] | None:
    """Return the jobs of a sweep.

    Args:
        sweeper: Hydra's ``hydra.sweeper`` configuration.
        overrides: the command line.
        loader: Hydra's loader of configurations, which ``glob()`` needs.

    Returns:
        The overrides of each job of the grid for Hydra's BasicSweeper; None for others, which choose as they go, and
        for a value that BasicSweeper refuses.
    """
    if not str(sweeper["_target_"]).endswith("BasicSweeper"):
        return None
    lines = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    parser = OverridesParser.create(config_loader=loader)
    parsed = parser.parse_overrides([*lines, *overrides])
    if any(override.is_sweep_override() and not override.is_discrete_sweep() for override in parsed):
        return None
    return BasicSweeper.split_arguments(parsed, None)[0]


def check_distinct(config: DictConfig, jobs: Sequence[Sequence[str]], loader: ConfigLoader) -> None:
    """Check that no two jobs of a sweep have one run directory, before the first of them starts.

    Args:
        config: the sweep's configuration, with Hydra's own.
        jobs: the overrides of each job.
        loader: Hydra's loader of configurations.

    Raises:
        UserError: several have; the message lists them. A job that cannot be planned reports its own error later.
    """
    by_names: dict[frozenset[str], list[Sequence[str]]] = defaultdict(list)
    for job in jobs:  # to plan a job takes a tenth of a second, and most differ in their names
        restores = any(override.startswith("restore=") for override in job)  # thresholds are the checkpoint's then
        by_names[frozenset() if restores else frozenset(filter(None, map(_name, job)))].append(job)
    by_directory: dict[Path, list[str]] = defaultdict(list)
    for job in (job for same in by_names.values() if len(same) > 1 for job in same):
        with contextlib.suppress(LTPError, HydraException, OmegaConfBaseException):
            cfg = loader.load_sweep_config(config, list(job))
            task_cfg = copy.deepcopy(cfg)
            with read_write(task_cfg), open_dict(task_cfg):
                del task_cfg["hydra"]
            directory = plan(typed_as(TrainSettings, task_cfg, unknown_key), cfg.hydra).directory
            by_directory[directory].append(" ".join(job))
    for directory, same in by_directory.items():
        if len(same) > 1:
            raise UserError(
                f"{len(same)} jobs of the sweep are one run, {directory}:\n"
                + "".join(f"  {job}\n" for job in same)
                + "What they differ in does not tell runs apart. Give other data another task.name=…, other machines "
                "or copies another output_root=…, and every job once."
            )


def _name(override: str) -> str | None:
    """Return an override that tells run directories apart whatever the others are, its value normalised; else None."""
    key, _, value = override.partition("=")
    if not is_placed(key):
        return None
    with contextlib.suppress(ValueError):
        value = repr(float(value))
    return f"{key}={value.lower()}"

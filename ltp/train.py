"""``python -m ltp.train``: train one run, after the parent runs that it needs."""

import dataclasses
import logging
import sys
import time

from ltp.command import cli
from ltp.command.imports import fast_imports
from ltp.command.planning import overrides_of, plan
from ltp.errors import LTPError, RunError, UserError
from ltp.runs.chain import describe_chain
from ltp.runs.checkpoints import is_finished
from ltp.runs.identity import check_identity
from ltp.runs.results import SHOWN, read_results
from ltp.runs.settings import TrainSettings
from ltp.runs.summary import print_results
from ltp.sweeps.gpus import gpus_wanted, lock_folder, reserve_gpus
from ltp.sweeps.objective import objective
from ltp.sweeps.processes import exit_with_parent, is_first_task, start_run
from ltp.sweeps.record import DONE, FAILED, SKIPPED, Job, SweepRecord

log = logging.getLogger("ltp")

_POLL_SECONDS = 2.0


def main(settings: TrainSettings) -> float | None:
    """Train one run in this process, or a job of a sweep in a separate process.

    Returns:
        The task's main metric on the validation split; in a sweep, the value of :func:`sweep_job`.
    """
    return sweep_job(settings) if cli.is_sweep() else train_run(settings)


def train_run(settings: TrainSettings) -> float | None:
    """Train one run, or skip it if it is finished; trains a missing parent first.

    Returns:
        The task's main metric on the validation split; None if it is undefined, and with ``plan=only``.

    Raises:
        UserError: the settings are invalid.
        RunError: the run or its parent failed.
    """
    run = plan(settings)

    with fast_imports():  # after the checks, because Lightning takes seconds to import
        from ltp.training import building
        from ltp.training import run as training

    is_main = training.is_main_process()
    if is_finished(run.directory) and not settings.overwrite and is_written(settings):
        results = read_results(run.directory, required=SHOWN)
        if is_main:
            check_identity(run)
            log.info("finished already, skipped: %s (overwrite=true starts it afresh)", run.directory)
            print_results(results, run.directory)
        return results["metric"]["value"]
    splits = building.check_sources(run)  # reports mistakes before a parent trains for hours
    if is_main:
        check_identity(run)
        planned = describe_chain(run, len(splits.train), at_least=splits.task.has_windows)
        if settings.plan is not None:
            print(planned)
            return None
        if run.missing is not None and settings.trainer.fast_dev_run:
            raise UserError(
                f"trainer.fast_dev_run tries this run alone, and its parent {run.missing.directory} is missing: train "
                "it first, or name a checkpoint with restore=…"
            )
        if run.missing is not None:
            log.info("%s", planned)
            log.info("parent missing, training it first: %s", run.missing.directory)
            try:
                start_run([*cli.config_arguments(), *overrides_of(run.missing)])
            except RunError as error:
                raise RunError(f"the parent run {run.missing.directory}: {error}") from error
            run = plan(settings)
            if run.missing is not None:  # the loop below would never end
                raise RunError(
                    f"the parent run was trained, but not into {run.missing.directory}: this is a bug of ltp"
                )
            check_identity(run)
    while run.missing is not None:  # a rank that was started with the main process waits for the parent
        time.sleep(_POLL_SECONDS)
        run = plan(settings)
    trained = training.train(run, splits)
    if trained is None:
        log.info("fast_dev_run: a batch of training and of validation went through; nothing is written")
        return None
    if is_main:
        print_results(trained, run.directory)
    return trained["metric"]["value"]


def is_written(settings: TrainSettings) -> bool:
    """Whether a command writes its run, rather than only shows or tries it."""
    return settings.plan is None and not settings.trainer.fast_dev_run


def sweep_job(settings: TrainSettings) -> float | None:
    """Run one job of a sweep in a separate process. A failure is recorded and does not stop the other jobs.

    Returns:
        The value that a sweeper optimises (:func:`ltp.sweeps.objective.objective`); None if the job failed.
    """
    record = SweepRecord.current()
    assert record is not None
    if not record.is_sweep_process:
        exit_with_parent()
    job = Job(" ".join(cli.task_overrides()), DONE)
    try:
        run = plan(settings)
        job = dataclasses.replace(job, directory=str(run.directory))
        check_identity(run)
        if is_finished(run.directory) and not settings.overwrite and is_written(settings):
            job = dataclasses.replace(job, status=SKIPPED)
            log.info("finished already, skipped: %s", run.directory)
        elif not is_written(settings):
            train_run(settings)
        else:
            gpu_count = gpus_wanted(settings.trainer) if cli.shares_machine() else 0
            with reserve_gpus(gpu_count, lock_folder()) as gpus:
                start_run([*cli.config_arguments(), *cli.task_overrides()], gpus, as_rank=True)
        value = None
        if is_written(settings):
            value = objective(read_results(plan(settings).directory, required=("metric",)), settings.flops_budget)
    except LTPError as error:
        job = dataclasses.replace(job, status=FAILED, message=str(error), exit_code=error.exit_code)
        value = None  # a failed trial for Optuna; NaN would end its study
    if is_first_task():
        record.add(job)
    return value


def fill(settings: TrainSettings) -> TrainSettings:
    """Fill the nulls of the settings; also prints the run directory and the parent as YAML comments."""
    run = plan(settings)
    print(f"# run directory: {run.directory}")
    print(f"# parent: {run.parent_name}{' (missing: trained first)' if run.missing else ''}")
    return run.settings


COMMAND = cli.Command("train", TrainSettings, main, fill)

if __name__ == "__main__":
    sys.exit(COMMAND())

"""``python -m ltp.train``: train one run, after the parent runs that it needs."""

import dataclasses
import logging
import sys
import time

from hydra.core.hydra_config import HydraConfig

from ltp.command import cli
from ltp.command.imports import fast_imports
from ltp.command.overrides import as_overrides
from ltp.errors import LTPError, RunError
from ltp.runs.checkpoints import read_results
from ltp.runs.directory import check_same_settings, is_finished
from ltp.runs.plan import Run, plan_run
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


def train_run(settings: TrainSettings) -> float:
    """Train one run, or skip it if it is finished; trains a missing parent first.

    Returns:
        The task's main metric on the validation split.

    Raises:
        UserError: the settings are invalid.
        RunError: the run or its parent failed.
    """
    run = plan(settings)

    with fast_imports():  # after the checks, because Lightning takes seconds to import
        from ltp.training import building
        from ltp.training import run as training

    if is_finished(run.directory) and not settings.overwrite:
        results = read_results(run.directory)
        if training.is_main_process():
            check_same_settings(run)
            log.info("finished already, skipped: %s (overwrite=true starts it afresh)", run.directory)
            print_results(results, run.directory)
        return float(results["metric"]["value"])
    if training.is_main_process():
        check_same_settings(run)
        if run.missing is not None:
            building.check_sources(run)  # report mistakes before the parent trains for hours
            log.info("parent missing, training it first: %s", run.missing.directory)
            try:
                start_run([*cli.config_arguments(), *parent_overrides(run)])
            except RunError as error:
                raise RunError(f"the parent run {run.missing.directory}: {error}") from error
            run = plan(settings)
            if run.missing is not None:  # the loop below would never end
                raise RunError(
                    f"the parent run was trained, but not into {run.missing.directory}: this is a bug of ltp"
                )
            check_same_settings(run)
    while run.missing is not None:  # a rank that was started with the main process waits for the parent
        time.sleep(_POLL_SECONDS)
        run = plan(settings)
    results = training.train(run)
    if training.is_main_process():
        print_results(results, run.directory)
    return float(results["metric"]["value"])


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
        check_same_settings(run)
        if is_finished(run.directory) and not settings.overwrite:
            job = dataclasses.replace(job, status=SKIPPED)
            log.info("finished already, skipped: %s", run.directory)
        else:
            gpu_count = gpus_wanted(settings.trainer) if cli.shares_machine() else 0
            with reserve_gpus(gpu_count, lock_folder()) as gpus:
                start_run([*cli.config_arguments(), *cli.task_overrides()], gpus, as_rank=True)
        value = objective(read_results(plan(settings).directory), settings.flops_budget)
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


def plan(settings: TrainSettings) -> Run:
    """Plan a run with :func:`ltp.runs.plan.plan_run`, considering which keys the command line gives."""
    cli.check_selections()
    keys = {override.lstrip("+~").split("=")[0] for override in cli.task_overrides()}
    if "model.name_or_path" in keys and "model.name" not in keys:
        # not the option's checkpoint: name runs after the given one
        settings = dataclasses.replace(settings, model=dataclasses.replace(settings.model, name=None, architecture={}))
    return plan_run(settings, model_is_chosen=bool(keys & {"model", "model.name_or_path"}))


def parent_overrides(run: Run) -> list[str]:
    """The overrides that train a run's missing parent.

    Passes on the resolved settings of the machine, the model and the task. Settings of the stage (learning rate,
    epochs, …) come from the recipe of the parent's stage.
    """
    assert run.missing is not None
    choices = HydraConfig.get().runtime.choices
    settings = run.settings
    overrides = [f"{group}={choices[group]}" for group in ("task", "model", "recipe", "trainer")]
    overrides += [f"stage={run.missing.stage}"]
    for group in ("task", "model", "recipe", "trainer"):
        node = dataclasses.asdict(getattr(settings, group))
        if group == "trainer":
            del node["max_steps"]  # limits this run only, not its parent
            node["num_nodes"] = 1  # only the main process's node trains the parent
        overrides += as_overrides(group, node)
    loggers = ",".join(settings.logger)
    overrides += [f"logger=[{loggers}]", *as_overrides("logger", settings.logger)]
    for key in ("seed", "output_root", "data_dir"):
        overrides += as_overrides(key, getattr(settings, key))
    if run.missing.stage == "soft":
        overrides += ["prune_mode=absolute_threshold"]
        keys = (
            "scoring_mode",
            "score_length",
            "final_token_threshold",
            "temperature",
            "lambda_threshold",
            "target_flops",
        )
        for key in keys:
            overrides += as_overrides(f"prune.{key}", getattr(settings.prune, key))
        overrides += as_overrides("budgets", settings.budgets)
        overrides += as_overrides("distill", dataclasses.asdict(settings.distill))
    return overrides


COMMAND = cli.Command("train", TrainSettings, main, fill)

if __name__ == "__main__":
    sys.exit(COMMAND())

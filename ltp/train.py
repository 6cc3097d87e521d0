"""``python -m ltp.train``: train one run, with the parents it needs."""

import dataclasses
import logging
import sys
import time

from hydra.core.hydra_config import HydraConfig

from ltp.command import cli
from ltp.command.imports import fast_imports
from ltp.command.overrides import as_overrides
from ltp.errors import LTPError, RunError
from ltp.runs.directory import check_same_settings, is_finished, read_results
from ltp.runs.plan import Run, plan_run
from ltp.runs.settings import TrainSettings
from ltp.runs.summary import print_results
from ltp.sweeps.gpus import gpus_wanted, lock_folder, reserve_gpus
from ltp.sweeps.objective import objective
from ltp.sweeps.processes import exit_with_parent, is_first_task, start_run
from ltp.sweeps.record import DONE, FAILED, SKIPPED, Job, SweepRecord

log = logging.getLogger("ltp")

_POLL_SECONDS = 2.0


def main(given: TrainSettings) -> float | None:
    """Train the run that a configuration describes, or the job of a sweep in a process of its own.

    Returns:
        The task's main metric on the validation split, for sweepers that optimise it.
    """
    return sweep_job(given) if cli.is_sweep() else train_run(given)


def train_run(given: TrainSettings) -> float:
    """Train the run that a configuration describes."""
    run = plan(given)

    with fast_imports():  # Lightning takes seconds to import, and a mistake should not
        from ltp.training import building
        from ltp.training import run as training

    if is_finished(run.directory) and not given.overwrite:
        results = read_results(run.directory)
        if training.is_main_process():
            check_same_settings(run)
            log.info("finished already, skipped: %s (overwrite=true starts it afresh)", run.directory)
            print_results(results, run.directory)
        return float(results["metric"]["value"])
    if training.is_main_process():
        check_same_settings(run)
        if run.missing is not None:
            building.check_sources(run)  # a mistake should show before the parent's hours
            log.info("parent missing, training it first: %s", run.missing.directory)
            try:
                start_run(parent_overrides(run))
            except RunError as error:
                raise RunError(f"the parent run {run.missing.directory}: {error}") from error
            run = plan(given)
            if run.missing is not None:  # waiting for it would never end
                raise RunError(
                    f"the parent run was trained, but not into {run.missing.directory}: this is a bug of ltp"
                )
            check_same_settings(run)
    while run.missing is not None:  # a rank that was started together with the main process
        time.sleep(_POLL_SECONDS)
        run = plan(given)
    results = training.train(run)
    if training.is_main_process():
        print_results(results, run.directory)
    return float(results["metric"]["value"])


def sweep_job(given: TrainSettings) -> float | None:
    """Run one job of a sweep in a process of its own; that it fails is noted, and stops no other.

    Returns:
        What a sweeper optimises (:func:`ltp.sweeps.objective.objective`); None where the job failed.
    """
    record = SweepRecord.current()
    assert record is not None
    if not record.is_sweep_process:
        exit_with_parent()
    job = Job(" ".join(cli.task_overrides()), DONE)
    try:
        run = plan(given)
        job = dataclasses.replace(job, directory=str(run.directory))
        check_same_settings(run)
        if is_finished(run.directory) and not given.overwrite:
            job = dataclasses.replace(job, status=SKIPPED)
            log.info("finished already, skipped: %s", run.directory)
        else:
            wanted = gpus_wanted(given.trainer) if cli.shares_machine() else 0
            with reserve_gpus(wanted, lock_folder()) as gpus:
                start_run(cli.task_overrides(), gpus, as_rank=True)
        value = objective(read_results(plan(given).directory), given.flops_budget)
    except LTPError as error:
        job = dataclasses.replace(job, status=FAILED, message=str(error), exit_code=error.exit_code)
        value = None  # what a sampler takes for a failure; NaN ends Optuna's study
    if is_first_task():
        record.add(job)
    return value


def fill(given: TrainSettings) -> TrainSettings:
    """The settings with their nulls filled; prints the run directory and the parent first, as yaml's comments."""
    run = plan(given)
    print(f"# run directory: {run.directory}")
    print(f"# parent: {run.parent_name}{' (missing: trained first)' if run.missing else ''}")
    return run.settings


def plan(given: TrainSettings) -> Run:
    """:func:`ltp.runs.plan.plan_run`, with what only the command line knows."""
    cli.check_selections()
    keys = {override.lstrip("+~").split("=")[0] for override in cli.task_overrides()}
    if "model.name_or_path" in keys and "model.name" not in keys:
        # another checkpoint than the option's: runs are named after it
        given = dataclasses.replace(given, model=dataclasses.replace(given.model, name=None, architecture={}))
    return plan_run(given, model_is_chosen=bool(keys & {"model", "model.name_or_path"}))


def parent_overrides(run: Run) -> list[str]:
    """The command line that trains a run's missing parent.

    What belongs to the machine, the model and the task is passed on as it was resolved; what belongs to the
    stage (learning rate, epochs, …) is left to the parent's own recipe.
    """
    assert run.missing is not None
    choices = HydraConfig.get().runtime.choices
    settings = run.settings
    overrides = [f"{group}={choices[group]}" for group in ("task", "model", "recipe", "trainer")]
    overrides += [f"stage={run.missing.stage}"]
    for group in ("task", "model", "recipe", "trainer"):
        node = dataclasses.asdict(getattr(settings, group))
        if group == "trainer":
            del node["max_steps"]  # a limit of this run, not of its parent
            node["num_nodes"] = 1  # only the main process's node starts it
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

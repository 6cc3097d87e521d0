"""Train one run: build the model, fit, select the weights, evaluate, write the results."""

import contextlib
import dataclasses
import logging
import math
import signal
import time
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, RichProgressBar
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from transformers import PreTrainedTokenizerBase

from ltp.benchmark.compare import measured_speedup
from ltp.calibration.search import adopt_calibrated_settings, calibrated_settings
from ltp.data.datamodule import GLUEDataModule
from ltp.data.metrics import undefined_metrics
from ltp.data.sources import Splits
from ltp.data.tasks import Task
from ltp.errors import RunError, TerminatedError, UserError
from ltp.model.pretrained import LTPPreTrainedModel
from ltp.pruning import variants
from ltp.pruning.flops import DEFINITION
from ltp.runs.chain import describe_chain, limited, planned_steps
from ltp.runs.checkpoints import CHECKPOINT_FOLDER, LAST_CHECKPOINT, MODEL_FOLDER, is_finished
from ltp.runs.directory import BEST_CHECKPOINT, open_directory, truncate_metrics, write_results
from ltp.runs.identity import Run, check_identity, stored_config
from ltp.runs.loading import silence_libraries as silence_transformers
from ltp.runs.locks import run_lock
from ltp.runs.plan import check_labels
from ltp.runs.provenance import GIT_STATE, device_name, versions
from ltp.runs.results import read_results
from ltp.runs.settings import flatten
from ltp.training.building import build_model, build_teacher, build_tokenizer
from ltp.training.distillation import Distillation
from ltp.training.interruption import LastCheckpoint, StoppedError
from ltp.training.loggers import build, build_loggers
from ltp.training.module import CALIBRATION_ROWS, BudgetEvaluation, LTPModule
from ltp.training.resuming import RunCheckpointIO, SameCheckpointCheck, SavedCheckpoint, find_checkpoint, is_whole

log = logging.getLogger(__name__)


def train(run: Run, splits: Splits) -> dict[str, Any] | None:
    """Train one run whose parent is finished, or resume it, and write its results.

    Args:
        run: the run.
        splits: its data, as :func:`ltp.training.building.check_sources` returns them.

    Returns:
        The content of ``results.json``; None with ``trainer.fast_dev_run``, which writes nothing.

    Raises:
        UserError: data, checkpoint or hardware do not fit; nothing is written.
        RunError: the training failed.
    """
    started = time.monotonic()
    silence_libraries()
    settings = run.settings
    if settings.trainer.num_threads is not None:
        torch.set_num_threads(settings.trainer.num_threads)
    if run.parent is not None:
        check_labels(run.parent, splits.task)
    pl.seed_everything(settings.seed, workers=True, verbose=False)
    tokenizer = build_tokenizer(run)
    model = build_model(run, splits.task, tokenizer)
    datamodule = build_datamodule(run, splits, tokenizer)
    try:
        trainer = build_trainer(run, datamodule)
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise UserError(f"trainer: {error}") from error
    datamodule.setup("fit")  # checks that the processes can share a batch, before anything is written
    check_budgets(run, model, datamodule)
    module = build_module(run, splits.task, model, datamodule, total_steps=max(1, trainer.max_steps))
    if settings.trainer.fast_dev_run:
        fit(trainer, module, datamodule, None)
        return None
    with locked_directory(run, trainer):
        if is_main_process() and is_finished(run.directory) and not settings.overwrite:
            log.info("another process has trained it meanwhile: %s", run.directory)
            check_identity(run)
            return read_results(run.directory)
        check_unchanged(run)
        if is_main_process():
            log.info("%s", describe_chain(run, datamodule.rows_of("train")))
        saved = start_directory(run)
        for logger in trainer.loggers:
            logger.log_hyperparams(flatten(stored_config(run)))
        trainer.callbacks.append(SameCheckpointCheck(saved))  # type: ignore[attr-defined]  # Lightning's own lists are not typed
        fit(trainer, module, datamodule, saved)
        trainer.save_checkpoint(run.directory / CHECKPOINT_FOLDER / LAST_CHECKPOINT)
        select_weights(run, trainer, module, datamodule)
        evaluated = module.evaluated[-1]  # the largest budget is the default of a checkpoint
        results = {
            **run_facts(run, splits.task, model),
            **outcome(splits.task, evaluated),
            "budgets": [
                {"budget": evaluation.budget, **outcome(splits.task, evaluation)}
                for evaluation in module.evaluated
                if settings.targets
            ],
            "flops_definition": DEFINITION,
            "train_examples": len(splits.train),
            "validation_examples": len(next(iter(splits.validation.values()))),
            "label_counts": datamodule.label_counts,
            "train_steps": trainer.global_step,
            "device": device_name(trainer.strategy.root_device),
            "devices": trainer.world_size,
            "duration_seconds": round(time.monotonic() - started, 1),
        }
        if trainer.is_global_zero:
            if settings.stage == "hard":
                results["measured_speedup"] = measure_speedup(model, datamodule)
            model.save_pretrained(run.directory / MODEL_FOLDER)
            tokenizer.save_pretrained(run.directory / MODEL_FOLDER)
            write_results(run.directory, results)
            log_final(trainer, results)
        trainer.strategy.barrier()
    return results


def log_final(trainer: pl.Trainer, results: dict[str, Any]) -> None:
    """Tell the chosen loggers the results, as ``final/accuracy``; an evaluation's values are those of its step."""
    values = {**results["metrics"], "relative_flops": results["relative_flops"], "gflops": results["gflops"]}
    final = {f"final/{name}": value for name, value in values.items() if value is not None}
    for logger in trainer.loggers[1:]:  # the first is metrics.jsonl, beside results.json
        logger.log_metrics(final, step=trainer.global_step)
        logger.finalize("success")


def check_unchanged(run: Run) -> None:
    """Check, with the lock held, that what the run was planned from has not changed while it waited for the lock.

    Raises:
        UserError: the directory holds another run by now.
        RunError: the parent was trained anew, or is gone.
    """
    if not is_main_process():
        return
    check_identity(run)
    if run.parent is None or run.parent.run_dir is None:
        return
    planned = (run.parent.results or {}).get("run_id")
    if not is_finished(run.parent.run_dir) or read_results(run.parent.run_dir).get("run_id") != planned:
        raise RunError(f"{run.parent.run_dir}, the parent, was trained anew meanwhile: start the command again")


@contextlib.contextmanager
def locked_directory(run: Run, trainer: pl.Trainer) -> Iterator[None]:
    """Create the run directory, and lock it for this run's main process.

    Raises:
        UserError: it cannot be created.
        RunError: another run holds the lock, and this run's other processes already wait and would time out.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    started_together = environment is not None and environment.creates_processes_externally
    with contextlib.ExitStack() as stack:
        if is_main_process():
            with reporting_write_errors(run):
                run.directory.mkdir(parents=True, exist_ok=True)
                stack.enter_context(run_lock(run.directory, wait=not started_together))
        yield


@contextlib.contextmanager
def reporting_write_errors(run: Run) -> Iterator[None]:
    """Convert an OSError of the run directory to a UserError that names ``output_root``."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"output_root={run.settings.output_root}: cannot write {run.directory}: {error.strerror}"
        ) from error


def silence_libraries() -> None:
    """Hide log messages and warnings of transformers and Lightning."""
    silence_transformers()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")  # used inside Lightning
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message="The variance of predictions or target")  # the results say it
    warnings.filterwarnings("ignore", message=".*srun. command is available.*")


def build_datamodule(run: Run, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> GLUEDataModule:
    """Build the run's data module."""
    settings = run.settings
    assert settings.batch_size
    return GLUEDataModule(
        splits,
        tokenizer,
        batch_size=settings.batch_size,
        eval_batch_size=settings.trainer.eval_batch_size,
        accumulate=settings.trainer.accumulate_grad_batches,
        max_length=settings.task.max_length,
        seed=settings.seed,
        num_workers=settings.trainer.num_workers,
    )


def build_module(
    run: Run, task: Task, model: LTPPreTrainedModel, datamodule: GLUEDataModule, *, total_steps: int
) -> LTPModule:
    """Build the run's LightningModule."""
    settings = run.settings
    assert settings.lr and settings.weight_decay is not None
    distill = settings.distill
    teacher = None if run.teacher is None else build_teacher(run)
    return LTPModule(
        model,
        task,
        lr=settings.lr,
        learns=settings.stage == "soft",
        lr_pruning=settings.method.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_ratio=settings.warmup_ratio or 0.0,
        total_steps=total_steps,
        seed=settings.seed,
        validation_splits=datamodule.validation_splits,
        budgets=settings.targets,
        dense_flops=model.cost.mean_dense_flops(torch.tensor(datamodule.train_lengths)),
        distillation=None
        if teacher is None or distill.mode is None
        else Distillation(
            *(teacher, task, distill.weight, distill.temperature, distill.hidden_weight), distill.ranking_weight
        ),
        guide=teacher if settings.needs_saliency else None,
        fused=settings.trainer.precision == "32-true",
        of_splits=[task.for_split(split) for split in datamodule.splits.validation.values()],
    )


def check_budgets(run: Run, model: LTPPreTrainedModel, datamodule: GLUEDataModule) -> None:
    """Check that the budgets can be reached on the run's examples, before anything is written.

    Raises:
        UserError: the lowest budget is below the cost of keeping only the classification token.
    """
    if not run.settings.targets or model.thresholds is None:
        return
    lengths = torch.tensor(datamodule.calibration_lengths(CALIBRATION_ROWS))
    lowest = model.cost.lowest_relative_flops(lengths)
    if run.settings.targets[0] < lowest:
        key = "budgets" if run.settings.budgets is not None else "prune.target_flops"
        given = run.settings.budgets or run.settings.prune.target_flops
        raise UserError(
            f"{key}={given} cannot be reached: keeping only the classification token from the first layer on costs "
            f"{lowest:.3f} of the dense FLOPs on these examples. Ask for more than that."
        )


def outcome(task: Task, evaluated: BudgetEvaluation) -> dict[str, Any]:
    """Return the part of ``results.json`` that describes an evaluation."""
    metrics = {name: value if math.isfinite(value) else None for name, value in evaluated.scores.items()}
    return {
        "metric": {"name": task.main_metric, "value": metrics[task.main_metric]},
        "metrics": metrics,
        **undefined_metrics(metrics),
        **evaluated.cost,
        "thresholds": evaluated.thresholds,
    }


def build_trainer(run: Run, datamodule: GLUEDataModule) -> pl.Trainer:
    """Build Lightning's Trainer for the run, and attach it to the data module."""
    settings = run.settings
    assert settings.epochs is not None and settings.save_step is not None
    # If an epoch is shorter than save_step, evaluate once per epoch: load_best needs evaluations to choose from.
    # With several processes an epoch may be one step shorter than known here; then both rules are equivalent.
    steps_per_epoch = limited(datamodule.steps_per_epoch, settings.trainer)
    by_step = 0 < settings.save_step < steps_per_epoch
    folder = run.directory / CHECKPOINT_FOLDER
    common: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False, "save_on_train_epoch_end": False}
    callbacks: list[Callback] = [
        ModelCheckpoint(
            filename=Path(BEST_CHECKPOINT).stem,
            monitor=f"val/{datamodule.task.main_metric}",
            mode="max",
            save_weights_only=True,
            **common,
        ),
        LastCheckpoint(filename=Path(LAST_CHECKPOINT).stem, **common),
    ]
    metric = {"{metric}": f"val/{datamodule.task.main_metric}"}
    callbacks += build("callbacks", settings.callbacks, metric)
    options = settings.trainer
    if options.enable_progress_bar:
        callbacks.append(RichProgressBar(leave=False))
    trainer = pl.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=options.strategy,
        precision=options.precision,  # type: ignore[arg-type]  # checked in ltp.runs.settings
        gradient_clip_val=options.gradient_clip_val or None,
        gradient_clip_algorithm=options.gradient_clip_algorithm,
        max_time=options.max_time,
        limit_train_batches=options.limit_train_batches,
        fast_dev_run=options.fast_dev_run,
        profiler=options.profiler,
        accumulate_grad_batches=options.accumulate_grad_batches,
        max_epochs=math.ceil(settings.epochs),
        val_check_interval=settings.save_step * options.accumulate_grad_batches if by_step else 1.0,
        check_val_every_n_epoch=None if by_step else 1,
        log_every_n_steps=options.log_every_n_steps,
        deterministic=options.deterministic,
        detect_anomaly=options.detect_anomaly,
        enable_progress_bar=options.enable_progress_bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the data module shards, without padding
        default_root_dir=run.directory,  # Lightning looks here for its SLURM checkpoints
        logger=build_loggers(settings.logger, run.directory, Path(settings.output_root)),
        callbacks=callbacks,
        plugins=[RunCheckpointIO(run.directory)],
    )
    datamodule.trainer = trainer
    # set here, because it needs the Trainer's number of processes
    if not options.fast_dev_run:
        steps_per_epoch = limited(datamodule.steps_per_epoch, settings.trainer)
        trainer.fit_loop.epoch_loop.max_steps = planned_steps(settings, steps_per_epoch)
    return trainer


def start_directory(run: Run) -> SavedCheckpoint | None:
    """Prepare the run directory (main process only), and find the checkpoint to resume from.

    Returns:
        The checkpoint, the same in every process; None for a fresh start.
    """
    if not is_main_process():
        # with overwrite=true the main process may not have removed the checkpoint yet
        return None if run.settings.overwrite else find_checkpoint(run.directory, set_aside=False)
    with reporting_write_errors(run):
        open_directory(run)
        saved = find_checkpoint(run.directory, set_aside=True)
    if saved is None:
        truncate_metrics(run.directory, 0)
        log.info("training %s", run.directory)
    else:
        truncate_metrics(run.directory, saved.metrics_size)
        log.info("resuming %s from step %d", run.directory, saved.step)
    return saved


def fit(trainer: pl.Trainer, module: LTPModule, datamodule: GLUEDataModule, saved: SavedCheckpoint | None) -> None:
    """Fit the module, and convert Lightning's exceptions for signals.

    Raises:
        KeyboardInterrupt: SIGINT stopped the training, after a checkpoint was saved.
        TerminatedError: SIGTERM stopped the training, after a checkpoint was saved.
    """
    resume: dict[str, Any] = {"ckpt_path": saved.path, "weights_only": True} if saved is not None else {}
    try:
        trainer.fit(module, datamodule=datamodule, **resume)
    except StoppedError as stop:
        if not trainer.is_global_zero:
            raise SystemExit from stop  # on failure Lightning would kill the main process, which sets the exit code
        log.info("stopped at step %d, and saved: the same command goes on from there", trainer.global_step)
        raise (KeyboardInterrupt if stop.number == signal.SIGINT else TerminatedError) from stop
    except SIGTERMException as stop:
        raise TerminatedError from stop
    except SystemExit as exit_:  # Lightning raises it at a second Ctrl-C
        raise KeyboardInterrupt from exit_


def select_weights(run: Run, trainer: pl.Trainer, module: LTPModule, datamodule: GLUEDataModule) -> None:
    """Load the best or keep the last weights (``load_best``), and evaluate the selected ones.

    The last weights are evaluated too, because a training need not end with an evaluation.
    """

    def mean_score() -> float:
        trainer.validate(module, datamodule=datamodule, verbose=False)
        scores = [evaluated.scores[datamodule.task.main_metric] for evaluated in module.evaluated]
        mean = sum(scores) / len(scores)
        return -math.inf if math.isnan(mean) else mean  # an undefined metric is no reason to keep weights

    best = trainer.checkpoint_callback  # the first one: best.ckpt
    assert isinstance(best, ModelCheckpoint)
    last_score = mean_score()
    if run.settings.load_best and best.best_model_score is not None and best.best_model_score.item() > last_score:
        if is_whole(Path(best.best_model_path)):
            state = torch.load(best.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
            module.load_state_dict(state)
            mean_score()
        elif trainer.is_global_zero:
            log.warning("%s is damaged: the last weights are kept instead of the best", best.best_model_path)
    if run.settings.targets and module.model.config.budgets:
        module.model.use_budget(run.settings.targets[-1])
        if not variants()[run.method].learned:
            adopt_calibrated_settings(module.model)


def run_facts(run: Run, task: Task, model: LTPPreTrainedModel) -> dict[str, Any]:
    """Return the part of ``results.json`` that describes the run's configuration."""
    settings = run.settings
    hyperparameters = {
        key: getattr(settings, key)
        for key in ("lr", "batch_size", "epochs", "weight_decay", "warmup_ratio", "save_step", "load_best")
    }
    names = ("target_flops", "sliding_layers", *settings.method.settings())
    hyperparameters |= {key: getattr(settings.prune, key) for key in names}
    if settings.targets:
        hyperparameters["budgets"] = settings.budgets
        # values that calibration set
        hyperparameters |= calibrated_settings(model, run.method)
    if settings.distill.mode is not None:
        hyperparameters |= {f"distill_{key}": value for key, value in dataclasses.asdict(settings.distill).items()}
    hyperparameters |= {
        "max_length": settings.task.max_length,
        "precision": settings.trainer.precision,
        "gradient_clip_val": settings.trainer.gradient_clip_val,
    }
    for key, value in run.deviations.items():  # so that reports tell apart runs that differ in any setting
        hyperparameters.setdefault(key.rsplit(".", 1)[-1], value)
    return {
        "task": task.name,
        "model": settings.model.name,
        "method": run.method,
        "prune_mode": settings.prune.mode,
        "stage": settings.stage,
        "seed": settings.seed,
        "hyperparameters": hyperparameters,
        "parent": run.parent_name,
        "parent_run_id": run.parent.results.get("run_id") if run.parent is not None and run.parent.results else None,
        "config": stored_config(run),
        "git": GIT_STATE,
        "versions": versions(),
    }


def measure_speedup(model: LTPPreTrainedModel, datamodule: GLUEDataModule) -> dict[str, Any]:
    """Measure the speed-up of the pruned over the dense model, both packed, on the first two validation batches."""
    return measured_speedup(model, None, islice(datamodule.val_dataloader()[0], 2), rounds=3)


def is_main_process() -> bool:
    """Whether this process is rank 0, the only one that writes."""
    return getattr(rank_zero_only, "rank", 0) == 0

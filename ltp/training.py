"""One run, from its plan to its results: build the model, fit, keep the right weights, evaluate, write."""

import contextlib
import logging
import math
import platform
import time
import warnings
from importlib.metadata import version
from itertools import islice
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, RichProgressBar
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ltp.benchmark import measured_speedup
from ltp.building import build_model, build_tokenizer, check_hardware, read_splits
from ltp.config import PRUNE_VALUES
from ltp.data import GLUEDataModule
from ltp.errors import UserError
from ltp.flops import DEFINITION
from ltp.modeling import LTPForSequenceClassification
from ltp.module import LTPModule
from ltp.plan import Run, check_labels, model_name
from ltp.runs import CHECKPOINT_FOLDER, LAST_CHECKPOINT, MODEL_FOLDER, last_checkpoint, open_directory, write_results
from ltp.sources import Splits
from ltp.tasks import Task
from ltp.tracking import build_loggers

log = logging.getLogger(__name__)


def train(run: Run) -> dict[str, Any]:
    """Train one run whose parent is finished, or resume it, and write its results.

    Returns:
        The content of ``results.json``.

    Raises:
        UserError: data, checkpoint or hardware do not fit; nothing has been written then.
        RunError: the training failed.
    """
    started = time.monotonic()
    quiet_libraries()
    settings = run.settings
    if settings.trainer.num_threads is not None:
        torch.set_num_threads(settings.trainer.num_threads)
    check_hardware(run)
    splits = read_splits(run)
    if run.parent is not None:
        check_labels(run.parent, splits.task)
    pl.seed_everything(settings.seed, workers=True, verbose=False)
    tokenizer = build_tokenizer(run)
    model = build_model(run, splits.task, tokenizer)
    module, datamodule = build_modules(run, splits, tokenizer, model)

    try:
        trainer = build_trainer(run, datamodule)
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise UserError(f"trainer: {error}") from error
    datamodule.trainer = trainer
    datamodule.setup("fit")  # a batch that the processes cannot share should show before anything is written
    try:
        resume = open_directory(run) if is_main_process() else last_checkpoint(run.directory)
    except OSError as error:
        raise UserError(
            f"output_root={settings.output_root}: cannot write {run.directory}: {error.strerror}"
        ) from error
    if is_main_process():
        log.info("%s %s", "resuming" if resume is not None else "training", run.directory)
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=resume, weights_only=True if resume else None)
    except SIGTERMException:
        raise
    except SystemExit as exit_:  # Lightning's answer to Ctrl-C, after it saved a checkpoint
        raise KeyboardInterrupt from exit_
    trainer.save_checkpoint(run.directory / CHECKPOINT_FOLDER / LAST_CHECKPOINT)
    scores, cost = keep_weights(run, trainer, module, datamodule)
    results = {
        **describe(run, splits.task, model),
        "metric": {"name": splits.task.main_metric, "value": scores[splits.task.main_metric]},
        "metrics": scores,
        **cost,
        "flops_definition": DEFINITION,
        "train_examples": len(splits.train),
        "train_steps": trainer.global_step,
        "device": device_name(trainer),
        "devices": trainer.world_size,
        "duration_seconds": round(time.monotonic() - started, 1),
    }
    if trainer.is_global_zero:
        if settings.stage == "hard":
            results["measured_speedup"] = measure_speedup(model, datamodule)
        model.save_pretrained(run.directory / MODEL_FOLDER)
        tokenizer.save_pretrained(run.directory / MODEL_FOLDER)
        (run.directory / CHECKPOINT_FOLDER / "best.ckpt").unlink(missing_ok=True)
        write_results(run.directory, results)
    trainer.strategy.barrier()
    return results


def quiet_libraries() -> None:
    """Leave the terminal to the run's own lines."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")  # Lightning's use of torch
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")


def build_modules(
    run: Run, splits: Splits, tokenizer: PreTrainedTokenizerBase, model: LTPForSequenceClassification
) -> tuple[LTPModule, GLUEDataModule]:
    """The LightningModule and the DataModule."""
    settings = run.settings
    assert settings.batch_size and settings.lr and settings.weight_decay is not None
    datamodule = GLUEDataModule(
        splits,
        tokenizer,
        batch_size=settings.batch_size,
        eval_batch_size=settings.trainer.eval_batch_size,
        accumulate=settings.trainer.accumulate_grad_batches,
        max_length=settings.task.max_length,
        seed=settings.seed,
        num_workers=settings.trainer.num_workers,
    )
    module = LTPModule(
        model,
        splits.task,
        lr=settings.lr,
        lr_threshold=settings.prune.lr_threshold,
        weight_decay=settings.weight_decay,
        warmup_ratio=settings.warmup_ratio or 0.0,
        total_steps=total_steps(run, datamodule),
        seed=settings.seed,
        validation_splits=datamodule.validation_splits,
    )
    return module, datamodule


def total_steps(run: Run, datamodule: GLUEDataModule) -> int:
    """Optimiser steps of the whole training."""
    assert run.settings.epochs is not None
    steps = math.ceil(run.settings.epochs * datamodule.steps_per_epoch)
    limit = run.settings.trainer.max_steps
    return min(steps, limit) if limit > 0 else steps


def build_trainer(run: Run, datamodule: GLUEDataModule) -> pl.Trainer:
    """Lightning's Trainer for the run."""
    settings = run.settings
    assert settings.epochs is not None and settings.save_step is not None
    # Where an epoch is shorter than save_step, evaluate once an epoch: load_best would have nothing to choose from.
    by_step = 0 < settings.save_step < datamodule.steps_per_epoch
    folder = run.directory / CHECKPOINT_FOLDER
    common: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False, "save_on_train_epoch_end": False}
    callbacks: list[Callback] = [
        ModelCheckpoint(
            filename="best", monitor=f"val/{datamodule.task.main_metric}", mode="max", save_weights_only=True, **common
        ),
        ModelCheckpoint(filename="last", save_on_exception=True, **common),
    ]
    chosen = settings.trainer
    if chosen.enable_progress_bar:
        callbacks.append(RichProgressBar(leave=False))
    return pl.Trainer(
        accelerator=chosen.accelerator,
        devices=chosen.devices,
        num_nodes=chosen.num_nodes,
        strategy=chosen.strategy,
        precision=chosen.precision,  # type: ignore[arg-type]  # checked in ltp.config
        gradient_clip_val=chosen.gradient_clip_val or None,
        accumulate_grad_batches=chosen.accumulate_grad_batches,
        max_epochs=math.ceil(settings.epochs),
        max_steps=total_steps(run, datamodule),
        val_check_interval=settings.save_step * chosen.accumulate_grad_batches if by_step else 1.0,
        check_val_every_n_epoch=None if by_step else 1,
        log_every_n_steps=chosen.log_every_n_steps,
        deterministic=chosen.deterministic,
        detect_anomaly=chosen.detect_anomaly,
        enable_progress_bar=chosen.enable_progress_bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the data module shards, without padding a split
        logger=build_loggers(settings.logger, run.directory),
        callbacks=callbacks,
    )


def keep_weights(
    run: Run, trainer: pl.Trainer, module: LTPModule, datamodule: GLUEDataModule
) -> tuple[dict[str, float], dict[str, Any]]:
    """Leave the module with the weights to keep, and evaluate exactly these.

    The last weights compete too: a training need not end on an evaluation.

    Returns:
        The metrics, and the cost as :meth:`~ltp.module.CostMetric.compute` gives it.
    """

    def evaluate() -> float:
        trainer.validate(module, datamodule=datamodule, verbose=False)
        return module.last_scores[datamodule.task.main_metric]

    best = next(
        callback
        for callback in trainer.checkpoint_callbacks
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None
    )
    last_score = evaluate()
    if run.settings.load_best and best.best_model_score is not None and best.best_model_score.item() > last_score:
        state = torch.load(best.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
        module.load_state_dict(state)
        evaluate()
    return module.last_scores, module.last_cost


def describe(run: Run, task: Task, model: LTPForSequenceClassification) -> dict[str, Any]:
    """What ``results.json`` says of a run besides what was measured."""
    settings = run.settings
    hyperparameters = {
        key: getattr(settings, key)
        for key in ("lr", "batch_size", "epochs", "weight_decay", "warmup_ratio", "save_step", "load_best")
    }
    hyperparameters |= {key: getattr(settings.prune, key) for key in PRUNE_VALUES}
    hyperparameters |= {
        "max_length": settings.task.max_length,
        "precision": settings.trainer.precision,
        "gradient_clip_val": settings.trainer.gradient_clip_val,
    }
    return {
        "task": task.name,
        "model": model_name(settings),
        "method": run.method,
        "prune_mode": settings.prune.mode,
        "stage": settings.stage,
        "seed": settings.seed,
        "hyperparameters": hyperparameters,
        "thresholds": None if model.thresholds is None else model.thresholds.tolist(),
        "parent": run.parent_name,
        "parent_run_id": run.parent.results["run_id"] if run.parent is not None and run.parent.results else None,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("ltp", "torch", "pytorch-lightning", "transformers", "datasets")},
        },
    }


def measure_speedup(model: LTPForSequenceClassification, datamodule: GLUEDataModule) -> dict[str, Any]:
    """The clock beside the count: packed pruned over packed dense, on the first two validation batches."""
    loaders = datamodule.val_dataloader()
    main = loaders[0] if isinstance(loaders, list) else loaders
    return measured_speedup(model, None, islice(main, 2), rounds=3)


def device_name(trainer: pl.Trainer) -> str:
    """The hardware in words: the GPU's name, or the processor's."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor_name()}, {torch.get_num_threads()} threads"


def processor_name() -> str:
    """The processor in words, as far as the system tells."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def is_main_process() -> bool:
    """Whether this process is rank 0, which writes; ranks that Lightning starts are others."""
    return getattr(rank_zero_only, "rank", 0) == 0

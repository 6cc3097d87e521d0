"""One run, from its plan to its results: build the model, fit, keep the right weights, evaluate, write."""

import contextlib
import logging
import math
import platform
import time
import warnings
from importlib.metadata import version
from typing import Any

import pytorch_lightning as pl
import torch
from huggingface_hub.errors import StrictDataclassError
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, RichProgressBar
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ltp.backbones import BACKBONES
from ltp.data import GLUEDataModule
from ltp.errors import UserError
from ltp.flops import DEFINITION
from ltp.hub import loading_from_hub
from ltp.modeling import LTPForSequenceClassification
from ltp.module import LTPModule
from ltp.plan import Run, check_labels, model_name
from ltp.runs import CHECKPOINT_FOLDER, LAST_CHECKPOINT, MODEL_FOLDER, last_checkpoint, open_directory, write_results
from ltp.sources import Splits, load_splits
from ltp.synthetic import demo_tokenizer
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


def check_hardware(run: Run) -> None:
    """Check that the trainer's settings fit the machine.

    Raises:
        UserError: they do not.
    """
    trainer = run.settings.trainer
    if trainer.precision == "16-mixed" and not torch.cuda.is_available():
        raise UserError("trainer.precision=16-mixed needs a CUDA GPU; use bf16-mixed or 32-true here")
    if trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"trainer.accelerator={trainer.accelerator}: no GPU found; use trainer=cpu")


def read_splits(run: Run) -> Splits:
    """The task's examples, checked."""
    chosen = run.settings.task
    return load_splits(
        run.task,
        data_dir=run.settings.data_dir,
        train_file=chosen.train_file,
        validation_file=chosen.validation_file,
        max_train_samples=chosen.max_train_samples,
        max_validation_samples=chosen.max_validation_samples,
    )


def check_sources(run: Run) -> None:
    """Look at all that a run and its missing parent will read, without loading weights.

    Raises:
        UserError: data, model or hardware do not fit.
    """
    check_hardware(run)
    read_splits(run)
    build_tokenizer(run)
    if run.parent is None and run.settings.model.name_or_path is not None:
        pretrained_config(run.settings.model.name_or_path)


_MODEL_REMEDY = (
    "Give a local directory with model.name_or_path=DIR or restore=DIR, take task=demo model=tiny, "
    "or connect to the hub."
)


def build_tokenizer(run: Run) -> PreTrainedTokenizerBase:
    """The tokenizer of the checkpoint that the run starts from; the demo's own for an encoder from scratch."""
    source = run.parent.path if run.parent is not None else run.settings.model.name_or_path
    if source is None:
        return demo_tokenizer()
    with loading_from_hub(f"the tokenizer of {source}", _MODEL_REMEDY, source=source):
        return AutoTokenizer.from_pretrained(source)


def build_model(run: Run, task: Task, tokenizer: PreTrainedTokenizerBase) -> LTPForSequenceClassification:
    """The pruned classifier that the run starts from, in float32."""
    settings, prune = run.settings, run.settings.prune
    pruning: dict[str, Any] = {
        "prune_mode": prune.mode,
        "masking_mode": "soft" if settings.stage == "soft" else "hard",
        "scoring_mode": prune.scoring_mode,
        "score_length": prune.score_length,
        "final_token_threshold": prune.final_token_threshold,
        "token_keep_rate": prune.token_keep_rate,
        "threshold_temperature": prune.temperature,
        "lambda_threshold": prune.lambda_threshold,
    }
    pruning = {key: value for key, value in pruning.items() if value is not None}
    if run.parent is not None:
        with loading_from_hub(f"restore={run.parent.source}", _MODEL_REMEDY, source=run.parent.path):
            model = LTPForSequenceClassification.from_pretrained(run.parent.path, **pruning)
    else:
        model = LTPForSequenceClassification.from_dense(build_dense(run, task, tokenizer), **pruning)
    names = task.labels or tuple(f"LABEL_{index}" for index in range(task.num_labels))
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    model.config.problem_type = "regression" if task.is_regression else "single_label_classification"
    limit = model.dense.base_model.embeddings.position_ids.shape[-1]
    if model.config.backbone_type == "roberta":
        limit -= 2  # positions start after the padding index
    if settings.task.max_length > limit:
        raise UserError(f"task.max_length={settings.task.max_length} is more than the model's {limit} positions")
    return model


def build_dense(run: Run, task: Task, tokenizer: PreTrainedTokenizerBase) -> Any:
    """A pretrained encoder with a new head, or one from scratch."""
    settings = run.settings.model
    if settings.name_or_path is None:
        architecture = dict(settings.architecture)
        model_type = architecture.pop("model_type", None)
        if model_type not in BACKBONES:
            known = ", ".join(sorted(BACKBONES))
            raise UserError(
                f"model.architecture.model_type={model_type}, and model.name_or_path is null: "
                f"an encoder from scratch is one of {known}; a pretrained one is named by model.name_or_path"
            )
        backbone = BACKBONES[model_type]
        try:
            config = backbone.config_class(
                **architecture,
                vocab_size=len(tokenizer),
                pad_token_id=tokenizer.pad_token_id,
                num_labels=task.num_labels,
            )
            return backbone.classifier_class(config)
        except (StrictDataclassError, TypeError, ValueError) as error:  # sizes that do not fit together
            raise UserError(f"model.architecture: {' '.join(str(error).split())}") from error
    pretrained_config(settings.name_or_path)
    with loading_from_hub(f"model.name_or_path={settings.name_or_path}", _MODEL_REMEDY, source=settings.name_or_path):
        return AutoModelForSequenceClassification.from_pretrained(
            settings.name_or_path, num_labels=task.num_labels, dtype=torch.float32
        )


def pretrained_config(name_or_path: str) -> Any:
    """The configuration of a pretrained encoder.

    Raises:
        UserError: it cannot be read, or ltp has no adapter for it.
    """
    with loading_from_hub(f"model.name_or_path={name_or_path}", _MODEL_REMEDY, source=name_or_path):
        config = AutoConfig.from_pretrained(name_or_path)
    if config.model_type not in BACKBONES:
        raise UserError(
            f"model.name_or_path={name_or_path} has the architecture {config.model_type}; "
            f"ltp prunes {', '.join(sorted(BACKBONES))}."
        )
    return config


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
    hyperparameters |= {
        key: getattr(settings.prune, key)
        for key in (
            "scoring_mode",
            "score_length",
            "final_token_threshold",
            "token_keep_rate",
            "temperature",
            "lambda_threshold",
            "lr_threshold",
        )
    }
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

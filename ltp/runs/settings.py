"""Typed configuration of a training run: the schema behind ``conf/``, and the checks across its keys.

Values stand in ``conf/``; types and ranges here. ``null`` means "the checkpoint's value, else the recipe's", and
:mod:`ltp.runs.directory` fills it in.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from ltp.errors import UserError, check_range
from ltp.pruning import METHODS, RATE_MODES

STAGES = ("finetune", "soft", "hard")
DISTILL_MODES = ("logits", "hidden")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@dataclass
class TaskSettings:
    """What is learned (group ``task``). The file and column keys are for ``task=custom``."""

    name: str = MISSING
    max_length: int = 128
    max_train_samples: int | None = None
    max_validation_samples: int | None = None
    train_file: str | None = None
    validation_file: str | None = None
    text_columns: list[str] = field(default_factory=lambda: ["text"])
    label_column: str = "label"
    metric: str = "accuracy"
    size: str = "small"


@dataclass
class ModelSettings:
    """The encoder (group ``model``).

    ``name`` names the run directories; ``name_or_path`` is the pretrained checkpoint, null for an encoder from
    scratch; ``architecture`` holds the Hugging Face configuration that is built from scratch, or what a restored
    checkpoint must agree with.
    """

    name: str | None = None
    name_or_path: str | None = None
    architecture: dict[str, Any] = field(default_factory=dict)


@dataclass
class PruneSettings:
    """The pruning method (groups ``prune`` and ``prune_mode``)."""

    mode: str | None = None
    learned: bool | None = None
    scoring_mode: str | None = None
    score_length: int | None = None
    final_token_threshold: float | None = None
    token_keep_rate: float | None = None
    temperature: float | None = None
    lambda_threshold: float | None = None
    lr_threshold: float | None = None
    target_flops: float | None = None


#: The keys of :class:`PruneSettings` that are numbers or modes of a method, rather than the choice of one.
PRUNE_VALUES = tuple(item.name for item in dataclasses.fields(PruneSettings) if item.name not in ("mode", "learned"))


@dataclass
class BySize:
    """Epochs on small and on large tasks."""

    small: float = MISSING
    large: float = MISSING


@dataclass
class StageRecipe:
    """Defaults of a stage."""

    lr: float | None = None
    batch_size: int = MISSING
    epochs: BySize = field(default_factory=BySize)
    weight_decay: float = MISSING
    warmup_ratio: float = MISSING
    save_step: int = MISSING
    load_best: bool = MISSING


@dataclass
class PruningRecipe:
    """Defaults of the pruning methods."""

    scoring_mode: str = MISSING
    learned_threshold: float = MISSING
    manual_threshold: float = MISSING
    temperature: float = MISSING
    lambda_threshold: float = MISSING
    token_keep_rate: float = MISSING
    budget_temperature: float = MISSING
    budget_lr_threshold: float = MISSING


@dataclass
class Recipe:
    """Defaults by stage and task size (group ``recipe``)."""

    stages: dict[str, StageRecipe] = field(default_factory=dict)
    pruning: PruningRecipe = field(default_factory=PruningRecipe)


@dataclass
class DistillSettings:
    """What is learned from a teacher (group ``distill``): ``auto``, the dense parent, or a checkpoint."""

    mode: str | None = None
    weight: float = 0.5
    temperature: float = 2.0
    hidden_weight: float = 0.0
    teacher: str = "auto"


@dataclass
class TrainerSettings:
    """Lightning's Trainer (group ``trainer``); names and meanings are Lightning's.

    ``num_threads`` is PyTorch's, on the CPU (null: PyTorch's choice); ``num_workers`` and ``eval_batch_size`` are the
    data loaders'.
    """

    accelerator: str = "auto"
    devices: Any = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    gradient_clip_val: float = 1.0
    accumulate_grad_batches: int = 1
    max_steps: int = -1
    log_every_n_steps: int = 10
    deterministic: bool = False
    detect_anomaly: bool = False
    enable_progress_bar: bool = True
    num_threads: int | None = None
    num_workers: int = 0
    eval_batch_size: int = 64


@dataclass
class TrainSettings:
    """One run of ``python -m ltp.train``."""

    task: TaskSettings = field(default_factory=TaskSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    prune: PruneSettings = field(default_factory=PruneSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    stage: str | None = None
    recipe: Recipe = field(default_factory=Recipe)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    logger: dict[str, Any] = field(default_factory=dict)
    lr: float | None = None
    batch_size: int | None = None
    epochs: float | None = None
    weight_decay: float | None = None
    warmup_ratio: float | None = None
    save_step: int | None = None
    load_best: bool | None = None
    seed: int = 0
    budgets: list[float] | None = None
    restore: str = "auto"
    data_dir: str | None = None
    output_root: str = "outputs"
    overwrite: bool = False
    flops_budget: float | None = None

    @property
    def targets(self) -> list[float]:
        """Relative FLOPs that the model is trained for, ascending; empty without a budget."""
        if self.budgets is not None:
            return sorted(self.budgets)
        return [] if self.prune.target_flops is None else [self.prune.target_flops]


for _mode in RATE_MODES:  # a new method needs no file in conf/
    ConfigStore.instance().store(group="prune_mode", name=_mode, node={"mode": _mode}, package="prune")
    _alias = {"defaults": [{"override /prune_mode": _mode}]}
    ConfigStore.instance().store(group="prune", name=_mode, node=_alias, package="_global_")


def known_keys(schema: type = TrainSettings, prefix: str = "") -> list[str]:
    """Every key a user may set, dotted: ``prune.temperature``."""
    keys = []
    for item in dataclasses.fields(schema):
        keys.append(prefix + item.name)
        kinds = typing.get_args(item.type) if isinstance(item.type, types.UnionType) else (item.type,)
        for kind in kinds:  # a node may be optional
            if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                keys += known_keys(kind, f"{prefix}{item.name}.")
    return keys


Settings = TypeVar("Settings")


def typed(cfg: DictConfig) -> TrainSettings:
    """The composed configuration as :class:`TrainSettings`: see :func:`typed_as`."""
    return typed_as(TrainSettings, cfg, unknown_key)


def typed_as(schema: type[Settings], cfg: DictConfig, unknown: Callable[[str], str]) -> Settings:
    """A composed configuration as an object of its schema.

    Args:
        schema: the dataclass.
        cfg: what Hydra composed.
        unknown: the message for a key that does not exist.

    Raises:
        UserError: a key was appended (``+prune.foo=1``) that the schema does not have, or a value is missing.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"{missing[0]} has no value; give it on the command line: {missing[0]}=…")
    settings = OmegaConf.to_object(cfg)
    assert isinstance(settings, schema)
    _reject_appended(settings, "", unknown)
    return settings


def _reject_appended(node: Any, prefix: str, unknown: Callable[[str], str]) -> None:
    # an appended key slips past a structured config as a stray attribute
    names = {item.name for item in dataclasses.fields(node)}
    for name, value in vars(node).items():
        if name not in names:
            raise UserError(unknown(prefix + name))
        if dataclasses.is_dataclass(value):
            _reject_appended(value, f"{prefix}{name}.", unknown)


def unknown_key(key: str, schema: type = TrainSettings, command: str = "ltp.train") -> str:
    """The message for a key that a command's schema does not have, with the near matches."""
    keys = [known for known in known_keys(schema) if not known.startswith("recipe.")]
    # a key in the wrong place is found by its last part, a misspelled one by its letters
    last = key.rsplit(".", 1)[-1]
    near = [known for known in keys if known.rsplit(".", 1)[-1] == last]
    if not near:
        by_last = {known.rsplit(".", 1)[-1]: known for known in reversed(keys)}  # of equal names the first
        names = difflib.get_close_matches(last, by_last, n=2, cutoff=0.7)
        names = names or [name for name in by_last if name.startswith(f"{last}_")][:2]
        near = [by_last[name] for name in names]
    hint = f"did you mean {' or '.join(near)}?" if near else f"see python -m {command} --cfg job for every key"
    return f"unknown key {key}; {hint}"


def check_shares(key: str, given: float | list[float] | None) -> None:
    """Check a share of the dense FLOPs, or a list of different ones; None passes.

    Raises:
        UserError: names the key, its value and its range.
    """
    shares = [] if given is None else given if isinstance(given, list) else [given]
    check_range(all(0 < share <= 1 for share in shares), key, given, "in (0, 1] (of the dense FLOPs)")
    if isinstance(given, list):
        distinct = len(set(given)) == len(given) > 0
        check_range(distinct, key, given, "one or more different shares of the dense FLOPs")


def check_ranges(settings: TrainSettings) -> None:
    """Check every value that was given, before anything is loaded.

    Raises:
        UserError: names the key, its value and its range.
    """

    def check_optional(key: str, value: Any, ok: bool, range_: str) -> None:
        check_range(value is None or ok, key, value, range_)

    s, prune, trainer, task = settings, settings.prune, settings.trainer, settings.task
    check_optional("lr", s.lr, 0 < (s.lr or 0) < 1, "above 0 and below 1")
    check_optional("batch_size", s.batch_size, (s.batch_size or 0) >= 1, "1 or more")
    check_optional("epochs", s.epochs, 0 < (s.epochs or 0) < float("inf"), "above 0")
    check_optional("weight_decay", s.weight_decay, 0 <= (s.weight_decay or 0) < 1, "in [0, 1)")
    check_optional("warmup_ratio", s.warmup_ratio, 0 <= (s.warmup_ratio or 0) < 1, "in [0, 1)")
    check_optional("save_step", s.save_step, (s.save_step or 0) >= 0, "0 (every epoch) or more")
    check_range(0 <= s.seed < 2**32, "seed", s.seed, "in [0, 2^32)")
    check_shares("flops_budget", s.flops_budget)
    check_optional("stage", s.stage, s.stage in STAGES, f"one of {', '.join(STAGES)}")
    check_optional("prune.mode", prune.mode, prune.mode in METHODS, f"one of {', '.join(METHODS)}")
    # the pruning keys once more, though the model checks them too: here with the command line's names
    check_optional(
        "prune.scoring_mode", prune.scoring_mode, prune.scoring_mode in ("mean", "mean_norm"), "mean or mean_norm"
    )
    check_optional("prune.score_length", prune.score_length, (prune.score_length or 0) >= 1, "1 or more (tokens)")
    threshold = prune.final_token_threshold
    check_optional(
        "prune.final_token_threshold", threshold, 0 <= (threshold or 0) < 1, "in [0, 1); published: 0.004–0.016"
    )
    rate = prune.token_keep_rate
    check_optional("prune.token_keep_rate", rate, -10 <= (rate or 0) <= 1, "in [-10, 1]; published: −0.4 to 0.4")
    temperature = prune.temperature
    check_optional("prune.temperature", temperature, 0 < (temperature or 0) <= 1, "in (0, 1]; published: 1e-5 to 2e-3")
    lambda_ = prune.lambda_threshold
    check_optional(
        "prune.lambda_threshold", lambda_, 0 <= (lambda_ or 0) < float("inf"), "0 or more; published: 0.01–0.2"
    )
    check_optional("prune.lr_threshold", prune.lr_threshold, 0 < (prune.lr_threshold or 0) < 1, "above 0 and below 1")
    check_shares("prune.target_flops", prune.target_flops)
    check_shares("budgets", settings.budgets)
    if settings.budgets is not None and prune.target_flops is not None:
        raise UserError(
            f"budgets={settings.budgets} and prune.target_flops={prune.target_flops} are two answers to one "
            "question: give one of them"
        )
    distill = settings.distill
    check_optional("distill.mode", distill.mode, distill.mode in DISTILL_MODES, f"one of {', '.join(DISTILL_MODES)}")
    check_range(0 < distill.weight <= 1, "distill.weight", distill.weight, "above 0 and at most 1")
    check_range(0 < distill.temperature < float("inf"), "distill.temperature", distill.temperature, "above 0")
    check_range(0 <= distill.hidden_weight < float("inf"), "distill.hidden_weight", distill.hidden_weight, "0 or more")
    if distill.mode is None and distill != DistillSettings():
        raise UserError("distill.… is given, but nothing is distilled: add distill=logits or distill=hidden")
    if (distill.mode == "hidden") != (distill.hidden_weight > 0):
        raise UserError(
            f"distill={distill.mode} with distill.hidden_weight={distill.hidden_weight}: "
            "hidden states are distilled by distill=hidden, with a weight above 0"
        )
    check_range(task.max_length >= 8, "task.max_length", task.max_length, "8 or more (tokens)")
    for key in ("max_train_samples", "max_validation_samples"):
        value = getattr(task, key)
        check_optional(f"task.{key}", value, (value or 0) >= 1, "1 or more (rows)")
    check_range(task.size in ("small", "large"), "task.size", task.size, "small or large")
    check_range(
        trainer.precision in PRECISIONS,
        "trainer.precision",
        trainer.precision,
        f"one of {', '.join(PRECISIONS)} (weights and thresholds stay float32)",
    )
    check_range(
        trainer.accumulate_grad_batches >= 1,
        "trainer.accumulate_grad_batches",
        trainer.accumulate_grad_batches,
        "1 or more",
    )
    check_range(trainer.eval_batch_size >= 1, "trainer.eval_batch_size", trainer.eval_batch_size, "1 or more")
    check_range(trainer.gradient_clip_val >= 0, "trainer.gradient_clip_val", trainer.gradient_clip_val, "0 or more")
    threads = trainer.num_threads
    check_optional("trainer.num_threads", threads, (threads or 0) >= 1, "1 or more")
    check_range(trainer.num_workers >= 0, "trainer.num_workers", trainer.num_workers, "0 or more")

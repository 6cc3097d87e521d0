"""Typed configuration of a training run: the schema of ``conf/``, and range checks.

``conf/`` defines the values, this module their types and ranges. ``null`` stands for the checkpoint's value, or else
the recipe's; :mod:`ltp.runs.plan` resolves it.
"""

import copy
import dataclasses
import difflib
import functools
import math
import operator
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from ltp.data.tasks import SIZES, TASKS
from ltp.errors import UserError, check_choice, check_range
from ltp.pruning import DENSE_MODE, SLIDING_LAYERS, all_methods, known_methods, method_class, variants
from ltp.pruning.importance import ATTENTION_READS
from ltp.pruning.method import Method

STAGES = ("finetune", "soft", "hard")
DISTILL_MODES = ("logits", "hidden", "ranking")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@dataclass
class TaskSettings:
    """Task and data (group ``task``). The keys for kind, files and columns apply to ``task=custom``.

    ``null_threshold`` is that of :class:`ltp.data.tasks.SpanTask`; null is the task's own, 0 for ``task=custom``.
    """

    name: str = MISSING
    kind: str = "single"
    max_length: int = 128
    max_train_samples: int | None = None
    max_validation_samples: int | None = None
    train_file: str | None = None
    validation_file: str | None = None
    test_file: str | None = None
    text_columns: list[str] = field(default_factory=lambda: ["text"])
    label_column: str = "label"
    metric: str | None = None
    size: str = "small"
    null_threshold: float | None = None


def unset_task() -> TaskSettings:
    """Return settings without a value: those of a command whose task is its run's, unless it is given."""
    return TaskSettings(**dict.fromkeys((item.name for item in dataclasses.fields(TaskSettings)), MISSING))


def is_unset(task: TaskSettings) -> bool:
    """Whether no key of a task is given."""
    return not _given(task)


def _given(task: TaskSettings) -> dict[str, Any]:
    return {key: value for key, value in vars(task).items() if value != MISSING}


def override_of(task: TaskSettings) -> str:
    """Return the first key that is given, for messages: ``task=mrpc`` or ``task.max_length=64``."""
    key, value = next(iter(_given(task).items()))
    return f"task={value}" if key == "name" else f"task.{key}={value}"


def fill_task(task: TaskSettings, stored: TaskSettings | None) -> TaskSettings | None:
    """Fill the keys that are not given: from the run's task, or from the defaults if another task is named.

    Returns:
        The task; None if none is named and none is stored.
    """
    given = _given(task)
    base = TaskSettings() if "name" in given else stored
    return None if base is None else dataclasses.replace(base, **given)


@dataclass
class ModelSettings:
    """The encoder (group ``model``).

    ``name`` is the model's folder in ``output_root``. ``name_or_path`` is the pretrained checkpoint, or null for an
    encoder with random weights. ``num_layers`` takes its first layers only; null takes all. ``architecture`` is that
    encoder's Hugging Face configuration; a restored checkpoint must match it. ``gradient_checkpointing`` computes
    activations again in the backward pass, which takes less memory and more time, and gives the same weights.
    """

    name: str | None = None
    name_or_path: str | None = None
    num_layers: int | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    gradient_checkpointing: bool = False


@dataclass
class PruneSettings:
    """The method (groups ``prune`` and ``prune_mode``), and the FLOPs budget.

    :func:`prune_settings` adds the settings of every method: null where they are not given.
    """

    mode: str | None = None
    learned: bool | None = None
    target_flops: float | None = None
    sliding_layers: str | None = None


@functools.cache
def _prune_schema(methods: tuple[type[Method], ...]) -> type[PruneSettings]:
    types_by_name: dict[str, Any] = {}
    for method in methods:
        types_by_name |= method.setting_types()
    fields = [(name, hint | None, field(default=None)) for name, hint in types_by_name.items()]
    name = "AllPruneSettings"
    schema = dataclasses.make_dataclass(name, fields, bases=(PruneSettings,), namespace={"__module__": __name__})
    globals()[name] = schema  # launchers pickle configurations, and look it up here
    return cast(type[PruneSettings], schema)


def prune_settings() -> Any:
    """Return settings of the pruning without any value: :class:`PruneSettings` with the settings of every method."""
    return _prune_schema(tuple(all_methods().values()))()


def prune_values() -> tuple[str, ...]:
    """Return the keys of the group ``prune`` that are parameters of a method, rather than select one."""
    return tuple(item.name for item in dataclasses.fields(prune_settings()) if item.name not in ("mode", "learned"))


@dataclass
class BySize:
    """Number of epochs by task size."""

    small: float = MISSING
    large: float = MISSING


@dataclass
class StageRecipe:
    """Default values of a training stage."""

    lr: float | None = None
    batch_size: int = MISSING
    epochs: BySize = field(default_factory=BySize)
    weight_decay: float = MISSING
    warmup_ratio: float = MISSING
    save_step: int = MISSING
    load_best: bool = MISSING


@dataclass
class Recipe:
    """Default values by stage (group ``recipe``); ``name`` selects those that the methods declare."""

    name: str = "paper"
    stages: dict[str, StageRecipe] = field(default_factory=dict)


@dataclass
class StageSettings:
    """A stage's values for every run of the command, parents included (groups ``finetune``, ``soft`` and ``hard``).

    Null stands for the recipe's value. The keys without a group are those of the run that is asked for.
    """

    lr: float | None = None
    batch_size: int | None = None
    epochs: float | None = None
    weight_decay: float | None = None
    warmup_ratio: float | None = None
    save_step: int | None = None
    load_best: bool | None = None


#: Keys that each stage has a value of its own for.
STAGE_KEYS = tuple(item.name for item in dataclasses.fields(StageSettings))


@dataclass
class DistillSettings:
    """Knowledge distillation (group ``distill``). ``teacher`` is a checkpoint, or ``auto`` for the dense parent."""

    mode: str | None = None
    weight: float = 0.5
    temperature: float = 2.0
    hidden_weight: float = 0.0
    ranking_weight: float = 0.0
    teacher: str = "auto"


@dataclass
class TrainerSettings:
    """Arguments of Lightning's Trainer (group ``trainer``), with Lightning's names.

    Additional keys: ``num_threads`` is PyTorch's number of CPU threads (null: PyTorch's default); ``num_workers`` and
    ``eval_batch_size`` configure the data loaders.
    """

    accelerator: str = "auto"
    devices: Any = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    gradient_clip_val: float = 1.0
    gradient_clip_algorithm: str = "norm"
    accumulate_grad_batches: int = 1
    max_steps: int = -1
    max_time: str | None = None
    limit_train_batches: Any = 1.0
    fast_dev_run: bool = False
    profiler: str | None = None
    log_every_n_steps: int = 10
    deterministic: bool = False
    detect_anomaly: bool = False
    enable_progress_bar: bool = True
    num_threads: int | None = None
    num_workers: int = 0
    eval_batch_size: int = 64


@dataclass
class TrainSettings:
    """Configuration of ``python -m ltp.train``."""

    task: TaskSettings = field(default_factory=TaskSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    prune: PruneSettings = field(default_factory=prune_settings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    stage: str | None = None
    finetune: StageSettings = field(default_factory=StageSettings)
    soft: StageSettings = field(default_factory=StageSettings)
    hard: StageSettings = field(default_factory=StageSettings)
    recipe: Recipe = field(default_factory=Recipe)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    logger: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
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
    plan: str | None = None
    flops_budget: float | None = None

    @property
    def targets(self) -> list[float]:
        """Target relative FLOPs of the training, ascending; empty without a budget."""
        if self.budgets is not None:
            return sorted(self.budgets)
        return [] if self.prune.target_flops is None else [self.prune.target_flops]

    @property
    def method(self) -> Method:
        """The method with the settings that are given; of a resolved configuration, with all that it has."""
        method = method_class(self.prune.mode or DENSE_MODE)
        values = {name: getattr(self.prune, name) for name in method.settings()}
        return method(**{name: value for name, value in values.items() if value is not None})

    @property
    def needs_saliency(self) -> bool:
        """Whether the training reads the saliency of tokens in a dense teacher."""
        return self.stage == "soft" and self.method.needs_saliency


def as_plain(settings: Any) -> dict[str, Any]:
    """Convert a command's settings to plain containers; of the group ``prune`` those of the run's method alone."""
    plain = dataclasses.asdict(settings)
    if not isinstance(settings, TrainSettings):
        return plain
    own = {item.name for item in dataclasses.fields(PruneSettings)} | settings.method.settings().keys()
    plain["prune"] = {key: value for key, value in plain["prune"].items() if key in own or value is not None}
    return plain


#: Keys and groups that decide nothing about a run's result, or only through other keys.
FREE_KEYS = (
    *("output_root", "overwrite", "plan", "restore", "recipe", *STAGES, "logger", "flops_budget"),
    *("task.size", "task.test_file", "model.gradient_checkpointing"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("trainer.num_threads", "trainer.num_workers"),
    *("trainer.enable_progress_bar", "trainer.log_every_n_steps", "trainer.detect_anomaly", "trainer.eval_batch_size"),
    *("trainer.fast_dev_run", "trainer.profiler"),
)


def is_free(key: str) -> bool:
    """Whether a dotted key decides nothing about a run's result; see :data:`FREE_KEYS`."""
    return any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys; an empty mapping stays a value."""
    if not isinstance(node, dict) or not node:
        return {prefix.removesuffix("."): node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}{key}.")
    return flat


def register_options() -> None:
    """Register tasks, and methods for ``prune``, ``prune_mode`` and ``sweep``: they need no file in ``conf/``."""
    store = ConfigStore.instance().store
    for name, task in TASKS.items():
        select: dict[str, Any] = {"task": {"name": name}}
        if task.max_length is not None:
            select["task"]["max_length"] = task.max_length
        if task.generate is not None:  # the embedded tasks: model=tiny is trained on them from scratch
            # the model is too small for several threads: they would wait for each other
            select["trainer"] = {"num_threads": 1}
            select["defaults"] = [{"override /model": "tiny"}, {"override /recipe": "demo"}]
        store(group="task", name=name, node=select, package="_global_")
    for name, method in all_methods().items():
        store(group="prune_mode", name=name, node={"mode": name}, package="prune")
        select = {"defaults": [{"override /prune_mode": name}]}
        store(group="prune", name=name, node=select, package="_global_")
        for alias, selected in method.aliases.items():
            chosen = {"prune": {"learned": variants()[selected].learned}} if selected else {}
            store(group="prune", name=alias, node=select | chosen, package="_global_")
        for variant in (item for item in method.variants if item.grid):
            node: dict[str, Any] = {"defaults": [{"override /prune_mode": name}, {"override /stage": "hard"}]}
            if len(method.variants) > 1:
                node["prune"] = {"learned": variant.learned}
            node["hydra"] = {"mode": "MULTIRUN", "sweeper": {"params": dict(variant.grid)}}
            store(group="sweep", name=variant.sweep or variant.name, node=node, package="_global_")


def _describe_settings() -> str:
    """Return one line for each setting of the methods, for ``--help``."""
    described: dict[str, tuple[str, list[str]]] = {}
    for method_name, method in all_methods().items():
        for name, fact in method.settings().items():
            described.setdefault(name, (fact.help, []))[1].append(method_name)
    lines = [f"  prune.{name:23} {help} ({', '.join(names)})" for name, (help, names) in described.items()]
    return "\n".join(lines)


OmegaConf.register_new_resolver("method_settings", _describe_settings, replace=True)
register_options()
prune_settings()


def known_keys(schema: type = TrainSettings, prefix: str = "") -> list[str]:
    """List every key of a schema, groups included, in dotted form: ``prune.temperature``."""
    keys = []
    for item in dataclasses.fields(schema):
        keys.append(prefix + item.name)
        if item.type is PruneSettings:
            keys += [f"{prefix}{item.name}.{part.name}" for part in dataclasses.fields(prune_settings())]
            continue
        members = typing.get_args(item.type) if isinstance(item.type, types.UnionType) else (item.type,)
        for member in members:  # a group may be optional: Group | None
            if isinstance(member, type) and dataclasses.is_dataclass(member):
                keys += known_keys(member, f"{prefix}{item.name}.")
    return keys


Settings = TypeVar("Settings")


def typed_as(schema: type[Settings], cfg: DictConfig, unknown: Callable[[str], str]) -> Settings:
    """Convert a composed configuration to an instance of its schema.

    Args:
        schema: the dataclass.
        cfg: the configuration that Hydra composed.
        unknown: returns the message for an unknown key.

    Raises:
        UserError: the schema lacks an appended key (``+prune.foo=1``), or a value is missing.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    of_task = [key for key in missing if key.startswith("task.") and schema is not TrainSettings]  # for fill_task
    if others := [key for key in missing if key not in of_task]:
        raise UserError(f"{others[0]} has no value; give it on the command line: {others[0]}=…")
    cfg = copy.deepcopy(cfg)
    for key in of_task:  # OmegaConf converts no missing values
        OmegaConf.update(cfg, key, getattr(TaskSettings(name=""), key.removeprefix("task.")))
    settings: Any = OmegaConf.to_object(cfg)
    for key in of_task:
        setattr(settings.task, key.removeprefix("task."), MISSING)
    assert isinstance(settings, schema)
    _reject_appended(settings, "", unknown)
    return settings


def _reject_appended(node: Any, prefix: str, unknown: Callable[[str], str]) -> None:
    # OmegaConf accepts an appended key, and sets it as an additional attribute
    names = {item.name for item in dataclasses.fields(node)}
    for name, value in vars(node).items():
        if name not in names:
            raise UserError(unknown(prefix + name))
        if dataclasses.is_dataclass(value):
            _reject_appended(value, f"{prefix}{name}.", unknown)


#: Names of Hugging Face's TrainingArguments and example scripts, and the keys that mean the same here.
_HUGGING_FACE_KEYS = {
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "per_device_eval_batch_size": "trainer.eval_batch_size",
    "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "max_grad_norm": "trainer.gradient_clip_val",
    "warmup_steps": "warmup_ratio",
    "eval_steps": "save_step",
    "save_steps": "save_step",
    "load_best_model_at_end": "load_best",
    "output_dir": "output_root",
    "overwrite_output_dir": "overwrite",
    "model_name_or_path": "model.name_or_path",
    "max_seq_length": "task.max_length",
    "bf16": "trainer.precision=bf16-mixed",
    "fp16": "trainer.precision=16-mixed",
    "report_to": "logger",
}


def unknown_key(key: str, schema: type = TrainSettings, command: str = "ltp.train") -> str:
    """Return the error message for a key that is not in a command's schema, with similar keys."""
    group = key.split(".", 1)[0]
    hidden = ("recipe", *STAGES)  # groups that repeat other keys
    keys = [known for known in known_keys(schema) if known.split(".", 1)[0] not in hidden]
    if group in STAGES:
        keys = [f"{group}.{name}" for name in STAGE_KEYS]
    # match a key in the wrong group by its last part, a misspelled one by similarity
    last = key.rsplit(".", 1)[-1]
    if schema is TrainSettings and last in _HUGGING_FACE_KEYS:
        return f"unknown key {key}; Hugging Face's {last} is {_HUGGING_FACE_KEYS[last]} here"
    near = [known for known in keys if known.rsplit(".", 1)[-1] == last]
    if not near:
        by_last = {known.rsplit(".", 1)[-1]: known for known in reversed(keys)}  # the first of equal names
        names = difflib.get_close_matches(last, by_last, n=2, cutoff=0.7)
        names = names or [name for name in by_last if name.startswith(f"{last}_")][:2]
        near = [by_last[name] for name in names]
    hint = f"did you mean {' or '.join(near)}?" if near else f"see python -m {command} --cfg job for every key"
    return f"unknown key {key}; {hint}"


def check_shares(key: str, value: float | list[float] | None) -> None:
    """Check a share of the dense FLOPs, or a list of distinct shares; None is valid.

    Raises:
        UserError: a share is out of range, or the list is empty or has duplicates.
    """
    shares = [] if value is None else value if isinstance(value, list) else [value]
    check_range(all(0 < share <= 1 for share in shares), key, value, "in (0, 1] (of the dense FLOPs)")
    if isinstance(value, list):
        distinct = len(set(value)) == len(value) > 0
        check_range(distinct, key, value, "one or more different shares of the dense FLOPs")


#: A key, a test of its value, and the description of its range in messages. Null values are not checked.
_Range = tuple[str, Callable[[Any], bool], str]
_STAGE_RANGES: tuple[_Range, ...] = (
    ("lr", lambda value: 0 < value < 1, "above 0 and below 1"),
    ("batch_size", lambda value: value >= 1, "1 or more"),
    ("epochs", lambda value: 0 < value <= 1e6, "above 0 and at most 1e6"),
    ("weight_decay", lambda value: 0 <= value < 1, "in [0, 1)"),
    ("warmup_ratio", lambda value: 0 <= value < 1, "in [0, 1)"),
    ("save_step", lambda value: value >= 0, "0 (every epoch) or more"),
)
_RANGES: tuple[_Range, ...] = (
    *_STAGE_RANGES,
    *((f"{stage}.{key}", is_valid, range_) for stage in STAGES for key, is_valid, range_ in _STAGE_RANGES),
    ("seed", lambda value: 0 <= value < 2**32, "in [0, 2^32)"),
    ("plan", lambda value: value == "only", "only: print the runs that the command trains, and train none"),
    ("stage", lambda value: value in STAGES, f"one of {', '.join(STAGES)}"),
    ("recipe.name", lambda value: value in ("paper", "demo"), "paper or demo"),
    ("distill.mode", lambda value: value in DISTILL_MODES, f"one of {', '.join(DISTILL_MODES)}"),
    ("distill.weight", lambda value: 0 < value <= 1, "above 0 and at most 1"),
    ("distill.temperature", lambda value: 0 < value < math.inf, "above 0"),
    ("distill.hidden_weight", lambda value: 0 <= value < math.inf, "0 or more"),
    ("distill.ranking_weight", lambda value: 0 <= value < math.inf, "0 or more"),
    ("model.num_layers", lambda value: value >= 1, "1 or more"),
    ("task.max_length", lambda value: value >= 8, "8 or more (tokens)"),
    ("task.max_train_samples", lambda value: value >= 1, "1 or more (rows)"),
    ("task.max_validation_samples", lambda value: value >= 1, "1 or more (rows)"),
    ("task.size", lambda value: value in SIZES, " or ".join(SIZES)),
    (
        "trainer.precision",
        lambda value: value in PRECISIONS,
        f"one of {', '.join(PRECISIONS)} (weights and thresholds stay float32)",
    ),
    ("trainer.accelerator", lambda value: value in ACCELERATORS, f"one of {', '.join(ACCELERATORS)}"),
    ("trainer.gradient_clip_algorithm", lambda value: value in ("norm", "value"), "norm or value"),
    ("trainer.max_steps", lambda value: value >= -1, "-1 (no limit) or more"),
    (
        "trainer.max_time",
        lambda value: re.fullmatch(r"\d+:\d\d:\d\d:\d\d", value) is not None,
        "days:hours:minutes:seconds, as in 00:12:00:00",
    ),
    (
        "trainer.limit_train_batches",
        lambda value: 0 < value <= 1 if isinstance(value, float) else isinstance(value, int) and value >= 1,
        "a share of the batches in (0, 1], as in 0.1, or their number",
    ),
    ("trainer.profiler", lambda value: value in ("simple", "advanced"), "simple or advanced"),
    ("trainer.accumulate_grad_batches", lambda value: value >= 1, "1 or more"),
    ("trainer.eval_batch_size", lambda value: value >= 1, "1 or more"),
    ("trainer.gradient_clip_val", lambda value: value >= 0, "0 or more"),
    ("trainer.num_threads", lambda value: 1 <= value <= 1024, "in [1, 1024]"),
    ("trainer.num_workers", lambda value: 0 <= value <= 1024, "in [0, 1024]"),
)


def check_ranges(settings: TrainSettings) -> None:
    """Check the range of every value, and combinations of values, before anything is loaded.

    Raises:
        UserError: a value is out of range, or two keys contradict each other.
    """
    for key, is_valid, range_ in _RANGES:
        value = operator.attrgetter(key)(settings)
        check_range(value is None or is_valid(value), key, value, range_)
    prune, distill = settings.prune, settings.distill
    known = all_methods()
    if prune.mode is not None and prune.mode not in known:
        raise UserError(f"prune.mode={prune.mode}: there is no such method; {known_methods(prune.mode)}")
    for method in known.values():
        for name, fact in method.settings().items():
            value = getattr(prune, name)
            ok = value is None or fact.is_valid is None or fact.is_valid(value)
            check_range(ok, f"prune.{name}", value, fact.description)
    check_choice("prune.sliding_layers", prune.sliding_layers, SLIDING_LAYERS)
    check_shares("flops_budget", settings.flops_budget)
    check_shares("prune.target_flops", prune.target_flops)
    check_shares("budgets", settings.budgets)
    if settings.budgets is not None and prune.target_flops is not None:
        raise UserError(
            f"budgets={settings.budgets} and prune.target_flops={prune.target_flops} both set the cost: "
            "give one of them"
        )
    # method and stage may still be open: this is checked again when they are known
    has_guide = settings.stage in (None, "soft") and (prune.mode is None or settings.method.needs_saliency)
    allowed = DistillSettings(teacher=distill.teacher) if has_guide else DistillSettings()
    if distill.mode is None and distill != allowed:
        raise UserError("distill.… is given, but nothing is distilled: add distill=logits, hidden or ranking")
    for mode, weight, what in (
        ("hidden", distill.hidden_weight, "hidden states are"),
        ("ranking", distill.ranking_weight, "the ranking of the tokens is"),
    ):
        if (distill.mode == mode) != (weight > 0):
            raise UserError(
                f"distill={distill.mode} with distill.{mode}_weight={weight}: "
                f"{what} distilled by distill={mode}, with a weight above 0"
            )
    if distill.mode == "ranking" and prune.mode in known and not known[prune.mode]().reads & ATTENTION_READS:
        raise UserError(f"distill=ranking: prune={prune.mode} does not rank tokens by attention; take distill=logits")

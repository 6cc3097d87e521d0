"""Resolve a configuration to a run: default values, method, parent run, teacher and run directory.

Runs form a tree under ``outputs/<model>/<task>/``, in the published layout::

    finetune/lr_…/seed_…                                              dense parent of all others
    absolute_threshold/rate_…/temperature_…/lambda_…/lr_…/seed_…      soft
    absolute_threshold/rate_…/temperature_…/lambda_…/lr_…/seed_…/hard/lr_…   hard, nested in its soft run
    absolute_threshold/rate_…/hard/lr_…/seed_…                        manual thresholds
    topk/rate_…/lr_…/seed_…
"""

import copy
import dataclasses
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltp.data.tasks import TASKS, Task, custom_task, get_task
from ltp.errors import UserError, format_number
from ltp.pruning import RATE_MODES
from ltp.runs.checkpoints import RESULTS_FILE, Checkpoint, inspect_checkpoint, read_config
from ltp.runs.settings import PRUNE_VALUES, TaskSettings, TrainSettings, check_ranges

log = logging.getLogger(__name__)

_METHOD_NAMES = {"topk": "top-k", "manual": "manual-threshold"}  # in messages


@dataclass(frozen=True)
class MissingParent:
    """An unfinished parent run, which must be trained first.

    Attributes:
        directory: its run directory.
        stage: its training stage.
    """

    directory: Path
    stage: str


@dataclass(frozen=True)
class Run:
    """A resolved run, ready to start.

    Attributes:
        settings: the configuration, with every null replaced by a value.
        task: the task; labels of a custom task are unknown until its file is read.
        method: ``dense``, ``learned``, ``manual``, ``topk`` or another of :data:`~ltp.pruning.RATE_MODES`.
        directory: the run directory.
        parent: the checkpoint that the run starts from; None for a pretrained or randomly initialised encoder.
        missing: the parent run that must be trained first; ``parent`` is None then.
        teacher: the dense teacher checkpoint; None without distillation, and while the parent run is missing.
    """

    settings: TrainSettings
    task: Task
    method: str
    directory: Path
    parent: Checkpoint | None
    missing: MissingParent | None
    teacher: Checkpoint | None = None

    @property
    def parent_name(self) -> str | None:
        """The parent's name in results: a run directory, a checkpoint's name or path, or None."""
        if self.missing is not None:
            return str(self.missing.directory)
        if self.parent is not None:
            return str(self.parent.run_dir or self.parent.source)
        return self.settings.model.name_or_path


def plan_run(config: TrainSettings, *, model_is_chosen: bool = False) -> Run:
    """Resolve a configuration to a run. Reads only small files.

    Args:
        config: the configuration, which may contain nulls; it is not modified.
        model_is_chosen: whether the user chose the model. If so, a restored checkpoint must match it; otherwise
            the checkpoint determines the model.

    Raises:
        UserError: a value is out of range, options contradict each other, or a checkpoint does not match.
    """
    check_ranges(config)
    settings = copy.deepcopy(config)
    task = task_of(settings.task)
    restored = None if settings.restore == "auto" else inspect_checkpoint(settings.restore)
    if restored is not None:
        _check_model_fits(settings, restored, model_is_chosen)
        check_labels_if_known(restored, task)
    inherited = restored.pruning if restored is not None else {}

    stage, mode = _resolve_stage_and_mode(settings, restored)
    settings.stage, settings.prune.mode = stage, mode
    method = _resolve_method(settings, stage, mode, restored)
    if mode != "absolute_threshold" and settings.prune.learned is not None:
        raise UserError(_irrelevant_key_message("learned", settings, method))
    settings.prune.learned = method == "learned" if mode == "absolute_threshold" else None
    _fill_nulls(settings, task, method, inherited)

    parent, missing = restored, None
    if restored is None and method != "dense":
        parent, missing = _find_parent(settings, task, method)
    directory = _run_directory(settings, method, parent, missing)
    teacher = None if settings.distill.mode is None or missing is not None else _find_teacher(settings, task, parent)
    return Run(settings, task, method, directory, parent, missing, teacher)


def check_labels(checkpoint: Checkpoint, task: Task) -> None:
    """Check that a checkpoint's classification head matches the task.

    Raises:
        UserError: the number or the order of its labels differs.
    """
    if checkpoint.num_labels != task.num_labels:
        raise UserError(
            f"restore={checkpoint.source} has {checkpoint.num_labels} labels, task={task.name} has {task.num_labels}; "
            f"restore a checkpoint that was fine-tuned on {task.name}."
        )
    names = checkpoint.config.get("id2label")
    if not names or not task.labels:
        return
    order = tuple(str(names[key]) for key in sorted(names, key=int))
    given, expected = (tuple(map(_normalise_label, labels)) for labels in (order, task.labels))
    if sorted(given) != sorted(expected):
        log.warning(
            "the labels of restore=%s (%s) do not match those of task=%s (%s) by name: they are taken in this order",
            *(checkpoint.source, ", ".join(order), task.name, ", ".join(task.labels)),
        )
    elif given != expected:
        raise UserError(
            f"restore={checkpoint.source} numbers its labels {', '.join(order)}; task={task.name} has "
            f"{', '.join(task.labels)} in this order. Reorder the head's rows and id2label, or fine-tune anew."
        )


def _normalise_label(name: str) -> str:
    """``Not Equivalent`` and ``not_equivalent`` are one label."""
    return re.sub(r"[\s_-]", "", name).casefold()


def task_of(settings: TaskSettings) -> Task:
    """Return the task of a configuration; labels of a custom task are unknown until its file is read.

    Raises:
        UserError: there is no such task, or a key does not apply to it.
    """
    defaults = TaskSettings()
    custom_keys = ("train_file", "validation_file", "text_columns", "label_column", "metric", "size")
    changed = [key for key in custom_keys if getattr(settings, key) != getattr(defaults, key)]
    name = settings.name
    if name in TASKS and changed:
        raise UserError(f"task.{changed[0]}={getattr(settings, changed[0])} goes with task=custom, not task={name}")
    if name != "custom" and not changed:
        return get_task(name)
    return custom_task(
        name,
        text_columns=settings.text_columns,
        label_column=settings.label_column,
        metric=settings.metric,
        size=settings.size,
    )


def _check_model_fits(settings: TrainSettings, restored: Checkpoint, model_is_chosen: bool) -> None:
    """Check a restored checkpoint against the chosen model, or take the model from it if none was chosen."""
    model = settings.model
    if not model_is_chosen:
        model.name, model.name_or_path, model.architecture = restored.name, None, {}
        return
    expected = model.architecture
    if model.name_or_path is not None and (Path(model.name_or_path) / "config.json").is_file():
        expected = read_config(Path(model.name_or_path) / "config.json", f"model.name_or_path={model.name_or_path}")
    for key in ("model_type", "num_hidden_layers", "hidden_size"):
        actual = restored.dense_config.get(key)
        if key in expected and actual is not None and actual != expected[key]:
            raise UserError(
                f"restore={settings.restore} has {key} {actual}, model={model.name or model.name_or_path} has "
                f"{expected[key]}: another architecture. "
                "Leave model= out to take the checkpoint's, or restore one that fits."
            )


def _resolve_stage_and_mode(settings: TrainSettings, restored: Checkpoint | None) -> tuple[str, str]:
    """Return stage and prune mode: each from the configuration, else from the checkpoint, else implied by the other."""
    stage, mode = settings.stage, settings.prune.mode
    inherited = restored.pruning if restored is not None else {}
    if stage == "finetune" and mode not in (None, "none"):
        raise UserError(
            f"stage=finetune trains the dense model, prune_mode={mode} prunes it: "
            "leave one of them out (stage=soft learns thresholds, stage=hard trains with fixed ones)."
        )
    if stage == "soft" and mode in RATE_MODES:
        raise UserError(
            f"stage=soft with prune={mode}: {_METHOD_NAMES.get(mode, mode)} has nothing to learn. "
            "Use stage=hard, or prune=threshold."
        )
    if stage in ("soft", "hard") and mode == "none":
        raise UserError(f"stage={stage} with prune=none: nothing is pruned. Use stage=finetune, or prune=threshold.")
    if stage == "soft" and settings.prune.learned is False:
        raise UserError("stage=soft learns thresholds, prune=manual gives them: use stage=hard, or prune=threshold.")
    if mode is None and stage != "finetune":
        # soft implies thresholds; a dense checkpoint has no mode
        mode = "absolute_threshold" if stage == "soft" else inherited.get("prune_mode")
        if mode is None and settings.prune.learned is not None:
            mode = "absolute_threshold"
        if mode is None:
            mode = "absolute_threshold" if stage is not None else "none"
    mode = mode or "none"
    if stage is None:
        fixed = settings.prune.learned is False or (restored is not None and restored.holds_thresholds)
        stage = "finetune" if mode == "none" else "hard" if fixed or mode in RATE_MODES else "soft"
    return stage, mode


def _resolve_method(settings: TrainSettings, stage: str, mode: str, restored: Checkpoint | None) -> str:
    """Return the method; see :attr:`Run.method`."""
    if stage == "finetune":
        return "dense"
    if mode in RATE_MODES:
        return mode
    if stage == "soft":
        return "learned"
    learned = settings.prune.learned
    if restored is None:
        return "manual" if learned is False else "learned"
    if learned and not restored.holds_thresholds:
        raise UserError(
            f"restore={restored.source} holds no learned thresholds, which prune.learned=true asks for: "
            "run stage=soft on it first, or use prune=manual."
        )
    if learned is False or not restored.holds_thresholds:
        return "manual"
    initial, requested = restored.pruning.get("final_token_threshold"), settings.prune.final_token_threshold
    if requested is not None and requested != initial:
        raise UserError(
            f"restore={restored.source} learned its thresholds from final_token_threshold={initial}; "
            f"prune.final_token_threshold={requested} would discard them: leave it out, or use prune=manual."
        )
    return "learned"


def _fill_nulls(settings: TrainSettings, task: Task, method: str, inherited: dict[str, Any]) -> None:
    """Replace every null by the checkpoint's value, or else the recipe's."""
    assert settings.stage is not None
    recipe, prune = settings.recipe.pruning, settings.prune
    stage = settings.recipe.stages[settings.stage]
    defaults = dataclasses.asdict(stage) | {
        "lr": stage.lr if stage.lr is not None else task.lr,
        "epochs": getattr(stage.epochs, task.size),
    }
    for key, default in defaults.items():
        if getattr(settings, key) is None:
            setattr(settings, key, default)

    learned = method == "learned"
    if learned and settings.stage == "hard" and not settings.targets:
        _inherit_budgets(settings, inherited.get("budgets"))
    budgeted = bool(settings.targets)
    if settings.budgets is not None and method not in ("learned", "manual"):
        raise UserError(
            f"budgets={settings.budgets} has no meaning for a {_METHOD_NAMES.get(method, method)} run: several "
            "budgets are several thresholds a layer. "
            "Use prune=threshold or prune=manual, or prune.target_flops for one budget."
        )
    relevant: dict[str, Any] = {}
    if method != "dense":
        relevant |= {"scoring_mode": recipe.scoring_mode, "score_length": settings.task.max_length}
        relevant["target_flops"] = None
    if learned:
        relevant["temperature"] = recipe.budget_temperature if budgeted else recipe.temperature
    if learned and settings.stage == "soft":
        relevant["lr_threshold"] = recipe.budget_lr_threshold if budgeted else settings.lr
    if not budgeted:  # a budget determines these values
        if method in ("learned", "manual"):
            relevant["final_token_threshold"] = recipe.learned_threshold if learned else recipe.manual_threshold
        if learned:
            relevant["lambda_threshold"] = recipe.lambda_threshold
        if method in RATE_MODES:
            relevant["token_keep_rate"] = recipe.token_keep_rate
    file_keys = {"temperature": "threshold_temperature"}
    for key in PRUNE_VALUES:
        value = getattr(prune, key)
        if key not in relevant:
            if value is not None:
                raise UserError(_irrelevant_key_message(key, settings, method))
            continue
        if value is None:
            setattr(prune, key, inherited.get(file_keys.get(key, key), relevant[key]))


def _inherit_budgets(settings: TrainSettings, inherited: list[float] | None) -> None:
    """Give a hard run the budgets that its parent was trained for."""
    if inherited and len(inherited) == 1:
        settings.prune.target_flops = inherited[0]
    elif inherited:
        settings.budgets = list(inherited)


def _irrelevant_key_message(key: str, settings: TrainSettings, method: str) -> str:
    key_and_value = f"prune.{key}={getattr(settings.prune, key)}"
    set_by_budget = key in ("final_token_threshold", "lambda_threshold", "token_keep_rate")
    if set_by_budget and settings.targets and method != "dense":
        budget_key = "prune.target_flops" if settings.budgets is None else "budgets"
        return f"{key_and_value} is what {budget_key} decides; leave one of them out"
    name = f"{settings.stage} learned-threshold" if method == "learned" else _METHOD_NAMES.get(method, method)
    return f"{key_and_value} has no meaning for a {name} run; leave it out"


def _find_parent(settings: TrainSettings, task: Task, method: str) -> tuple[Checkpoint | None, MissingParent | None]:
    """Find the finished parent run, or determine the one to train first.

    If there are several, the one with the recipe's learning rate is used.

    Raises:
        UserError: there are several, none of them with the recipe's learning rate, or the parent's labels differ.
    """
    hard_of_learned = settings.stage == "hard" and method == "learned"
    stage = "soft" if hard_of_learned else "finetune"
    folder = _task_folder(settings) / "finetune"
    if hard_of_learned:
        folder = _soft_folder(settings) / _distillation_folder(settings)
    recipe_lr = settings.recipe.stages[stage].lr
    default = folder / _lr_folder(recipe_lr if recipe_lr is not None else task.lr) / _seed_folder(settings)
    finished = sorted(path.parent for path in folder.glob(f"lr_*/{_seed_folder(settings)}/{RESULTS_FILE}"))
    if default in finished or not finished:
        directory = default
    elif len(finished) == 1:
        directory = finished[0]
    else:
        raise UserError(
            f"restore=auto: several {stage} runs could be the parent, none at the recipe's learning rate: "
            f"{', '.join(map(str, finished))}. Choose one with restore=…"
        )
    if directory in finished:
        checkpoint = inspect_checkpoint(str(directory))
        check_labels_if_known(checkpoint, task)
        return checkpoint, None
    return None, MissingParent(directory, stage)


def _find_teacher(settings: TrainSettings, task: Task, parent: Checkpoint | None) -> Checkpoint:
    """Find the teacher: the checkpoint of ``distill.teacher``, or for ``auto`` the run's nearest dense ancestor.

    Raises:
        UserError: there is none, or it does not match the run's model.
    """
    key = f"distill.teacher={settings.distill.teacher}"
    remedy = "name a dense checkpoint with distill.teacher=…"
    if settings.distill.teacher != "auto":
        teacher = inspect_checkpoint(settings.distill.teacher, "distill.teacher")
    elif parent is None:
        raise UserError(f"{key}: this run starts from no fine-tuned checkpoint that could teach it; {remedy}")
    else:
        teacher = parent
        while teacher.prunes:
            ancestor = (teacher.results or {}).get("parent")
            if ancestor is None or not (Path(ancestor) / RESULTS_FILE).is_file():
                raise UserError(f"{key}: the dense parent of {teacher.source} is not there ({ancestor}); {remedy}")
            teacher = inspect_checkpoint(ancestor)
    check_labels_if_known(teacher, task)
    sizes = ("vocab_size", "num_hidden_layers", "hidden_size") if settings.distill.mode == "hidden" else ("vocab_size",)
    for size in sizes:
        expected = parent.dense_config.get(size) if parent is not None else None
        actual = teacher.dense_config.get(size)
        if expected is not None and actual is not None and expected != actual:
            raise UserError(f"{key}: {teacher.source} has {size} {actual}, the run's model has {expected}; {remedy}")
    return teacher


def check_labels_if_known(checkpoint: Checkpoint, task: Task) -> None:
    """Run :func:`check_labels` if the task's labels are known before its files are read."""
    if task.is_regression or task.labels is not None:
        check_labels(checkpoint, task)


def _run_directory(
    settings: TrainSettings, method: str, parent: Checkpoint | None, missing: MissingParent | None
) -> Path:
    assert settings.lr is not None
    distilled_lr = Path(_distillation_folder(settings)) / _lr_folder(settings.lr)
    leaf = distilled_lr / _seed_folder(settings)
    folder = _task_folder(settings)
    if method == "dense":
        return folder / "finetune" / leaf
    if method in RATE_MODES:
        rate = _budget_folder(settings) or f"rate_{format_number(settings.prune.token_keep_rate)}"
        return folder / method / rate / leaf
    if settings.stage == "soft":
        return _soft_folder(settings) / leaf
    if method == "learned":
        if missing is not None:
            return missing.directory / "hard" / distilled_lr
        if parent is not None and parent.run_dir is not None:
            assert parent.results is not None
            same_seed = parent.results["seed"] == settings.seed
            # the budget is part of the path only if it differs from the parent's
            budget = "" if parent.pruning.get("budgets", []) == settings.targets else _budget_folder(settings)
            return parent.run_dir / "hard" / budget / (distilled_lr if same_seed else leaf)
    rate = _budget_folder(settings) or f"rate_{format_number(settings.prune.final_token_threshold)}"
    return folder / "absolute_threshold" / rate / "hard" / leaf


def _task_folder(settings: TrainSettings) -> Path:
    return Path(settings.output_root) / model_name(settings) / settings.task.name


def _soft_folder(settings: TrainSettings) -> Path:
    """Return the folder of soft runs, without the part for distillation."""
    prune, folder = settings.prune, _task_folder(settings) / "absolute_threshold"
    temperature = f"temperature_{format_number(prune.temperature)}"
    if settings.targets:
        return folder / _budget_folder(settings) / temperature
    rate = f"rate_{format_number(prune.final_token_threshold)}"
    return folder / rate / temperature / f"lambda_{format_number(prune.lambda_threshold)}"


def _budget_folder(settings: TrainSettings) -> str:
    """Return the folder name for the budgets, ``target_0.5`` or ``budgets_0.3_0.5_0.7``; empty without a budget."""
    if settings.budgets is not None:
        return "_".join(["budgets", *map(format_number, settings.targets)])
    return f"target_{format_number(settings.prune.target_flops)}" if settings.targets else ""


def _distillation_folder(settings: TrainSettings) -> str:
    """Return the folder name for distillation, ``distill_logits_0.5_temperature_2``; empty without distillation."""
    distill = settings.distill
    if distill.mode is None:
        return ""
    hidden = f"_hidden_{format_number(distill.hidden_weight)}" if distill.hidden_weight else ""
    return f"distill_logits_{format_number(distill.weight)}_temperature_{format_number(distill.temperature)}{hidden}"


def model_name(settings: TrainSettings) -> str:
    """Return the folder name for a model's runs: ``model.name``, or the last part of the checkpoint's path."""
    name = settings.model.name or (settings.model.name_or_path or "scratch").rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^\w.-]", "_", name)


def _lr_folder(lr: float) -> str:
    return f"lr_{format_number(lr)}"


def _seed_folder(settings: TrainSettings) -> str:
    return f"seed_{settings.seed}"

"""From a configuration to a run: every null filled, the method, the parent and the run directory.

``outputs/<model>/<task>/`` holds a tree of runs, the published layout::

    finetune/lr_…/seed_…                                              the dense parent of all others
    absolute_threshold/rate_…/temperature_…/lambda_…/lr_…/seed_…      soft
    absolute_threshold/rate_…/temperature_…/lambda_…/lr_…/seed_…/hard/lr_…   hard, inside its soft run
    absolute_threshold/rate_…/hard/lr_…/seed_…                        manual thresholds
    topk/rate_…/lr_…/seed_…
"""

import copy
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

_NAMES = {"topk": "top-k", "manual": "manual-threshold"}  # of methods, in messages


@dataclass(frozen=True)
class MissingParent:
    """A parent run that is not finished: the settings that train it."""

    directory: Path
    stage: str


@dataclass(frozen=True)
class Run:
    """One run, ready to start.

    Attributes:
        settings: the configuration with every null filled.
        task: the task's row; a custom task's labels are still unknown.
        method: ``dense``, ``learned``, ``manual``, ``topk`` or another of :data:`~ltp.pruning.RATE_MODES`.
        directory: where the run lives.
        parent: the checkpoint it starts from; None when it starts from a pretrained or a random encoder.
        missing: the parent that must be trained first, in which case ``parent`` is None.
        teacher: the dense checkpoint that is distilled; None without distillation, and while ``parent`` is missing.
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
        """The parent as results name it: a run directory, a checkpoint's name, or None."""
        if self.missing is not None:
            return str(self.missing.directory)
        if self.parent is not None:
            return str(self.parent.run_dir or self.parent.source)
        return self.settings.model.name_or_path


def plan_run(given: TrainSettings, *, model_is_chosen: bool = False) -> Run:
    """Work out what a configuration asks for. Reads small files only.

    Args:
        given: the configuration, nulls included.
        model_is_chosen: whether the model was chosen by the user, rather than by default; a restored checkpoint
            must then agree with it, and else brings its own.

    Raises:
        UserError: values out of range, contradictory selections, or a checkpoint that does not fit.
    """
    check_ranges(given)
    settings = copy.deepcopy(given)
    task = task_of(settings.task)
    restored = None if settings.restore == "auto" else inspect_checkpoint(settings.restore)
    if restored is not None:
        _check_model_fits(settings, restored, model_is_chosen)
        check_labels_if_known(restored, task)
    inherited = restored.pruning if restored is not None else {}

    stage, mode = _stage_and_mode(settings, restored)
    settings.stage, settings.prune.mode = stage, mode
    method = _method(settings, stage, mode, restored)
    if mode != "absolute_threshold" and settings.prune.learned is not None:
        raise UserError(_irrelevant_key("learned", settings, method))
    settings.prune.learned = method == "learned" if mode == "absolute_threshold" else None
    _fill_nulls(settings, task, method, inherited)

    parent, missing = restored, None
    if restored is None and method != "dense":
        parent, missing = _find_parent(settings, task, method)
    directory = _directory(settings, method, parent, missing)
    teacher = None if settings.distill.mode is None or missing is not None else _find_teacher(settings, task, parent)
    return Run(settings, task, method, directory, parent, missing, teacher)


def check_labels(checkpoint: Checkpoint, task: Task) -> None:
    """Check that a checkpoint's head fits the task.

    Raises:
        UserError: it has another number of labels.
    """
    if checkpoint.num_labels != task.num_labels:
        raise UserError(
            f"restore={checkpoint.source} has {checkpoint.num_labels} labels, task={task.name} has {task.num_labels}; "
            f"restore a checkpoint that was fine-tuned on {task.name}."
        )
    names = checkpoint.config.get("id2label")
    if names and task.labels and sorted(names.values()) == sorted(task.labels):
        order = tuple(names[key] for key in sorted(names, key=int))
        if order != task.labels:
            raise UserError(
                f"restore={checkpoint.source} numbers its labels {', '.join(order)}; task={task.name} has "
                f"{', '.join(task.labels)} in this order. Reorder the head's rows and id2label, or fine-tune anew."
            )


def task_of(chosen: TaskSettings) -> Task:
    """The task that a configuration names; a custom one's labels are still unknown.

    Raises:
        UserError: there is no such task, or a key does not go with it.
    """
    unset = TaskSettings()
    own = ("train_file", "validation_file", "text_columns", "label_column", "metric", "size")
    given = [key for key in own if getattr(chosen, key) != getattr(unset, key)]
    if chosen.name in TASKS and given:
        raise UserError(f"task.{given[0]}={getattr(chosen, given[0])} goes with task=custom, not task={chosen.name}")
    if chosen.name != "custom" and not given:
        return get_task(chosen.name)
    return custom_task(
        chosen.name,
        text_columns=chosen.text_columns,
        label_column=chosen.label_column,
        metric=chosen.metric,
        size=chosen.size,
    )


def _check_model_fits(settings: TrainSettings, restored: Checkpoint, model_is_chosen: bool) -> None:
    model = settings.model
    if not model_is_chosen:
        model.name, model.name_or_path, model.architecture = restored.name, None, {}
        return
    wanted = model.architecture
    if model.name_or_path is not None and (Path(model.name_or_path) / "config.json").is_file():
        wanted = read_config(Path(model.name_or_path) / "config.json", f"model.name_or_path={model.name_or_path}")
    for key in ("model_type", "num_hidden_layers", "hidden_size"):
        has = restored.dense_config.get(key)
        if key in wanted and has is not None and has != wanted[key]:
            raise UserError(
                f"restore={settings.restore} has {key} {has}, model={model.name or model.name_or_path} has "
                f"{wanted[key]}: another "
                "architecture. Leave model= out to take the checkpoint's, or restore one that fits."
            )


def _stage_and_mode(settings: TrainSettings, restored: Checkpoint | None) -> tuple[str, str]:
    """The stage and the prune mode: what was given, else the checkpoint's, else what goes with the other."""
    stage, mode = settings.stage, settings.prune.mode
    inherited = restored.pruning if restored is not None else {}
    if stage == "finetune" and mode not in (None, "none"):
        raise UserError(
            f"stage=finetune trains the dense model, prune_mode={mode} prunes it: "
            "leave one of them out (stage=soft learns thresholds, stage=hard trains with fixed ones)."
        )
    if stage == "soft" and mode in RATE_MODES:
        name = _NAMES.get(mode, mode)
        raise UserError(
            f"stage=soft with prune={mode}: {name} has nothing to learn. Use stage=hard, or prune=threshold."
        )
    if stage in ("soft", "hard") and mode == "none":
        raise UserError(f"stage={stage} with prune=none: nothing is pruned. Use stage=finetune, or prune=threshold.")
    if stage == "soft" and settings.prune.learned is False:
        raise UserError("stage=soft learns thresholds, prune=manual gives them: use stage=hard, or prune=threshold.")
    if mode is None and stage != "finetune":
        # soft can only be thresholds; a finetune run's checkpoint says nothing
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


def _method(settings: TrainSettings, stage: str, mode: str, restored: Checkpoint | None) -> str:
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
    began, given = restored.pruning.get("final_token_threshold"), settings.prune.final_token_threshold
    if given is not None and given != began:
        raise UserError(
            f"restore={restored.source} learned its thresholds from final_token_threshold={began}; "
            f"prune.final_token_threshold={given} would discard them: leave it out, or use prune=manual."
        )
    return "learned"


def _fill_nulls(settings: TrainSettings, task: Task, method: str, inherited: dict[str, Any]) -> None:
    """Fill every null: the checkpoint's value, else the recipe's."""
    assert settings.stage is not None
    recipe, prune = settings.recipe.pruning, settings.prune
    stage = settings.recipe.stages[settings.stage]
    defaults: dict[str, Any] = {
        "lr": stage.lr if stage.lr is not None else task.lr,
        "batch_size": stage.batch_size,
        "epochs": stage.epochs.small if task.size == "small" else stage.epochs.large,
        "weight_decay": stage.weight_decay,
        "warmup_ratio": stage.warmup_ratio,
        "save_step": stage.save_step,
        "load_best": stage.load_best,
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
            f"budgets={settings.budgets} has no meaning for a {_NAMES.get(method, method)} run: several budgets are "
            "several thresholds a layer. Use prune=threshold or prune=manual, or prune.target_flops for one budget."
        )
    relevant: dict[str, Any] = {}
    if method != "dense":
        relevant |= {"scoring_mode": recipe.scoring_mode, "score_length": settings.task.max_length}
        relevant["target_flops"] = None
    if learned:
        relevant["temperature"] = recipe.budget_temperature if budgeted else recipe.temperature
    if learned and settings.stage == "soft":
        relevant["lr_threshold"] = recipe.budget_lr_threshold if budgeted else settings.lr
    if not budgeted:  # else these are what a budget decides
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
                raise UserError(_irrelevant_key(key, settings, method))
            continue
        if value is None:
            setattr(prune, key, inherited.get(file_keys.get(key, key), relevant[key]))


def _inherit_budgets(settings: TrainSettings, inherited: list[float] | None) -> None:
    """Hold a hard run at the budget that its parent was led to."""
    if inherited and len(inherited) == 1:
        settings.prune.target_flops = inherited[0]
    elif inherited:
        settings.budgets = list(inherited)


_BUDGETED = ("final_token_threshold", "lambda_threshold", "token_keep_rate")


def _irrelevant_key(key: str, settings: TrainSettings, method: str) -> str:
    if key in _BUDGETED and settings.targets and method != "dense":
        given = "prune.target_flops" if settings.budgets is None else "budgets"
        return f"prune.{key}={getattr(settings.prune, key)} is what {given} decides; leave one of them out"
    kind = f"{settings.stage} learned-threshold" if method == "learned" else _NAMES.get(method, method)
    return f"prune.{key}={getattr(settings.prune, key)} has no meaning for a {kind} run; leave it out"


def _find_parent(settings: TrainSettings, task: Task, method: str) -> tuple[Checkpoint | None, MissingParent | None]:
    """The finished run that this one starts from, or the one to train first.

    Of several the one at the recipe's learning rate is taken; ltp does not guess among others.
    """
    hard_of_learned = settings.stage == "hard" and method == "learned"
    stage = "soft" if hard_of_learned else "finetune"
    folder = _soft_folder(settings) if hard_of_learned else _task_folder(settings) / "finetune"
    recipe_lr = settings.recipe.stages[stage].lr
    default = folder / _lr(recipe_lr if recipe_lr is not None else task.lr) / _seed(settings)
    finished = sorted(path.parent for path in folder.glob(f"lr_*/{_seed(settings)}/{RESULTS_FILE}"))
    if default in finished or not finished:
        chosen = default
    elif len(finished) == 1:
        chosen = finished[0]
    else:
        raise UserError(
            f"restore=auto: several {stage} runs could be the parent, none at the recipe's learning rate: "
            f"{', '.join(map(str, finished))}. Choose one with restore=…"
        )
    if chosen in finished:
        checkpoint = inspect_checkpoint(str(chosen))
        check_labels_if_known(checkpoint, task)
        return checkpoint, None
    return None, MissingParent(chosen, stage)


def _find_teacher(settings: TrainSettings, task: Task, parent: Checkpoint | None) -> Checkpoint:
    """The checkpoint that ``distill.teacher`` names: with ``auto`` the first dense one among the run's ancestors.

    Raises:
        UserError: there is none, or it does not fit.
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
            above = (teacher.results or {}).get("parent")
            if above is None or not (Path(above) / RESULTS_FILE).is_file():
                raise UserError(f"{key}: the dense parent of {teacher.source} is not there ({above}); {remedy}")
            teacher = inspect_checkpoint(above)
    check_labels_if_known(teacher, task)
    for what in ("vocab_size", "num_hidden_layers", "hidden_size"):
        own = parent.dense_config.get(what) if parent is not None else None
        has = teacher.dense_config.get(what)
        if (
            own is not None
            and has is not None
            and own != has
            and (what == "vocab_size" or settings.distill.mode == "hidden")
        ):
            raise UserError(f"{key}: {teacher.source} has {what} {has}, the run's model has {own}; {remedy}")
    return teacher


def check_labels_if_known(checkpoint: Checkpoint, task: Task) -> None:
    """:func:`check_labels`, where the task's labels are known before its files are read."""
    if task.is_regression or task.labels is not None:
        check_labels(checkpoint, task)


def _directory(settings: TrainSettings, method: str, parent: Checkpoint | None, missing: MissingParent | None) -> Path:
    assert settings.lr is not None
    taught = Path(_distillation_folder(settings))
    leaf = taught / _lr(settings.lr) / _seed(settings)
    folder = _task_folder(settings)
    if method == "dense":
        return folder / "finetune" / leaf
    if method in RATE_MODES:
        return folder / method / (_budget(settings) or f"rate_{format_number(settings.prune.token_keep_rate)}") / leaf
    if settings.stage == "soft":
        return _soft_folder(settings) / _lr(settings.lr) / _seed(settings)
    if method == "learned":
        if missing is not None:
            return missing.directory / "hard" / taught / _lr(settings.lr)
        if parent is not None and parent.run_dir is not None:
            assert parent.results is not None
            same_seed = parent.results["seed"] == settings.seed
            # held at the budget of its parent unless it has another
            own = "" if parent.pruning.get("budgets", []) == settings.targets else _budget(settings)
            return parent.run_dir / "hard" / own / (taught / _lr(settings.lr) if same_seed else leaf)
    rate = _budget(settings) or f"rate_{format_number(settings.prune.final_token_threshold)}"
    return folder / "absolute_threshold" / rate / "hard" / leaf


def _task_folder(settings: TrainSettings) -> Path:
    return Path(settings.output_root) / model_name(settings) / settings.task.name


def _soft_folder(settings: TrainSettings) -> Path:
    prune, folder = settings.prune, _task_folder(settings) / "absolute_threshold"
    temperature = f"temperature_{format_number(prune.temperature)}"
    if settings.targets:
        return folder / _budget(settings) / temperature / _distillation_folder(settings)
    rate, lambda_ = (
        f"rate_{format_number(prune.final_token_threshold)}",
        f"lambda_{format_number(prune.lambda_threshold)}",
    )
    return folder / rate / temperature / lambda_ / _distillation_folder(settings)


def _budget(settings: TrainSettings) -> str:
    """The folder of a budget: ``target_0.5``, or ``budgets_0.3_0.5_0.7``; nothing without."""
    if settings.budgets is not None:
        return "_".join(["budgets", *map(format_number, settings.targets)])
    return f"target_{format_number(settings.prune.target_flops)}" if settings.targets else ""


def _distillation_folder(settings: TrainSettings) -> str:
    """The folder of what is distilled: ``distill_logits_0.5_temperature_2``; nothing without."""
    distill = settings.distill
    if distill.mode is None:
        return ""
    hidden = f"_hidden_{format_number(distill.hidden_weight)}" if distill.hidden_weight else ""
    return f"distill_logits_{format_number(distill.weight)}_temperature_{format_number(distill.temperature)}{hidden}"


def model_name(settings: TrainSettings) -> str:
    """The folder of a model's runs: ``model.name``, or the checkpoint's own name."""
    name = settings.model.name or (settings.model.name_or_path or "scratch").rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^\w.-]", "_", name)


def _lr(lr: float) -> str:
    return f"lr_{format_number(lr)}"


def _seed(settings: TrainSettings) -> str:
    return f"seed_{settings.seed}"

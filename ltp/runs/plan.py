"""Resolve a configuration to a run: default values, method, parent run, teacher and run directory."""

import copy
import dataclasses
import logging
import math
import operator
import re
from pathlib import Path
from typing import Any

from ltp.data.tasks import KINDS, TASKS, SpanTask, Task, custom_task, get_task
from ltp.errors import UserError, check_range, format_value
from ltp.pruning import (
    DENSE,
    DENSE_MODE,
    default_method,
    method_class,
    option_of,
    variant_of,
    variants,
)
from ltp.pruning.method import UNSET, Method
from ltp.runs.checkpoints import Checkpoint, inspect_checkpoint, is_finished, read_config
from ltp.runs.fingerprints import checkpoint_fingerprint, data_fingerprints
from ltp.runs.identity import Run, check_identity
from ltp.runs.layout import checkpoint_folder, deviations, run_directory
from ltp.runs.results import RESULTS_FILE
from ltp.runs.settings import (
    STAGE_KEYS,
    STAGES,
    DistillSettings,
    StageSettings,
    TaskSettings,
    TrainSettings,
    check_ranges,
    prune_settings,
    prune_values,
)

log = logging.getLogger(__name__)

#: ``task.metric`` in the stored settings of tasks that are not custom: it has no effect.
_STORED_METRIC = "accuracy"


def plan_run(config: TrainSettings, *, published: TrainSettings | None = None, model_is_chosen: bool = False) -> Run:
    """Resolve a configuration to a run and its parents. Reads small files, and data and weights to identify them.

    Args:
        config: the configuration, which may contain nulls; it is not modified.
        published: the configuration of the same task and model without any other choice, from which deviations are
            counted; None for the defaults of the schema, with the configuration's model and recipe.
        model_is_chosen: whether the user chose the model. If so, a restored checkpoint must match it; otherwise
            the checkpoint determines the model.

    Raises:
        UserError: a value is out of range, options contradict each other, a checkpoint does not match, or the parent's
            directory holds another run.
    """
    check_ranges(config)
    settings = copy.deepcopy(config)
    if published is None:
        published = TrainSettings(model=config.model, recipe=config.recipe)
    task = task_of(settings.task)
    settings.task = _with_metric(settings.task)
    published = dataclasses.replace(
        published, task=_with_metric(dataclasses.replace(published.task, kind=settings.task.kind))
    )
    restored = None if settings.restore == "auto" else inspect_checkpoint(settings.restore)
    if restored is not None:
        _check_model_fits(settings, restored, model_is_chosen)
        check_labels_if_known(restored, task)
    inherited = restored.pruning if restored is not None else {}

    stage, mode = _resolve_stage_and_mode(settings, restored)
    settings.stage, settings.prune.mode = stage, mode
    method = _resolve_method(settings, stage, mode, restored)
    has_choice = mode != DENSE_MODE and len(method_class(mode).variants) > 1
    if not has_choice and settings.prune.learned is not None:
        raise UserError(_irrelevant_key_message("learned", settings, method))
    settings.prune.learned = variants()[method].learned if has_choice else None
    _fill_nulls(settings, task, method, inherited)
    check_ranges(settings)  # what the recipe and the checkpoint gave
    if settings.model.name is None:
        settings.model.name = checkpoint_folder(settings.model.name_or_path)

    parent_run = _plan_parent(settings, published, method, restored)
    parent = _finished(parent_run, task) if restored is None and parent_run is not None else restored
    teacher = _find_teacher(settings, task, parent, parent_run)

    deviating = _deviations(settings, published, task, method, inherited)
    places = {key: value for key, value in deviating.items() if key != "lr"}
    if teacher is not None and "distill.teacher" in places:
        places["distill.teacher"] = (teacher.results or {}).get("run_id") or teacher.source
    soft_run = None
    if _is_hard_of_learned(settings, method) and parent_run is not None:
        soft_run = parent_run.directory
    elif _is_hard_of_learned(settings, method) and restored is not None:
        soft_run = restored.run_dir
    if soft_run is None:
        places |= _start_places(restored, parent_run, model_is_chosen)
    return Run(
        settings,
        task,
        method,
        directory=run_directory(settings, method, places, soft_run, parent),
        parent=parent,
        parent_run=parent_run,
        teacher=teacher,
        deviations=deviating,
        data=data_fingerprints(settings, task),
        checkpoint=_start_fingerprint(settings, method, restored),
    )


def check_labels(checkpoint: Checkpoint, task: Task) -> None:
    """Check that a checkpoint's classification head matches the task.

    Raises:
        UserError: the number or the order of its labels differs.
    """
    if checkpoint.model_class != task.model_class:
        architecture = (checkpoint.config.get("architectures") or [checkpoint.model_class])[0]
        raise UserError(
            f"restore={checkpoint.source} is a {architecture}, and task={task.name} needs a "
            f"…{task.model_class.removeprefix('LTP')}; restore a checkpoint that was fine-tuned on {task.name}."
        )
    if checkpoint.num_labels != task.num_labels:
        raise UserError(
            f"restore={checkpoint.source} has {checkpoint.num_labels} labels, task={task.name} has {task.num_labels}; "
            f"restore a checkpoint that was fine-tuned on {task.name}."
        )
    if not checkpoint.config.get("id2label") or not task.labels:
        return
    order = checkpoint.labels
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
    custom_keys = (
        "kind",
        "train_file",
        "validation_file",
        "test_file",
        "text_columns",
        "label_column",
        "metric",
        "size",
    )
    changed = [key for key in custom_keys if getattr(settings, key) != getattr(defaults, key)]
    if settings.metric == _STORED_METRIC and changed == ["metric"]:
        changed = []
    name = settings.name
    if name in TASKS and changed:
        raise UserError(f"task.{changed[0]}={getattr(settings, changed[0])} goes with task=custom, not task={name}")
    if name != "custom" and not changed:
        task = get_task(name)
    else:
        task = custom_task(
            name,
            text_columns=settings.text_columns,
            label_column=settings.label_column,
            metric=settings.metric,
            size=settings.size,
            kind=settings.kind,
        )
    if (threshold := settings.null_threshold) is None:
        return task
    check_range(not math.isnan(threshold), "task.null_threshold", threshold, "a number, or inf: always an answer")
    if not isinstance(task, SpanTask) or task.null_threshold is None:
        raise UserError(
            f"task.null_threshold={threshold:g} is for questions that may have no answer, as of "
            f"task.kind=span and task=squad_v2; task={name} has none"
        )
    return dataclasses.replace(task, null_threshold=threshold)


def _with_metric(settings: TaskSettings) -> TaskSettings:
    """Fill ``task.metric``: for a custom task its kind's first."""
    is_custom = settings.name not in TASKS
    metric = (settings.metric or KINDS[settings.kind].known_metrics[0]) if is_custom else _STORED_METRIC
    return dataclasses.replace(settings, metric=metric)


def _check_model_fits(settings: TrainSettings, restored: Checkpoint, model_is_chosen: bool) -> None:
    """Check a restored checkpoint against the chosen model, or take the model from it if none was chosen."""
    model = settings.model
    if not model_is_chosen:
        name = restored.name if restored.run_dir is not None else checkpoint_folder(restored.path)
        model.name, model.name_or_path, model.architecture, model.num_layers = name, None, {}, None
        return
    expected = model.architecture
    if model.name_or_path is not None and (Path(model.name_or_path) / "config.json").is_file():
        expected = read_config(Path(model.name_or_path) / "config.json", f"model.name_or_path={model.name_or_path}")
    if model.num_layers is not None:
        expected = {**expected, "num_hidden_layers": model.num_layers}
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
    stage, mode, learned = settings.stage, settings.prune.mode, settings.prune.learned
    inherited = restored.pruning if restored is not None else {}
    suggestion = f"prune={option_of(default_method())}"
    if stage == "finetune" and mode not in (None, DENSE_MODE):
        raise UserError(
            f"stage=finetune trains the dense model, prune_mode={mode} prunes it: "
            "leave one of them out (stage=soft learns thresholds, stage=hard trains with fixed ones)."
        )
    if stage in ("soft", "hard") and mode == DENSE_MODE:
        raise UserError(f"stage={stage} with prune=none: nothing is pruned. Use stage=finetune, or {suggestion}.")
    if stage == "soft" and mode is not None and method_class(mode).variant(learned=True) is None:
        raise UserError(
            f"stage=soft with prune={mode}: {_name(mode)} has nothing to learn. Use stage=hard, or {suggestion}."
        )
    if mode is None and stage != "finetune":
        mode = inherited.get("prune_mode")
        if stage == "soft" and (mode is None or method_class(mode).variant(learned=True) is None):
            mode = default_method().name
        # a choice of learned or given needs a method, too; a dense checkpoint has none
        if mode is None and learned is not None:
            mode = default_method().name
        if mode is None:
            mode = default_method().name if stage is not None else DENSE_MODE
    mode = mode or DENSE_MODE
    if stage == "soft" and learned is False:
        given = option_of(method_class(mode), learned=False)
        raise UserError(f"stage=soft learns thresholds, prune={given} gives them: use stage=hard, or {suggestion}.")
    if stage is None:
        is_learned = mode != DENSE_MODE and method_class(mode).variant(learned=True) is not None
        fixed = learned is False or (restored is not None and restored.holds_learned(mode))
        stage = "finetune" if mode == DENSE_MODE else "soft" if is_learned and not fixed else "hard"
    return stage, mode


def _name(variant: str) -> str:
    """Return the name of a variant in messages: before the word *run*."""
    found = variants().get(variant)
    return variant if found is None else found.adjective or found.label


def _resolve_method(settings: TrainSettings, stage: str, mode: str, restored: Checkpoint | None) -> str:
    """Return the method; see :attr:`Run.method`."""
    if stage == "finetune":
        return DENSE
    method = method_class(mode)
    if len(method.variants) == 1:
        (only,) = method.variants
        if only.learned and stage == "hard" and restored is not None and not restored.holds_learned(mode):
            raise UserError(
                f"restore={restored.source} has learned nothing for prune={mode}: run stage=soft on it first."
            )
        if only.learned and restored is not None and restored.holds_learned(mode):
            _check_initial(settings, method, restored, "leave it out")
        return only.name
    if stage == "soft":
        return variant_of(method, learned=True)
    learned = settings.prune.learned
    if restored is None:
        return variant_of(method, learned=learned is not False)
    holds = restored.holds_learned(mode)
    if learned and not holds:
        raise UserError(
            f"restore={restored.source} holds no learned thresholds, which prune.learned=true asks for: "
            f"run stage=soft on it first, or use prune={option_of(method, learned=False)}."
        )
    if learned is False or not holds:
        return variant_of(method, learned=False)
    _check_initial(settings, method, restored, f"leave it out, or use prune={option_of(method, learned=False)}")
    return variant_of(method, learned=True)


def _check_initial(settings: TrainSettings, method: type[Method], restored: Checkpoint, remedy: str) -> None:
    """Check that no setting would start the parameters again that a checkpoint has learned."""
    for key in method.initial_keys():
        name = method.config_keys()[key]
        initial, requested = restored.pruning.get(key), getattr(settings.prune, name)
        if requested is not None and requested != initial:
            raise UserError(
                f"restore={restored.source} has learned from {key}={'null' if initial is None else initial}; "
                f"prune.{name}={requested} would start again: {remedy}."
            )


def _fill_nulls(settings: TrainSettings, task: Task, method: str, inherited: dict[str, Any]) -> None:
    """Replace every null by the checkpoint's value, or else the recipe's."""
    assert settings.stage is not None
    prune = settings.prune
    for key, default in _stage_defaults(settings, task).items():
        given, of_stage = getattr(settings, key), getattr(getattr(settings, settings.stage), key)
        if given is not None and of_stage is not None and given != of_stage:
            raise UserError(
                f"{key}={format_value(given)} and {settings.stage}.{key}={format_value(of_stage)} contradict each "
                f"other in a run of stage {settings.stage}: give one of them"
            )
        if given is None:
            setattr(settings, key, default if of_stage is None else of_stage)

    variant = variants()[method]
    if variant.learned and settings.stage == "hard" and not settings.targets:
        _inherit_budgets(settings, inherited.get("budgets"))
    relevant = {} if method == DENSE else _relevant_settings(settings, method)
    if settings.budgets is not None and (method == DENSE or not settings.method.has_thresholds()):
        raise UserError(
            f"budgets={settings.budgets} has no meaning for a {_name(method)} run: several "
            "budgets are several thresholds a layer. "
            "Use prune=threshold or prune=manual, or prune.target_flops for one budget."
        )
    facts = {} if method == DENSE else settings.method.settings()
    for name in prune_values():
        value = getattr(prune, name)
        if name == "sliding_layers" and method != DENSE:  # of the encoder; null is the checkpoint's value, or skip
            continue
        if name not in relevant:
            if value is not None:
                raise UserError(_irrelevant_key_message(name, settings, method))
            continue
        if value is None:
            key = facts[name].key or name if name in facts else name
            setattr(prune, name, inherited.get(key, relevant[name]))


def _relevant_settings(settings: TrainSettings, method: str) -> dict[str, Any]:
    """Return the keys of the group ``prune`` that a run has, with their defaults."""
    variant, kind = variants()[method], type(settings.method)
    defaults = {item.name: item.default for item in dataclasses.fields(kind)} | dict(variant.defaults)
    if settings.recipe.name == "demo":
        defaults |= dict(variant.demo)
    relevant: dict[str, Any] = {"target_flops": None} if kind.has_strength() else {}
    for name, fact in kind.settings().items():
        if (fact.learned and not variant.learned) or fact.stage not in (None, settings.stage):
            continue
        if fact.set_by_budget and settings.targets:
            continue
        if settings.targets and fact.with_budget is not UNSET:
            relevant[name] = fact.with_budget
        elif fact.follows is not None:
            relevant[name] = operator.attrgetter(fact.follows)(settings)
        else:
            relevant[name] = defaults[name]
    return relevant


def _stage_defaults(settings: TrainSettings, task: Task) -> dict[str, Any]:
    """Return the recipe's values for the stage of a run."""
    assert settings.stage is not None
    recipe = settings.recipe.stages[settings.stage]
    return dataclasses.asdict(recipe) | {
        "lr": recipe.lr if recipe.lr is not None else task.lr,
        "epochs": getattr(recipe.epochs, task.size),
    }


def _deviations(
    settings: TrainSettings, published: TrainSettings, task: Task, method: str, inherited: dict[str, Any]
) -> dict[str, Any]:
    """Return what a run has otherwise than the published run of the same names; see :attr:`Run.deviations`."""
    reference = copy.deepcopy(settings)
    reference.recipe = published.recipe
    for stage in STAGES:
        setattr(reference, stage, StageSettings())
    for key in STAGE_KEYS:
        if key != "lr":  # which other defaults depend on
            setattr(reference, key, None)
    without_place = [name for name, fact in settings.method.settings().items() if fact.place is None]
    reference.prune = dataclasses.replace(settings.prune, **dict.fromkeys([*without_place, "sliding_layers"]))
    if task.is_custom:
        task = dataclasses.replace(task, size=published.task.size)
    _fill_nulls(reference, task, method, inherited)
    reference.task, reference.model = published.task, published.model
    reference.trainer, reference.distill = published.trainer, published.distill
    reference.callbacks = published.callbacks
    default_lr = _stage_defaults(reference, task)["lr"]
    return ({"lr": settings.lr} if settings.lr != default_lr else {}) | deviations(settings, reference)


def _inherit_budgets(settings: TrainSettings, inherited: list[float] | None) -> None:
    """Give a hard run the budgets that its parent was trained for."""
    if inherited and len(inherited) == 1:
        settings.prune.target_flops = inherited[0]
    elif inherited:
        settings.budgets = list(inherited)


def _irrelevant_key_message(key: str, settings: TrainSettings, method: str) -> str:
    key_and_value = f"prune.{key}={getattr(settings.prune, key)}"
    fact = settings.method.settings().get(key)
    if fact is not None and fact.set_by_budget and settings.targets and method != DENSE:
        budget_key = "prune.target_flops" if settings.budgets is None else "budgets"
        return f"{key_and_value} is what {budget_key} decides; leave one of them out"
    if key == "target_flops" and method != DENSE:
        return f"{key_and_value}: {_name(method)} has no setting that brings it to a budget; leave it out"
    name = f"{settings.stage} {_name(method)}" if variants()[method].learned else _name(method)
    return f"{key_and_value} has no meaning for a {name} run; leave it out"


def _is_hard_of_learned(settings: TrainSettings, method: str) -> bool:
    """Whether a run is the hard stage of a learned method, which starts from a soft run and lies inside it."""
    return variants()[method].learned and settings.stage == "hard"


def _plan_parent(
    settings: TrainSettings, published: TrainSettings, method: str, restored: Checkpoint | None
) -> Run | None:
    """Plan the parent that ``restore=auto`` takes.

    Returns:
        None if the run has no parent, or starts from another checkpoint that the user names.
    """
    if method == DENSE:
        return None
    if restored is None:
        return plan_run(_parent_settings(settings, method), published=published)
    if restored.run_dir is None or _is_hard_of_learned(settings, method):
        return None
    automatic = plan_run(_parent_settings(settings, method), published=published)
    return automatic if _is_same(restored.run_dir, automatic.directory) else None  # named, and taken anyway


def _parent_settings(settings: TrainSettings, method: str) -> TrainSettings:
    """Return the settings of the parent that a run starts from; see :attr:`Run.parent_run`.

    It has the run's task, model, seed and machine; what belongs to a stage comes from the groups of stages, or else
    the recipe.
    """
    parent = copy.deepcopy(settings)
    for key in STAGE_KEYS:
        setattr(parent, key, None)
    parent.restore, parent.overwrite, parent.plan, parent.flops_budget = "auto", False, None, None
    parent.callbacks = {}
    parent.trainer.max_steps, parent.trainer.max_time = -1, None  # they limit this run only
    parent.trainer.num_nodes = 1  # only the main process's node trains the parent
    if _is_hard_of_learned(settings, method):
        parent.stage = "soft"
        return parent
    parent.stage, parent.budgets = "finetune", None
    parent.prune, parent.distill = prune_settings(), DistillSettings()
    return parent


def _finished(parent: Run, task: Task) -> Checkpoint | None:
    """Return the checkpoint of a parent run; None if the run is not finished.

    Raises:
        UserError: its directory holds another run, or its labels are not the task's.
    """
    check_identity(
        parent,
        f"It is the parent of this run. Take it as it is with restore={parent.directory}, or make room for another: "
        "delete it, or give another output_root=…",
    )
    if not is_finished(parent.directory):
        return None
    checkpoint = inspect_checkpoint(str(parent.directory))
    check_labels_if_known(checkpoint, task)
    return checkpoint


def _start_fingerprint(settings: TrainSettings, method: str, restored: Checkpoint | None) -> str | None:
    """Return the fingerprint of the Hugging Face directory that a run starts from; see :attr:`Run.checkpoint`."""
    if restored is not None:
        return checkpoint_fingerprint(restored.path) if restored.run_dir is None else None
    return checkpoint_fingerprint(settings.model.name_or_path) if method == DENSE else None


def _is_same(directory: Path, other: Path) -> bool:
    return other.is_dir() and directory.samefile(other)


def _start_places(restored: Checkpoint | None, parent_run: Run | None, model_is_chosen: bool) -> dict[str, Any]:
    """Return what tells apart runs of the same names that start from different checkpoints, as places in the path."""
    if parent_run is not None:
        found = parent_run.deviations
        return {f"{parent_run.stage}.{key}": value for key, value in found.items() if key in STAGE_KEYS}
    if restored is None:
        return {}
    if restored.run_dir is not None:
        return {"restore": (restored.results or {}).get("run_id") or str(restored.run_dir)}
    if not model_is_chosen:  # the model's folder is named after the checkpoint
        return {}
    return {"restore": checkpoint_fingerprint(restored.path) or restored.path}


def _find_teacher(
    settings: TrainSettings, task: Task, parent: Checkpoint | None, parent_run: Run | None
) -> Checkpoint | None:
    """Find the teacher: the checkpoint of ``distill.teacher``, or for ``auto`` the run's nearest dense ancestor.

    Returns:
        None without distillation, unless the method needs one, and for ``auto`` while the parent is missing.

    Raises:
        UserError: there is none, or it does not match the run's model.
    """
    if settings.distill.mode is None and not settings.needs_saliency:
        return None
    remedy = "name a dense checkpoint with distill.teacher=…"
    is_asked = settings.distill.mode is not None or settings.distill.teacher != "auto"
    key = f"distill.teacher={settings.distill.teacher}" if is_asked else f"prune={settings.prune.mode}"
    if settings.distill.teacher != "auto":
        teacher = inspect_checkpoint(settings.distill.teacher, "distill.teacher")
    elif parent is None and parent_run is not None:
        return None
    elif parent is None:
        raise UserError(f"{key}: this run starts from no fine-tuned checkpoint that could teach it; {remedy}")
    else:
        teacher = parent
        while teacher.prunes:
            ancestor = (teacher.results or {}).get("parent")
            if ancestor is None or not (Path(ancestor) / RESULTS_FILE).is_file():
                where = f"is not there ({ancestor})" if ancestor is not None else "is not known"
                raise UserError(f"{key}: the dense parent of {teacher.source} {where}; {remedy}")
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
    if task.knows_labels:
        check_labels(checkpoint, task)

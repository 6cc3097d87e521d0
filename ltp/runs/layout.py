"""Paths of run directories: the published layout, and a place for every other setting that differs from it.

Runs form a tree under ``outputs/<model>/<task>/``::

    finetune/lr_…/seed_…                                              dense parent of all others
    absolute_threshold/rate_…/temperature_…/lambda_…/lr_…/seed_…      soft
    absolute_threshold/rate_…/temperature_…/lambda_…/lr_…/seed_…/hard/lr_…   hard, nested in its soft run
    absolute_threshold/rate_…/hard/lr_…/seed_…                        manual thresholds
    topk/rate_…/lr_…/seed_…                                           a method that learns nothing

A method's folder has its name, and its settings say under which names they stand in the path.

A setting that these names leave out and that differs from the published run's stands before ``lr_…``:
``finetune/batch_size_16/epochs_1/lr_…/seed_…``. A deviation of the parent carries its stage's name:
``topk/rate_…/finetune_epochs_1/lr_…/seed_…``.
"""

import dataclasses
import functools
import hashlib
import re
from pathlib import Path
from typing import Any

from ltp.errors import format_number
from ltp.pruning import DENSE
from ltp.runs.checkpoints import Checkpoint
from ltp.runs.fingerprints import checkpoint_fingerprint
from ltp.runs.settings import TrainSettings, flatten, is_free, prune_values

#: Keys that the published layout names, and those of distillation, which have a folder of their own.
_NAMED = (
    *("task.name", "model.name", "model.name_or_path", "stage", "lr", "seed", "budgets"),
    *("prune.mode", "prune.learned", "prune.target_flops"),
    *("distill.mode", "distill.weight", "distill.temperature", "distill.hidden_weight", "distill.ranking_weight"),
)
#: Keys that say what a task is: it has one name, so that another definition with this name is refused.
_TASK_DEFINITION = (
    *("data_dir", "task.train_file", "task.validation_file"),
    *("task.text_columns", "task.label_column"),
)
#: Keys whose values do not name a run.
_NOT_PLACED = frozenset(
    {
        *("model.name", "model.name_or_path", "model.architecture", "distill.mode", "distill.teacher", "stage"),
        *("prune.mode", "prune.learned", *_TASK_DEFINITION),
    }
)
_LONGEST = 40  # characters of a value


def deviations(settings: TrainSettings, published: TrainSettings) -> dict[str, Any]:
    """Return the settings that the published layout does not name and that differ from the published run's.

    Args:
        settings: the resolved settings of a run.
        published: the resolved settings of the run of the same names.

    Returns:
        Values by dotted key, in the order of the schema.
    """
    default = flatten(dataclasses.asdict(published))
    named = {*_NAMED, *_TASK_DEFINITION, *_placed_settings(settings)}
    differing = {
        key: value
        for key, value in flatten(dataclasses.asdict(settings)).items()
        if key not in named and not is_free(key) and value != default.get(key)
    }
    if settings.model.name_or_path is not None or not settings.model.architecture:
        # the checkpoint has an architecture of its own
        differing = {key: value for key, value in differing.items() if not key.startswith("model.architecture")}
    callbacks = [key for key in differing if key.startswith("callbacks.")]
    if callbacks:  # in one place: their names, and a digest of their arguments
        arguments = repr(sorted((key, differing.pop(key)) for key in callbacks))
        differing["callbacks"] = f"{'_'.join(sorted(settings.callbacks))}-{_digest(arguments)}"
    return differing


def is_placed(key: str) -> bool:
    """Whether runs that differ in a dotted key always have different directories."""
    return key in _all_keys(prune_values()) and key not in _NOT_PLACED and not is_free(key)


@functools.cache
def _all_keys(prune: tuple[str, ...]) -> frozenset[str]:
    """Return every dotted key; the argument makes it follow the registered methods."""
    return frozenset(flatten(dataclasses.asdict(TrainSettings())))


def _placed_settings(settings: TrainSettings) -> list[str]:
    """Return the dotted keys of the settings of a run's method that its path names."""
    return [f"prune.{name}" for name, fact in settings.method.settings().items() if fact.place is not None]


def folder_name(name: str) -> str:
    """Return a name from a file or the command line as the name of one folder, which is no way out of its parent."""
    safe = re.sub(r"[^\w.-]", "_", name)
    return safe if safe.strip(".") else "_"


def run_directory(
    settings: TrainSettings, method: str, deviating: dict[str, Any], soft_run: Path | None, parent: Checkpoint | None
) -> Path:
    """Return a run's directory.

    Args:
        settings: its resolved settings.
        method: see :attr:`ltp.runs.identity.Run.method`.
        deviating: settings that get a place of their own in the path, by dotted key.
        soft_run: for a hard run of learned thresholds, the directory of its soft run; None if that is no run.
        parent: the parent's checkpoint; None without one, and while the parent run is missing.
    """
    assert settings.lr is not None and settings.model.name is not None
    places = Path(_distillation_folder(settings), *(_place(key, value) for key, value in deviating.items()))
    lr, seed = f"lr_{format_number(settings.lr)}", f"seed_{settings.seed}"
    folder = Path(settings.output_root) / folder_name(settings.model.name) / settings.task.name
    if method == DENSE:
        return folder / "finetune" / places / lr / seed
    if soft_run is not None:
        if parent is not None and parent.results is not None and parent.results.get("seed") != settings.seed:
            lr = f"{lr}/{seed}"
        if parent is not None:
            held = parent.pruning.get("budgets", [])
        else:  # those with which the missing parent will be trained: only thresholds are held
            held = settings.targets if type(settings.method).has_thresholds() else []
        # the budget is part of the path only if it differs from the parent's
        budget = "" if held == settings.targets else _budget_folder(settings)
        return soft_run / "hard" / budget / places / lr
    kind = type(settings.method)
    learns_here = settings.stage == "soft"
    named = [_budget_folder(settings)]
    for name, fact in kind.settings().items():
        value = getattr(settings.prune, name)
        if fact.place is not None and value is not None and (learns_here or not fact.learned):
            named.append(f"{fact.place}_{_safe(_as_text(value))}")
    is_hard_beside_soft = not learns_here and kind.variant(learned=True) is not None
    return folder / kind.name / Path(*named) / ("hard" if is_hard_beside_soft else "") / places / lr / seed


def _place(key: str, value: Any) -> str:
    """Return the folder name of a setting: ``batch_size_16``, ``finetune_epochs_1``."""
    name = key.removeprefix("model.architecture.")
    for group in ("task.", "model.", "prune.", "trainer.", "distill."):
        name = name.removeprefix(group)
    return f"{_safe(name.replace('.', '_'))}_{_safe(_as_text(value))}"


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        return "_".join(map(_as_text, value))
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return format_number(value) if isinstance(value, int | float) else str(value)


def _safe(text: str) -> str:
    """Return a text as part of a folder name; a digest tells apart those that are changed for it."""
    name = re.sub(r"[^\w.-]", "_", text)
    if name == text and len(name) <= _LONGEST:
        return name
    return f"{name[-_LONGEST:]}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


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
    ranking = f"_ranking_{format_number(distill.ranking_weight)}" if distill.ranking_weight else ""
    logits = f"distill_logits_{format_number(distill.weight)}_temperature_{format_number(distill.temperature)}"
    return f"{logits}{hidden}{ranking}"


def checkpoint_folder(name_or_path: str | None) -> str:
    """Return the folder name for the runs of a checkpoint: the last part of its path, or ``scratch`` for none.

    Directories of one name are told apart by their content.
    """
    if name_or_path is None:
        return "scratch"
    name = re.sub(r"[^\w.-]", "_", name_or_path.rstrip("/").rsplit("/", 1)[-1])
    fingerprint = checkpoint_fingerprint(name_or_path)
    return name if fingerprint is None else f"{name}-{fingerprint[:8]}"

"""Settings of a leaderboard, and their checks."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from ltp.data.tasks import KINDS, TASKS, TextTask
from ltp.errors import UserError, check_range
from ltp.pruning import aliases, all_methods, known_methods
from ltp.runs.settings import check_shares


@dataclass
class LeaderboardSettings:
    """Settings of a leaderboard; ``python -m ltp.leaderboard --help`` explains the keys.

    ``methods`` is a str or a list of str: :func:`check` makes it a list.
    """

    methods: Any = None
    budgets: Any = MISSING
    seeds: Any = MISSING
    layers: bool = MISSING
    int8: bool = MISSING
    speed_batch_size: int = MISSING
    threads: int | None = None
    to: str | None = None
    train: Any = MISSING


#: Keys of trainings that the leaderboard sets.
_ITS_OWN = ("prune", "prune_mode", "prune.target_flops", "budgets", "seed", "stage", "model.num_layers")


def check(settings: LeaderboardSettings) -> LeaderboardSettings:
    """Check the settings, and fill their nulls.

    Raises:
        UserError: a value is out of range, or a method is unknown or cannot be brought to a budget.
    """
    for key in ("methods", "budgets", "seeds"):
        value = getattr(settings, key)
        if value is not None and not isinstance(value, list):
            setattr(settings, key, [value])
    if settings.methods is None:
        settings.methods = [name for name, method in all_methods().items() if method.has_strength()]
    are_names = all(isinstance(name, str) for name in settings.methods)
    check_range(are_names and bool(settings.methods), "methods", settings.methods, "names, as [threshold,topk]")
    selected = []  # the method and variant of each name; "" where a run chooses the variant
    for name in settings.methods:
        known = aliases().get(name, name)
        if known not in all_methods():
            raise UserError(f"methods: there is no method {name}; {known_methods(str(name))}")
        if not all_methods()[known].has_strength():
            raise UserError(f"methods: {name} cannot be compared at equal cost: it has no setting that sets its cost")
        selected.append((known, all_methods()[known].aliases.get(name, "")))
    _check_once("methods", settings.methods, selected)
    numbers = all(isinstance(value, int | float) for value in settings.budgets)
    check_range(numbers, "budgets", settings.budgets, "shares of the dense FLOPs, as [0.3,0.5,0.7]")
    settings.budgets = sorted(float(value) for value in settings.budgets)
    check_shares("budgets", settings.budgets)
    seeds = all(isinstance(value, int) and value >= 0 for value in settings.seeds) and len(settings.seeds) > 0
    check_range(seeds, "seeds", settings.seeds, "one or more whole numbers from 0 on, as [0,1,2]")
    _check_once("seeds", settings.seeds, settings.seeds)
    check_range(settings.speed_batch_size >= 1, "speed_batch_size", settings.speed_batch_size, "1 or more")
    name, kind = (
        value_of(settings.train, key, default) for key, default in (("task", "demo"), ("task.kind", "single"))
    )
    task = TASKS.get(name) or KINDS.get(kind, TextTask)
    if not task.scores_rows:
        raise UserError(
            f"task={name}: the errors of a leaderboard are of resampled rows, and this task's metrics are "
            "not of single rows; python -m ltp.report compares such runs"
        )
    for word in settings.train:
        if word.split("=", 1)[0].lstrip("+") in _ITS_OWN:
            raise UserError(f"{word}: the leaderboard sets it; choose with methods=, budgets= and seeds=")
    return settings


def _check_once(key: str, values: Sequence[Any], identities: Sequence[Any]) -> None:
    """Check that no two values are the same: their trainings would be one run."""
    first: dict[Any, Any] = {}
    for value, identity in zip(values, identities, strict=True):
        if identity in first:
            same = first[identity] == value
            what = f"{value} is given twice" if same else f"{first[identity]} and {value} are the same"
            raise UserError(f"{key}: {what}; name it once")
        first[identity] = value


def value_of(words: Sequence[str], key: str, default: str) -> str:
    """Return the value of an override, the last of its key."""
    values = [word.split("=", 1)[1] for word in words if word.split("=", 1)[0].lstrip("+") == key]
    return shlex.split(values[-1])[0] if values else default

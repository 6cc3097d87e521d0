"""The settings of an evaluation, as given and as checked."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from ltp.runs.checkpoints import Checkpoint
from ltp.runs.settings import TaskSettings, unset_task

EXECUTIONS = ("packed", "masked", "deployed")
DTYPES = ("float32", "bfloat16", "int8")


@dataclass
class EvaluateSettings:
    """Settings of an evaluation; ``python -m ltp.evaluate --help`` explains the keys.

    ``threshold_scale`` is a float or a list of floats: :func:`ltp.evaluate.resolve` makes it a list.
    """

    restore: str = MISSING
    budget: float | None = None
    task: TaskSettings = field(default_factory=unset_task)
    data_dir: str | None = None
    split: str = MISSING
    by_length: int | None = None
    threshold_scale: Any = MISSING
    execution: str = MISSING
    dtype: str | None = None
    threads: int | None = None
    device: str = MISSING
    batch_size: int = MISSING
    to: str | None = None
    output: str | None = None


@dataclass(frozen=True)
class Request:
    """An evaluation whose settings are checked.

    Attributes:
        settings: the settings, with the nulls filled that small files determine.
        checkpoint: the checkpoint to evaluate.
        predictions: the file for the prediction of every example; None writes none.
    """

    settings: EvaluateSettings
    checkpoint: Checkpoint
    predictions: Path | None

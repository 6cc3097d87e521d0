"""What an evaluation is asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from ltp.runs.checkpoints import Checkpoint
from ltp.runs.settings import TaskSettings

EXECUTIONS = ("packed", "masked", "deployed")
DTYPES = ("float32", "bfloat16", "int8")


@dataclass
class EvaluateSettings:
    """One evaluation; ``python -m ltp.evaluate --help`` says what each key means.

    ``threshold_scale`` (float) is one or a list: :func:`resolve` makes it a list.
    """

    restore: str = MISSING
    budget: float | None = None
    task: TaskSettings | None = None
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
    """A checked evaluation.

    Attributes:
        settings: nulls filled as far as small files tell.
        checkpoint: what is evaluated.
        predictions: where every example's prediction goes; None for nowhere.
    """

    settings: EvaluateSettings
    checkpoint: Checkpoint
    predictions: Path | None

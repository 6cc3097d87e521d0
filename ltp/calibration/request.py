"""Settings of a calibration, and the checked request."""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from ltp.pruning import DENSE_MODE, default_method, method_class, variant_of
from ltp.runs.checkpoints import Checkpoint
from ltp.runs.loading import StoredTask
from ltp.runs.settings import TaskSettings, unset_task

#: The keys that set the target, with an example of each; exactly one must be given.
BUDGETS = {
    "target_flops": "target_flops=0.4 (a share of the dense FLOPs)",
    "target_latency_ms": "target_latency_ms=12 (milliseconds a batch, measured on this machine)",
    "budgets": "budgets=[0.3,0.5,0.7] (several in one checkpoint)",
    "agreement": "agreement=0.98 (share of the dense model's predictions to keep)",
}
#: The keys that need ``target_latency_ms``, with their defaults.
LATENCY_DEFAULTS = {"batch_size": 1, "execution": "deployed", "dtype": "float32"}

#: Generations of ``search=evolution``.
GENERATIONS = 15


@dataclass
class CalibrateSettings:
    """Settings of one calibration; ``python -m ltp.calibrate --help`` documents each key."""

    restore: str = MISSING
    target_flops: float | None = None
    target_latency_ms: float | None = None
    budgets: list[float] | None = None
    agreement: float | None = None
    texts: str | None = None
    columns: list[str] | None = None
    batch_size: int | None = None
    execution: str | None = None
    dtype: str | None = None
    search: str | None = None
    generations: int | None = None
    task: TaskSettings = field(default_factory=unset_task)
    data_dir: str | None = None
    examples: int = MISSING
    threads: int | None = None
    device: str = MISSING
    output_root: str | None = None
    to: str | None = None
    overwrite: bool = MISSING


def is_dense(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint prunes no tokens."""
    return checkpoint.pruning.get("prune_mode", DENSE_MODE) == DENSE_MODE


@dataclass(frozen=True)
class Request:
    """A checked calibration.

    Attributes:
        settings: settings with nulls filled as far as small files allow; budgets ascend.
        checkpoint: the checkpoint to calibrate.
        stored: the task stored in its run; None if it is no run, or its run stores none.
        is_own_task: whether the task and data are those of its run, so that old and new results are comparable.
        directory: directory of the new run.
    """

    settings: CalibrateSettings
    checkpoint: Checkpoint
    stored: StoredTask | None
    is_own_task: bool
    directory: Path

    @property
    def kind(self) -> str:
        """The key that sets the target."""
        return next(key for key in BUDGETS if getattr(self.settings, key) is not None)

    @property
    def targets(self) -> list[float]:
        """Target relative FLOPs, ascending; empty for a latency target."""
        settings = self.settings
        return [settings.target_flops] if settings.target_flops is not None else settings.budgets or []

    @property
    def is_dense(self) -> bool:
        """Whether the checkpoint does not prune, so that its pruning starts from :func:`~ltp.pruning.untrained`."""
        return is_dense(self.checkpoint)

    @property
    def method(self) -> str:
        """The pruning method, as in ``results.json``."""
        if self.is_dense:
            return variant_of(default_method(), learned=False)  # thresholds that no training has seen
        mode = self.checkpoint.pruning["prune_mode"]
        stored = (self.checkpoint.results or {}).get("method")
        method = method_class(mode)
        held = method.variant(self.checkpoint.holds_learned(mode)) or method.variants[0]
        return str(stored or held.name)

    @property
    def parent_name(self) -> str:
        """The calibrated run or checkpoint, as in ``results.json``."""
        return str(self.checkpoint.run_dir or self.checkpoint.source)

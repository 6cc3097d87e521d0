"""What a calibration is asked for."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from ltp.pruning import RATE_MODES
from ltp.runs.checkpoints import Checkpoint
from ltp.runs.loading import StoredTask
from ltp.runs.settings import TaskSettings

#: The keys of which one says what is to be met, with an example of each.
BUDGETS = {
    "target_flops": "target_flops=0.4 (a share of the dense FLOPs)",
    "target_latency_ms": "target_latency_ms=12 (milliseconds a batch, measured on this machine)",
    "budgets": "budgets=[0.3,0.5,0.7] (several in one checkpoint)",
}
#: The keys that go with a latency, and what they are where nothing is said.
LATENCY_DEFAULTS = {"batch_size": 1, "execution": "deployed", "dtype": "float32"}


@dataclass
class CalibrateSettings:
    """One calibration; ``python -m ltp.calibrate --help`` says what each key means."""

    restore: str = MISSING
    target_flops: float | None = None
    target_latency_ms: float | None = None
    budgets: list[float] | None = None
    batch_size: int | None = None
    execution: str | None = None
    dtype: str | None = None
    task: TaskSettings | None = None
    data_dir: str | None = None
    examples: int = MISSING
    threads: int | None = None
    device: str = MISSING
    output_root: str | None = None
    to: str | None = None
    overwrite: bool = MISSING


@dataclass(frozen=True)
class Request:
    """A checked calibration.

    Attributes:
        settings: nulls filled as far as small files tell; budgets ascend.
        checkpoint: what is calibrated.
        stored: what its run says about its data; None where it is no run that does.
        is_own: whether it is calibrated on its own task, so that its results compare with the new ones.
        directory: the new run.
    """

    settings: CalibrateSettings
    checkpoint: Checkpoint
    stored: StoredTask | None
    is_own_task: bool
    directory: Path

    @property
    def kind(self) -> str:
        """The key that says what is to be met."""
        return next(key for key in BUDGETS if getattr(self.settings, key) is not None)

    @property
    def targets(self) -> list[float]:
        """Relative FLOPs to be met, ascending; empty for a latency."""
        settings = self.settings
        return [settings.target_flops] if settings.target_flops is not None else settings.budgets or []

    @property
    def method(self) -> str:
        """The pruning method, as results name it."""
        mode = self.checkpoint.pruning["prune_mode"]
        stored = (self.checkpoint.results or {}).get("method")
        learned = "learned" if self.checkpoint.holds_thresholds else "manual"
        return str(stored or (mode if mode in RATE_MODES else learned))

    @property
    def parent_name(self) -> str:
        """What is calibrated, as results name it."""
        return str(self.checkpoint.run_dir or self.checkpoint.source)

"""The rows of a leaderboard, their errors, and the differences between them."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ltp.comparison.measuring import Measured, bootstrap
from ltp.data.tasks import Task
from ltp.evaluation.scoring import Outcome

RESAMPLES = 200
#: A difference counts if it exceeds this many of its standard errors.
STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class Row:
    """A method at a budget, over all seeds.

    Attributes:
        name: name of the method's variant, or of what is compared with them.
        label: its name in the table.
        target: the budget; None without one.
        relative_flops: counted on the validation split, of the dense FLOPs; mean over the seeds.
        metric: the task's main metric, mean over the seeds.
        error: its standard error: over the examples and the seeds.
        seeds: number of runs.
        speedup: time of the deployed dense model ÷ its own; of the first seed.
        speedup_range: the smallest and largest of the rounds.
        training_seconds: of its own stages, mean over the seeds; without the dense parent.
        behind: how much the best row of its budget is ahead; None for the best, and without a budget.
        behind_error: standard error of this difference: over the same examples, and the seeds.
    """

    name: str
    label: str
    target: float | None
    relative_flops: float
    metric: float
    error: float
    seeds: int
    speedup: float
    speedup_range: tuple[float, float]
    training_seconds: float
    behind: float | None = None
    behind_error: float | None = None

    @property
    def is_behind(self) -> bool:
        """Whether it is behind the best row of its budget by more than the error."""
        return self.behind is not None and self.behind > STANDARD_ERRORS * (self.behind_error or 0.0)


@dataclass(frozen=True)
class Candidate:
    """What becomes a row: the same training with several seeds.

    Attributes:
        name, label, target: see :class:`Row`.
        measured: what was measured of each run.
        relative_flops, training_seconds: of each run.
    """

    name: str
    label: str
    target: float | None
    measured: Sequence[Measured]
    relative_flops: Sequence[float]
    training_seconds: Sequence[float]


def scorer(task: Task) -> Callable[[Outcome], float]:
    """Return the function that computes a task's main metric; 0 where it is not defined."""
    metric = task.build_metrics()[task.main_metric]

    def score(outcome: Outcome) -> float:
        return outcome.score(metric, task.main_metric) or 0.0

    return score


def rank(candidates: Sequence[Candidate], task: Task) -> list[Row]:
    """Compute the rows: those without a budget first, then by budget and metric, the best first.

    Differences are paired: all rows are scored on the same resamples of the validation examples (bootstrap).
    """
    score = scorer(task)
    examples = len(candidates[0].measured[0].outcome.labels)
    generator = torch.Generator().manual_seed(0)
    resamples = [torch.randint(examples, (examples,), generator=generator) for _ in range(RESAMPLES)]
    rows: list[tuple[Row, torch.Tensor, float]] = []
    for item in candidates:
        values = [score(measured.outcome) for measured in item.measured]
        resampled = torch.stack([bootstrap(measured.outcome, score, resamples) for measured in item.measured]).mean(0)
        of_seeds = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        first = item.measured[0]
        row = Row(
            item.name,
            item.label,
            item.target,
            statistics.fmean(item.relative_flops),
            statistics.fmean(values),
            math.hypot(float(resampled.std()), of_seeds),
            len(values),
            first.speedup,
            first.speedup_range,
            statistics.fmean(item.training_seconds),
        )
        rows.append((row, resampled, of_seeds))
    ranked = [row for row, _, _ in rows if row.target is None]
    for target in sorted({row.target for row, _, _ in rows if row.target is not None}):
        same = sorted((entry for entry in rows if entry[0].target == target), key=lambda entry: -entry[0].metric)
        best, best_resampled, best_of_seeds = same[0]
        ranked.append(best)
        for row, resampled, of_seeds in same[1:]:
            error = math.hypot(float((best_resampled - resampled).std()), best_of_seeds, of_seeds)
            ranked.append(replace(row, behind=best.metric - row.metric, behind_error=error))
    return ranked

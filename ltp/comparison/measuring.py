"""Measure the runs of a leaderboard side by side: predictions on the validation split, and time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ltp.data.datamodule import GLUEDataModule
from ltp.data.sequences import Batch
from ltp.deploy.timing import interleaved, ratio
from ltp.evaluation.request import EvaluateSettings, Request
from ltp.evaluation.run import read_data
from ltp.evaluation.scoring import Engine, Outcome, evaluate
from ltp.model.pretrained import LTPPreTrainedModel
from ltp.runs.checkpoints import inspect_checkpoint
from ltp.runs.loading import load_model, stored_task

#: Rounds of a comparison of two engines, and batches in each.
ROUNDS, BATCHES = 7, 8


@dataclass(frozen=True)
class Measured:
    """What was measured of a run.

    Attributes:
        outcome: predictions of the deployed model on the validation split.
        speedup: time of the deployed dense model ÷ its time, on the same batches: median of the rounds.
        speedup_range: the smallest and the largest of the rounds.
    """

    outcome: Outcome
    speedup: float
    speedup_range: tuple[float, float]


class Bench:
    """Measures runs against a dense one, deployed, on the CPU.

    Args:
        dense: directory of the dense run.
        batch_size: sequences in a batch, in random order, as a server gets them.
    """

    def __init__(self, dense: Path, batch_size: int) -> None:
        checkpoint = inspect_checkpoint(str(dense))
        stored = stored_task(checkpoint)
        assert stored is not None and checkpoint.results is not None
        settings = EvaluateSettings(str(dense), task=stored.task, data_dir=stored.data_dir, split="validation")
        settings.batch_size = batch_size
        model = load_model(checkpoint)
        self.data: GLUEDataModule = read_data(Request(settings, checkpoint, None), model)
        self.dense = model.deploy()
        self.batches = self._timed_batches(batch_size)

    def _timed_batches(self, size: int) -> list[Batch]:
        loader: Any = self.data.val_dataloader()[0]
        generator = torch.Generator().manual_seed(0)
        numbers = torch.randperm(len(loader.dataset), generator=generator)[: BATCHES * size]
        made = [loader.collate_fn([loader.dataset[row] for row in part.tolist()]) for part in numbers.split(size)]
        return [{name: values for name, values in batch.items() if name != "labels"} for batch in made]

    @property
    def dense_device(self) -> torch.device:
        """The device of the measurements."""
        return torch.device("cpu")

    def measure(self, directory: Path, dtype: str = "float32") -> Measured:
        """Measure a run, deployed in a type."""
        return self._measure(load_model(inspect_checkpoint(str(directory))), dtype)

    def _measure(self, model: LTPPreTrainedModel, dtype: str) -> Measured:
        deployed = model.deploy(dtype)
        outcome = evaluate(Engine(deployed, torch.device("cpu"), None), self.data, lambda count: None)
        passes = {
            "dense": lambda: [self.dense(**batch) for batch in self.batches],
            "pruned": lambda: [deployed(**batch) for batch in self.batches],
        }
        for warm_up in passes.values():
            warm_up()
        seconds = interleaved(passes, ROUNDS)
        speedup = ratio(seconds["dense"], seconds["pruned"])
        return Measured(outcome, speedup.median, (speedup.low, speedup.high))


def bootstrap(outcome: Outcome, score: Callable[[Outcome], float], resamples: Sequence[torch.Tensor]) -> torch.Tensor:
    """Score resamples of the examples: (R,) float64."""
    return torch.tensor([score(outcome[rows]) for rows in resamples], dtype=torch.float64)

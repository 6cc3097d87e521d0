"""GLUE's metrics as torchmetrics objects: states that add up over batches and processes, computed once."""

from __future__ import annotations

import warnings

import torch
from torchmetrics import Metric, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import (
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)


class MatthewsCorrelation(MulticlassConfusionMatrix):
    """Matthews correlation of class ids, 0 where either side holds one class only.

    torchmetrics' own returns something else there (0.28 for 7 right of 10 when all predictions are equal),
    which would make a collapsed model look better than chance.
    """

    def compute(self) -> torch.Tensor:
        """The correlation: shape (), float32."""
        confusion = self.confmat.cpu().double()  # rows: targets, columns: predictions
        total = confusion.sum()
        targets, predictions = confusion.sum(dim=1), confusion.sum(dim=0)
        covariance = confusion.trace() * total - targets @ predictions
        variance = (total**2 - targets @ targets) * (total**2 - predictions @ predictions)
        correlation = covariance / variance.sqrt() if variance > 0 else torch.zeros(())
        return correlation.float().to(self.confmat.device)


def build_metric(name: str, num_labels: int) -> Metric:
    """One metric of `ltp.data.tasks`.

    Args:
        name: "accuracy", "f1" (of class 1, or the macro mean if there are more than two classes),
            "matthews", "pearson" or "spearman".
        num_labels: Number of classes; without meaning for "pearson" and "spearman".
    """
    if name == "accuracy":
        return MulticlassAccuracy(num_labels, average="micro")
    if name == "f1":
        return BinaryF1Score() if num_labels == 2 else MulticlassF1Score(num_labels, average="macro")
    if name == "matthews":
        return MatthewsCorrelation(num_labels)
    if name == "pearson":
        return PearsonCorrCoef()
    if name == "spearman":
        with warnings.catch_warnings():  # it warns that it keeps every prediction: a few thousand floats
            warnings.filterwarnings("ignore", message=".*will save all targets and predictions")
            return SpearmanCorrCoef()
    raise ValueError(f"no metric {name!r}")

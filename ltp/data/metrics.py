"""GLUE metrics as torchmetrics objects, exact over batches and processes."""

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
    """Matthews correlation coefficient of class ids; 0 if predictions or targets contain a single class.

    torchmetrics' MatthewsCorrCoef returns other values in that case (0.28 for 7 of 10 correct when all predictions
    are equal), which would make a collapsed model look better than chance.
    """

    def compute(self) -> torch.Tensor:
        """Return the correlation: float32, shape ()."""
        confusion = self.confmat.cpu().double()  # rows: targets, columns: predictions
        total = confusion.sum()
        targets, predictions = confusion.sum(dim=1), confusion.sum(dim=0)
        covariance = confusion.trace() * total - targets @ predictions
        variance = (total**2 - targets @ targets) * (total**2 - predictions @ predictions)
        correlation = covariance / variance.sqrt() if variance > 0 else torch.zeros(())
        return correlation.float().to(self.confmat.device)


def build_metric(name: str, num_labels: int) -> Metric:
    """Build the metric of that name.

    Args:
        name: "accuracy", "f1" (of class 1, or the macro average for more than two classes),
            "matthews", "pearson" or "spearman".
        num_labels: Number of classes; ignored for "pearson" and "spearman".

    Raises:
        ValueError: There is no metric of that name.
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
        with warnings.catch_warnings():  # it warns about storing all predictions: a few thousand floats here
            warnings.filterwarnings("ignore", message=".*will save all targets and predictions")
            return SpearmanCorrCoef()
    raise ValueError(f"no metric {name!r}")

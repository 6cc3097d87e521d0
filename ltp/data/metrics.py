"""Metrics as torchmetrics objects, exact over batches and processes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torchmetrics import Metric, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import (
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MultilabelAveragePrecision,
)
from torchmetrics.functional.text import squad
from torchmetrics.retrieval import RetrievalMRR, RetrievalNormalizedDCG
from torchmetrics.utilities import dim_zero_cat


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


class SpearmanCorrelation(SpearmanCorrCoef):
    """Spearman's rank correlation; NaN if predictions or targets are all equal, where torchmetrics returns 0."""

    def compute(self) -> torch.Tensor:
        """Return the correlation: float32, shape ()."""
        values = [dim_zero_cat(state) for state in (self.preds, self.target)]
        if any(bool((value == value[0]).all()) for value in values):
            return torch.tensor(torch.nan, device=values[0].device)
        return super().compute()


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
            return SpearmanCorrelation()
    raise ValueError(f"no metric {name!r}")


_UNDEFINED = {
    "f1": "no example of the class, and none predicted",
    "precision": "no entity, and none predicted",
    "recall": "no entity",
    "map": "no example has a label",
    "matthews": "the labels are all equal",
    "pearson": "the predictions or the labels are all equal",
    "spearman": "the predictions or the labels are all equal",
}


def undefined_metrics(metrics: Mapping[str, float | None]) -> dict[str, Any]:
    """Return the part of a report that says why metrics have no value: `undefined`, a reason by metric, or nothing.

    Args:
        metrics: Values by name, None for a metric that is undefined on the examples.
    """
    names = [name for name, value in metrics.items() if value is None]
    reasons = {name: _UNDEFINED.get(name.split("_", 1)[0], "not a number") for name in names}
    return {"undefined": reasons} if reasons else {}


class MeanAveragePrecision(MultilabelAveragePrecision):
    """Mean over the labels of the average precision; labels that no example has are left out."""

    def __init__(self, num_labels: int) -> None:
        with warnings.catch_warnings():  # it warns about storing all predictions
            warnings.filterwarnings("ignore", message=".*will save all targets and predictions")
            super().__init__(num_labels, average="none")

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        """Take probabilities and labels, both (B, num_labels) float32."""
        super().update(preds, target.long())

    def compute(self) -> torch.Tensor:  # type: ignore[override]  # torchmetrics types it as that of the curve
        """Return the mean: float32, shape (); NaN if no example has a label."""
        occurs = dim_zero_cat(self.target).bool().any(dim=0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No positive samples found in target")
            values = super().compute()
        return values[occurs].mean()


class RankingScore(Metric):
    """MRR or nDCG of the candidates that each query ranks first, by torchmetrics; 0 for a query without a relevant one.

    Args:
        score: "mrr" or "ndcg".
        top: number of candidates.
    """

    def __init__(self, score: str, top: int) -> None:
        super().__init__()
        self.score = score
        self.metric = {"mrr": RetrievalMRR, "ndcg": RetrievalNormalizedDCG}[score](top_k=top)

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        """Take scores, (B,), and relevance and number of the query, (B, 2)."""
        relevance, query = target.unbind(dim=1)
        relevant = (relevance > 0).long() if self.score == "mrr" else relevance
        preds = preds.double()
        positive = 1 + preds / (1 + preds.abs())  # in the same order: torchmetrics takes no other for retrieved
        self.metric.update(positive, relevant, query.long())

    def compute(self) -> torch.Tensor:
        """Return the mean over the queries: float32, shape ()."""
        return self.metric.compute()

    def reset(self) -> None:
        """Forget the candidates."""
        super().reset()
        self.metric.reset()


#: Longest answer in tokens, as in the examples of Hugging Face and the code of BERT.
MAX_ANSWER = 30
#: Values of a span's labels before the characters of its tokens; see `ltp.data.tasks.SpanTask.encode`.
HEADER = 5


class SpanScore(Metric):
    """Exact match or F1 of answers, by torchmetrics' form of SQuAD's script, between 0 and 1.

    Args:
        task: the task of a split, see :meth:`ltp.data.tasks.SpanTask.for_split`.
        score: "exact_match" or "f1".
    """

    spans: list[torch.Tensor]

    def __init__(self, task: Any, score: str) -> None:
        super().__init__()
        self.task, self.score = task, score
        self.add_state("spans", [], dist_reduce_fx="cat")

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        """Find the best span of windows: logits, (B, N, 2), and labels, (B, …) int64."""
        spans = torch.tensor(best_spans(preds, target), dtype=torch.float64, device=preds.device)
        self.spans.append(spans)

    def compute(self) -> torch.Tensor:
        """Return the mean over the questions of the split: float32, shape ()."""
        rows = dim_zero_cat(self.spans).tolist()
        answers = self.task.answers([(int(row[0]), int(row[1]), int(row[2]), row[3], row[4]) for row in rows])
        preds = [{"id": str(number), "prediction_text": answer} for number, answer in enumerate(answers)]
        target: Any = [
            {"id": str(number), "answers": {"text": real["text"] or [""], "answer_start": real["answer_start"] or [0]}}
            for number, real in enumerate(self.task.examples["label"])
        ]
        return squad(preds, target)[self.score] / 100


def best_spans(logits: torch.Tensor, labels: torch.Tensor) -> list[tuple[int, int, int, float, float]]:
    """Return the best span of each window.

    Args:
        logits: of start and end, (B, N, 2).
        labels: as :meth:`ltp.data.tasks.SpanTask.encode` returns them, (B, …) int64.

    Returns:
        For each row the number of its example, first and last character of the span, its score, and that of no answer.
    """
    nulls = logits[:, 0].float().sum(dim=1).tolist()
    best = [spans[0] if spans else (0, 0, -math.inf) for spans in ranked_spans(logits, labels, 1)]
    numbers = labels[:, 2].tolist()
    return [(number, *span, null) for number, span, null in zip(numbers, best, nulls, strict=True)]


def ranked_spans(logits: torch.Tensor, labels: torch.Tensor, count: int) -> list[list[tuple[int, int, float]]]:
    """Return the best spans of each window, the best first; none for a window without room for the context.

    Args:
        logits, labels: see :func:`best_spans`.
        count: the most spans of a window.

    Returns:
        First and last character of each span, and its score: the sum of the logits of its first and last token.
    """
    found: list[list[tuple[int, int, float]]] = []
    for scores, row in zip(logits.float().cpu(), labels.tolist(), strict=True):
        first, last, characters = row[3], row[4], row[HEADER:]
        if last < first:
            found.append([])
            continue
        start, end = scores[first : last + 1].unbind(dim=1)
        ends = torch.nn.functional.pad(end, (0, MAX_ANSWER - 1), value=-math.inf).unfold(0, MAX_ANSWER, 1)
        sums = (start[:, None] + ends).flatten()
        # the first of equal ones
        top = sums.max(dim=0, keepdim=True) if count == 1 else sums.sort(descending=True, stable=True)
        spans = []
        for score, place in zip(top[0][:count].tolist(), top[1][:count].tolist(), strict=True):
            if score > -math.inf:
                begin, length = divmod(place, MAX_ANSWER)
                spans.append((characters[2 * begin], characters[2 * (begin + length) + 1], score))
        found.append(spans)
    return found


class EntityScore(Metric):
    """Precision, recall or F1 of entities, micro-averaged; exact in span and type, as CoNLL's script counts them.

    Args:
        labels: names of the BIO scheme by id.
        score: "precision", "recall" or "f1".
        ignored: target of tokens that are no words.
    """

    correct: torch.Tensor
    predicted: torch.Tensor
    real: torch.Tensor

    def __init__(self, labels: Sequence[str], score: str, *, ignored: int) -> None:
        super().__init__()
        self.labels, self.score, self.ignored = tuple(labels), score, ignored
        for name in ("correct", "predicted", "real"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        """Count the entities of texts: class ids of tokens, both (B, N) int64."""
        for ids, own in zip(preds.tolist(), target.tolist(), strict=True):
            words = [place for place, label in enumerate(own) if label != self.ignored]
            predicted, real = (self._entities([row[place] for place in words]) for row in (ids, own))
            self.correct += len(predicted & real)
            self.predicted += len(predicted)
            self.real += len(real)

    def _entities(self, ids: Sequence[int]) -> set[tuple[str, int, int]]:
        from nervaluate.utils import collect_named_entities

        found = collect_named_entities([self.labels[index] for index in ids])
        return {(entity["label"], entity["start"], entity["end"]) for entity in found}

    def compute(self) -> torch.Tensor:
        """Return the score: float32, shape (); 0 where nothing is found, NaN where there is nothing to find."""
        whole = {"precision": self.predicted, "recall": self.real, "f1": (self.predicted + self.real) / 2}[self.score]
        if not whole:
            missing = torch.nan if not self.real else 0.0
            return torch.tensor(missing, device=self.correct.device)
        return (self.correct / whole).float()

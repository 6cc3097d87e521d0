"""Comparison of an exported graph with its model."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ltp.data.sequences import Batch
from ltp.errors import RunError
from ltp.model.pretrained import LTPPreTrainedModel

#: Maximum difference of logits.
ALLOWED = 1e-4
#: Share of sequences that may differ: rounding may move a score to the other side of its threshold.
TOLERATED_SHARE = 0.01

Infer = Callable[[Batch], Sequence[Tensor]]  #: results of the head and token lengths of a batch


class DisagreementError(RunError):
    """The results of an exported graph differ from those of the model."""


@dataclass(frozen=True)
class Agreement:
    """Result of comparing a graph with its model.

    Attributes:
        sequences: number of sequences compared.
        difference: largest difference of logits, among the sequences that agree.
        tolerated: number of sequences that do not agree, at most :data:`TOLERATED_SHARE` of them.
    """

    sequences: int
    difference: float
    tolerated: int


def _difference(results: Sequence[Tensor], expected: Sequence[Tensor]) -> Tensor:
    """Return the largest difference of each example, (B,)."""
    return torch.stack([(a - b).abs().flatten(1).amax(dim=1) for a, b in zip(results, expected, strict=True)]).amax(0)


def compare_results(model: LTPPreTrainedModel, graph: Infer, batches: Iterable[Batch]) -> Agreement:
    """Run a model and its graph on the same batches and compare the results.

    Raises:
        DisagreementError: logits or token lengths differ.
    """
    differences, same_lengths = [], []
    for batch in batches:
        with torch.inference_mode():
            expected = model(**batch)
        *results, lengths = graph(batch)
        differences.append(_difference(results, [expected[name] for name in model.output_class.results]))
        same_lengths.append((lengths == expected.token_lengths).all(dim=1))
    difference = torch.cat(differences)
    agree = torch.cat(same_lengths) & (difference <= ALLOWED)  # False for NaN
    wrong = int((~agree).sum())
    if wrong > TOLERATED_SHARE * len(agree):
        raise DisagreementError(
            f"the ONNX graph is wrong for {wrong} of {len(agree)} sequences: logits differ from the model's by up to "
            f"{float(difference.max()):.2g} (allowed: {ALLOWED:g}). Nothing was exported; please report this."
        )
    return Agreement(len(agree), float(difference[agree].max()), wrong)

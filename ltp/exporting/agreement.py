"""Whether an exported graph computes what the model does."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ltp.data.sequences import Batch
from ltp.errors import RunError
from ltp.model.classifier import LTPForSequenceClassification

#: How far logits may be apart.
ALLOWED = 1e-4
#: Share of the sequences that may differ: a token whose score is the threshold but for rounding may go either way.
TOLERATED_SHARE = 0.01

Infer = Callable[[Batch], tuple[Tensor, Tensor]]  #: logits and token lengths of a batch


class DisagreementError(RunError):
    """An exported graph computes something else than the model."""


@dataclass(frozen=True)
class Agreement:
    """How close a graph is to its model.

    Attributes:
        sequences: how many were compared.
        difference: of the logits, the largest among the sequences that agree.
        excused: sequences in which the scores of single tokens were rounded to the other side of their threshold.
    """

    sequences: int
    difference: float
    tolerated: int


def compare_results(model: LTPForSequenceClassification, graph: Infer, batches: Iterable[Batch]) -> Agreement:
    """Run a model and its graph over the same batches.

    Raises:
        DisagreementError: logits or token lengths differ.
    """
    differences, same_lengths = [], []
    for batch in batches:
        with torch.inference_mode():
            wanted = model(**batch)
        logits, lengths = graph(batch)
        differences.append((logits - wanted.logits).abs().amax(dim=1))
        same_lengths.append((lengths == wanted.token_lengths).all(dim=1))
    difference = torch.cat(differences)
    agree = torch.cat(same_lengths) & (difference <= ALLOWED)  # NaN is no agreement
    wrong = int((~agree).sum())
    if wrong > TOLERATED_SHARE * len(agree):
        raise DisagreementError(
            f"the ONNX graph is wrong for {wrong} of {len(agree)} sequences: logits differ from the model's by up to "
            f"{float(difference.max()):.2g} (allowed: {ALLOWED:g}). Nothing was exported; please report this."
        )
    return Agreement(len(agree), float(difference[agree].max()), wrong)

"""The method, as tensor functions and one class a pruning method: who survives which layer.

Nothing here knows a model, a layout of the data or a framework. Layers are numbered 1..L as in the paper.
Masks are boolean with ``True`` = alive; position 0 is the classification token, which always survives.

A new pruning method is one file with one subclass of :class:`Pruner`, named in :data:`PRUNERS`.
"""

from ltp.pruning.base import MASKING_MODES, NoPruning, Pruner
from ltp.pruning.importance import SCORING_MODES, attention_received, importance, normalise
from ltp.pruning.threshold import (
    ThresholdPruner,
    sparsity_penalty,
    threshold_gate,
    threshold_schedule,
    threshold_survivors,
)
from ltp.pruning.topk import TopKPruner, keep_counts, keep_rates, topk_survivors

#: ``prune_mode`` of a checkpoint -> the class that decides.
PRUNERS: dict[str, type[Pruner]] = {pruner.prune_mode: pruner for pruner in (NoPruning, ThresholdPruner, TopKPruner)}

__all__ = [
    "MASKING_MODES",
    "PRUNERS",
    "SCORING_MODES",
    "NoPruning",
    "Pruner",
    "ThresholdPruner",
    "TopKPruner",
    "attention_received",
    "importance",
    "keep_counts",
    "keep_rates",
    "normalise",
    "sparsity_penalty",
    "threshold_gate",
    "threshold_schedule",
    "threshold_survivors",
    "topk_survivors",
]

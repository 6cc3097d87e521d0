"""Pruning methods: tensor functions that select the tokens each layer keeps, and one class per method.

This package depends on no model, batch layout or training framework. Layers are numbered 1..L as in the paper.
Masks are boolean, ``True`` for tokens that are alive (not pruned). Position 0 is the classification token, which is
never pruned.

To add a method, write one file with a subclass of :class:`~ltp.pruning.base.Pruner` and add it to :data:`METHODS`.
This module does not import PyTorch, so that a command can check a method's name in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ltp.pruning.base import Pruner

#: Normalisation of importance: ``mean`` divides by a constant Z, ``mean_norm`` by the number of tokens alive.
SCORING_MODES = ("mean", "mean_norm")

#: Masking rules of a forward pass. ``hard`` removes tokens. The other two are soft rules for training: every token is
#: kept, and each layer computes a gate m in (0, 1) per token. ``soft``: m multiplies the layer's output (LTP §3.3).
#: ``survival``: w, the product of the gates so far, is the probability that a token is still alive. It weights the
#: token as a key of attention, and as a query in the importance of other tokens. As the temperature goes to 0,
#: ``survival`` converges to ``hard``; ``soft`` does not, because its pruned tokens still attend.
MASKING_MODES = ("hard", "soft", "survival")
#: Where the calibration of a dense classifier starts: without training, ``mean_norm`` loses less than ``mean``.
UNTRAINED = {"prune_mode": "absolute_threshold", "scoring_mode": "mean_norm", "final_token_threshold": 0.01}

#: Pruning keys of ``config.json``. The ``config.json`` of a dense checkpoint may contain them, too.
PRUNING_KEYS = ("prune_mode", "scoring_mode", "score_length", "final_token_threshold", "token_keep_rate")
#: Additional keys for the soft stage.
SOFT_KEYS = ("masking_mode", "threshold_temperature", "lambda_threshold")


def _none() -> type[Pruner]:
    from ltp.pruning.base import NoPruning

    return NoPruning


def _absolute_threshold() -> type[Pruner]:
    from ltp.pruning.threshold import ThresholdPruner

    return ThresholdPruner


def _topk() -> type[Pruner]:
    from ltp.pruning.topk import TopKPruner

    return TopKPruner


#: Maps ``prune_mode`` to a function that imports the method's class.
METHODS: dict[str, Callable[[], type[Pruner]]] = {
    "none": _none,
    "absolute_threshold": _absolute_threshold,
    "topk": _topk,
}
#: Options of ``prune=`` on the command line that stand for another ``prune_mode``.
ALIASES = {"threshold": "absolute_threshold", "manual": "absolute_threshold"}
#: Methods that keep a given share of the tokens (``token_keep_rate``).
RATE_MODES = tuple(sorted(METHODS.keys() - {"none", "absolute_threshold"}))


def pruner_class(prune_mode: str) -> type[Pruner]:
    """Return the class of a pruning method.

    Args:
        prune_mode: a key of :data:`METHODS`.
    """
    return METHODS[prune_mode]()

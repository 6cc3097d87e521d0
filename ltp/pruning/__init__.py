"""Pruning methods: which tokens survive which layer, as pure tensor functions and one class a method.

Nothing here depends on a model, on the layout of a batch or on a framework. Layers are numbered 1..L as in the paper.
Masks are boolean with ``True`` = alive; position 0 is the classification token, which always survives.

A new method is one file with a subclass of :class:`~ltp.pruning.base.Pruner`, and its entry in :data:`METHODS`. This
module itself needs no PyTorch, so that a command can check the name of a method in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ltp.pruning.base import Pruner

#: How importance is normalised: ``mean`` divides by a constant Z, ``mean_norm`` by the number of tokens alive.
SCORING_MODES = ("mean", "mean_norm")

#: The rules of a forward pass. ``hard``: tokens leave. The others are soft, for training: all tokens stay, and a gate m
#: says how much of each survives a layer. ``soft``: m multiplies the layer's output (LTP §3.3). ``survival``: the
#: product w of the gates so far, the probability that a token is still alive, weighs its part in attention, as a key
#: and in the importance that it gives to others. So ``survival`` becomes the hard rule as the temperature goes to 0,
#: which ``soft`` does not: its pruned tokens still attend.
MASKING_MODES = ("hard", "soft", "survival")

#: Keys of a ``config.json`` that say how the model prunes; a dense checkpoint's may carry them, too.
PRUNING_KEYS = ("prune_mode", "scoring_mode", "score_length", "final_token_threshold", "token_keep_rate")
#: Further keys, of the soft stage.
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


#: ``prune_mode`` -> a function that imports the method's class.
METHODS: dict[str, Callable[[], type[Pruner]]] = {
    "none": _none,
    "absolute_threshold": _absolute_threshold,
    "topk": _topk,
}
#: Methods that keep a share of the tokens, ``token_keep_rate``.
RATE_MODES = tuple(sorted(METHODS.keys() - {"none", "absolute_threshold"}))


def pruner_class(prune_mode: str) -> type[Pruner]:
    """The class of a pruning method.

    Args:
        prune_mode: a key of :data:`METHODS`.
    """
    return METHODS[prune_mode]()

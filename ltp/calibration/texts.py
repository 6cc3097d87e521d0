"""Prune a classifier without training and without labels: bring it to a cost, or to an agreement, on texts."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ltp.calibration.agreement import keep_agreement, measure_against_dense
from ltp.calibration.flops import calibrate_flops, flops_of
from ltp.calibration.search import AboveDenseError, UnreachableError
from ltp.data.sequences import make_batches
from ltp.data.tokenising import tokenise
from ltp.model.classifier import LTPForSequenceClassification
from ltp.pruning import DENSE_MODE, untrained

log = logging.getLogger("ltp")

_SUBSAMPLE_FROM, _SUBSAMPLE_STEP = 256, 8  # a search starts on every eighth of this many texts


def calibrate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str] | Sequence[tuple[str, str]],
    *,
    target_flops: float | None = None,
    agreement: float | None = None,
    max_length: int | None = None,
    batch_size: int = 64,
    tick: Callable[[int], None] = lambda count: None,
) -> LTPForSequenceClassification:
    """Prune a fine-tuned classifier without training and without labels.

    Thresholds of the published shape, on importance averaged over the tokens alive (``scoring_mode="mean_norm"``), are
    scaled until the texts cost ``target_flops``, or as far as the predictions of the unpruned model allow. A model
    that prunes already keeps its method, and the ratios of its thresholds.

    Args:
        model: a sequence classifier of Hugging Face of a known family, whose weights are shared with the result; or a
            :class:`~ltp.LTPForSequenceClassification`, which is changed in place.
        tokenizer: its tokenizer.
        texts: some hundred texts like those to come, or pairs of texts.
        target_flops: share of the dense FLOPs, in (0, 1].
        agreement: share of the texts whose prediction must stay that of the unpruned model, in (0, 1]; the cheapest
            pruning found that keeps it is taken. It holds on these texts; on others it will be a little lower.
        max_length: tokens at which texts are cut; None for the model's limit.
        batch_size: texts per forward pass.
        tick: called with the number of texts of each forward pass over them.

    Returns:
        The pruned classifier, in evaluation mode. ``config.calibration`` holds the ``relative_flops`` and
        ``agreement`` on the texts, and how many ``texts`` there were.

    Raises:
        ValueError: ltp has no adapter for the model, there are no texts, not exactly one of ``target_flops`` and
            ``agreement`` is given, one is out of range, or it cannot be reached.
    """
    if (target_flops is None) == (agreement is None):
        raise ValueError("give exactly one of target_flops and agreement")
    for name, value in (("target_flops", target_flops), ("agreement", agreement)):
        if value is not None and not 0 < value <= 1:
            raise ValueError(f"{name}={value} is out of range: it must be in (0, 1]")
    if len(texts) == 0:
        raise ValueError("there are no texts to calibrate on")
    if not isinstance(model, LTPForSequenceClassification):
        model = LTPForSequenceClassification.from_dense(model, **untrained())
    elif model.config.prune_mode == DENSE_MODE:
        model.set_pruning(**untrained())
    model.eval()
    if model.thresholds is None:
        raise ValueError(f"prune_mode={model.config.prune_mode} has no thresholds to calibrate on texts")
    if agreement is not None and model.num_labels == 1 and model.config.problem_type != "multi_label_classification":
        raise ValueError("agreement is a share of equal predictions, and a regression has none: give target_flops")
    if model.config.budgets:
        model.set_budgets([])
    columns: list[Any] = (
        [list(column) for column in zip(*texts, strict=True)] if not isinstance(texts[0], str) else [list(texts)]
    )
    limit = min(model.config.max_input_tokens, tokenizer.model_max_length)
    encoded, _ = tokenise(tokenizer, columns, min(max_length or limit, limit))
    batches = _batches(encoded, range(len(texts)), batch_size, tokenizer)
    measure = measure_against_dense(model, batches, "float32", tick)
    some = None
    if len(texts) >= _SUBSAMPLE_FROM:
        some = _batches(encoded, range(_SUBSAMPLE_STEP // 2, len(texts), _SUBSAMPLE_STEP), batch_size, tokenizer)
    if agreement is not None:
        rough = None if some is None else measure_against_dense(model, some, "float32", tick)
        measured: Any = keep_agreement(model, measure, agreement, rough)
    else:
        assert target_flops is not None
        rough_cost = None if some is None else flops_of(model, some, "float32", tick)
        try:
            calibrate_flops(model, flops_of(model, batches, "float32", tick), rough_cost, target_flops)
        except (UnreachableError, AboveDenseError) as error:
            raise ValueError(str(error)) from error
        measured = measure()
    model.config.calibration = {
        "target_flops": target_flops,
        "agreement_bound": agreement,
        "relative_flops": measured.relative_flops,
        "agreement": None if math.isnan(measured.agreement) else measured.agreement,
        "texts": len(texts),
    }
    return model


def _batches(encoded: Any, rows: Sequence[int], batch_size: int, tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """Build batches of some of the tokenised texts, texts of similar length together."""
    types = encoded.get("token_type_ids")
    return make_batches(
        [encoded["input_ids"][row] for row in rows],
        batch_size,
        order="sorted",
        pad_token_id=tokenizer.pad_token_id or 0,
        token_types=None if types is None else [types[row] for row in rows],
    )

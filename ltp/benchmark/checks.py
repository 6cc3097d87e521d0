"""Check that an engine computes what the reference does, before it is timed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ltp.benchmark.engines import ALLOWED
from ltp.errors import RunError

#: Share of the sequences that may differ in float32: tokens whose score is the threshold but for rounding.
_TOLERATED_SHARE = 0.02


class WrongResultsError(RunError):
    """An engine's logits are not the reference's: timing it would be pointless."""


def check_logits(name: str, dtype: str, logits: Sequence[Tensor], reference: Tensor, against: str) -> float:
    """Check that an engine computes what it should before it is timed.

    Args:
        name: for the message.
        dtype: the engine's type, which decides what is allowed: :data:`ALLOWED`.
        logits: batch by batch, (B, num_labels).
        reference: of all sequences, (S, num_labels) float32.
        against: what the reference is, for the message.

    Returns:
        The difference, as :data:`ALLOWED` measures it.

    Raises:
        WrongResultsError: it is too large.
    """
    found, wanted = torch.cat([part.float().cpu() for part in logits]), reference.float()
    allowed = ALLOWED[dtype]
    if dtype == "float32":
        differences = (found - wanted).abs().amax(dim=1) / max(1.0, float(wanted.abs().max()))
        wrong = int((~(differences <= allowed)).sum())  # NaN is wrong
        difference = float(differences.max())
        ok = wrong <= _TOLERATED_SHARE * len(wanted)
    else:
        difference = float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())
        wrong = len(wanted)
        ok = difference <= allowed
    if not ok:
        raise WrongResultsError(
            f"{name}, {dtype}: the logits of {wrong} of {len(wanted)} sequences differ from those of {against} by up "
            f"to {difference:.2g} (allowed: {allowed:g}), so nothing was timed. Wrong results have no speed: please "
            "report this, or leave the engine out with bench.engines=[…]."
        )
    return difference

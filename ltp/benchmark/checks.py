"""Check an engine's logits against the reference before it is timed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ltp.benchmark.engines import ALLOWED
from ltp.errors import RunError

#: Share of the sequences that may differ in float32: rounding can move a token's score across the threshold.
_TOLERATED_SHARE = 0.02


class WrongResultsError(RunError):
    """An engine's logits or gradients differ from the reference's, so it is not timed."""


def check_logits(name: str, dtype: str, logits: Sequence[Tensor], reference: Tensor, against: str) -> float:
    """Check an engine's logits against the reference.

    Args:
        name: the engine's name in the error message.
        dtype: the engine's type; it selects the tolerance in :data:`ALLOWED`.
        logits: one tensor per batch, (B, num_labels).
        reference: the logits of all S sequences, (S, num_labels) float32.
        against: the reference's name in the error message.

    Returns:
        The difference, measured as :data:`ALLOWED` defines it.

    Raises:
        WrongResultsError: the difference is larger than allowed.
    """
    actual, expected = torch.cat([part.float().cpu() for part in logits]), reference.float()
    allowed = ALLOWED[dtype]
    if dtype == "float32":
        differences = (actual - expected).abs().amax(dim=1) / max(1.0, float(expected.abs().max()))
        wrong = int((~(differences <= allowed)).sum())  # NaN counts as wrong
        difference = float(differences.max())
        ok = wrong <= _TOLERATED_SHARE * len(expected)
    else:
        difference = float((actual - expected).square().mean().sqrt() / expected.square().mean().sqrt())
        wrong = len(expected)
        ok = difference <= allowed
    if not ok:
        raise WrongResultsError(
            f"{name}, {dtype}: the logits of {wrong} of {len(expected)} sequences differ from those of {against} by up "
            f"to {difference:.2g} (allowed: {allowed:g}), so nothing was timed. Please report this, or "
            "leave the engine out with bench.engines=[…]."
        )
    return difference

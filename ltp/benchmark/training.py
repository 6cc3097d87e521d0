"""Hard-stage training steps, masked and packed: forward and backward, dropout on."""

from collections.abc import Sequence

import torch

from ltp.benchmark.checks import WrongResultsError
from ltp.benchmark.models import Models
from ltp.benchmark.timing import Pass
from ltp.data.sequences import Batch
from ltp.model.classifier import LTPForSequenceClassification

#: Training engines and their titles.
TRAINING = {"train_masked": "training step, masked", "train_packed": "training step, packed"}
TRAINING_TYPES = ("float32", "bfloat16")  # bfloat16 by autocast, as in training
_ALLOWED = 0.01  # norm of the gradients' difference ÷ norm of the gradients


def training_passes(models: Models, batches: Sequence[Batch], dtype: str) -> dict[str, Pass]:
    """A pass of training steps over all batches for each engine of :data:`TRAINING`, checked.

    Raises:
        WrongResultsError: packed gradients are not the masked ones.
    """
    forms = {name: _trainable(models, name.removeprefix("train_")) for name in TRAINING}
    _check_gradients(*(_gradients(model.eval(), batches[0]) for model in forms.values()))
    return {name: _steps(model.train(), batches, dtype) for name, model in forms.items()}


def _trainable(models: Models, execution: str) -> LTPForSequenceClassification:
    model = models.ltp("float32", pruned=True, execution=execution)
    model.config.masking_mode = "hard"
    model.pruner.requires_grad_(False)  # thresholds are fixed in the hard stage
    return model


def _loss(model: LTPForSequenceClassification, batch: Batch) -> torch.Tensor:
    return model(**batch).logits.float().square().mean()  # fits every head, and needs no labels


def _steps(model: LTPForSequenceClassification, batches: Sequence[Batch], dtype: str) -> Pass:
    device = batches[0]["input_ids"].device.type

    def run() -> None:
        for batch in batches:
            model.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = _loss(model, batch)
            loss.backward()  # outside, as autocast's documentation asks for
        model.zero_grad()  # the forms share their parameters: no gradient may be left for the next

    return run


def _gradients(model: LTPForSequenceClassification, batch: Batch) -> torch.Tensor:
    """All gradients of one step without dropout, as one vector."""
    model.zero_grad()
    _loss(model, batch).backward()
    found = torch.cat([p.grad.flatten() for p in model.dense.parameters() if p.grad is not None])
    model.zero_grad()
    return found


def _check_gradients(masked: torch.Tensor, packed: torch.Tensor) -> None:
    difference = float((masked - packed).norm() / masked.norm()) if masked.shape == packed.shape else float("inf")
    if not difference <= _ALLOWED:
        raise WrongResultsError(
            f"packed training: its gradients differ from the masked form's by {difference:.2g} of their norm "
            f"(allowed: {_ALLOWED:g}), so it was not timed. Please report this; bench.train=false leaves it out."
        )

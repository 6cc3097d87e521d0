"""Hard-stage training steps, masked and packed: forward and backward passes with dropout."""

from collections.abc import Sequence

import torch

from ltp.benchmark.checks import WrongResultsError
from ltp.benchmark.models import Models
from ltp.data.sequences import Batch
from ltp.deploy.timing import Pass
from ltp.model.pretrained import LTPPreTrainedModel

#: Titles of the training engines by name.
TRAINING = {"train_masked": "training step, masked", "train_packed": "training step, packed"}
TRAINING_TYPES = ("float32", "bfloat16")  # bfloat16 through autocast, as in training
_ALLOWED_DIFFERENCE = 0.01  # norm of the gradients' difference ÷ norm of the gradients


def training_passes(models: Models, batches: Sequence[Batch], dtype: str) -> dict[str, Pass]:
    """For each engine of :data:`TRAINING`, a pass of training steps over all batches; gradients are checked first.

    Raises:
        WrongResultsError: packed gradients differ from the masked ones.
    """
    classifiers = {name: _trainable(models, name.removeprefix("train_")) for name in TRAINING}
    _check_gradients(*(_gradients(model.eval(), batches[0]) for model in classifiers.values()))
    return {name: _steps(model.train(), batches, dtype) for name, model in classifiers.items()}


def _trainable(models: Models, execution: str) -> LTPPreTrainedModel:
    model = models.ltp("float32", pruned=True, execution=execution)
    model.config.masking_mode = "hard"
    model.pruner.requires_grad_(False)  # thresholds are fixed in the hard stage
    return model


def _loss(model: LTPPreTrainedModel, batch: Batch) -> torch.Tensor:
    return model(**batch).logits.float().square().mean()  # works for every head, without labels


def _steps(model: LTPPreTrainedModel, batches: Sequence[Batch], dtype: str) -> Pass:
    device = batches[0]["input_ids"].device.type

    def run() -> None:
        for batch in batches:
            model.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = _loss(model, batch)
            loss.backward()  # outside autocast, as PyTorch recommends
        model.zero_grad()  # the classifiers share their parameters: leave no gradient for the next one

    return run


def _gradients(model: LTPPreTrainedModel, batch: Batch) -> torch.Tensor:
    """All gradients of one step without dropout, as one vector."""
    model.zero_grad()
    _loss(model, batch).backward()
    gradients = torch.cat([p.grad.flatten() for p in model.dense.parameters() if p.grad is not None])
    model.zero_grad()
    return gradients


def _check_gradients(masked: torch.Tensor, packed: torch.Tensor) -> None:
    difference = float((masked - packed).norm() / masked.norm()) if masked.shape == packed.shape else float("inf")
    if not difference <= _ALLOWED_DIFFERENCE:
        raise WrongResultsError(
            f"packed training: its gradients differ from the masked form's by {difference:.2g} of their norm "
            f"(allowed: {_ALLOWED_DIFFERENCE:g}), so it was not timed. Please report this; "
            "bench.train=false leaves it out."
        )

"""Knowledge distillation: losses between the pruned classifier and its dense teacher."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ltp.execution.output import LTPOutput
from ltp.model.classifier import LTPForSequenceClassification


def logits_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return ``T² · KL(softmax(teacher / T) ‖ softmax(student / T))`` (Hinton et al., arXiv 1503.02531).

    With one label (regression) the loss is the mean squared difference of the logits.

    Args:
        student: logits, (B, num_labels).
        teacher: logits, (B, num_labels).
        temperature: T > 0.

    Returns:
        Scalar float32, a mean over the examples.
    """
    student, teacher = student.float(), teacher.float()
    if student.shape[1] == 1:
        return functional.mse_loss(student, teacher)
    target = functional.log_softmax(teacher / temperature, dim=-1)
    predicted = functional.log_softmax(student / temperature, dim=-1)
    return temperature**2 * functional.kl_div(predicted, target, reduction="batchmean", log_target=True)


def hidden_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of the classification tokens' hidden states.

    The mean is over layers, examples and dimensions. Only classification tokens survive every layer of both models.

    Args:
        student: (L, B, D).
        teacher: (L, B, D).

    Returns:
        Scalar float32.
    """
    return functional.mse_loss(student.float(), teacher.float())


@dataclass
class Distillation:
    """A teacher and the weights of its losses.

    Attributes:
        teacher: the dense classifier; it is frozen and set to evaluation mode.
        weight: weight of the logits loss, in [0, 1]; the task loss has weight ``1 - weight``.
        temperature: T of the logits loss.
        hidden_weight: weight of the hidden-state loss; 0 disables it.
    """

    teacher: LTPForSequenceClassification
    weight: float = 0.5
    temperature: float = 2.0
    hidden_weight: float = 0.0

    def __post_init__(self) -> None:
        self.teacher.requires_grad_(False).eval()

    @property
    def needs_states(self) -> bool:
        """Whether the student must return its classification tokens' hidden states."""
        return self.hidden_weight > 0

    def added_loss(self, output: LTPOutput, batch: Mapping[str, Tensor], task_loss: Tensor) -> Tensor:
        """Return the term that distillation adds to the student's loss on a micro-batch.

        Args:
            output: the student's output, with ``class_states`` if :attr:`needs_states`.
            batch: the student's inputs; labels are ignored.
            task_loss: loss against the labels, scalar; the logits loss replaces a share ``weight`` of it.

        Returns:
            ``weight · (logits loss − task loss) + hidden_weight · hidden loss``, scalar float32.
        """
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        assert output.logits is not None
        with torch.no_grad():
            target = self.teacher(**inputs, output_class_states=self.needs_states)
        added = self.weight * (logits_loss(output.logits, target.logits, self.temperature) - task_loss)
        if self.needs_states:
            assert output.class_states is not None
            added = added + self.hidden_weight * hidden_loss(output.class_states, target.class_states)
        return added

"""Knowledge distillation: the pruned classifier learns from its dense parent's answers, beside the labels."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ltp.execution.output import LTPOutput
from ltp.model.classifier import LTPForSequenceClassification


def logits_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T² · KL(softmax(teacher / T) ‖ softmax(student / T))`` (Hinton et al., arXiv 1503.02531).

    Args:
        student, teacher: logits, (B, num_labels); with one label, a regression's: their mean squared difference.
        temperature: T > 0.

    Returns:
        Scalar float32, a mean over the examples.
    """
    student, teacher = student.float(), teacher.float()
    if student.shape[1] == 1:
        return functional.mse_loss(student, teacher)
    wanted = functional.log_softmax(teacher / temperature, dim=-1)
    given = functional.log_softmax(student / temperature, dim=-1)
    return temperature**2 * functional.kl_div(given, wanted, reduction="batchmean", log_target=True)


def hidden_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the classification tokens' states, over layers, examples and dimensions.

    Only these tokens are alive in every layer of both.

    Args:
        student, teacher: (L, B, D).

    Returns:
        Scalar float32.
    """
    return functional.mse_loss(student.float(), teacher.float())


@dataclass
class Distillation:
    """How a training learns from a teacher.

    Attributes:
        teacher: the dense classifier, frozen and in evaluation mode.
        weight: of the teacher's logits, in [0, 1]; the labels' loss has the rest.
        temperature: T of the logits.
        hidden_weight: of the classification tokens' states; 0 leaves them alone.
    """

    teacher: LTPForSequenceClassification
    weight: float = 0.5
    temperature: float = 2.0
    hidden_weight: float = 0.0

    def __post_init__(self) -> None:
        self.teacher.requires_grad_(False).eval()

    @property
    def needs_states(self) -> bool:
        """Whether the student must return its classification tokens' states."""
        return self.hidden_weight > 0

    def added_loss(self, output: LTPOutput, batch: Mapping[str, Tensor], task_loss: Tensor) -> Tensor:
        """What the teacher adds to the student's loss on a micro-batch.

        Args:
            output: the student's, with its states where needed.
            batch: what the student was called with.
            task_loss: the labels' loss, of which the teacher's logits take over a share.

        Returns:
            ``weight · (logits loss − task loss) + hidden_weight · hidden loss``, scalar float32.
        """
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        assert output.logits is not None
        with torch.no_grad():
            taught = self.teacher(**inputs, output_class_states=self.needs_states)
        added = self.weight * (logits_loss(output.logits, taught.logits, self.temperature) - task_loss)
        if self.needs_states:
            assert output.class_states is not None
            added = added + self.hidden_weight * hidden_loss(output.class_states, taught.class_states)
        return added

"""Knowledge distillation: losses between the pruned classifier and its dense teacher."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ltp.data.tasks import Task
from ltp.execution.output import LTPOutput
from ltp.model.pretrained import LTPPreTrainedModel
from ltp.pruning import DENSE_MODE, method_class


def logits_loss(student: Tensor, teacher: Tensor, temperature: float, *, several: bool = False) -> Tensor:
    """Return ``T² · KL(softmax(teacher / T) ‖ softmax(student / T))`` (Hinton et al., arXiv 1503.02531).

    With one label (regression) the loss is the mean squared difference of the logits. With several labels a text, each
    is a distribution of two classes, and the loss a mean over the labels.

    Args:
        student: logits, (B, num_labels).
        teacher: logits, (B, num_labels).
        temperature: T > 0.
        several: whether a text has several labels.

    Returns:
        Scalar float32, a mean over the examples.
    """
    student, teacher = student.float(), teacher.float()
    if several:
        target = (teacher / temperature).sigmoid()
        entropy = functional.binary_cross_entropy_with_logits(teacher / temperature, target)
        return temperature**2 * (functional.binary_cross_entropy_with_logits(student / temperature, target) - entropy)
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


def ranking_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return how far the student's ranking of the tokens is from the teacher's: LambdaRank's loss, as in ToP.

    Each pair of tokens adds the logistic loss of the difference of its logarithmic scores, times what the normalised
    DCG would change if the two swapped their places (Wang et al., *The LambdaLoss Framework*). The gain of a token is
    the share of the tokens that the teacher ranks below it.

    Args:
        student: importance in each layer, (L, B, N) float32; -1 for tokens that are gone, and padding.
        teacher: importance in the teacher's last layer, (B, N) float32; -1 for padding.

    Returns:
        Scalar float32, a mean over layers and examples.
    """
    alive = student >= 0
    score = student.clamp(min=1e-12).log()
    below = (teacher[:, None, :] < teacher[:, :, None]) & (teacher >= 0)[:, None, :]  # j is below i, (B, i, j)
    gain = below.sum(dim=2) / (teacher >= 0).sum(dim=1, keepdim=True)  # (B, N)
    rank = score.masked_fill(~alive, -torch.inf).argsort(dim=2, descending=True, stable=True).argsort(dim=2)
    discount = torch.where(alive, 1 / (rank + 2.0).log2(), torch.zeros_like(score))
    order = torch.where(alive, gain, -torch.ones_like(score)).sort(dim=2, descending=True).values.clamp(min=0)
    places = 1 / torch.arange(2, score.shape[2] + 2, device=score.device).log2()
    best = (order * places).sum(dim=2).clamp(min=1e-6)  # the DCG of the teacher's ranking, (L, B)
    change = (gain[:, :, None] - gain[:, None, :]).abs() * (discount[..., :, None] - discount[..., None, :]).abs()
    pairs = below & alive[..., :, None] & alive[..., None, :]
    losses = functional.softplus(score[..., None, :] - score[..., :, None])
    return (losses * change.detach() * pairs).sum(dim=(2, 3)).div(best).mean()


@dataclass
class Dense(method_class(DENSE_MODE)):  # type: ignore[misc]  # the base is looked up
    """The method that keeps every token, with importance by the attention received."""

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"received"})

    def decides_in(self, layer: int, num_layers: int) -> bool:
        return True


@dataclass
class Distillation:
    """A teacher and the weights of its losses.

    Attributes:
        teacher: the dense model; it is frozen and set to evaluation mode.
        task: the task, which says what has a label.
        weight: weight of the logits loss, in [0, 1]; the task loss has weight ``1 - weight``.
        temperature: T of the logits loss.
        hidden_weight: weight of the hidden-state loss; 0 disables it.
        ranking_weight: weight of the ranking loss; 0 disables it.
    """

    teacher: LTPPreTrainedModel
    task: Task
    weight: float = 0.5
    temperature: float = 2.0
    hidden_weight: float = 0.0
    ranking_weight: float = 0.0

    def __post_init__(self) -> None:
        self.teacher.requires_grad_(False).eval()
        if self.needs_scores:
            self.teacher.pruner.method = Dense()

    @property
    def needs_states(self) -> bool:
        """Whether the student must return its classification tokens' hidden states."""
        return self.hidden_weight > 0

    @property
    def needs_scores(self) -> bool:
        """Whether the student must return the importance of its tokens."""
        return self.ranking_weight > 0

    def added_loss(self, output: LTPOutput, batch: Mapping[str, Tensor], task_loss: Tensor) -> Tensor:
        """Return the term that distillation adds to the student's loss on a micro-batch.

        Args:
            output: the student's output, with ``class_states`` if :attr:`needs_states`, and ``scores`` if
                :attr:`needs_scores`.
            batch: the student's inputs, and the labels, which say what of the logits is compared.
            task_loss: loss against the labels, scalar; the logits loss replaces a share ``weight`` of it.

        Returns:
            ``weight · (logits loss − task loss) + hidden_weight · hidden loss + ranking_weight · ranking loss``, scalar
            float32.
        """
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        assert output.logits is not None
        with torch.no_grad():
            wanted = {"output_class_states": self.needs_states, "output_scores": self.needs_scores}
            target = self.teacher(**inputs, **wanted)
        student, teacher = (self.task.of_labels(logits, batch["labels"]) for logits in (output.logits, target.logits))
        distance = logits_loss(student, teacher, self.temperature, several=self.task.has_several_labels)
        added = self.weight * (distance - task_loss)
        if self.needs_states:
            assert output.class_states is not None
            added = added + self.hidden_weight * hidden_loss(output.class_states, target.class_states)
        if self.needs_scores:
            assert output.scores is not None
            added = added + self.ranking_weight * ranking_loss(output.scores, target.scores[-1])
        return added

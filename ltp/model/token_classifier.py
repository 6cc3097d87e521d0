"""The pruned token classifier: a label for every token."""

from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional

from ltp.encoders.base import EncoderFamily
from ltp.execution.output import LTPTokenOutput
from ltp.execution.packing import Layout
from ltp.model.pretrained import LTPPreTrainedModel


class LTPForTokenClassification(LTPPreTrainedModel):
    """A token classifier whose encoder prunes tokens; see :class:`~ltp.model.pretrained.LTPPreTrainedModel`.

    A pruned token is labelled from the state with which it left.
    """

    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    output_class: ClassVar[Any] = LTPTokenOutput

    @classmethod
    def head(cls, family: type[EncoderFamily], dense: Any, last: Tensor, layout: Layout) -> dict[str, Tensor]:
        """Return ``logits``, (B, N, num_labels); see :class:`~ltp.model.pretrained.LTPPreTrainedModel`."""
        return {"logits": layout.padded(family.label_tokens(dense, family.finish(dense, last)))}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        output_class_states: bool = False,
        output_scores: bool = False,
        head_mask: Tensor | None = None,
    ) -> LTPTokenOutput | tuple[Any, ...]:
        """Label the tokens of a batch; for the other arguments see :meth:`ltp.LTPForSequenceClassification.forward`.

        Args:
            labels: class ids of the tokens, (B, N) int64; -100 for those without one.

        Returns:
            ``logits``, (B, N, num_labels), 0 for padding; with labels the ``loss``, the mean over the labelled tokens,
            plus the method's penalty under a soft rule.
        """
        encoded, layout = self.encode(
            *(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds),
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            output_class_states=output_class_states,
            output_scores=output_scores,
            head_mask=head_mask,
        )
        outputs = self.outputs(encoded, layout, output_hidden_states)
        loss = None if labels is None else self.with_penalty(self.task_loss(outputs["logits"], labels), encoded)
        output = LTPTokenOutput(loss=loss, **outputs)
        return output if return_dict is not False else output.to_tuple()

    def task_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean cross entropy over the labelled tokens: scalar float32.

        Args:
            logits: (B, N, num_labels).
            labels: class ids, (B, N) int64; -100 for tokens without one.
        """
        return functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())

"""The pruned token classifier: a label for every token."""

from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional

from ltp.execution.output import LTPTokenOutput
from ltp.model.pretrained import LTPPreTrainedModel


class LTPForTokenClassification(LTPPreTrainedModel):
    """A token classifier whose encoder prunes tokens; see :class:`~ltp.model.pretrained.LTPPreTrainedModel`.

    A pruned token is labelled from the state with which it left.
    """

    auto_class: ClassVar[str] = "AutoModelForTokenClassification"

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
        encoded = self.encode(
            *(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds),
            restores=True,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            output_class_states=output_class_states,
            output_scores=output_scores,
            head_mask=head_mask,
        )
        last = self.family.finish(self.dense, encoded.output.hidden_states[-1])
        logits = encoded.padded(self.family.label_tokens(self.dense, last))
        loss = None if labels is None else self.with_penalty(self.task_loss(logits, labels), encoded.output)
        output = LTPTokenOutput(loss=loss, logits=logits, **encoded.fields(output_hidden_states))
        return output if return_dict is not False else output.to_tuple()

    def task_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean cross entropy over the labelled tokens: scalar float32.

        Args:
            logits: (B, N, num_labels).
            labels: class ids, (B, N) int64; -100 for tokens without one.
        """
        return functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())

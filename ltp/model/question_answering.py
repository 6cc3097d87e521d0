"""The pruned reader: the span of a text that answers a question."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ltp.encoders.base import EncoderFamily
from ltp.execution.output import LTPSpanOutput
from ltp.execution.packing import Layout
from ltp.model.pretrained import LTPPreTrainedModel


class LTPForQuestionAnswering(LTPPreTrainedModel):
    """A reader whose encoder prunes tokens; see :class:`~ltp.model.pretrained.LTPPreTrainedModel`.

    A pruned token can still begin or end the answer, from the state with which it left.
    """

    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    output_class: ClassVar[Any] = LTPSpanOutput

    @classmethod
    def head(cls, family: type[EncoderFamily], dense: Any, last: Tensor, layout: Layout) -> dict[str, Tensor]:
        """Return ``start_logits`` and ``end_logits``, (B, N); see :class:`~ltp.model.pretrained.LTPPreTrainedModel`."""
        logits = family.find_spans(dense, family.finish(dense, last))
        start_logits, end_logits = layout.padded(logits, torch.finfo(logits.dtype).min).unbind(dim=-1)
        return {"start_logits": start_logits, "end_logits": end_logits}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        output_class_states: bool = False,
        output_scores: bool = False,
        head_mask: Tensor | None = None,
    ) -> LTPSpanOutput | tuple[Any, ...]:
        """Find spans; for the other arguments see :meth:`ltp.LTPForSequenceClassification.forward`.

        Args:
            start_positions, end_positions: first and last token of the answer, (B,) or (B, 1) int64. Positions outside
                the text are left out of the loss.

        Returns:
            ``start_logits`` and ``end_logits``, (B, N), the smallest number for padding, so that the loss does not
            depend on it (that of Hugging Face's classes does); with positions the ``loss``, the mean of the cross
            entropies of start and end, plus the method's penalty under a soft rule.
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
        loss = None
        if start_positions is not None and end_positions is not None:
            logits = torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=-1)
            positions = torch.stack([start_positions.flatten(), end_positions.flatten()], dim=-1)
            loss = self.with_penalty(self.task_loss(logits, positions), encoded)
        output = LTPSpanOutput(loss=loss, **outputs)
        return output if return_dict is not False else output.to_tuple()

    def task_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean of the cross entropies of start and end: scalar float32.

        Args:
            logits: of start and end, (B, N, 2).
            labels: their positions, (B, 2) int64; those outside the text are left out.
        """
        outside = logits.shape[1]  # a position that is ignored
        losses = [
            functional.cross_entropy(of_end.float(), places.clamp(0, outside), ignore_index=outside)
            for of_end, places in zip(logits.unbind(dim=-1), labels.unbind(dim=-1), strict=True)
        ]
        return (losses[0] + losses[1]) / 2

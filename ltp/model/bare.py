"""The bare pruned encoder, for embeddings and for heads of one's own."""

from typing import Any, ClassVar

from torch import Tensor

from ltp.encoders.base import EncoderFamily
from ltp.execution.output import LTPModelOutput
from ltp.execution.packing import Layout
from ltp.model.pretrained import LTPPreTrainedModel


class LTPModel(LTPPreTrainedModel):
    """A pruned encoder without a head; see :class:`~ltp.model.pretrained.LTPPreTrainedModel`.

    It also loads the encoder of a pruned model with a head.
    """

    auto_class: ClassVar[str] = "AutoModel"
    output_class: ClassVar[Any] = LTPModelOutput

    @classmethod
    def head(cls, family: type[EncoderFamily], dense: Any, last: Tensor, layout: Layout) -> dict[str, Tensor]:
        """Return ``last_hidden_state``, (B, N, D); see :class:`~ltp.model.pretrained.LTPPreTrainedModel`."""
        return {"last_hidden_state": layout.padded(family.finish(dense, last))}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        output_class_states: bool = False,
        output_scores: bool = False,
        head_mask: Tensor | None = None,
    ) -> LTPModelOutput | tuple[Any, ...]:
        """Encode a batch; for the arguments see :meth:`ltp.LTPForSequenceClassification.forward`.

        Returns:
            ``last_hidden_state``, (B, N, D): the last state of every token, that with which a pruned one left; 0 for
            padding. And how many tokens were left in each layer.
        """
        encoded, layout = self.encode(
            *(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds),
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            output_class_states=output_class_states,
            output_scores=output_scores,
            head_mask=head_mask,
        )
        output = LTPModelOutput(**self.outputs(encoded, layout, output_hidden_states))
        return output if return_dict is not False else output.to_tuple()

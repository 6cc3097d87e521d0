"""The pruned sequence classifier: one class, several labels, or a number for each text."""

from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional

from ltp.encoders.base import EncoderFamily
from ltp.execution.output import EncoderOutput, LTPOutput
from ltp.execution.packing import Layout
from ltp.model.pretrained import LTPPreTrainedModel


class LTPForSequenceClassification(LTPPreTrainedModel):
    """A sequence classifier whose encoder prunes tokens; see :class:`~ltp.model.pretrained.LTPPreTrainedModel`."""

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    output_class: ClassVar[Any] = LTPOutput

    @classmethod
    def reads_tokens(cls, family: type[EncoderFamily], dense: Any) -> bool:
        """Whether the head reads the mean over the tokens."""
        return family.pools_mean(dense.config)

    @classmethod
    def head(cls, family: type[EncoderFamily], dense: Any, last: Tensor, layout: Layout) -> dict[str, Tensor]:
        """Return ``logits``, (B, num_labels); see :class:`~ltp.model.pretrained.LTPPreTrainedModel`."""
        pooled = family.finish(dense, last)
        if cls.reads_tokens(family, dense):  # over all real tokens: a pruned one counts with its last state
            pooled = layout.mean(pooled)
        return {"logits": family.classify(dense, pooled)}

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
    ) -> LTPOutput | tuple[Any, ...]:
        """Classify a batch.

        Args:
            input_ids: (B, N) int64, or ``inputs_embeds``, (B, N, D).
            attention_mask: 1 for real tokens, 0 for padding, (B, N); position 0 must be real.
            token_type_ids, position_ids: (B, N) int64, as in Hugging Face models.
            labels: class ids, (B,) int64, or targets of a regression, (B,) float, or several labels, (B, num_labels)
                float.
            output_attentions, output_hidden_states: whether to return these outputs of every layer.
            return_dict: whether to return an :class:`~ltp.execution.output.LTPOutput` (default) or a tuple.
            output_class_states: whether to return the class states of every layer.
            output_scores: whether to return the importance of every token in every layer.
            head_mask: not supported, as in transformers 5; must be None.

        Raises:
            ValueError: see :meth:`~ltp.model.pretrained.LTPPreTrainedModel.encode`.
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
        loss = None if labels is None else self.objective(outputs["logits"], labels, encoded)
        output = LTPOutput(loss=loss, **outputs)
        return output if return_dict is not False else output.to_tuple()

    def task_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the task loss, the mean over the examples, by the rule of Hugging Face's classifiers.

        Where ``config.problem_type`` is not set, the labels decide: a regression if ``num_labels`` is 1, one class per
        example for integers, several labels per example for floats.

        Args:
            logits: (B, num_labels).
            labels: class ids, (B,) or (B, 1), integers; targets of a regression, float, (B,) or (B, num_labels); or
                several labels per example, float, (B, num_labels).

        Returns:
            Scalar float32.
        """
        logits = logits.float()
        problem_type = self.config.problem_type or (
            "regression"
            if self.num_labels == 1
            else "multi_label_classification"
            if labels.is_floating_point()
            else "single_label_classification"
        )
        if problem_type == "regression":
            return functional.mse_loss(logits.flatten(), labels.float().flatten())
        if problem_type == "multi_label_classification":
            return functional.binary_cross_entropy_with_logits(logits, labels.float())
        return functional.cross_entropy(logits, labels.flatten())

    def objective(self, logits: Tensor, labels: Tensor, encoded: EncoderOutput) -> Tensor:
        """Compute the objective: the task loss, plus the method's penalty under a soft rule.

        Args:
            logits, labels: see :meth:`task_loss`.
            encoded: the encoder's output.

        Returns:
            Scalar float32.
        """
        return self.with_penalty(self.task_loss(logits, labels), encoded)

"""The pruned sequence classifier: one class, several labels, or a number for each text."""

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
from torch.nn import functional

from ltp.execution.output import EncoderOutput, LTPOutput
from ltp.model.pretrained import LTPPreTrainedModel

if TYPE_CHECKING:
    from ltp.deploy.classifier import DeployedClassifier
    from ltp.deploy.cuda import DeployedOnCUDA


class LTPForSequenceClassification(LTPPreTrainedModel):
    """A sequence classifier whose encoder prunes tokens; see :class:`~ltp.model.pretrained.LTPPreTrainedModel`."""

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"

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
        pools_mean = self.family.pools_mean(self.dense.config)
        encoded = self.encode(
            *(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds),
            restores=pools_mean,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            output_class_states=output_class_states,
            output_scores=output_scores,
            head_mask=head_mask,
        )
        if pools_mean:  # over all real tokens: a pruned one counts with its last state
            last = encoded.padded(self.family.finish(self.dense, encoded.output.hidden_states[-1]))
            pooled = last.sum(dim=1) / encoded.alive.sum(dim=1, keepdim=True)
        else:
            pooled = self.family.finish(self.dense, encoded.output.class_token)
        logits = self.family.classify(self.dense, pooled)
        output = LTPOutput(
            loss=None if labels is None else self.objective(logits, labels, encoded.output),
            logits=logits,
            **encoded.fields(output_hidden_states),
        )
        return output if return_dict is not False else output.to_tuple()

    def deploy(self, dtype: str = "float32") -> "DeployedClassifier | DeployedOnCUDA":
        """Create a frozen copy for inference on the model's device. Call it like the model.

        Args:
            dtype: on a CPU ``float32``, ``bfloat16`` or ``int8`` (dynamic), with prepacked or quantised weights; on a
                GPU ``float32``, ``bfloat16`` or ``float16``.

        Raises:
            ValueError: an unknown dtype, or a model on another kind of device.
            RuntimeError: int8 without a PyTorch engine for it.
        """
        if self.device.type == "cuda":
            from ltp.deploy.cuda import DeployedOnCUDA  # needs Triton

            return DeployedOnCUDA(self.family, self.dense, self.pruner, dtype=dtype)
        from ltp.deploy.classifier import DeployedClassifier  # not needed for training

        return DeployedClassifier(self.family, self.dense, self.pruner, dtype=dtype)

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

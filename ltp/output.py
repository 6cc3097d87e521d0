"""What the pruned classifier returns, trained or deployed."""

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput


@dataclass
class LTPOutput(SequenceClassifierOutput):
    """Output of the pruned classifier.

    Attributes:
        loss: the objective, where labels were given: the task's loss, plus the regulariser under the soft rule.
        logits: (B, num_labels).
        token_lengths: tokens alive entering each layer, and after the last, (B, L+1) int64.
        gate_sums: Σ_j m_l(b, j) under a soft rule, (B, L) float32; else None.
        expected_lengths: tokens expected alive entering each layer, and after the last, under a soft rule, (B, L+1)
            float32, differentiable; else None.
        class_states: each layer's output for the classification tokens, (L, B, D), where asked for.
        hidden_states, attentions: as in Hugging Face models (attentions before dropout), where asked for.
    """

    token_lengths: Tensor | None = None
    gate_sums: Tensor | None = None
    expected_lengths: Tensor | None = None
    class_states: Tensor | None = None

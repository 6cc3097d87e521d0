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
        gate_sums: Σ_j m_l(b, j) under the soft rule, (B, L) float32; else None.
        hidden_states, attentions: as in Hugging Face models (attentions before dropout), where asked for.
    """

    token_lengths: Tensor | None = None
    gate_sums: Tensor | None = None

"""What a pass through the encoder leaves behind, whichever form executed it."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class EncoderPass:
    """What an encoder pass leaves behind.

    Attributes:
        class_token: last hidden state of the classification tokens, (B, D).
        token_lengths: tokens alive entering each layer, and after the last, (B, L+1) int64.
        gate_sums: Σ_j m_l(b, j) of a soft rule, (B, L) float32; None under the hard rule.
        expected_lengths: tokens expected alive under a soft rule, Σ_j Π_{k<l} m_k(b, j) entering layer l, and after
            the last, (B, L+1) float32; None under the hard rule.
        class_states: each layer's output for the classification tokens, (L, B, D); None unless asked for.
        hidden_states: embeddings and each layer's output, L+1 of (B, N, D), 0 for tokens that are not alive; empty
            unless asked for.
        attentions: each layer's probabilities before dropout, L of (B, H, N, N); empty unless asked for.
    """

    class_token: Tensor
    token_lengths: Tensor
    gate_sums: Tensor | None
    expected_lengths: Tensor | None
    class_states: Tensor | None
    hidden_states: tuple[Tensor, ...] = field(default=())
    attentions: tuple[Tensor, ...] = field(default=())

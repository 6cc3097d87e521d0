"""Outputs of the encoder's forward pass and of the models."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from transformers.modeling_outputs import (
    BaseModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)


@dataclass
class EncoderOutput:
    """Output of a forward pass through the encoder, packed or masked.

    Attributes:
        class_token: last hidden state of the classification tokens, (B, D).
        token_lengths: tokens alive entering each layer, and after the last, (B, L+1) int64.
        gate_sums: sums of gates Σ_j m_l(b, j) under a soft rule, (B, L) float32; None under the hard rule.
        expected_lengths: expected number of tokens alive under a soft rule, Σ_j Π_{k<l} m_k(b, j) entering layer l,
            and after the last, (B, L+1) float32; None under the hard rule.
        class_states: each layer's output for the classification tokens, (L, B, D); None unless requested.
        hidden_states: the state of every token before layer 1 and after each layer, L+1 of the layout of the embeddings
            given; only the last of them, or none, if not requested. A pruned token keeps the state with which it
            entered the layer that pruned it, a merged one has that of the token which it went into. Under a soft rule
            a state is the mean of the layer's output and of the state before, weighted by the survival.
        token_layers: number of layers whose output each token has, int64, of the layout of the embeddings without D: L
            for those alive at the end; a merged token has the number at which it was merged. None if neither all states
            nor the last were requested.
        scores: importance of each token in each layer, :meth:`ltp.pruning.method.Method.scores`, L of the layout of the
            embeddings without D, float32; -1 for tokens that the layer does not keep, 1 before the first layer in which
            tokens may leave, and after it those of the last such layer. Empty unless requested.
        gates: gates of each token in each layer under a soft rule, in the same layout, float32; with the scores.
        attentions: each layer's probabilities before dropout, L of (B, H, N, N); empty unless requested.
    """

    class_token: Tensor
    token_lengths: Tensor
    gate_sums: Tensor | None
    expected_lengths: Tensor | None
    class_states: Tensor | None
    hidden_states: tuple[Tensor, ...] = field(default=())
    token_layers: Tensor | None = None
    scores: tuple[Tensor, ...] = field(default=())
    gates: tuple[Tensor, ...] = field(default=())
    attentions: tuple[Tensor, ...] = field(default=())


@dataclass
class PrunedOutput:
    """What the outputs of all pruned models have, beside ``loss`` and what Hugging Face's have.

    Attributes:
        hidden_states: embeddings and the state of every token after each layer, L+1 of (B, N, D), 0 for padding; a
            pruned token keeps the state with which it left. None unless requested.
        attentions: as in Hugging Face models, before dropout; None unless requested.
        token_lengths: tokens alive entering each layer, and after the last, (B, L+1) int64.
        gate_sums: sums of gates Σ_j m_l(b, j) under a soft rule, (B, L) float32; else None.
        expected_lengths: expected number of tokens alive entering each layer, and after the last, under a soft rule,
            (B, L+1) float32, differentiable; else None.
        class_states: each layer's output for the classification tokens, (L, B, D); None unless requested.
        token_layers: number of layers whose output each token has, (B, N) int64: L for those alive at the end, 0 for
            padding; None if neither the head nor ``hidden_states`` takes the states of all tokens.
        scores: importance of each token in each layer, (L, B, N) float32; -1 for tokens that the layer does not keep,
            and for padding; None unless requested.
        gates: gates of each token in each layer under a soft rule, (L, B, N) float32, 0 for padding; None under the
            hard rule, or unless scores are requested.
    """

    results: ClassVar[tuple[str, ...]]  #: names of the results of the head
    is_of_tokens: ClassVar[bool] = True  #: whether these are (B, N, …), rather than (B, …)

    token_lengths: Tensor | None = None
    gate_sums: Tensor | None = None
    expected_lengths: Tensor | None = None
    class_states: Tensor | None = None
    token_layers: Tensor | None = None
    scores: Tensor | None = None
    gates: Tensor | None = None


@dataclass
class LTPOutput(PrunedOutput, SequenceClassifierOutput):
    """Output of the pruned classifier, see :class:`PrunedOutput`.

    Attributes:
        loss: the objective if labels were given: the task loss, plus the method's penalty under a soft rule; else None.
        logits: (B, num_labels).
    """

    results: ClassVar[tuple[str, ...]] = ("logits",)
    is_of_tokens: ClassVar[bool] = False


@dataclass
class LTPTokenOutput(PrunedOutput, TokenClassifierOutput):
    """Output of the pruned token classifier, see :class:`PrunedOutput`: ``loss``; ``logits``, (B, N, num_labels)."""

    results: ClassVar[tuple[str, ...]] = ("logits",)


@dataclass
class LTPSpanOutput(PrunedOutput, QuestionAnsweringModelOutput):
    """Output of the pruned reader, see :class:`PrunedOutput`: ``loss``, ``start_logits`` and ``end_logits``, (B, N)."""

    results: ClassVar[tuple[str, ...]] = ("start_logits", "end_logits")

    @property
    def logits(self) -> Tensor:
        """Logits of start and end, (B, N, 2)."""
        assert self.start_logits is not None and self.end_logits is not None
        return torch.stack([self.start_logits, self.end_logits], dim=-1)


@dataclass
class LTPModelOutput(PrunedOutput, BaseModelOutput):
    """Output of the bare pruned encoder, see :class:`PrunedOutput`: ``last_hidden_state``, (B, N, D)."""

    results: ClassVar[tuple[str, ...]] = ("last_hidden_state",)

"""What a method sees of a batch in one layer, in padded form, whichever way the encoder runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of an encoder.

    Attributes:
        num_layers: L.
        hidden_size: D.
        intermediate_size: I, the width of the FFN.
        num_heads: H.
        max_positions: largest number of tokens of an input.
        ffn_products: number of D × I products of an FFN: 3 with a gate.
        windows: for each layer how many tokens a token attends to at most, None for all; empty where no layer has one.
        position_terms: number of products of content with relative positions that attention adds.
        position_span: number of relative positions that these products tell apart at most.
    """

    num_layers: int
    hidden_size: int = 0
    intermediate_size: int = 0
    num_heads: int = 0
    max_positions: int = 512
    ffn_products: int = 2
    windows: tuple[int | None, ...] = ()
    position_terms: int = 0
    position_span: int = 0


@dataclass(frozen=True)
class Tokens:
    """The tokens of a batch in one layer. Rows are examples; tokens keep their order; column 0 is the class token.

    What a method does not read (:attr:`ltp.pruning.method.Method.reads`) is None, and reading it raises an error.

    Attributes:
        layer: 1..L.
        num_layers: L.
        heads: H.
        alive: tokens alive when the layer starts, (B, N) bool.
        lengths: number of real tokens n of each input, (B,) int64.
        survival: under a soft rule, the probability that a token is still alive, (B, N) float32; None otherwise.
        sizes: number of tokens that each token stands for, (B, N) float32; None without merging.
        carried: value that the method passed on from the layer before, (B, N) float32, 0 in layer 1.
        attention: sums over the heads of what attention gives each token, (B, N) float32, by name.
        states: other tensors by name.
        training: whether the model is in training mode.
    """

    layer: int
    num_layers: int
    heads: int
    alive: Tensor
    lengths: Tensor
    survival: Tensor | None = None
    sizes: Tensor | None = None
    carried: Tensor | None = None
    attention: dict[str, Tensor] = field(default_factory=dict)
    states: dict[str, Tensor] = field(default_factory=dict)
    training: bool = False

    @property
    def presence(self) -> Tensor:
        """How far each token is present, (B, N): its survival probability under a soft rule, else 1 or 0."""
        return self.alive if self.survival is None else self.survival

    @property
    def candidates(self) -> Tensor:
        """The tokens that may leave, (B, N) bool: those alive but the class token."""
        candidates = self.alive.clone()
        candidates[:, 0] = False
        return candidates

    @property
    def received(self) -> Tensor:
        """Attention received from the queries that are alive, (B, N) float32."""
        return self._read(self.attention, "received")

    @property
    def diagonal(self) -> Tensor:
        """Attention that each token pays to itself, (B, N) float32."""
        return self._read(self.attention, "diagonal")

    @property
    def class_attention(self) -> Tensor:
        """Attention that the classification token pays to each token, (B, N) float32."""
        return self._read(self.attention, "class_attention")

    @property
    def value_weighted(self) -> Tensor:
        """Attention received in each head times the norm of the token's value there, (B, N) float32."""
        return self._read(self.attention, "value_weighted")

    @property
    def hidden(self) -> Tensor:
        """Hidden states that enter the layer, (B, N, D)."""
        return self._read(self.states, "hidden")

    @property
    def keys(self) -> Tensor:
        """Attention keys, averaged over the heads, (B, N, D/H)."""
        return self._read(self.states, "keys")

    @property
    def positions(self) -> Tensor:
        """Position of each token in the input, from 0, (B, N) int64."""
        return self._read(self.states, "positions")

    def _read(self, tensors: dict[str, Tensor], name: str) -> Tensor:
        if name not in tensors:
            raise LookupError(f"{name} was not computed in layer {self.layer}: name it in the method's reads")
        return tensors[name]


@dataclass(frozen=True)
class SoftPass:
    """What a penalty sees of a forward pass under a soft rule.

    Attributes:
        gate_sums: sum of each layer's gates over the real tokens, (B, L) float32.
        expected_lengths: sums of survival probabilities entering each layer, and after the last, (B, L+1) float32.
    """

    gate_sums: Tensor
    expected_lengths: Tensor

    @property
    def kept_share(self) -> Tensor:
        """Expected share of the real tokens that is left, mean over layers and examples, a scalar."""
        return (self.expected_lengths[:, 1:].mean(dim=1) / self.expected_lengths[:, 0]).mean()

"""Base class of the adapters to encoder families."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LayerParts:
    """The modules of one post-norm encoder layer, for code that replaces its forward pass (:mod:`ltp.deploy`).

    Attributes:
        heads: H.
        query, key, value: projections D → D.
        attention_output: projection D → D of the context; ``attention_norm`` normalises its sum with the residual.
        up: D → I, followed by ``activation``.
        down: I → D; ``output_norm`` normalises its sum with the residual.
    """

    heads: int
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_output: nn.Linear
    attention_norm: nn.LayerNorm
    up: nn.Linear
    activation: Callable[[Tensor], Tensor]
    down: nn.Linear
    output_norm: nn.LayerNorm


class EncoderFamily(ABC):
    """The steps of the forward pass of one family of sequence classifiers, as functions of Hugging Face modules.

    It has no state. ``model`` is the Hugging Face classifier and ``layer`` one of its encoder layers, typed ``Any``
    because their submodules are accessed by name. Functions of a layer accept hidden states of any leading shape,
    (..., D), so that the same adapter works with padded and with packed tokens.
    """

    config_class: ClassVar[Any]  #: a subclass of ``PreTrainedConfig``
    classifier_class: ClassVar[Any]  #: a subclass of ``PreTrainedModel``

    @classmethod
    def max_input_tokens(cls, config: Any) -> int:
        """Return the maximum number of tokens of an input, special tokens included."""
        return int(config.max_position_embeddings)

    @staticmethod
    @abstractmethod
    def layers(model: Any) -> Sequence[nn.Module]:
        """Return the L encoder layers, in order."""

    @staticmethod
    @abstractmethod
    def embed(
        model: Any,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> Tensor:
        """Compute the embeddings, the input of layer 1, (B, N, D)."""

    @staticmethod
    @abstractmethod
    def position_ids(model: Any, input_ids: Tensor) -> Tensor:
        """Compute the default position ids: (B, N) int64 → (B, N) or (1, N) int64."""

    @classmethod
    def embed_tokens(
        cls,
        model: Any,
        input_ids: Tensor,
        indices: Tensor,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
    ) -> Tensor:
        """Compute the embeddings of selected tokens only, such as all tokens but padding.

        Args:
            model: the classifier.
            input_ids: (B, N) int64.
            indices: the selected tokens, as indices into flattened ``input_ids``, (T,) int64.
            token_type_ids, position_ids: (B, N) or (1, N) int64, or None.

        Returns:
            (T, D), in the order of ``indices``.
        """
        if position_ids is None:
            position_ids = cls.position_ids(model, input_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        ids, types, positions = (
            x.expand_as(input_ids).flatten()[indices][None] for x in (input_ids, token_type_ids, position_ids)
        )  # one sequence, (1, T), with explicit positions
        return cls.embed(model, ids, types, positions, None).squeeze(0)

    @staticmethod
    @abstractmethod
    def parts(layer: Any) -> LayerParts:
        """Return the modules of a layer."""

    @staticmethod
    @abstractmethod
    def project(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute query, key and value, each (..., H, D/H)."""

    @staticmethod
    @abstractmethod
    def attention_dropout(layer: Any) -> float:
        """Return the current dropout probability of attention weights: 0 in evaluation mode."""

    @staticmethod
    @abstractmethod
    def attention_output(layer: Any, context: Tensor, residual: Tensor) -> Tensor:
        """Apply output projection, residual and normalisation, (..., D)."""

    @staticmethod
    @abstractmethod
    def feed_forward(layer: Any, hidden: Tensor) -> Tensor:
        """Apply FFN, residual and normalisation, (..., D)."""

    @staticmethod
    @abstractmethod
    def classify(model: Any, class_token: Tensor) -> Tensor:
        """Compute logits, (B, num_labels), from the last hidden state of the classification token, (B, D)."""

"""Base class of the adapters to encoder families."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn

from ltp.encoders.registry import REGISTERED
from ltp.pruning.tokens import EncoderShape

#: Computes what pairs of positions add to the attention logits: from scaled queries, (…, H, Q, D/H), keys,
#: (…, H, K, D/H), and the positions of both, (…, Q) and (…, K) int64, to (…, H, Q, K).
PairBias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


#: Puts positions, (…) int64, into queries and keys, (…, H, D/H): rotary embeddings.
Rotation = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LayerParts:
    """The modules of one encoder layer, for code that replaces its forward pass (:mod:`ltp.deploy`).

    Attributes:
        heads: H.
        query, key, value: projections D → D.
        attention_output: projection D → D of the context.
        attention_norm: normalises the sum of attention output and residual; with ``norm_first`` the input of the three
            projections, None for no normalisation.
        up: D → I, followed by ``activation``.
        down: I → D.
        output_norm: normalises the sum of ``down`` and residual; with ``norm_first`` the input of ``up``.
        gate: D → I, by which the activation's result is multiplied; None without.
        norm_first: whether normalisation stands before attention and FFN rather than after their residuals.
        query_scale: factor on queries, beside 1/√(D/H).
    """

    heads: int
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_output: nn.Linear
    attention_norm: nn.LayerNorm | None
    up: nn.Linear
    activation: Callable[[Tensor], Tensor]
    down: nn.Linear
    output_norm: nn.LayerNorm
    gate: nn.Linear | None = None
    norm_first: bool = False
    query_scale: float = 1.0


class EncoderFamily(ABC):
    """The steps of the forward pass of one family of encoders, as functions of Hugging Face modules.

    It has no state. ``model`` is the Hugging Face model with its head, and ``layer`` one of what :meth:`layers`
    returns, typed ``Any`` because their submodules are accessed by name. Functions of a layer accept hidden states of
    any leading shape, (..., D), so that the same adapter works with padded and with packed tokens. Positions are those
    of the input: a token keeps its own when others are pruned.

    A layer computes, with ``h`` the hidden states that enter it::

        q, k, v = project(layer, h)
        q, k = rotation(layer)(q, k, positions)
        context = softmax(q·k / √(D/H) + pair_bias(layer)(q, k, positions), within window(layer)) · v
        h = feed_forward(layer, attention_output(layer, context, h))
    """

    model_type: ClassVar[str] = ""  #: ``model_type`` in ``config.json``
    config_class: ClassVar[Any]  #: a subclass of ``PreTrainedConfig``
    classifier_class: ClassVar[Any]  #: the sequence classifier, a subclass of ``PreTrainedModel``
    #: the family's own names of sizes that ``config.attribute_map`` does not translate
    size_names: ClassVar[Mapping[str, str]] = {}
    #: whether attention depends on positions: :meth:`rotation`, :meth:`pair_bias` or :meth:`window`
    has_positions: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.model_type:
            REGISTERED[cls.model_type] = cls

    # -- sizes -----------------------------------------------------------------------------------------------------

    @classmethod
    def size(cls, config: Any, name: str) -> int:
        """Return a size of a configuration by Hugging Face's usual name, such as ``hidden_size``."""
        return int(getattr(config, cls.size_names.get(name, name)))

    @classmethod
    def shape(cls, config: Any) -> EncoderShape:
        """Return the sizes of the encoder, from which FLOPs are counted."""
        return EncoderShape(
            num_layers=cls.size(config, "num_hidden_layers"),
            hidden_size=cls.size(config, "hidden_size"),
            intermediate_size=cls.size(config, "intermediate_size"),
            num_heads=cls.size(config, "num_attention_heads"),
            max_positions=cls.max_input_tokens(config),
        )

    @classmethod
    def max_input_tokens(cls, config: Any) -> int:
        """Return the maximum number of tokens of an input, special tokens included."""
        return int(config.max_position_embeddings)

    @classmethod
    def unsupported(cls, config: Any) -> str | None:
        """Return why the adapter does not support a variant of the architecture, with its key; None if it does."""
        return None

    @classmethod
    def input_names(cls, config: Any) -> tuple[str, ...]:
        """Return the inputs that the model takes: ``token_type_ids`` only if it has token types."""
        types = ("token_type_ids",) if getattr(config, "type_vocab_size", 0) > 0 else ()
        return ("input_ids", "attention_mask", *types)

    @classmethod
    def pools_mean(cls, config: Any) -> bool:
        """Whether the head reads the mean over the real tokens, rather than the classification token."""
        return False

    @classmethod
    def dense_class(cls, auto_class: str) -> Any:
        """Return the Hugging Face class of this family that an Auto class loads.

        Args:
            auto_class: such as ``AutoModelForTokenClassification``.

        Raises:
            ValueError: transformers has none.
        """
        if auto_class == "AutoModelForSequenceClassification":
            return cls.classifier_class
        classes = getattr(transformers, auto_class)._model_mapping
        if cls.config_class not in classes:
            raise ValueError(f"transformers has no {auto_class} of {cls.model_type}")
        return classes[cls.config_class]

    # -- ends of the model -----------------------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def layers(model: Any) -> Sequence[Any]:
        """Return the L encoder layers, in order: what the other functions take as ``layer``."""

    @classmethod
    def layer_list(cls, model: Any) -> nn.ModuleList:
        """Return the module of the model that contains the layers, and nothing else."""
        return cls.layers(model)  # type: ignore[return-value]  # the usual case

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
    def position_ids(model: Any, input_ids: Tensor) -> Tensor:
        """Compute the default position ids of the embeddings: (B, N) int64 → (B, N) or (1, N) int64."""
        return torch.arange(input_ids.shape[1], device=input_ids.device)[None]

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
            model: the model.
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
    def finish(model: Any, hidden: Tensor) -> Tensor:
        """Apply what follows the last layer to every token, such as a last normalisation, (..., D)."""
        return hidden

    @staticmethod
    @abstractmethod
    def classify(model: Any, pooled: Tensor) -> Tensor:
        """Compute logits, (B, num_labels), from the pooled output of :meth:`finish`, (B, D)."""

    @staticmethod
    def label_tokens(model: Any, hidden: Tensor) -> Tensor:
        """Compute the logits of tokens, (..., num_labels), from their output of :meth:`finish`, (..., D)."""
        return model.classifier(model.dropout(hidden))

    @staticmethod
    def find_spans(model: Any, hidden: Tensor) -> Tensor:
        """Compute the logits of a span's start and end, (..., 2), from the tokens' output of :meth:`finish`."""
        return model.qa_outputs(hidden)

    @staticmethod
    def attention_positions(columns: Tensor, position_ids: Tensor | None) -> Tensor:
        """Return the positions that attention uses: the columns of the tokens, or given position ids; (B, N) int64."""
        return columns

    # -- a layer ---------------------------------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def project(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute query, key and value, each (..., H, D/H); with a normalisation before them where there is one."""

    @staticmethod
    def rotation(layer: Any) -> Rotation | None:
        """Return the function that puts positions into queries and keys; None where there is none."""
        return None

    @staticmethod
    def pair_bias(layer: Any, reach: int) -> PairBias | None:
        """Return what pairs of positions add to the attention logits; None for nothing.

        Args:
            layer: the layer.
            reach: largest distance between two positions.
        """
        return None

    @staticmethod
    def window(layer: Any) -> int | None:
        """Return the largest distance of a token that a token attends to; None for no limit."""
        return None

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

    @classmethod
    def parts(cls, layer: Any) -> LayerParts:
        """Return the modules of a layer.

        Raises:
            ValueError: the family has no deployed form.
        """
        raise ValueError(f"{cls.model_type} has no deployed form: its layers are not taken apart; use the model itself")


def heads_of(hidden: Tensor, linears: Sequence[nn.Linear], heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compute query, key and value with a projection each: (…, D) → three of (…, H, D/H)."""
    query, key, value = (linear(hidden).unflatten(-1, (heads, -1)) for linear in linears)
    return query, key, value


def probability(dropout: nn.Dropout) -> float:
    """Return the current probability of a dropout module: 0 in evaluation mode."""
    return dropout.p if dropout.training else 0.0


def distances(query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """Return the signed distances of keys from queries: (…, Q) and (…, K) int64 → (…, Q, K) int64."""
    return key_positions[..., None, :] - query_positions[..., :, None]

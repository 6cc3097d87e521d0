"""Adapter to DeBERTa-v2 and v3: attention logits have terms of content and relative position, in both directions.

The terms are computed for the distances that occur only, and for the tokens that are alive.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from ltp.encoders.base import EncoderFamily, LayerParts, PairBias, distances, heads_of, probability
from ltp.pruning.tokens import EncoderShape


@dataclass(frozen=True)
class _Layer:
    module: Any
    encoder: Any  # which holds the embeddings of relative positions


class DebertaV2Family(EncoderFamily):
    """``DebertaV2ForSequenceClassification``."""

    model_type: ClassVar[str] = "deberta-v2"
    config_class: ClassVar[Any] = DebertaV2Config
    classifier_class: ClassVar[Any] = DebertaV2ForSequenceClassification
    has_positions: ClassVar[bool] = True

    @classmethod
    def unsupported(cls, config: Any) -> str | None:
        if getattr(config, "conv_kernel_size", 0) <= 0:
            return None
        return (
            f"conv_kernel_size is {config.conv_kernel_size}: a convolution after the first layer reads neighbours, "
            "which may be pruned; take a checkpoint without one (v3, or the smaller ones of v2)"
        )

    @classmethod
    def shape(cls, config: Any) -> EncoderShape:
        shape = super().shape(config)
        if not config.relative_attention:
            return shape
        longest = config.max_relative_positions if config.max_relative_positions > 0 else config.max_position_embeddings
        buckets = getattr(config, "position_buckets", -1)
        span = 2 * (buckets if buckets > 0 else longest)
        return dataclasses.replace(shape, position_terms=len(_terms(config)), position_span=span)

    @staticmethod
    def layers(model: Any) -> Sequence[Any]:
        encoder = model.base_model.encoder
        return [_Layer(module, encoder) for module in encoder.layer]

    @classmethod
    def layer_list(cls, model: Any) -> nn.ModuleList:
        return model.base_model.encoder.layer

    @staticmethod
    def embed(
        model: Any,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> Tensor:
        return model.base_model.embeddings(
            input_ids, token_type_ids=token_type_ids, position_ids=position_ids, inputs_embeds=inputs_embeds
        )

    @classmethod
    def parts(cls, layer: Any) -> LayerParts:
        module, attention = layer.module, layer.module.attention.self
        return LayerParts(
            heads=attention.num_attention_heads,
            query=attention.query_proj,
            key=attention.key_proj,
            value=attention.value_proj,
            attention_output=module.attention.output.dense,
            attention_norm=module.attention.output.LayerNorm,
            up=module.intermediate.dense,
            activation=module.intermediate.intermediate_act_fn,
            down=module.output.dense,
            output_norm=module.output.LayerNorm,
            query_scale=_query_scale(attention),
        )

    @staticmethod
    def project(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention = layer.module.attention.self
        linears = (attention.query_proj, attention.key_proj, attention.value_proj)
        query, key, value = heads_of(hidden, linears, attention.num_attention_heads)
        return query * _query_scale(attention), key, value

    @staticmethod
    def pair_bias(layer: Any, reach: int) -> PairBias | None:
        attention = layer.module.attention.self
        if not attention.relative_attention:
            return None
        span = attention.pos_ebd_size
        steps = torch.arange(-reach, reach + 1, device=attention.query_proj.weight.device)  # of keys from queries
        buckets = -steps
        if attention.position_buckets > 0:
            buckets = make_log_bucket_position(-steps, attention.position_buckets, attention.max_relative_positions)
        rows = (buckets.long() + span).clamp(0, 2 * span - 1)
        first = rows.min()
        index = rows - first  # row of each step, among those that occur
        embeddings = layer.encoder.get_rel_embedding()[: 2 * span][first : rows.max() + 1]
        embeddings = attention.pos_dropout(embeddings)
        heads = (attention.num_attention_heads, attention.attention_head_size)

        def projected(linear: nn.Linear) -> Tensor:
            return linear(embeddings).unflatten(-1, heads).transpose(0, 1)  # (H, R, D/H)

        shared, terms = attention.share_att_key, attention.pos_att_type
        of_keys = of_queries = None
        if "c2p" in terms:
            of_keys = projected(attention.key_proj if shared else attention.pos_key_proj)
        if "p2c" in terms:
            of_queries = projected(attention.query_proj if shared else attention.pos_query_proj)
            of_queries = of_queries * (_query_scale(attention) * attention.attention_head_size**-0.5)

        def bias(query: Tensor, key: Tensor, query_positions: Tensor, key_positions: Tensor) -> Tensor:
            row = index[distances(query_positions, key_positions) + reach].unsqueeze(-3)  # (…, 1, Q, K)
            rows = slice(None)
            if row.device.type == "cpu" and not torch.compiler.is_exporting():  # the rows that these pairs need
                rows = slice(int(row.min()), int(row.max()) + 1)
                row = row - rows.start
            if torch.compiler.is_exporting():  # a sum, whose shape a graph can infer; it cannot that of expand
                row = row + torch.zeros_like(query[..., :1], dtype=torch.int64)
            else:
                row = row.expand(*query.shape[:-1], key.shape[-2])
            total: Any = 0.0
            if of_keys is not None:
                logits = query @ of_keys[:, rows].to(query.dtype).transpose(-1, -2)  # (…, H, Q, R)
                total = total + logits.gather(-1, row)
            if of_queries is not None:
                logits = key @ of_queries[:, rows].to(key.dtype).transpose(-1, -2)  # (…, H, K, R)
                total = total + logits.gather(-1, row.transpose(-1, -2)).transpose(-1, -2)
            return total

        return bias if of_keys is not None or of_queries is not None else None

    @staticmethod
    def attention_dropout(layer: Any) -> float:
        return probability(layer.module.attention.self.dropout)

    @staticmethod
    def attention_output(layer: Any, context: Tensor, residual: Tensor) -> Tensor:
        return layer.module.attention.output(context, residual)

    @staticmethod
    def feed_forward(layer: Any, hidden: Tensor) -> Tensor:
        return layer.module.output(layer.module.intermediate(hidden), hidden)

    @staticmethod
    def classify(model: Any, pooled: Tensor) -> Tensor:
        return model.classifier(model.dropout(model.pooler(pooled[:, None])))


def _terms(config: Any) -> list[str]:
    return [term for term in ("c2p", "p2c") if term in (config.pos_att_type or ())]


def _query_scale(attention: Any) -> float:
    """Return the factor on queries beside 1/√(D/H): logits are sums of up to three products."""
    return float((1 + len(_terms(attention))) ** -0.5)

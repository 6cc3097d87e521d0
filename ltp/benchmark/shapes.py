"""Shapes of classifiers that a benchmark fills with random weights."""

from typing import Any

_BERT_TINY = {
    "num_hidden_layers": 6,
    "hidden_size": 96,
    "num_attention_heads": 4,
    "intermediate_size": 384,
}
_LARGE = {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
_MINILM = {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
_ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}

#: Shapes to fill with random weights: Hugging Face's configuration where it differs from BERT-base's.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"model_type": "bert", **_BERT_TINY, "vocab_size": 1000},
    "minilm": {"model_type": "bert", **_MINILM},
    "bert-base": {"model_type": "bert"},
    "bert-large": {"model_type": "bert", **_LARGE},
    "roberta-base": {"model_type": "roberta", **_ROBERTA},
    "roberta-large": {"model_type": "roberta", **_ROBERTA, **_LARGE},
}

"""Shapes of the classifiers with random weights that a benchmark can measure."""

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

_DEBERTA_SMALL = {
    "vocab_size": 128100,
    "num_hidden_layers": 6,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
}

#: Shapes by name: the Hugging Face configuration values that differ from the family's defaults.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"model_type": "bert", **_BERT_TINY, "vocab_size": 1000},
    "minilm": {"model_type": "bert", **_MINILM},
    "bert-base": {"model_type": "bert"},
    "bert-large": {"model_type": "bert", **_LARGE},
    "roberta-base": {"model_type": "roberta", **_ROBERTA},
    "roberta-large": {"model_type": "roberta", **_ROBERTA, **_LARGE},
    "distilbert-base": {"model_type": "distilbert"},
    "mpnet-base": {"model_type": "mpnet", "vocab_size": 30527, "max_position_embeddings": 514},
    "deberta-v3-small": {"model_type": "deberta-v2", **_DEBERTA_SMALL},
    "modernbert-base": {"model_type": "modernbert"},
}

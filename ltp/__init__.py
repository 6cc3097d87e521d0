"""Token pruning for transformer encoders: train, compare and deploy token-pruned BERT and RoBERTa classifiers."""

from ltp.modeling import LTPConfig, LTPForSequenceClassification, LTPOutput

__version__ = "0.1.0"
__all__ = ["LTPConfig", "LTPForSequenceClassification", "LTPOutput", "__version__"]

"""Token pruning for transformer encoders: train, compare and deploy token-pruned BERT and RoBERTa classifiers."""

from transformers import AutoConfig, AutoModelForSequenceClassification

from ltp.configuration import LTPConfig
from ltp.modeling import LTPForSequenceClassification, LTPOutput, prune

__version__ = "0.1.0"
__all__ = ["LTPConfig", "LTPForSequenceClassification", "LTPOutput", "__version__", "prune"]

# Here, not beside the classes: an export's copy of them must not take the place of these, or be in their way.
AutoConfig.register(LTPConfig.model_type, LTPConfig, exist_ok=True)
AutoModelForSequenceClassification.register(LTPConfig, LTPForSequenceClassification, exist_ok=True)

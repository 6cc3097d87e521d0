"""The pruned models: their configuration, a Hugging Face class for each kind of output, and traces of pruned tokens."""

import importlib
from typing import Any

#: ``model_type`` in the ``config.json`` of a pruned model.
MODEL_TYPE = "ltp"

#: The classes: the module of each, in this package, and the Auto class that loads it.
MODEL_CLASSES = {
    "LTPForSequenceClassification": ("classifier", "AutoModelForSequenceClassification"),
    "LTPForTokenClassification": ("token_classifier", "AutoModelForTokenClassification"),
    "LTPForQuestionAnswering": ("question_answering", "AutoModelForQuestionAnswering"),
    "LTPModel": ("bare", "AutoModel"),
}


def model_class(name: str) -> Any:
    """Return a class of :data:`MODEL_CLASSES`; the import takes seconds."""
    return getattr(importlib.import_module(f"{__name__}.{MODEL_CLASSES[name][0]}"), name)

"""The pruned models: their configuration, a Hugging Face class for each kind of output, and traces of pruned tokens."""

#: ``model_type`` in the ``config.json`` of a pruned model.
MODEL_TYPE = "ltp"

#: The classes: the module of each, in this package, and the Auto class that loads it.
MODEL_CLASSES = {
    "LTPForSequenceClassification": ("classifier", "AutoModelForSequenceClassification"),
    "LTPForTokenClassification": ("token_classifier", "AutoModelForTokenClassification"),
    "LTPForQuestionAnswering": ("question_answering", "AutoModelForQuestionAnswering"),
    "LTPModel": ("bare", "AutoModel"),
}

"""The pruned classifier: its configuration, the Hugging Face model class, and traces of the pruned tokens."""

#: ``model_type`` in the ``config.json`` of a pruned classifier.
MODEL_TYPE = "ltp"

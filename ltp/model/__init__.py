"""The pruned classifier: its configuration, the Hugging Face class, and a trace of what it prunes."""

#: ``model_type`` in the ``config.json`` of a pruned classifier.
MODEL_TYPE = "ltp"

"""GLUE (Wang et al., arXiv 1804.07461) without WNLI and the diagnostic set."""

from ltp.data.tasks.text import TextTask

HUB_DATASET = "nyu-mll/glue"

_SENTENCE_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")


# Learning rates are from BERT's published grid of 2e-5 to 5e-5.
RTE = TextTask("rte", _SENTENCE_PAIR, _ENTAILMENT, ("accuracy",), "small", 3e-5, hub=(HUB_DATASET, "rte"))
MRPC = TextTask(
    *("mrpc", _SENTENCE_PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1"), "small", 3e-5),
    numbers_in_submissions=True,
    hub=(HUB_DATASET, "mrpc"),
)
STSB = TextTask(
    "stsb",
    _SENTENCE_PAIR,
    None,
    ("pearson", "spearman"),
    "small",
    3e-5,
    label_range=(0.0, 5.0),
    hub=(HUB_DATASET, "stsb"),
)
COLA = TextTask(
    *("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews",), "small", 2e-5),
    numbers_in_submissions=True,
    hub=(HUB_DATASET, "cola"),
)
SST2 = TextTask(
    *("sst2", ("sentence",), ("negative", "positive"), ("accuracy",), "large", 2e-5),
    numbers_in_submissions=True,
    hub=(HUB_DATASET, "sst2"),
)
QNLI = TextTask("qnli", ("question", "sentence"), _ENTAILMENT, ("accuracy",), "large", 2e-5, hub=(HUB_DATASET, "qnli"))
QQP = TextTask(
    *("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1"), "large", 3e-5),
    numbers_in_submissions=True,
    hub=(HUB_DATASET, "qqp"),
)
MNLI = TextTask(
    *("mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ("accuracy",), "large", 2e-5),
    validation_splits=("validation_matched", "validation_mismatched"),
    hub=(HUB_DATASET, "mnli"),
)

"""CoNLL-2003's named entities in English (Tjong Kim Sang and De Meulder, 2003)."""

from ltp.data.tasks.tokens import TokenTask

CONLL2003 = TokenTask(
    "conll2003",
    ("tokens",),
    ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"),
    ("f1", "precision", "recall", "accuracy"),
    "small",
    3e-5,
    label_column="ner_tags",
    hub=("lhoestq/conll2003", None),
)

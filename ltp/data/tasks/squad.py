"""SQuAD (Rajpurkar et al., arXiv 1606.05250) and SQuAD 2.0 (arXiv 1806.03822)."""

from ltp.data.tasks.spans import SpanTask

SQUAD = SpanTask(
    *("squad", ("question", "context"), (), ("f1", "exact_match"), "large", 3e-5),
    label_column="answers",
    max_length=384,
    hub=("rajpurkar/squad", None),
    null_threshold=None,
)
SQUAD_V2 = SpanTask(
    *("squad_v2", ("question", "context"), (), ("f1", "exact_match"), "large", 3e-5),
    label_column="answers",
    max_length=384,
    hub=("rajpurkar/squad_v2", None),
)

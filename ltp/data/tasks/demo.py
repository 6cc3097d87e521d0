"""The embedded corpora: generated from a seed, learnable from scratch by `model=tiny` in about a minute."""

from ltp.data.demo import demo_multilabel_rows, demo_ranking_rows, demo_rows, demo_span_rows, demo_token_rows
from ltp.data.tasks.multilabel import MultiLabelTask
from ltp.data.tasks.ranking import RankingTask
from ltp.data.tasks.spans import SpanTask
from ltp.data.tasks.text import TextTask
from ltp.data.tasks.tokens import TokenTask

# The demo's model is trained from random weights and needs a higher learning rate.
DEMO = TextTask(
    *("demo", ("sentence",), ("negative", "positive"), ("accuracy",), "small", 5e-4),
    generate=demo_rows,
)
DEMO_MULTILABEL = MultiLabelTask(
    *("demo-multilabel", ("sentence",), ("praise", "criticism", "negation", "place")),
    *(("f1_micro", "f1_macro", "map"), "small", 5e-4),
    label_column="labels",
    generate=demo_multilabel_rows,
)
DEMO_TOKENS = TokenTask(
    *("demo-tokens", ("tokens",), ("O", "B-negative", "I-negative", "B-positive", "I-positive")),
    *(("f1", "precision", "recall", "accuracy"), "small", 5e-4),
    label_column="tags",
    generate=demo_token_rows,
)
DEMO_RANKING = RankingTask(
    *("demo-ranking", ("query", "passage"), (), ("mrr_10", "ndcg_10"), "small", 5e-4),
    label_column="relevance",
    generate=demo_ranking_rows,
)
DEMO_SPAN = SpanTask(
    *("demo-span", ("question", "context"), (), ("f1", "exact_match"), "small", 5e-4),
    label_column="answers",
    generate=demo_span_rows,
    null_threshold=None,
)

"""Kinds of output beyond one of a text: rows, tensors, metrics, and bad input."""

import dataclasses
import json
import math

import pyarrow as pa
import pytest
import torch

from ltp.data.conll import read_conll
from ltp.data.datamodule import GLUEDataModule
from ltp.data.demo import demo_tokenizer
from ltp.data.files import source_files
from ltp.data.metrics import EntityScore, SpanScore, best_spans
from ltp.data.sources import Splits, load_splits, load_test
from ltp.data.tasks import KINDS, TASKS, RankingTask, adopt, custom_task, get_task
from ltp.data.tasks.tokens import IGNORED
from ltp.errors import UserError


def custom(kind, columns, label, **changes):
    given = {"metric": None, "size": "small"} | changes
    return custom_task("mine", kind=kind, text_columns=columns, label_column=label, **given)


MULTI = custom("multilabel", ["text"], "labels")
TOKENS = custom("tokens", ["tokens"], "tags")
SPANS = custom("span", ["question", "context"], "answers")
RANKING = custom("ranking", ["query", "passage"], "relevance")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(task, path):
    return load_splits(task, train_file=path, validation_file=path)


def message(task, path):
    with pytest.raises(UserError) as caught:
        load(task, path)
    return str(caught.value)


# -- several labels --------------------------------------------------------------------------------------------------


def test_labels_are_lists_or_separated(tmp_path):
    rows = [{"text": "a", "labels": ["red", "blue"]}, {"text": "b", "labels": []}, {"text": "c", "labels": ["blue"]}]
    splits = load(MULTI, write(tmp_path / "rows.jsonl", rows))
    assert splits.task.labels == ("blue", "red")
    assert splits.train["label"][:] == [[0, 1], [], [0]]
    (tmp_path / "rows.csv").write_text("text,labels\na,red | blue\nb,\nc,blue\n")
    assert load(MULTI, tmp_path / "rows.csv").train["label"][:] == [[0, 1], [], [0]]
    target = splits.task.collate_labels(splits.train["label"][:], 9)
    assert target.tolist() == [[1, 1], [0, 0], [1, 0]]
    assert target.dtype == torch.float32


def test_bad_labels_of_several(tmp_path):
    path = tmp_path / "rows.jsonl"
    write(path, [{"text": "a", "labels": ["red"]}, {"text": "b", "labels": None}])
    assert message(MULTI, path) == (
        f"{path}: row 2 has no value in column 'labels'; a text without labels has an empty list"
    )
    write(path, [{"text": "a", "labels": ["red"]}, {"text": "b", "labels": [1]}])
    assert message(MULTI, path) == f"{path}: row 2: column 'labels' holds [1], not a list of texts."
    other = write(tmp_path / "other.jsonl", [{"text": "a", "labels": ["green"]}])
    write(path, [{"text": "a", "labels": ["red"]}])
    with pytest.raises(UserError) as caught:
        load_splits(MULTI, train_file=path, validation_file=other)
    assert str(caught.value) == (
        f"{other}: row 1 has label 'green' in column 'labels'; labels of task mine (from the training file): red."
    )


def test_metrics_of_several_labels_by_hand():
    task = MULTI.with_labels(["a", "b", "c"])
    metrics = task.build_metrics()
    target = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 0]])
    metrics.update(torch.tensor([[0.9, 0.6, 0.1]]), target[:1])  # b is wrong
    metrics.update(torch.tensor([[0.8, 0.7, 0.2], [0.3, 0.4, 0.3]]), target[1:])  # the last b is missed
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values["f1_micro"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert values["f1_macro"] == pytest.approx((1 + 0.5 + 0) / 3)
    # a: both before the rest; b: ranked 1 (right), 2 (wrong), 3 (right); c occurs nowhere
    assert values["map"] == pytest.approx((1 + (1 + 2 / 3) / 2) / 2)


# -- tokens ----------------------------------------------------------------------------------------------------------

WORDS = [
    {"tokens": ["the", "film", "zzz", "good"], "tags": ["O", "B-x", "I-x", "O"]},
    {"tokens": ["bad"], "tags": ["B-y"]},
]


def test_the_first_token_of_a_word_is_labelled(tmp_path):
    splits = load(TOKENS, write(tmp_path / "rows.jsonl", WORDS))
    task = splits.task
    assert task.labels == ("O", "B-x", "I-x", "B-y")
    rows = {"tokens": splits.train["tokens"][:], "label": splits.train["label"][:]}
    encoded = task.encode(demo_tokenizer(), rows, 32)
    # zzz is three tokens
    assert encoded["label"] == [[IGNORED, 0, 1, 2, IGNORED, IGNORED, 0, IGNORED], [IGNORED, 3, IGNORED]]
    assert task.label_counts(encoded["label"]) == [4, 1]
    target = task.collate_labels(encoded["label"], 8)
    assert target[1].tolist() == [IGNORED, 3, *[IGNORED] * 6]
    assert task.encode(demo_tokenizer(), rows, 4)["label"][0] == [IGNORED, 0, 1, IGNORED]  # truncated


def test_words_beyond_the_limit_are_told(tmp_path, caplog):
    splits = load(TOKENS, write(tmp_path / "rows.jsonl", [*WORDS, {"tokens": ["film"] * 7, "tags": ["O"] * 7}]))
    for length in (7, 8, 9):
        GLUEDataModule(splits, demo_tokenizer(), batch_size=2, max_length=length).setup("validate")
    assert caplog.messages == [
        "validation: 2 of 3 rows have labels beyond task.max_length=7: these are neither learned nor counted",
        "validation: 1 of 3 rows have labels beyond task.max_length=8: these are neither learned nor counted",
    ]


def test_conll_files(tmp_path):
    path = tmp_path / "rows.conll"
    path.write_text("-DOCSTART- -X- O\n\nthe DT O\nfilm NN B-x\n\n\nbad JJ B-y\n")
    table = read_conll(path, "tokens", "tags")
    assert table.to_pydict() == {"tokens": [["the", "film"], ["bad"]], "tags": [["O", "B-x"], ["B-y"]]}
    assert load(TOKENS, path).task.labels == ("O", "B-x", "B-y")
    path.write_text("the DT O\nfilm B-x\n")
    assert message(TOKENS, path) == f"{path}: line 2 has 2 columns, not 3 columns, as the lines before: 'film B-x'"
    path.write_text("the\n")
    assert message(TOKENS, path) == f"{path}: line 1 has 1 columns, not a word and its label: 'the'"


@pytest.mark.parametrize(
    ("row", "end"),
    [
        (
            {"tokens": ["a", "b"], "tags": ["O"]},
            "row 3 has 2 words in column 'tokens' and 1 labels in column 'tags'; give each word one label",
        ),
        (
            {"tokens": ["a", " "], "tags": ["O", "O"]},
            "row 3 has an empty word, or none, in column 'tokens'; remove it.",
        ),
        (
            {"tokens": ["a"], "tags": ["NOUN"]},
            "label 'NOUN' in column 'tags' is none of the BIO scheme (O, B-…, I-…), over whose entities task.metric=f1 "
            "is; convert it, or take task.metric=accuracy",
        ),
        ({"tokens": "a b", "tags": ["O"]}, "row 3: column 'tokens' holds \"a b\", not a list of texts."),
    ],
)
def test_bad_rows_of_tokens(tmp_path, row, end):
    path = write(tmp_path / "rows.jsonl", [*WORDS, row])
    found = message(TOKENS, path)
    assert found.startswith(f"{path}: ")
    assert found.endswith(end)


def test_any_labels_with_accuracy(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"tokens": ["a", "b"], "tags": ["NOUN", "VERB"]}])
    task = load(custom("tokens", ["tokens"], "tags", metric="accuracy"), path).task
    assert (task.labels, task.metrics) == (("NOUN", "VERB"), ("accuracy",))


def entities(score, real, predicted, labels=("O", "B-a", "I-a", "B-b", "I-b")):
    metric = EntityScore(labels, score, ignored=IGNORED)
    ids = {name: index for index, name in enumerate(labels)} | {"-": IGNORED}
    for own, row in zip(real, predicted, strict=True):
        target = torch.tensor([[ids[name] for name in own]])
        preds = torch.tensor([[ids[name] if name != "-" else 1 for name in row]])
        metric.update(preds, target)
    return metric.compute().item()


def test_entities_are_exact_in_span_and_type():
    real = [["-", "B-a", "I-a", "O", "B-b", "-"]]
    assert entities("f1", real, real) == 1
    assert entities("f1", real, [["-", "B-a", "O", "O", "B-b", "-"]]) == 0.5  # too short
    assert entities("precision", real, [["-", "B-a", "I-a", "O", "O", "-"]]) == 1
    assert entities("recall", real, [["-", "B-a", "I-a", "O", "O", "-"]]) == 0.5
    assert entities("f1", real, [["-", "B-b", "I-b", "O", "B-b", "-"]]) == 0.5  # another type
    assert entities("f1", real, [["-", "I-a", "I-a", "O", "I-b", "-"]]) == 1  # as CoNLL's script reads IOB1
    assert entities("f1", real, [["-", "O", "O", "O", "O", "-"]]) == 0


def test_entities_of_seqeval_s_own_example():
    """The example of seqeval's README: an F1 of 0.50."""
    labels = ("O", "B-MISC", "I-MISC", "B-PER", "I-PER")
    real = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    predicted = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    assert entities("f1", real, predicted, labels) == 0.5


def test_nothing_to_find_is_no_score():
    nothing = [["-", "O", "-"]]
    for score in ("f1", "precision", "recall"):
        assert entities(score, nothing, nothing) != entities(score, nothing, nothing)  # NaN
    assert entities("f1", nothing, [["-", "B-a", "-"]]) == 0


def test_labelled_tokens_of_words():
    task = dataclasses.replace(TOKENS, labels=("O", "B-a"))
    labels = torch.tensor([[IGNORED, 0, 1, IGNORED], [IGNORED, 1, IGNORED, IGNORED]])
    logits = torch.eye(2)[torch.tensor([[1, 0, 0, 1], [1, 1, 0, 0]])]
    rows, columns, is_right = task.labelled_tokens(logits, labels)
    assert (rows.tolist(), columns.tolist(), is_right.tolist()) == ([0, 0, 1], [1, 2, 1], [True, False, True])


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_loss_of_a_step_is_a_mean_over_its_labels(tmp_path, parts):
    rows = [{"tokens": ["film"] * length, "tags": ["O"] * length} for length in (1, 9, 2, 5)]
    rows[0]["tags"] = ["B-x"]
    splits = load(TOKENS, write(tmp_path / "rows.jsonl", rows))
    data = GLUEDataModule(splits, demo_tokenizer(), batch_size=4, accumulate=parts)
    data.setup()
    batches = list(data.train_dataloader())
    counts = [int((batch["labels"] != IGNORED).sum()) for batch in batches]
    weights = [data.label_weight(number, batch["labels"]) for number, batch in enumerate(batches)]
    assert sum(counts) == 17
    assert weights == [pytest.approx(count * parts / 17) for count in counts]


# -- rankings --------------------------------------------------------------------------------------------------------


def test_pairs_and_triples_are_the_same(tmp_path):
    pairs = [
        {"query": "a", "passage": "x", "relevance": 1},
        {"query": "a", "passage": "y", "relevance": 0},
        {"query": "b", "passage": "z", "relevance": 1},
        {"query": "b", "passage": "x", "relevance": 0},
        {"query": "b", "passage": "y", "relevance": 0},
    ]
    triples = [
        {"query": "a", "positive": "x", "negative": ["y"]},
        {"query": "b", "positive": "z", "negative": ["x", "y"]},
    ]
    wanted = {"query": list("aabbb"), "passage": list("xyzxy"), "label": [[1, 0], [0, 0], [1, 1], [0, 1], [0, 1]]}
    assert load(RANKING, write(tmp_path / "pairs.jsonl", pairs)).train.to_dict() == wanted
    lists = [row | {"positive": [row["positive"]]} for row in triples]
    assert load(RANKING, write(tmp_path / "triples.jsonl", lists)).train.to_dict() == wanted
    (tmp_path / "triples.tsv").write_text("query\tpositive\tnegative\na\tx\ty\n")
    assert load(RANKING, tmp_path / "triples.tsv").train["label"][:] == [[1, 0], [0, 0]]
    labels = RANKING.collate_labels(wanted["label"], 3)
    assert RANKING.model_labels(labels).tolist() == [[1], [0], [1], [0], [0]]


def test_bad_rows_of_a_ranking(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"query": "a", "passage": "x", "relevance": "yes"}])
    assert message(RANKING, path) == (
        f"{path}: row 1 has the relevance 'yes' in column 'relevance'; it must be a number from 0 on"
    )
    write(path, [{"query": "a", "positive": [], "negative": []}])
    assert message(RANKING, path) == f"{path}: row 1 has a query without candidates; remove it or give it some"


CORPUS = [
    {"_id": "d1", "title": "Film", "text": "a good film"},
    {"_id": "d2", "title": "", "text": "a bad film"},
    {"_id": 3, "text": "a boat"},
    {"_id": "d4", "title": "Other", "text": ""},
    {"_id": "unused", "title": "", "text": ""},
]
QUERIES = [{"_id": "q1", "text": "good"}, {"_id": "q2", "text": "boat"}, {"_id": "q3", "text": "another split's"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq2\t3\t1\nq1\td2\t0\n"


def beir(folder, qrels=QRELS, **files):
    """A folder of BEIR's form; the path of its judgements."""
    (folder / "qrels").mkdir(exist_ok=True)
    write(folder / "corpus.jsonl", CORPUS)
    write(folder / "queries.jsonl", QUERIES)
    path = folder / "qrels" / "dev.tsv"
    path.write_text(qrels)
    for name, content in files.items():
        (folder / "qrels" / f"dev.{name}").write_text(content)
    return path


def test_folders_of_beir(tmp_path):
    path = beir(tmp_path)
    assert load(RANKING, path).train.to_dict() == {
        "query": ["good", "boat", "good"],
        "passage": ["Film a good film", "a boat", "a bad film"],
        "label": [[2, 0], [1, 1], [0, 0]],
    }
    assert load_test(RANKING, "test", test_file=path)["label"][:] == [[2, 0], [1, 1], [0, 0]]
    run = "q1 Q0 d4 1 9.5 bm25\nq1 Q0 d1 2 9 bm25\nq3 Q0 d1 1 3 bm25\n\nq2 Q0 d2 1 7 bm25\n"
    beir(tmp_path, trec=run)
    assert load(RANKING, path).train.to_dict() == {
        "query": ["good", "good", "good", "boat", "boat"],
        "passage": ["Film a good film", "a bad film", "Other", "a boat", "a bad film"],
        "label": [[2, 0], [0, 0], [0, 0], [1, 1], [0, 1]],
    }


def test_metrics_of_a_folder_of_beir(tmp_path):
    """Nothing but the ranking decides: q1's relevant documents are third and first, q2's is second."""
    qrels = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t3\nq2\t3\t1\n"
    path = beir(tmp_path, qrels, trec="q1 Q0 3 1 1 x\nq2 Q0 d1 1 1 x\n")
    split = load(RANKING, path).train
    assert split["passage"][:] == ["Film a good film", "a bad film", "a boat", "a boat", "Film a good film"]
    metrics = RANKING.build_metrics()
    scores = torch.tensor([[-1.0], [3], [1], [2], [4]])
    metrics.update(RANKING.predictions(scores), RANKING.collate_labels(split["label"][:], 0))
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values["mrr_10"] == pytest.approx((1 + 1 / 2) / 2)
    first = (3 + 1 / 2) / (3 + 1 / math.log2(3))  # d2 first, d1 third; at best second
    assert values["ndcg_10"] == pytest.approx((first + 1 / math.log2(3)) / 2)


def test_bad_folders_of_beir(tmp_path):
    path = beir(tmp_path, QRELS + "q9\td1\t1\n")
    assert message(RANKING, path) == (
        f"{path}: row 4 names 'q9', and {tmp_path}/queries.jsonl holds no such _id; add it, or remove the row"
    )
    beir(tmp_path, QRELS + "q1\td9\t1\n")
    assert message(RANKING, path) == (
        f"{path}: row 4 names 'd9', and {tmp_path}/corpus.jsonl holds no such _id; add it, or remove the row"
    )
    beir(tmp_path, QRELS + "q1\td4\t-1\n")
    assert message(RANKING, path) == f"{path}: row 4 has the score '-1'; it must be a number from 0 on"
    beir(tmp_path, QRELS + "q1\tunused\t1\n")
    assert message(RANKING, path) == (
        f"{tmp_path}/corpus.jsonl: row 5, 'unused', has no text; fill it in, or remove what names it"
    )
    beir(tmp_path, QRELS.splitlines()[0] + "\n")
    assert message(RANKING, path) == f"{path}: no rows; give a split with at least one example."
    beir(tmp_path, trec="q1 d1 3\n")
    run = path.with_suffix(".trec")
    assert message(RANKING, path) == (
        f"{run}: line 1 has 3 fields; TREC's form is query, Q0, document, rank, score, name"
    )
    beir(tmp_path, trec="q1 Q0 d9 1 1 x\n")
    assert message(RANKING, path) == (
        f"{run}: line 1 names 'd9', and {tmp_path}/corpus.jsonl holds no such _id; add it, or remove the row"
    )
    (tmp_path / "queries.jsonl").unlink()
    end = f"its columns are those of BEIR's judgements, and there is no queries.jsonl in {tmp_path}; put it there"
    assert message(RANKING, path) == f"{path}: {end}"
    (tmp_path / "corpus.jsonl").unlink()
    assert message(RANKING, path) == f"{path}: {end.replace('queries', 'corpus')}"


def test_texts_of_beir_belong_to_the_data_of_a_run(tmp_path):
    path = beir(tmp_path, trec="")
    files = source_files(RANKING, None, str(path), None)
    assert {name: file.name for name, file in files.items()} == {
        "train": "dev.tsv",
        "train_corpus": "corpus.jsonl",
        "train_queries": "queries.jsonl",
        "train_candidates": "dev.trec",
    }


def test_metrics_of_rankings_by_hand():
    metrics = RANKING.build_metrics()
    logits = torch.tensor([[-9.0], [-7], [-8], [-30], [-20]])  # all below one half: torchmetrics would ignore them
    labels = torch.tensor([[1.0, 0], [0, 0], [0, 0], [0, 1], [1, 1]])
    metrics.update(RANKING.predictions(logits[:2]), labels[:2])  # a query that two batches share
    metrics.update(RANKING.predictions(logits[2:]), labels[2:])
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values["mrr_10"] == pytest.approx((1 / 3 + 1) / 2)
    assert values["ndcg_10"] == pytest.approx((0.5 + 1) / 2)  # 1 / log2(4)


# -- spans -----------------------------------------------------------------------------------------------------------

CONTEXT = "one two three four five six seven eight nine ten"


def answered(context, *texts, question="what"):
    starts = [context.index(text) for text in texts]
    return {"question": question, "context": context, "answers": {"text": list(texts), "answer_start": starts}}


def encoded_spans(task, rows, max_length):
    table = pa.Table.from_pylist(rows)
    columns = {name: table[name].to_pylist() for name in task.text_columns}
    columns["label"] = task.check_labels(table, "file").to_pylist()
    return task.encode(demo_tokenizer(), columns, max_length)


def test_a_long_context_is_read_in_windows():
    context = " ".join(["film story plot scene script actor director camera music"] * 5)
    place = context.index("camera", 100)
    row = {"question": "film", "context": context, "answers": {"text": ["camera"], "answer_start": [place]}}
    encoded = encoded_spans(SPANS, [row, answered("film was good", "good")], 16)
    owners = [label[2] for label in encoded["label"]]
    assert owners == sorted(owners)
    assert owners.count(1) == 1 and owners.count(0) > 4
    assert max(map(len, encoded["input_ids"])) == 16
    seen = 0
    for label in encoded["label"][:-1]:
        start, end, _, first, last, *characters = label
        assert len(characters) == 2 * (last - first + 1)
        if start:
            seen += 1
            assert first <= start == end <= last
            assert characters[2 * (start - first) : 2 * (start - first) + 2] == [place, place + 6]
    assert seen >= 1
    covered = {number for label in encoded["label"][:-1] for number in label[5:]}
    assert {0, len(context)} <= covered  # no part of the context is left out


def logits_of(width, start, end, height=5.0):
    logits = torch.zeros(width, 2)
    logits[start, 0] = logits[end, 1] = height
    return logits


def test_the_best_span_lies_in_the_context():
    encoded = encoded_spans(SPANS, [answered("film was good", "good")], 16)  # [CLS] w h a t … [SEP] film was good [SEP]
    labels = SPANS.collate_labels(encoded["label"], 0)
    width = len(encoded["input_ids"][0])
    first = encoded["label"][0][3]
    (span,) = best_spans(logits_of(width, first, first + 1)[None], labels)
    assert span[:4] == (0, 0, len("film was"), 10.0)
    outside = logits_of(width, 1, 2, height=50.0) + logits_of(width, first + 2, first + 2)  # in the question
    assert best_spans(outside[None], labels)[0][1:3] == (9, 13)
    reverse = logits_of(width, first + 2, first)  # an end before its start
    assert best_spans(reverse[None], labels)[0][3] == 5.0


def test_labelled_tokens_of_answers():
    rows = [answered("film was good", "good"), answered("plot", "plot"), answered("bad")]
    encoded = encoded_spans(SPANS, rows, 16)
    labels = SPANS.collate_labels(encoded["label"], 0)
    starts = labels[:, 0].tolist()
    assert starts[0] > starts[1] > 0 == starts[2]
    logits = torch.zeros(3, 20, 2)
    logits[:, :3] = logits[:, 17:] = 9.0  # in the question, and after the context
    logits[0, starts[0], 0] = logits[0, starts[0] - 1, 1] = 5.0
    assert [values.tolist() for values in SPANS.labelled_tokens(logits, labels)] == [
        [0, 1, 0, 1],
        [starts[0], starts[1], starts[0], starts[1]],
        [True, True, False, True],
    ]


def test_scores_of_answers_are_those_of_the_official_script():
    """Values by hand, after ``evaluate-v2.0.py``: without articles, punctuation and case; F1 of bags of words."""
    rows = [
        answered("the big cat sat", "big cat", "the big cat"),
        answered("a film was good", "was good"),
        {"question": "q", "context": "nothing here", "answers": {"text": [], "answer_start": []}},
        {"question": "q", "context": "nothing here", "answers": {"text": [], "answer_start": []}},
    ]
    table = pa.Table.from_pylist(rows)
    split = {"context": table["context"].to_pylist(), "label": SPANS.check_labels(table, "file").to_pylist()}
    task = dataclasses.replace(SPANS, examples=split)
    spans = [
        (0, 0, 11, 3.0, 0.0),  # the big cat: exact
        (1, 7, 11, 1.0, 0.0),  # "was", one word of two: another window has a better one
        (1, 2, 16, 2.0, 1.0),  # "film was good": precision 2/3, recall 1
        (2, 0, 7, 1.0, 5.0),  # nothing, rightly
        (3, 0, 7, 5.0, 1.0),  # something, wrongly
    ]
    values = {}
    for name in ("f1", "exact_match"):
        metric = SpanScore(task, name)
        metric.spans = [torch.tensor(spans[:2], dtype=torch.float64), torch.tensor(spans[2:], dtype=torch.float64)]
        metric._update_count = 1
        values[name] = metric.compute().item()
    assert values["exact_match"] == pytest.approx(2 / 4)
    assert values["f1"] == pytest.approx((1 + 0.8 + 1 + 0) / 4)


def test_files_of_squad(tmp_path):
    answers = [{"text": "two", "answer_start": 4}]
    questions = [{"id": "a", "question": "what", "answers": answers}, {"id": "b", "question": "why", "answers": []}]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": questions}]}]}))
    splits = load(SPANS, path)
    assert splits.train["question"][:] == ["what", "why"]
    assert splits.train["label"][:] == [{"text": ["two"], "answer_start": [4]}, {"text": [], "answer_start": []}]
    rows = [answered(CONTEXT, "two", question="what"), {**answered(CONTEXT, question="why")}]
    assert load(SPANS, write(tmp_path / "rows.jsonl", rows)).train["label"][:] == splits.train["label"][:]
    path.write_text('{"data": [{"paragraphs": [{}]}]}')
    assert message(SPANS, path) == f"{path}: not of SQuAD's form (data, paragraphs, qas, answers): KeyError: 'qas'"


def test_bad_rows_of_spans(tmp_path):
    wrong = {"question": "q", "context": CONTEXT, "answers": {"text": ["two"], "answer_start": [5]}}
    path = write(tmp_path / "rows.jsonl", [answered(CONTEXT, "two"), wrong, wrong])
    assert message(SPANS, path) == (
        f"{path}: row 2: the answer 'two' is not in column 'context' at its answer_start; so are 1 others"
    )
    write(path, [answered(CONTEXT, "two") | {"answers": {"text": ["two"], "answer_start": []}}])
    assert message(SPANS, path) == (
        f"{path}: row 1 has no answers in column 'answers': an object with the lists text and answer_start, of equal "
        "length"
    )
    table = pa.Table.from_pylist([answered(CONTEXT, "two"), answered(CONTEXT)])
    with pytest.raises(UserError, match="file: row 2 has no answer, and every question of task=squad must have one"):
        TASKS["squad"].check_labels(table, "file")
    assert len(TASKS["squad_v2"].check_labels(table, "file")) == 2


# -- the registry ----------------------------------------------------------------------------------------------------


def test_every_embedded_task_has_rows():
    for task in TASKS.values():
        if task.generate is None:
            continue
        splits = load_splits(task, max_train_samples=50)
        assert len(splits.train) == 50
        encoded = task.encode(demo_tokenizer(), splits.train[:3], 64)
        assert len(encoded["label"]) == len(encoded["input_ids"]) == 3


def test_kinds_of_custom_tasks():
    assert list(KINDS) == ["single", "multilabel", "tokens", "span", "ranking"]
    with pytest.raises(UserError, match=r"task.kind=spans: must be single or multilabel or tokens or span or ranking"):
        custom("spans", ["text"], "label")
    with pytest.raises(UserError, match=r"task.text_columns=\['a', 'b'\]: name one column"):
        custom("tokens", ["a", "b"], "tags")
    with pytest.raises(UserError, match=r"task.text_columns=\['a'\]: name two text columns"):
        custom("ranking", ["a"], "relevance")
    with pytest.raises(
        UserError, match=r"task.metric=f1: no such metric. Metrics: f1_micro, f1_macro, map, accuracy\."
    ):
        custom("multilabel", ["a"], "labels", metric="f1")


def test_a_task_with_a_name_that_is_taken(monkeypatch):
    import types

    module = types.ModuleType("stranger")
    module.MINE = RankingTask("demo", ("a", "b"), (), ("mrr_10",), "small", 1e-4)
    with pytest.raises(ValueError, match="stranger has a task 'demo', which is there already; name it otherwise"):
        adopt(module)
    assert get_task("demo").kind == "single"


def test_labels_of_a_data_set_by_number():
    """Files of a known task may number its labels, as the hub's do."""
    table = pa.table({"tokens": [["a", "b"]], "ner_tags": [[3, 0]]})
    checked = TASKS["conll2003"].check_rows(table, "file", blank_is_missing=False)
    assert checked["label"].to_pylist() == [[3, 0]]
    assert Splits(TASKS["conll2003"], None, {}).task.labels[3] == "B-ORG"

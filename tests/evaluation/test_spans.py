"""Answers from long contexts: windows and their joining, the best answers, no answer, and what is told of them."""

import json
import re

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from helpers import SMALL, in_process, ltp_train
from transformers import AutoTokenizer, BertConfig, BertForQuestionAnswering

from ltp import LTPForQuestionAnswering, evaluate, predict
from ltp.data.datamodule import GLUEDataModule
from ltp.data.demo import demo_rows, demo_span_rows, demo_tokenizer
from ltp.data.metrics import MAX_ANSWER
from ltp.data.sources import load_splits
from ltp.data.tasks import SpanTask, custom_task
from ltp.errors import UserError
from ltp.evaluation import prediction

LENGTH = 32  # tokens of a window
FILLER = " ".join(row["sentence"] for row in demo_rows("train", rows=40)).split()


def long_rows(count):
    """Questions whose contexts take one to five windows; every third has no answer."""
    rows = []
    for number, row in enumerate(demo_span_rows("validation")[:count]):
        context = " ".join([*FILLER[number : number + 11 * (number % 5)], row["context"]])
        (answer,) = row["answers"]["text"]
        found = {"text": [answer], "answer_start": [context.index(answer)]}
        rows.append(row | {"context": context, "answers": found if number % 3 else {"text": [], "answer_start": []}})
    return rows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of a task of one's own, as far as evaluating and predicting read it; its weights are random."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = demo_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    dense = BertForQuestionAnswering(BertConfig(vocab_size=len(tokenizer), initializer_range=0.3, **sizes))
    model = LTPForQuestionAnswering.from_dense(dense, prune_mode="topk", token_keep_rate=-0.5)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in long_rows(30)))
    task = {"name": "mine", "kind": "span", "text_columns": ["question", "context"], "label_column": "answers"}
    task |= {"train_file": str(data), "validation_file": str(data), "max_length": LENGTH}
    (folder / "results.json").write_text(json.dumps({"model": "tiny"}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"task": task, "data_dir": None}))
    return folder


def ltp_predict(*words):
    return in_process("ltp.predict", list(words), predict.COMMAND, COLUMNS="160")


def predictions(run, tmp_path, *words):
    output = tmp_path / "out.jsonl"
    done = ltp_predict(f"restore={run}", f"output={output}", *words)
    assert done.code == 0, done.err
    return [json.loads(line) for line in output.read_text().splitlines()], done.err


def by_hand(model, tokenizer, question, context):
    """Every span of every window by its score and probability, the best first; the windows; and no answer's least."""
    windows = tokenizer(
        *(question, context),
        **{"truncation": "only_second", "max_length": LENGTH, "stride": LENGTH // 3},
        return_overflowing_tokens=True,
    )
    spans, nulls, lengths = {}, [], []
    for number, encoding in enumerate(windows.encodings):
        inputs = {name: torch.tensor([windows[name][number]]) for name in ("input_ids", "token_type_ids")}
        with torch.no_grad():
            output = model(**inputs)
        lengths.append(output.token_lengths)
        start, end = output.start_logits[0], output.end_logits[0]
        inside = [place for place, sequence in enumerate(encoding.sequence_ids) if sequence == 1]
        for first in inside:
            for last in range(first, min(first + MAX_ANSWER, inside[-1] + 1)):
                place = (encoding.offsets[first][0], encoding.offsets[last][1])
                probability = float(start.softmax(0)[first] * end.softmax(0)[last])
                spans[place] = max(spans.get(place, (-1e9, 0)), (float(start[first] + end[last]), probability))
        nulls.append((float(start[0] + end[0]), float(start.softmax(0)[0] * end.softmax(0)[0])))
    ranked = sorted(spans.items(), key=lambda item: -item[1][0])
    return ranked, min(nulls), torch.cat(lengths)


def test_the_best_answers_of_all_windows(run):
    model = LTPForQuestionAnswering.from_pretrained(run).eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    texts = [(row["question"], row["context"]) for row in long_rows(10)]
    found = prediction.predict(
        *(model, tokenizer, texts),
        **{"max_length": LENGTH, "batch_size": 3, "trace": False, "advance": lambda count: None, "n_best": 4},
    )
    counts = []
    for (question, context), one in zip(texts, found, strict=True):
        ranked, _, lengths = by_hand(model, tokenizer, question, context)
        counts.append(len(lengths))
        wanted = [(context[first:last], first, last) for (first, last), _ in ranked[:4]]
        assert [(row["answer"], row["start"], row["end"]) for row in one.columns["n_best"]] == wanted
        probabilities = [row["probability"] for row in one.columns["n_best"]]
        assert probabilities == pytest.approx([probability for _, (_, probability) in ranked[:4]], rel=1e-3)
        assert {**one.columns["n_best"][0], "n_best": one.columns["n_best"]} == one.columns
        assert one.cost == pytest.approx(model.cost.total_relative_flops(lengths))
        assert one.note == ""
    assert len(set(counts)) >= 4
    assert found[0].shown.count(" | ") == 3


def test_texts_are_counted_once_their_windows_are_read(run):
    model = LTPForQuestionAnswering.from_pretrained(run).eval()
    texts = [(row["question"], row["context"]) for row in long_rows(10)]
    counted = []
    for batch_size in (1, 100):
        found = prediction.predict(
            *(model, demo_tokenizer(), texts),
            **{"max_length": LENGTH, "batch_size": batch_size, "trace": False, "advance": counted.append},
        )
        assert "n_best" not in found[0].columns
    assert sum(counted) == 20
    assert counted[-1] == 10


@pytest.mark.parametrize("threshold", [None, -0.3, "inf"])
def test_an_evaluation_and_a_prediction_answer_the_same(run, tmp_path, threshold):
    """Row by row, also where both predict no answer."""
    key = [] if threshold is None else [f"task.null_threshold={threshold}"]
    to = tmp_path / "outcomes.parquet"
    done = in_process("ltp.evaluate", [f"restore={run}", f"to={to}", "output=-", *key], evaluate.COMMAND)
    assert done.code == 0, done.err
    outcomes = pq.read_table(to).to_pylist()
    assert len(outcomes) > 30
    task = custom_task(
        "mine", kind="span", text_columns=["question", "context"], label_column="answers", metric=None, size="small"
    )
    assert isinstance(task, SpanTask)
    split = load_splits(task, train_file=run / "rows.jsonl", validation_file=run / "rows.jsonl").train
    task = SpanTask(**{**vars(task), "null_threshold": float(threshold or 0), "examples": split})
    names = ("example", "start", "end", "score", "null_score")
    wanted = task.answers([tuple(row[name] for name in names) for row in outcomes])
    found, _ = predictions(run, tmp_path, "split=validation", *key)
    assert [row["answer"] for row in found] == wanted
    assert all(row["context"][row["start"] : row["end"]] == row["answer"] for row in found)
    empty = wanted.count("")
    assert empty == 0 if threshold == "inf" else 0 < empty < len(wanted)
    if threshold is None:  # the run's own, also for texts beside its splits
        found, _ = predictions(run, tmp_path, f"input={run / 'rows.jsonl'}", "n_best=2")
        assert [row["answer"] for row in found] == wanted
        assert all(row["n_best"][0]["answer"] for row in found)  # the best span, whatever is predicted


def test_the_probability_of_no_answer(run):
    model = LTPForQuestionAnswering.from_pretrained(run).eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    row = long_rows(10)[4]
    (one,) = prediction.predict(
        *(model, tokenizer, [(row["question"], row["context"])]),
        **{"max_length": LENGTH, "batch_size": 3, "trace": False, "advance": lambda count: None},
        null_threshold=-1e9,
    )
    _, (_, probability), _ = by_hand(model, tokenizer, row["question"], row["context"])
    assert one.columns == {"answer": "", "start": 0, "end": 0, "probability": pytest.approx(probability, rel=1e-3)}
    assert one.shown == f"– {probability:.3f}"


def test_the_window_of_the_answer_is_shown(run, tmp_path):
    row = long_rows(10)[9]
    page = tmp_path / "page.html"
    words = [f"text={row['question']}", f"text_pair={row['context']}", f"html={page}"]
    (found,), notes = predictions(run, tmp_path, *words)
    match = re.fullmatch(
        r"shown in part: row 1 \(window (\d) of (\d), characters (\d+) to (\d+) of the context\)\n", notes
    )
    assert match is not None, notes
    window, windows, first, last = map(int, match.groups())
    assert 1 <= window <= windows >= 3
    assert first <= found["start"] < found["end"] <= last
    (example,) = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])["examples"]
    marked = [token[0] for token in example["tokens"] if token[5] == "answer"]
    assert marked == found["answer"].split()
    assert len(example["tokens"]) <= LENGTH
    assert "window" in example["note"]


def test_a_question_that_is_too_long(run, tmp_path):
    row = long_rows(10)[9]
    words = [f"text={'film ' * 40}", f"text_pair={row['context']}"]
    _, notes = predictions(run, tmp_path, *words)
    assert notes == "truncated: row 1 (of a question of 40 tokens the first 16 were read)\n"
    _, notes = predictions(run, tmp_path, f"text={'film ' * 16}", f"text_pair={row['context']}")
    assert notes == ""
    done = ltp_predict(f"restore={run}", "max_length=6", *words)
    assert (done.code, done.err) == (2, "error: max_length=6 is too small for a question and windows of its context\n")


def test_a_checkpoint_without_a_run_reads_pairs_and_always_answers(run, tmp_path):
    row = long_rows(10)[9]
    model = run / "model"
    done = ltp_predict(f"restore={model}", f"text={row['question']}")
    assert (done.code, done.err) == (2, f"error: restore={model} reads a pair of texts: give text_pair=… too\n")
    words = [f"text={row['question']}", f"text_pair={row['context']}", f"max_length={LENGTH}"]
    (found,), _ = predictions(model, tmp_path, *words)
    assert found["answer"]


def test_a_question_is_cut_between_tokens():
    tokenizer = demo_tokenizer()
    encoded, owners, notes = SpanTask.windows(
        tokenizer, [("zzzzzzzz film", "a film " * 30), (" the film ", "good")], LENGTH // 3
    )
    assert list(notes) == [0]
    assert owners[-1] == 1
    assert encoded.tokens(0)[:5] == ["[CLS]", "z", "##z", "##z", "[SEP]"]
    assert all(len(ids) <= LENGTH // 3 for ids in encoded["input_ids"])


def test_training_reads_questions_that_are_too_long(tmp_path):
    rows = [row | {"question": "film " * 60} for row in long_rows(6)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = custom_task(
        "mine", kind="span", text_columns=["question", "context"], label_column="answers", metric=None, size="small"
    )
    splits = load_splits(task, train_file=path, validation_file=path)
    data = GLUEDataModule(splits, demo_tokenizer(), batch_size=2, max_length=LENGTH)
    data.setup()
    assert data.train_lengths.max() == LENGTH
    tiny = GLUEDataModule(splits, demo_tokenizer(), batch_size=2, max_length=6)
    with pytest.raises(UserError, match="max_length=6 is too small for a question and windows of its context"):
        tiny.setup()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["n_best=0"], "n_best=0 is out of range: it must be from 1 to 20"),
        (["n_best=21"], "n_best=21 is out of range: it must be from 1 to 20"),
    ],
)
def test_bad_values(run, words, message):
    done = ltp_predict(f"restore={run}", "text=film", "text_pair=a film", *words)
    assert (done.code, done.err) == (2, f"error: {message}\n")


def test_a_plan_knows_the_least_number_of_steps(run, tmp_path, monkeypatch):
    """Questions are counted, and their windows in the training alone."""
    monkeypatch.chdir(tmp_path)
    files = [f"task.{name}_file={run / 'rows.jsonl'}" for name in ("train", "validation")]
    words = ["task=custom", "task.name=mine", "task.kind=span", "task.text_columns=[question,context]", *files]
    words += ["task.label_column=answers", f"task.max_length={LENGTH}", "model=tiny", *SMALL]
    words.remove("task.max_train_samples=96")
    planned = ltp_train([*words, "plan=only"])
    assert planned.code == 0, planned.err
    assert "1 epochs, at least 2 steps of 16 examples" in planned.out
    trained = ltp_train([*words])
    assert trained.code == 0, trained.err
    assert "1 epochs, 5 steps of 16 examples" in trained.err

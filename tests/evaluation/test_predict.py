"""Predictions for new texts: what comes out, what is recorded of it, the page, and bad input."""

import csv
import datetime
import html
import io
import itertools
import json
import math
import random
import re
import shutil
import subprocess
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from patience import limit
from predicting import SENTENCES, TOPK, ltp_predict, make_run
from transformers import AutoTokenizer

from ltp import LTPForSequenceClassification, predict
from ltp.command import output
from ltp.data import texts as texts_module
from ltp.data import tokenising
from ltp.data.demo import demo_tokenizer
from ltp.data.texts import Overview, TextSource, lines, open_texts
from ltp.data.tokenising import beginning
from ltp.errors import printable
from ltp.evaluation import prediction
from ltp.evaluation.page import Example, render_page, script_json
from ltp.evaluation.prediction import encode
from ltp.model.tracing import RecordingPruner, TokenTrace, format_layers, readable_tokens, recording, traces


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"), **TOPK)


@pytest.fixture(scope="module")
def pair_run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("pairs"), columns=("first", "second"), **TOPK)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def expected(run, *texts):
    """Label and probability by the library's own way."""
    model = LTPForSequenceClassification.from_pretrained(run)
    inputs = AutoTokenizer.from_pretrained(run / "model")(*texts, truncation=True, max_length=32, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    label = int(logits.argmax())
    return model.config.id2label[label], logits.softmax(dim=0)[label].item()


# -- what comes out ---------------------------------------------------------------------------------------------


def test_predictions_are_the_models(run, here):
    (here / "texts.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    finished = ltp_predict(f"restore={run} input=texts.txt output=out.jsonl batch_size=5")
    assert (finished.code, finished.err, finished.out) == (0, "", "12 texts: out.jsonl\n")
    records = [json.loads(line) for line in (here / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["row"] for record in records] == list(range(1, 13))
    assert [record["text"] for record in records] == SENTENCES
    for record in records:
        label, probability = expected(run, record["text"])
        assert record["label"] == label
        assert record["probability"] == pytest.approx(probability, abs=1e-5)
    assert len({round(record["probability"], 4) for record in records}) > 6


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_chunks_make_one_file_in_the_order_of_the_input(run, here, monkeypatch, suffix):
    texts = [f"{text} {text}"[: 5 + 7 * number] for number, text in enumerate(SENTENCES * 3)]
    (here / "texts.txt").write_text("\n".join(["", *texts]), encoding="utf-8")
    whole = ltp_predict(f"restore={run} input=texts.txt output=whole.jsonl batch_size=4")
    monkeypatch.setattr(texts_module, "CHUNK_ROWS", 7)
    chunked = ltp_predict(f"restore={run} input=texts.txt output=out.{suffix} batch_size=4")
    assert (chunked.code, chunked.err) == (0, whole.err)
    assert chunked.out == f"{len(texts)} texts: out.{suffix}\n"
    wanted = [json.loads(line) for line in (here / "whole.jsonl").read_text(encoding="utf-8").splitlines()]
    if suffix == "parquet":
        found = pq.read_table(here / "out.parquet").to_pylist()
    elif suffix == "csv":
        with (here / "out.csv").open(encoding="utf-8", newline="") as file:
            found = [
                record | {"row": int(record["row"]), "probability": float(record["probability"])}
                for record in csv.DictReader(file)
            ]
    else:
        found = [json.loads(line) for line in (here / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["row"] for record in found] == list(range(2, len(texts) + 2))
    for record, one in zip(found, wanted, strict=True):
        assert record == one | {"probability": pytest.approx(one["probability"], abs=1e-5)}


def test_what_is_stopped_in_the_middle_leaves_no_file(run, here, monkeypatch):
    (here / "texts.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    (here / "out.csv").write_text("before")
    monkeypatch.setattr(texts_module, "CHUNK_ROWS", 5)
    encode, calls = prediction.encode, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(prediction, "encode", stopped)
    assert ltp_predict(f"restore={run} input=texts.txt output=out.csv").code == 130
    assert (here / "out.csv").read_text() == "before"
    assert sorted(path.name for path in here.iterdir()) == ["out.csv", "texts.txt"]


def test_memory_does_not_grow_with_the_number_of_rows(run, here, monkeypatch):
    monkeypatch.setattr(texts_module, "CHUNK_ROWS", 50)

    def peak(count):
        with (here / "rows.csv").open("w", encoding="utf-8") as file:
            file.write("id,sentence\n")
            file.writelines(f"{index},{SENTENCES[index % len(SENTENCES)]}\n" for index in range(count))
        tracemalloc.start()
        finished = ltp_predict(f"restore={run} input=rows.csv output=out.csv")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert finished.out == f"{count} texts: out.csv\n", finished.err
        return found

    peak(50)  # what is made once
    assert peak(1500) < 1.5 * peak(150)


ROWS = [
    {"id": 7, "sentence": "a good film", "label": "old", "extra": None},
    {"id": 8, "sentence": "a bad film", "label": "new", "extra": 1.5, "tags": ["x", "y"]},
    {"id": 9, "sentence": "", "label": "none", "extra": None},
    {"id": 10, "sentence": "boring", "label": 3, "extra": 2.5},
]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_the_columns_of_the_input_are_kept(run, here, monkeypatch, suffix):
    monkeypatch.setattr(texts_module, "CHUNK_ROWS", 1)  # so that types come together from several
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    finished = ltp_predict(f"restore={run} input=rows.jsonl output=out.{suffix}")
    assert (finished.code, finished.err, finished.out) == (0, "skipped, no text: row 3\n", f"3 texts: out.{suffix}\n")
    if suffix == "parquet":
        found = pq.read_table(here / "out.parquet").to_pylist()
        tags, numbers, label = [None, ["x", "y"], None], ([7, 8, 10], [None, 1.5, 2.5]), "3"
    elif suffix == "csv":
        with (here / "out.csv").open(encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file))
        tags, numbers, label = ["", '["x", "y"]', ""], (["7", "8", "10"], ["", "1.5", "2.5"]), "3"
    else:
        found = [json.loads(line) for line in (here / "out.jsonl").read_text(encoding="utf-8").splitlines()]
        assert "tags" not in found[0]
        tags, numbers, label = [None, ["x", "y"], None], ([7, 8, 10], [None, 1.5, 2.5]), 3
    if suffix != "jsonl":
        assert list(found[0]) == ["row", "id", "sentence", "input_label", "extra", "tags", "label", "probability"]
    assert [str(record["row"]) for record in found] == ["1", "2", "4"]
    assert [record.get("tags") for record in found] == tags
    assert ([record["id"] for record in found], [record["extra"] for record in found]) == numbers
    assert [record["input_label"] for record in found] == ["old", "new", label]
    for record in found:
        assert record["label"] == expected(run, record["sentence"])[0]


def test_columns_of_a_parquet_file_keep_their_types(run, here):
    day = datetime.date(2026, 1, 2)
    table = pa.table({"sentence": ["good", "bad"], "day": [day, None], "vector": [[1, 2], [3]]})
    pq.write_table(table, here / "in.parquet")
    assert ltp_predict(f"restore={run} input=in.parquet output=out.parquet").code == 0
    found = pq.read_table(here / "out.parquet")
    assert found.column_names == ["row", "sentence", "day", "vector", "label", "probability"]
    assert found.select(["sentence", "day", "vector"]).equals(table)
    assert ltp_predict(f"restore={run} input=in.parquet output=out.jsonl").code == 0
    assert json.loads((here / "out.jsonl").read_text().splitlines()[0])["day"] == "2026-01-02"


WORDS = ("good", "bad", "boring", "zzzz", "\u200b", "unbelievable", "...", "你好")


@pytest.mark.parametrize("count", [1, 2])
def test_a_long_text_that_is_cut_has_the_same_tokens(monkeypatch, count):
    monkeypatch.setattr(tokenising, "_CUT_CHARACTERS", 2)
    tokenizer = demo_tokenizer()
    generator = random.Random(7)
    texts = [
        tuple(" ".join(generator.choices(WORDS, k=generator.choice((1, 6, 40, 70, 120)))) for _ in range(count))
        for _ in range(150)
    ]
    texts.append(("\u200b " * 100 + "good bad",) * count)  # words without tokens
    encoded, lengths = encode(tokenizer, texts, 16)
    whole = tokenizer(*map(list, zip(*texts, strict=True)), truncation=True, max_length=16)
    assert encoded["input_ids"] == whole["input_ids"]
    full = tokenizer(*map(list, zip(*texts, strict=True)), verbose=False)["input_ids"]
    for row, ids in enumerate(full):
        if len(ids) > 16:
            assert lengths[row] in (len(ids), math.inf)
        else:
            assert lengths.get(row, len(ids)) in (len(ids), math.inf)


def test_a_text_far_beyond_the_limit_is_cut_before_it_is_tokenised():
    text = "a good film " * 500_000
    assert len(beginning(text, 128)) < 4096
    assert text.startswith(beginning(text, 128))
    assert beginning("x" * 10**6, 128) == "x" * 10**6  # no place to cut
    assert beginning(SENTENCES[0], 128) == SENTENCES[0]


def test_progress_without_a_terminal(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: now[0])
    caplog.set_level("INFO", logger="ltp")
    with output.progress(1_000_000) as advance:
        for _ in range(10):
            now[0] += 20
            advance(20_000)
    assert caplog.messages[0] == "40,000 of 1,000,000, 1,000 a second, about 16 min left"
    assert len(caplog.messages) == 5


def test_the_number_of_threads_is_as_wanted(run):
    before = torch.get_num_threads()
    try:
        assert ltp_predict(f"restore={run}", f"threads={before + 1}", "text=a great film").code == 0
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["in.csv", "in.tsv", "in.jsonl"])
def test_files_with_columns(run, here, name):
    rows = [{"id": number, "sentence": text} for number, text in enumerate(SENTENCES)]
    if name.endswith("jsonl"):
        (here / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    else:
        with (here / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if name == "in.tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    assert ltp_predict(f"restore={run} input={name} output=out.csv").code == 0
    with (here / "out.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == ["row", "id", "sentence", "label", "probability"]
    assert [record["sentence"] for record in found] == SENTENCES
    assert [record["id"] for record in found] == list(map(str, range(len(SENTENCES))))
    assert [record["label"] for record in found] == [expected(run, text)[0] for text in SENTENCES]


def test_pairs(pair_run, here):
    (here / "pairs.csv").write_text(f"first,second\n{SENTENCES[0]},{SENTENCES[1]}\n,only one\n", encoding="utf-8")
    assert ltp_predict(f"restore={pair_run} input=pairs.csv output=out.jsonl").code == 0
    first, second = map(json.loads, (here / "out.jsonl").read_text(encoding="utf-8").splitlines())
    label, probability = expected(pair_run, SENTENCES[0], SENTENCES[1])
    assert (first["first"], first["second"], first["label"]) == (*SENTENCES[:2], label)
    assert first["probability"] == pytest.approx(probability, abs=1e-5)
    assert second["first"] == ""
    again = ltp_predict(f"restore={pair_run}", f"text={SENTENCES[0]}", f"text_pair={SENTENCES[1]}", "output=o.jsonl")
    assert again.code == 0
    alone = json.loads((here / "o.jsonl").read_text(encoding="utf-8"))
    assert (alone["text"], alone["text_pair"], alone["label"]) == (*SENTENCES[:2], label)
    assert alone["probability"] == pytest.approx(probability, abs=1e-5)


def test_a_regression_gives_scores(tmp_path, here):
    run = make_run(tmp_path / "run", labels=(), **TOPK)
    finished = ltp_predict(f"restore={run}", f"text={SENTENCES[0]}")
    assert "score" in finished.out
    assert "label" not in finished.out
    assert ltp_predict(f"restore={run}", f"text={SENTENCES[0]}", "output=out.jsonl").code == 0
    assert list(json.loads((here / "out.jsonl").read_text(encoding="utf-8"))) == ["row", "text", "score"]


def test_standard_input_and_the_table(run):
    finished = ltp_predict(f"restore={run} input=-", stdin=b"a good film\r\n\n\x1b[31m[bold]bad[/bold]\x07 film\n")
    assert finished.code == 0
    assert finished.err == "skipped, no text: row 2\n"
    rows = [line.split() for line in finished.out.splitlines() if line.strip() and line.strip()[0].isdigit()]
    assert [row[:-2] for row in rows] == [["1", "a", "good", "film"], ["3", "[31m[bold]bad[/bold]", "film"]]
    assert "\x1b" not in finished.out


@pytest.mark.parametrize(
    "text",
    [
        "It's a great, moving (but long) film: $5 well spent!",
        "${oc.env:HOME} \\${x} \\\\${y} $ {z}",
        "a\\",
        "'quoted'",
        '"quoted" \\\'',
        "key=value, a,b {x: [1]}",
        "null",
        "3.5",
        " surrounded ",
        "café 🍕\ttab",
    ],
)
def test_a_text_is_taken_as_it_stands(run, here, text):
    finished = ltp_predict(f"restore={run}", f"text={text}", "output=out.jsonl")
    assert finished.code == 0, finished.err
    assert json.loads((here / "out.jsonl").read_text(encoding="utf-8"))["text"] == text


def test_what_is_said_of_odd_texts(run, here):
    long = "good " * 2500
    (here / "texts.txt").write_text(f"{long}\n[CLS] [SEP]\ngood\n   \n", encoding="utf-8")
    finished = ltp_predict(f"restore={run} input=texts.txt output=out.csv")
    assert finished.code == 0
    assert finished.err.splitlines() == [
        "skipped, no text: row 4",
        "truncated: row 1 (the first 32 of 2502 tokens were read)",
        "nothing but special tokens: row 2",
    ]
    longer = ltp_predict(f"restore={run} input=texts.txt output=out.csv max_length=64")
    assert "the first 64 of 2502 tokens" in longer.err


def test_many_rows_with_one_note_are_not_all_named(run):
    finished = ltp_predict(f"restore={run} input=-", stdin=b"good\n" + b"\n" * 9)
    assert finished.err == "skipped, no text: rows 2, 3, 4, 5, 6 and 4 more\n"


# -- budgets ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A run that holds two budgets: at 0.3 it prunes everything at once, at 0.6, which is in use, a little."""
    threshold = {"prune_mode": "absolute_threshold", "final_token_threshold": 0.005, "score_length": 32}
    folder = make_run(tmp_path_factory.mktemp("several"), **threshold)
    model = LTPForSequenceClassification.from_pretrained(folder)
    model.set_budgets([0.3, 0.6])
    with torch.no_grad():
        model.thresholds.fill_(0.9)
    model.use_budget(0.6)
    model.save_pretrained(folder / "model")
    return folder


def test_a_budget_predicts_with_its_thresholds(several, here):
    (here / "texts.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    pages = {}
    for name, options in {"default": "", "cheap": "budget=0.3", "same": "budget=0.6"}.items():
        finished = ltp_predict(f"restore={several} input=texts.txt output={name}.jsonl html={name}.html {options}")
        assert finished.code == 0, finished.err
        pages[name] = (here / f"{name}.html").read_text(encoding="utf-8")
    records = {name: (here / f"{name}.jsonl").read_text(encoding="utf-8") for name in pages}
    assert records["same"] == records["default"] != records["cheap"]
    assert page_data(pages["cheap"])["thresholds"] == pytest.approx([0.9] * 4)
    assert page_data(pages["same"])["thresholds"] == pytest.approx([0.00125, 0.0025, 0.00375, 0.005])
    assert "<title>tiny · budget 0.3</title>" in pages["cheap"]
    assert "<title>tiny</title>" in pages["default"]
    for example in page_data(pages["cheap"])["examples"]:
        assert [token[3] for token in example["tokens"]] == [None] + [1] * (len(example["tokens"]) - 1)


def test_a_budget_that_is_not_held(several, run):
    finished = ltp_predict(f"restore={several} budget=0.5 text=good")
    assert (finished.code, finished.out) == (2, "")
    assert finished.err.startswith(f"error: budget=0.5: restore={several} has no thresholds for it; it holds 0.3, 0.6.")
    assert "has no thresholds and holds no budgets" in ltp_predict(f"restore={run} budget=0.5 text=good").err


# -- what is recorded -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pruning", [TOPK, {"prune_mode": "absolute_threshold", "final_token_threshold": 0.02}, {}])
def test_recording_agrees_with_the_model(make_dense, family, sentences, make_batch, pruning):
    model = LTPForSequenceClassification.from_dense(make_dense(family), **pruning).eval()
    batch = make_batch(model, sentences)
    with torch.no_grad():
        plain = model(**batch)
        with recording(model) as recorder:
            recorded = model(**batch)
    assert model.execution == "packed"
    assert not isinstance(model.pruner, RecordingPruner)
    assert torch.allclose(plain.logits, recorded.logits, atol=1e-4)
    assert torch.equal(plain.token_lengths, recorded.token_lengths)
    assert len(recorder.layers) == 6
    for layer, (scores, before, after) in enumerate(recorder.layers.values()):
        assert before.sum(dim=1).tolist() == plain.token_lengths[:, layer].tolist()
        assert after.sum(dim=1).tolist() == plain.token_lengths[:, layer + 1].tolist()
        assert (scores[before] > 0).all()  # of a dense model too


@pytest.mark.parametrize("sliding_layers", ["skip", "scale"])
def test_layers_of_a_trace_are_those_of_the_encoder(make_dense, sentences, make_batch, sliding_layers):
    """Also where no token leaves in some of them: those with a sliding window."""
    dense = make_dense("modernbert", num_hidden_layers=7)
    settings = {"prune_mode": "topk", "first_layer": 1, "token_keep_rate": 0.1}
    model = LTPForSequenceClassification.from_dense(dense, **settings, sliding_layers=sliding_layers).eval()
    batch = make_batch(model, sentences)
    with torch.no_grad(), recording(model) as recorder:
        model(**batch)
    with torch.no_grad():
        lengths = model(**batch).token_lengths[0].tolist()
    words = [(str(number), str(number), False) for number in range(lengths[0])]
    traced = traces(recorder, 0, words)
    deciding = [1, 4, 7] if sliding_layers == "skip" else list(range(1, 8))
    assert list(recorder.layers) == deciding
    for layer, (before, after) in enumerate(itertools.pairwise(lengths), start=1):
        assert sum(trace.pruned_at == layer for trace in traced) == before - after
    assert lengths[-1] < lengths[0] - 2
    shown = [layer for layer, score in enumerate(traced[0].scores, start=1) if score is not None]
    assert (len(traced[0].scores), shown) == (7, deciding)


def test_the_model_is_as_before_when_something_fails(make_dense):
    model = LTPForSequenceClassification.from_dense(make_dense("bert"), **TOPK)
    pruner = model.pruner
    with pytest.raises(RuntimeError, match="stop"), recording(model):
        raise RuntimeError("stop")
    assert model.pruner is pruner
    assert model.execution == "packed"


def byte_level_tokenizer():
    """A RoBERTa-like tokenizer that knows single bytes and two words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    for word in ("Ġf", "Ġfi", "Ġfil", "Ġfilm"):
        vocabulary[word] = len(vocabulary)
    merges = [("Ġ", "f"), ("Ġf", "i"), ("Ġfi", "l"), ("Ġfil", "m")]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True)
    backend.decoder = decoders.ByteLevel()
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def test_byte_level_tokens_are_readable():
    tokenizer = byte_level_tokenizer()
    text = "a films é"
    assert readable_tokens(tokenizer, tokenizer(text).encodings[0], (text,)) == [
        ("<s>", "<s>", False),
        ("a", "a", False),
        ("film", "Ġfilm", False),
        ("s", "s", True),
        ("␣", "Ġ", False),
        ("é", "Ã", True),
        ("é", "©", True),
        ("</s>", "</s>", False),
    ]


def test_word_pieces_are_readable():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "a", "film", "##s", ".", "it", "'"]
    backend = Tokenizer(models.WordPiece({name: index for index, name in enumerate(names)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
    pair = ("A films.", "it's 🍕")
    found = readable_tokens(tokenizer, tokenizer(*pair).encodings[0], pair)
    assert found == [
        ("[CLS]", "[CLS]", False),
        ("a", "a", False),
        ("film", "film", False),
        ("s", "##s", True),
        (".", ".", True),
        ("[SEP]", "[SEP]", False),
        ("it", "it", False),
        ("'", "'", True),
        ("s", "[UNK]", True),
        ("🍕", "[UNK]", False),
        ("[SEP]", "[SEP]", False),
    ]


PIECES = [
    TokenTrace("[CLS]", "[CLS]", False, (0.3, 0.3, 0.3), None),
    TokenTrace("un", "un", False, (0.1, 0.2, 0.1), 3),
    TokenTrace("like\x1b[2J", "##like", True, (0.05, None, None), 1),
]


def test_layer_by_layer():
    text = format_layers(PIECES)
    assert text.plain.splitlines() == [
        "input    [CLS] unlike [2J",
        "layer 1  [CLS] unlike [2J",
        "layer 2  [CLS] unlike [2J",
        "layer 3  [CLS] unlike [2J",
    ]
    dotted = format_layers(PIECES, plain=True).plain.splitlines()
    assert (dotted[1], dotted[3]) == ("layer 1  [CLS] un········", "layer 3  [CLS] ··········")
    struck = [text.plain[span.start : span.end] for span in text.spans if "strike" in str(span.style)]
    assert struck == ["like [2J", "like [2J", "un", "like [2J"]


def test_show_prints_every_layer(run):
    finished = ltp_predict(f"restore={run}", "text=good film [red]", "show=true")
    assert finished.code == 0, finished.err
    out = finished.out.splitlines()
    label, probability = expected(run, "good film [red]")
    assert out[0].startswith(f"1: {label} {probability:.3f} · ")
    assert [line.split()[:2] for line in out[2:6]] == [["layer", str(layer)] for layer in range(1, 5)]
    assert "····" in out[5]


def test_printable_leaves_nothing_that_steers_a_terminal():
    assert printable("a\x1b[31m\u202eb\nc é🍕") == "a [31m b c é🍕"


# -- the page ---------------------------------------------------------------------------------------------------

HOSTILE = [
    "</script><script>document.title='pwned'</script>",
    "<!-- <script> {{title}} {{data}} <img src=x onerror=\"document.title='pwned'\">",
    "\u2028 & ]]> ' \"",
]


def page_data(text):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.DOTALL)
    return json.loads(found[1])


def page(title="title", thresholds=None):
    examples = [
        Example(row, f"positive {row}", "", 0.5, [*PIECES, TokenTrace(text, text, False, (0.01, 0.02, None), 2)])
        for row, text in enumerate(HOSTILE, start=1)
    ]
    return render_page(title, examples, thresholds)


def test_nothing_in_a_text_is_markup():
    text = page("<b>{{data}}</b>")
    assert text.count("<script") == 2
    assert text.count("</script>") == 2
    assert "<img" not in text
    assert "<title>&lt;b&gt;{{data}}&lt;/b&gt;</title>" in text
    shown = [example["tokens"][-1][0] for example in page_data(text)["examples"]]
    assert shown == HOSTILE


def test_the_page_loads_nothing():
    text = page()
    assert "default-src 'none'" in text
    assert not re.findall(r"(?:src|href|url)\s*[=(]|https?:|@import|fetch\(", text.replace("src=x", ""))


def test_script_json_is_json():
    assert json.loads(script_json({"a": ["</script>", "\u2028", 1.5, None]})) == {
        "a": ["</script>", "\u2028", 1.5, None]
    }
    assert not set("<>&\u2028\u2029") & set(script_json(HOSTILE))


def test_the_page_of_a_run(run, here):
    (here / "texts.txt").write_text("\n".join(SENTENCES[:5]), encoding="utf-8")
    finished = ltp_predict(f"restore={run} input=texts.txt html=pages/tokens.html")
    assert (finished.code, finished.err, finished.out) == (0, "", "5 texts: pages/tokens.html\n")
    data = page_data((here / "pages" / "tokens.html").read_text(encoding="utf-8"))
    model = LTPForSequenceClassification.from_pretrained(run)
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert data["layers"] == 4
    assert data["thresholds"] is None
    for example, sentence in zip(data["examples"], SENTENCES, strict=False):
        tokens = example["tokens"]
        assert [token[1] for token in tokens] == tokenizer.convert_ids_to_tokens(tokenizer(sentence)["input_ids"])
        with torch.no_grad():
            lengths = model(**tokenizer(sentence, return_tensors="pt")).token_lengths[0].tolist()
        left = [token[3] for token in tokens]
        alive = [sum(layer is None or layer > number for layer in left) for number in range(5)]
        assert alive == lengths
        for *_, layer, scores, _ in tokens:
            assert [score is None for score in scores] == [
                layer is not None and number > layer for number in (1, 2, 3, 4)
            ]
    assert [path.name for path in (here / "pages").iterdir()] == ["tokens.html"]


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
DRIVER = """
<pre id="seen"></pre>
<script>
const slider_ = document.getElementById("layer"), box = document.getElementById("hide"), seen = [];
const tokens = [...document.querySelectorAll("article:first-child .token")];
const look = () => seen.push({
  layer: slider_.value,
  state: document.getElementById("state").textContent,
  dimmed: tokens.map((token) => getComputedStyle(token).textDecorationLine === "line-through"),
  drawn: tokens.map((token) => token.offsetWidth > 0),
});
look();
for (const layer of [1, 2, 3]) { slider_.value = layer; slider_.dispatchEvent(new Event("input")); look(); }
box.click(); look();
box.click(); slider_.value = 0; slider_.dispatchEvent(new Event("input")); look();
document.getElementById("seen").textContent = JSON.stringify({
  seen, title: document.title, scripts: document.scripts.length, images: document.images.length,
  texts: [...document.querySelectorAll("article .token:last-child")].map((token) => token.textContent),
  tooltips: tokens.map((token) => token.title), max: slider_.max,
  colours: tokens.map((token) => getComputedStyle(token).backgroundColor),
  legend: document.getElementById("legend").textContent,
});
</script>
</body>"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found: apt-get install chromium")
def test_the_page_in_a_browser(tmp_path):
    driven = page(thresholds=[0.06, 0.1, 0.2]).replace("</body>", DRIVER)
    (tmp_path / "page.html").write_text(driven, encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    address = (tmp_path / "page.html").as_uri()
    dom = subprocess.run(
        [*command, "--dump-dom", address], check=True, capture_output=True, encoding="utf-8", timeout=limit(300)
    ).stdout
    found = json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', dom, flags=re.DOTALL)[1]))
    assert (found["title"], found["scripts"], found["images"], found["max"]) == ("title", 3, 0, "3")
    assert found["texts"] == HOSTILE
    steps = found["seen"]
    # [CLS] stays; "un" leaves at layer 3, "like" at 1, the hostile text at 2
    assert [step["dimmed"] for step in steps] == [
        [False, False, False, False],
        [False, False, True, False],
        [False, False, True, True],
        [False, True, True, True],
        [False, True, True, True],
        [False, False, False, False],
    ]
    assert [step["drawn"] for step in steps] == [[True] * 4] * 4 + [[True, False, False, False]] + [[True] * 4]
    assert steps[2]["state"] == "after layer 2 of 3: 50 % of the tokens"
    assert found["tooltips"][2] == "##like\nleft at layer 1\nlayer 1: 0.05  (threshold 0.06)"
    assert found["tooltips"][0].startswith("[CLS]\nstayed to the end\nlayer 1: 0.3  (threshold 0.06)\n")
    assert len(set(found["colours"])) == 4
    assert found["legend"] == "left at layer123stayed"


# -- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"good\nbad \xff\n", "f: line 2, byte 5 (0xff) is not UTF-8; save the file in that encoding"),
        (b"\xe9", "f: line 1, byte 1 (0xe9) is not UTF-8; save the file in that encoding"),
    ],
)
def test_bytes_that_are_no_text(content, message):
    from ltp.errors import UserError

    with pytest.raises(UserError, match=re.escape(message)):
        list(lines(io.BytesIO(content), "f"))


def test_lines():
    def read(content):
        return list(lines(io.BytesIO(content), "f"))

    assert read(b"\xef\xbb\xbfa\r\nb\n\nc") == ["a", "b", "", "c"]
    assert read("a\u2028b\x0bc\n".encode()) == ["a\u2028b\x0bc"]
    assert read(b"") == []


def test_rows_keep_their_numbers():
    source = TextSource("x", ["text"], lambda: ({"text": text} for text in ("", "a", " \t", "b")))
    texts = source.read()
    assert (texts.rows, texts.texts) == ([2, 4], [("a",), ("b",)])
    assert source.check() == Overview(2, [1, 3])


def test_numbers_and_missing_values_of_a_column(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": 2012}\n{"text": null}\n{"text": "x"}\n', encoding="utf-8")
    assert open_texts(str(path), ["text"]).read().texts == [("2012",), ("x",)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "give what is to be classified: either text=… or input=FILE (input=- reads standard input), or "
         "split=test"),
        ("text=a input=b.txt", "give what is to be classified: either text=… or input=FILE (input=- reads standard "
         "input), or split=test"),
        ("input=b.txt text_pair=a", "text_pair=… goes with text=…; of a file, name two columns: "
         "columns=[first,second]"),
        ("text=a columns=[b]", "columns=[b] goes with input=FILE"),
        ("text=a text_pair=b", "restore=RUN reads one text: leave text_pair out"),
        ("text=", "text=… holds no text"),
        ("'text=  '", "text=… holds no text"),
        ("text=a output=out.xlsx", "output=out.xlsx: unknown format; use one of .csv, .jsonl, .parquet"),
        ("text=a html=page", "html=page is a page: its name must end in .html"),
        ("text=a max_length=3", "max_length=3 is out of range: it must be 4 or more (tokens)"),
        ("text=a max_length=9999", "max_length=9999: the model reads at most 512 tokens"),
        ("text=a threads=0", "threads=0 is out of range: it must be 1 or more"),
        ("text=a n_best=2", "n_best=2 is for answers to questions; restore=RUN gives none"),
        ("text=a batch_size=0", "batch_size=0 is out of range: it must be 1 or more"),
        ("text=a device=gpu", "device=gpu: no such option. Did you mean cpu? Options: auto, cpu, cuda"),
        ("text=a colums=[b]", "unknown key colums; did you mean columns?"),
        ("text=a html=folder.html", "html=folder.html is a directory; give a file"),
        ("input=none.txt", "input=none.txt: no such file"),
        ("input=.", "input=. is a directory; give a file"),
        ("input=a.docx", "input=a.docx: unknown format '.docx'; use one of .txt, .parquet, .jsonl, .csv, .tsv, or - "
         "for lines"),
        ("input=empty.txt", "input=empty.txt holds no text"),
        ("input=-", "input=- holds no text"),
        ("input=bytes.txt", "bytes.txt: line 1, byte 4 (0xe9) is not UTF-8; save the file in that encoding"),
        ("input=bytes.csv", "bytes.csv: line 2 is not UTF-8; save the file in that encoding."),
        ("input=a.csv", "a.csv: no column 'sentence'; found: first, second. Name the text columns with columns=[…]."),
        ("input=a.csv columns=[third]", "a.csv: no column 'third'; found: first, second. Name the text columns with "
         "columns=[…]."),
        ("input=a.csv columns=[first,second]", "restore=RUN reads one text: name one column, columns=[…]"),
        ("input=a.csv columns=[]", "columns=[] is out of range: it must be one or two column names"),
        ("input=broken.jsonl", "broken.jsonl: row 1 is not valid JSON: Expecting value (column 1)."),
        ("input=half.jsonl", "input=half.jsonl: row 2: column 'sentence' holds half a character (a lone surrogate)."),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(run, here, options, message):
    (here / "folder.html").mkdir()
    files = {
        "a.docx": b"x",
        "empty.txt": b"\n \n",
        "bytes.txt": b"caf\xe9",
        "bytes.csv": b"sentence\ncaf\xe9\n",
        "a.csv": b"first,second\na,b\n",
        "broken.jsonl": b"sentence\n",
        "half.jsonl": b'{"sentence": "a"}\n{"sentence": "\\ud83c"}\n',
    }
    for name, content in files.items():
        (here / name).write_bytes(content)
    finished = ltp_predict(f"restore={run} {options}")
    assert (finished.code, finished.out, finished.err.replace(str(run), "RUN")) == (2, "", f"error: {message}\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("text=a", "restore=RUN reads a pair of texts: give text_pair=… too"),
        ("input=a.txt", "restore=RUN reads a pair of texts: give a .csv, .tsv or .jsonl file with two columns, "
         "columns=[first,second]"),
    ],
)  # fmt: skip
def test_pairs_that_are_none(pair_run, options, message):
    finished = ltp_predict(f"restore={pair_run} {options}")
    assert (finished.code, finished.err.replace(str(pair_run), "RUN")) == (2, f"error: {message}\n")


def test_a_directory_that_is_no_run(here):
    finished = ltp_predict("restore=. text=a")
    assert finished.code == 2
    assert finished.err.startswith("error: restore=. is neither a run directory")
    missing = ltp_predict("text=a")
    assert (missing.code, missing.err) == (2, "error: restore has no value; give it on the command line: restore=…\n")


def test_text_from_a_terminal_that_is_no_utf8(run):
    finished = ltp_predict(f"restore={run}", "text=caf\udce9")
    assert (finished.code, finished.err) == (
        2,
        "error: text=…: row 1: column 'text' holds half a character (a lone surrogate).\n",
    )


def test_a_checkpoint_without_a_run_takes_any_number_of_texts(run, here):
    shutil.copytree(run / "model", here / "plain")
    (here / "a.csv").write_text("text,other\ngood film,bad\n", encoding="utf-8")
    assert ltp_predict("restore=plain input=a.csv").code == 0
    assert ltp_predict("restore=plain input=a.csv columns=[text,other]").code == 0
    assert ltp_predict("restore=plain text=good").code == 0


def test_cfg_job_fills_nulls_and_predicts_nothing(run):
    finished = ltp_predict(f"--cfg job restore={run} input=x.csv")
    shown = yaml.safe_load(finished.out)
    assert (finished.code, shown["max_length"], shown["columns"]) == (0, 32, ["sentence"])


def test_help_explains_every_key():
    text = ltp_predict("--help").out
    for key in predict.PredictSettings.__dataclass_fields__:
        assert f"  {key}" in text or f", {key}" in text, key

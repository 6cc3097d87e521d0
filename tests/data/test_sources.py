"""Reading splits: every format and layout, every message, and the hub out of reach."""

import csv
import json
import re
import threading
import time
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from patience import limit

from ltp.data import hub, sources, tables
from ltp.data.sources import load_splits
from ltp.data.tasks import TASKS, custom_task
from ltp.errors import UserError

RTE = [
    {"sentence1": 'He said "yes', "sentence2": "null", "label": 0, "idx": 0},
    {"sentence1": "A, b; c", "sentence2": "NA", "label": 1, "idx": 1},
    {"sentence1": "Três cães", "sentence2": "123", "label": 1, "idx": 2},
]


def write(path, rows):
    """Write rows in the format that the path's suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        write_lines(path, ["\t".join(rows[0])] + ["\t".join(map(str, row.values())) for row in rows])
    return path


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def message(task, **arguments):
    with pytest.raises(UserError) as caught:
        load_splits(task, **arguments)
    return str(caught.value)


def without(rows, name):
    return [{key: value for key, value in row.items() if key != name} for row in rows]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv", "tsv"])
@pytest.mark.parametrize("names", [False, True])
def test_every_format_with_ids_or_names_as_labels(tmp_path, suffix, names):
    labels = TASKS["rte"].labels
    rows = [row | {"label": labels[row["label"]]} for row in RTE] if names else RTE
    write(tmp_path / f"rte/train.{suffix}", rows)
    write(tmp_path / f"rte/validation.{suffix}", rows[:2])
    splits = load_splits(TASKS["rte"], data_dir=tmp_path)
    assert splits.task is TASKS["rte"]
    assert splits.train.to_list() == without(RTE, "idx")
    assert {name: split.to_list() for name, split in splits.validation.items()} == (
        {"validation": without(RTE[:2], "idx")}
    )
    assert splits.train.features["label"].dtype == "int64"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rte"]  # no cache beside the files


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv", "tsv"])
def test_regression_labels(tmp_path, suffix):
    rows = [{"sentence1": "a", "sentence2": "b", "label": value} for value in (0.0, 2.75, 5.0)]
    for split in ("train", "validation"):
        write(tmp_path / f"stsb/{split}.{suffix}", rows)
    splits = load_splits(TASKS["stsb"], data_dir=str(tmp_path))
    assert splits.train.to_list() == rows
    assert splits.train.features["label"].dtype == "float32"


def test_ids_as_pandas_writes_them_beside_missing_ones_elsewhere(tmp_path):
    for split in ("train", "validation"):
        write_lines(tmp_path / f"sst2/{split}.csv", ["sentence,label", "good,1.0", "bad,0.0"])
    assert load_splits(TASKS["sst2"], data_dir=tmp_path).train["label"][:] == [1, 0]


def test_quoted_line_breaks_in_csv(tmp_path):
    for split in ("train", "validation"):
        path = write_lines(tmp_path / f"sst2/{split}.csv", [])
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["sentence", "label"], ['one\n"two", three', 1]])
    assert load_splits(TASKS["sst2"], data_dir=tmp_path).train["sentence"][:] == ['one\n"two", three']


CLASSIC = {
    "rte": ("RTE", ["index\tsentence1\tsentence2\tlabel", '0\tA "b\tc\tnot_entailment'], ('A "b', "c", 1)),
    "mrpc": (
        "MRPC",
        ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", '1\t70\t71\t"a\tb'],
        ('"a', "b", 1),
    ),
    "stsb": (
        "STS-B",
        [
            "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
            "0\tnews\tMSR\t2012\t1\tnone\tnone\ta\tb\t4.750",
        ],
        ("a", "b", 4.75),
    ),
    "cola": ("CoLA", ["gj04\t1\t\tOne more.", "gj05\t0\t*\tTwo more."], ("One more.", 1)),
    "sst2": ("SST-2", ["sentence\tlabel", "so good \t1"], ("so good ", 1)),
    "qnli": (
        "QNLI",
        ["index\tquestion\tsentence\tlabel", "0\twho ?\tme .\tentailment"],
        ("who ?", "me .", 0),
    ),
    "qqp": (
        "QQP",
        [
            "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
            "1\t2\t3\ta ?\t\t0",
            *["1\t2\t3\ta ?\tb ?\t1"] * 100,
        ],
        ("a ?", "", 0),
    ),
    "mnli": (
        "MNLI",
        [
            "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence1\tsentence2\tlabel1\tgold_label",
            "0\t1\t1n\tfiction\t( a )\ta\tb\tneutral\tcontradiction",
        ],
        ("a", "b", 2),
    ),
}


@pytest.mark.parametrize("lower_case_folder", [False, True])
@pytest.mark.parametrize("name", CLASSIC)
def test_the_classic_download(tmp_path, name, lower_case_folder):
    folder, lines, first = CLASSIC[name]
    folder = tmp_path / (name if lower_case_folder else folder)
    dev = ["dev_matched", "dev_mismatched"] if name == "mnli" else ["dev"]
    for stem in ["train", *dev]:
        write_lines(folder / f"{stem}.tsv", lines)
    splits = load_splits(TASKS[name], data_dir=tmp_path)
    expected = dict(zip([*TASKS[name].text_columns, "label"], first, strict=True))
    assert tuple(splits.validation) == TASKS[name].validation_splits
    for split in (splits.train, *splits.validation.values()):
        assert split[0] == expected


def test_cola_keeps_its_first_row_and_rejects_another_shape(tmp_path):
    lines = CLASSIC["cola"][1]
    for stem in ("train", "dev"):
        write_lines(tmp_path / f"CoLA/{stem}.tsv", lines)
    assert load_splits(TASKS["cola"], data_dir=tmp_path).train["label"][:] == [1, 0]
    path = write_lines(tmp_path / "CoLA/train.tsv", ["text\tlabel", "a\t1"])
    assert message(TASKS["cola"], data_dir=tmp_path) == (
        f"{path}: no column 'sentence'; found: text, label. Use the hub's column names."
    )


def test_broken_rows_of_the_classic_download_are_left_out(tmp_path, caplog):
    lines = CLASSIC["qqp"][1]
    write_lines(tmp_path / "QQP/dev.tsv", lines)
    path = write_lines(tmp_path / "QQP/train.tsv", [*lines, "5\t6\tcut off"])
    splits = load_splits(TASKS["qqp"], data_dir=tmp_path)
    assert (len(splits.train), len(splits.validation["validation"])) == (101, 101)
    broken = "row 102 has 3 fields instead of 6"
    assert caplog.messages == [f"{path}: 1 broken rows left out, as in the hub's GLUE ({broken})"]
    write_lines(path, [lines[0], "1\t2\t3\ta ?\tb ?\t1", "5\t6\tcut off"])
    assert message(TASKS["qqp"], data_dir=tmp_path) == (
        f"{path}: row 2 has 3 fields instead of 6; texts in TSV files cannot hold tabs or line breaks."
    )


MRPC_CORPUS = [CLASSIC["mrpc"][1][0], "1\t1\t2\ta\tb", "0\t3\t4\tc\td", "1\t5\t6\te\tf"]


def test_mrpc_from_the_corpus_split_by_dev_ids(tmp_path):
    folder = tmp_path / "MRPC"
    write_lines(folder / "msr_paraphrase_train.txt", MRPC_CORPUS)
    ids = write_lines(folder / "dev_ids.tsv", ["3\t4"])
    splits = load_splits(TASKS["mrpc"], data_dir=tmp_path)
    assert splits.train["sentence1"][:] == ["a", "e"]
    assert splits.validation["validation"].to_list() == [{"sentence1": "c", "sentence2": "d", "label": 0}]
    write_lines(ids, ["8\t9"])
    assert message(TASKS["mrpc"], data_dir=tmp_path) == (
        f"{ids}: its id pairs name 0 of the 3 rows of msr_paraphrase_train.txt; take GLUE's dev_ids.tsv."
    )


def test_mrpc_from_the_corpus_without_dev_ids(tmp_path, caplog):
    folder = tmp_path / "MRPC"
    write_lines(folder / "msr_paraphrase_train.txt", MRPC_CORPUS)
    assert message(TASKS["mrpc"], data_dir=tmp_path) == (
        f"{folder}: msr_paraphrase_train.txt alone has no validation split;"
        " put GLUE's dev_ids.tsv or msr_paraphrase_test.txt beside it."
    )
    write_lines(folder / "msr_paraphrase_test.txt", MRPC_CORPUS[:2])
    splits = load_splits(TASKS["mrpc"], data_dir=tmp_path)
    assert (len(splits.train), len(splits.validation["validation"])) == (3, 1)
    assert caplog.messages == [
        f"{folder}: no dev_ids.tsv: training on all of MRPC's training corpus and validating on its test set,"
        " which is not GLUE's split"
    ]


MNLI = [{"premise": "a", "hypothesis": "b", "label": 2}]


def test_mnli_with_both_validation_sets_in_the_hubs_layout(tmp_path):
    for split in ("train", "validation_matched", "validation_mismatched"):
        write(tmp_path / f"mnli/{split}.parquet", MNLI)
    splits = load_splits(TASKS["mnli"], data_dir=tmp_path)
    assert list(splits.validation) == ["validation_matched", "validation_mismatched"]


def test_a_lone_mnli_validation_counts_as_matched(tmp_path, caplog):
    for split in ("train", "validation"):
        write(tmp_path / f"mnli/{split}.jsonl", MNLI)
    assert list(load_splits(TASKS["mnli"], data_dir=tmp_path).validation) == ["validation_matched"]
    assert caplog.messages == [f"data_dir={tmp_path}: no validation_mismatched; mnli is evaluated on matched only"]


def test_first_rows(tmp_path):
    for split in ("train", "validation"):
        write(tmp_path / f"rte/{split}.parquet", RTE)
    splits = load_splits(TASKS["rte"], data_dir=tmp_path, max_train_samples=2, max_validation_samples=1)
    assert splits.train["label"][:] == [0, 1]
    assert len(splits.validation["validation"]) == 1
    assert message(TASKS["rte"], data_dir=tmp_path, max_train_samples=0) == (
        "task.max_train_samples=0: must be at least 1, or null for all rows."
    )


def test_the_demo():
    splits = load_splits(TASKS["demo"], max_train_samples=100)
    assert (len(splits.train), len(splits.validation["validation"])) == (100, 1_000)
    assert splits.train.column_names == ["sentence", "label"]


def test_missing_places(tmp_path):
    sst2 = TASKS["sst2"]
    assert message(sst2, data_dir=tmp_path / "x") == f"data_dir={tmp_path / 'x'}: no such directory."
    assert message(sst2, data_dir=tmp_path) == f"data_dir={tmp_path}: holds no folder sst2 or SST-2."
    folder = tmp_path / "sst2"
    folder.mkdir()
    assert message(sst2, data_dir=tmp_path) == (f"data_dir={tmp_path}: no train.{{parquet,jsonl,csv,tsv}} in {folder}.")
    write(folder / "train.jsonl", [{"sentence": "a", "label": 1}])
    assert message(sst2, data_dir=tmp_path) == (
        f"data_dir={tmp_path}: no validation.{{parquet,jsonl,csv,tsv}} or dev.tsv in {folder}."
    )
    write(folder / "train.csv", [{"sentence": "a", "label": 1}])
    assert message(sst2, data_dir=tmp_path) == (
        f"{folder}: train.jsonl and train.csv all claim to be the split train; keep one."
    )


GOOD = [{"sentence": "fine", "label": 1}, {"sentence": "poor", "label": 0}]
SST2_LABELS = "labels of task sst2: negative (0), positive (1)."


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (
            [{"text": "a", "label": 1}],
            "no column 'sentence'; found: text, label. Use the hub's column names.",
        ),
        ([{"sentence": "a", "y": 1}], "no column 'label'; found: sentence, y. Use the hub's column names."),
        ([*GOOD, {"sentence": "a", "label": 2}], f"row 3 has label '2' in column 'label'; {SST2_LABELS}"),
        (
            [*GOOD, {"sentence": "a", "label": -1}],
            "row 3 has label -1: the split is unlabelled, as the hub's test splits are; use a labelled one.",
        ),
    ],
)
@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv", "tsv"])
def test_bad_columns_and_labels_in_every_format(tmp_path, suffix, rows, complaint):
    path = write(tmp_path / f"sst2/train.{suffix}", rows)
    write(tmp_path / f"sst2/validation.{suffix}", GOOD)
    if suffix == "jsonl" and "no column" in complaint:
        complaint = f"row 1: {complaint}"
    assert message(TASKS["sst2"], data_dir=tmp_path) == f"{path}: {complaint}"


NO_TEXT = "row 3 has no text in column 'sentence'; fill it in or remove the row."
NO_LABEL = "row 3 has no label in column 'label'; label it or remove the row."


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([*GOOD, {"sentence": None, "label": 1}], NO_TEXT),
        ([*GOOD, {"sentence": "a", "label": None}], NO_LABEL),
        ([*GOOD, {"sentence": "a", "label": float("nan")}], NO_LABEL),
    ],
)
@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_missing_values(tmp_path, suffix, rows, complaint):
    write(tmp_path / f"sst2/train.{suffix}", GOOD)
    path = write(tmp_path / f"sst2/validation.{suffix}", rows)
    assert message(TASKS["sst2"], data_dir=tmp_path) == f"{path}: {complaint}"


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("train.csv", b"", "the file is empty."),
        ("train.csv", b"sentence,label\n", "no rows; give a split with at least one example."),
        ("train.jsonl", b"", "no rows; give a split with at least one example."),
        (
            "train.csv",
            b"sentence,label\nok,1\ncaf\xe9,1\n",
            "line 3 is not UTF-8; save the file in that encoding.",
        ),
        ("train.tsv", b"s\xe9ntence\tlabel\n", "line 1 is not UTF-8; save the file in that encoding."),
        ("train.jsonl", b'{"sentence": "caf\xe9"}\n', "line 1 is not UTF-8; save the file in that encoding."),
        (
            "train.csv",
            b"sentence,label\nok,1\na, b,1\n",
            "row 2 has 3 fields instead of 2; quote texts with commas.",
        ),
        (
            "train.tsv",
            b"sentence\tlabel\nok\t1\nbroken\n",
            "row 2 has 1 fields instead of 2; texts in TSV files cannot hold tabs or line breaks.",
        ),
        ("train.csv", b"sentence,label,label\na,1,1\n", "column 'label' appears twice."),
        (
            "train.csv",
            b"sentence,label\nok,good\n",
            f"row 1 has label 'good' in column 'label'; {SST2_LABELS}",
        ),
        ("train.csv", b"sentence,label\nok,1\n  ,1\n", NO_TEXT.replace("3", "2")),
        (
            "train.jsonl",
            b'{"sentence": "a", "label": 1}\n\n{"sentence": "b", }\n',
            "row 2 is not valid JSON: Expecting property name enclosed in double quotes (column 19).",
        ),
        ("train.jsonl", b"[1, 2]\n", "row 1 is not a JSON object, as every line must be."),
        (
            "train.jsonl",
            b'{"sentence": "a", "label": [1]}\n',
            "row 1: column 'label' holds [1], not a text or number.",
        ),
        ("train.jsonl", b'{"sentence": 1, "label": 1}\n', "column 'sentence' holds int64 values, not text."),
        (
            "train.parquet",
            b"no parquet",
            "cannot be read as parquet: Parquet magic bytes not found in footer."
            " Either the file is corrupted or this is not a parquet file.",
        ),
    ],
)
def test_bad_files(tmp_path, name, content, complaint):
    write(tmp_path / "sst2/validation.jsonl", GOOD)
    path = tmp_path / "sst2" / name
    path.write_bytes(content)
    assert message(TASKS["sst2"], data_dir=tmp_path).rstrip(".") == f"{path}: {complaint}".rstrip(".")


@pytest.mark.parametrize(
    ("label", "complaint"),
    [
        ("5.5", "row 2 has label 5.5 in column 'label'; task stsb needs finite numbers from 0 to 5."),
        ("inf", "row 2 has label inf in column 'label'; task stsb needs finite numbers from 0 to 5."),
        ("high", "row 2 has label 'high' in column 'label'; task stsb needs numbers from 0 to 5."),
        ("nan", "row 2 has label nan in column 'label'; task stsb needs finite numbers from 0 to 5."),
    ],
)
def test_bad_regression_labels(tmp_path, label, complaint):
    path = write_lines(tmp_path / "stsb/train.csv", ["sentence1,sentence2,label", "a,b,1", f"a,b,{label}"])
    write_lines(tmp_path / "stsb/validation.csv", ["sentence1,sentence2,label", "a,b,1"])
    assert message(TASKS["stsb"], data_dir=tmp_path) == f"{path}: {complaint}"


def custom(metric="accuracy", columns=("text",)):
    return custom_task("mine", text_columns=columns, label_column="y", metric=metric, size="small")


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv", "tsv"])
@pytest.mark.parametrize(
    ("values", "labels", "ids"),
    [
        (["pos", "neg", "pos"], ("neg", "pos"), [1, 0, 1]),
        ([10, 9, -1], ("-1", "9", "10"), [2, 1, 0]),
        ([1.0, 2.0, 1.0], ("1", "2"), [0, 1, 0]),
        (["b", "10", "9"], ("9", "10", "b"), [2, 1, 0]),
    ],
)
def test_custom_labels_come_from_the_training_file(tmp_path, suffix, values, labels, ids):
    rows = [{"text": "a", "y": value, "more": 0} for value in values]
    train = write(tmp_path / f"a.{suffix}", rows)
    validation = write(tmp_path / f"b.{suffix}", rows[:1])
    splits = load_splits(custom(), train_file=train, validation_file=str(validation), max_train_samples=3)
    assert splits.task.labels == labels
    assert splits.task.num_labels == len(labels)
    assert splits.train["label"][:] == ids
    assert splits.train.column_names == ["text", "label"]
    assert splits.validation["validation"]["label"][:] == ids[:1]


def test_custom_formats_may_differ_and_pairs_work(tmp_path):
    train = write(tmp_path / "a.parquet", [{"q": "x", "a": "z", "y": 1}, {"q": "v", "a": "w", "y": 0}])
    validation = write_lines(tmp_path / "b.csv", ["q,a,y", "x,z,1"])
    task = custom(columns=("q", "a"))
    splits = load_splits(task, train_file=train, validation_file=validation)
    assert splits.validation["validation"].to_list() == [{"q": "x", "a": "z", "label": 1}]


def test_custom_regression_has_no_range(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "a", "y": -3}, {"text": "b", "y": 1e6}])
    splits = load_splits(custom("pearson"), train_file=path, validation_file=path)
    assert splits.task.labels is None
    assert splits.train["label"][:] == [-3.0, 1e6]


def test_custom_errors(tmp_path):
    path = write(tmp_path / "a.csv", [{"text": "a", "y": "no"}, {"text": "b", "y": "yes"}])
    files = {"train_file": path, "validation_file": path}
    assert message(custom(), train_file=path) == (
        "task.validation_file is missing: task=mine needs task.train_file and task.validation_file"
        " (.parquet, .jsonl, .csv, .tsv)."
    )
    assert message(custom(), **files, data_dir=tmp_path) == (
        f"data_dir={tmp_path}: task=mine takes task.train_file and task.validation_file instead."
    )
    missing = tmp_path / "c.csv"
    assert message(custom(), train_file=path, validation_file=missing) == f"{missing}: no such file."
    other = write_lines(tmp_path / "a.json", ["{}"])
    assert message(custom(), train_file=other, validation_file=path) == (
        f"{other}: unknown format '.json'; use one of .parquet, .jsonl, .csv, .tsv."
    )
    assert message(custom(columns=("sentence",)), **files) == (
        f"{path}: no column 'sentence'; found: text, y."
        " Name the file's columns with task.text_columns and task.label_column."
    )
    validation = write(tmp_path / "v.csv", [{"text": "a", "y": "no"}, {"text": "b", "y": "maybe"}])
    assert message(custom(), train_file=path, validation_file=validation) == (
        f"{validation}: row 2 has label 'maybe' in column 'y'; labels of task mine (from the training file): no, yes."
    )
    one = write(tmp_path / "one.csv", [{"text": "a", "y": "no"}])
    assert message(custom(), train_file=one, validation_file=path) == (
        f"{one}: column 'y' needs at least two different labels, not only 'no'."
    )
    numbers = write(tmp_path / "n.csv", [{"text": "a", "y": index / 8} for index in range(30)])
    assert message(custom(), train_file=numbers, validation_file=numbers) == (
        f"{numbers}: column 'y' holds 30 values such as '0':"
        " numbers to predict rather than classes? Then use task.metric=pearson."
    )


def test_keys_of_other_tasks_are_refused(tmp_path):
    assert message(TASKS["rte"], train_file="a.csv") == ("task.train_file=a.csv: goes with task=custom, not task=rte.")
    assert message(TASKS["demo"], data_dir=tmp_path) == (
        f"data_dir={tmp_path}: task=demo is generated; leave data_dir out."
    )


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv"])
def test_large_files_are_quick(tmp_path, suffix):
    frame = pd.DataFrame({"question1": "a b c ?", "question2": "d e f ?", "label": [0, 1] * 200_000})
    (tmp_path / "qqp").mkdir()
    for split in ("train", "validation"):
        path = tmp_path / f"qqp/{split}.{suffix}"
        if suffix == "parquet":
            frame.to_parquet(path)
        else:
            frame.to_csv(path, index=False, sep="," if suffix == "csv" else "\t")
        frame = frame[:10]
    start = time.process_time()
    splits = load_splits(TASKS["qqp"], data_dir=tmp_path)
    assert len(splits.train) == 400_000
    assert time.process_time() - start < limit(10)  # a second or so, unless the rows are visited one by one


@pytest.fixture
def fresh_hub(monkeypatch):
    """The hub's state as in a new process, restored afterwards."""
    import datasets.config
    import huggingface_hub.constants

    for module, flag in (
        (huggingface_hub.constants, "HF_HUB_OFFLINE"),
        (datasets.config, "HF_HUB_OFFLINE"),
        (datasets.config, "HF_DATASETS_OFFLINE"),
    ):
        monkeypatch.setattr(module, flag, False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    hub.hub_in_reach.cache_clear()
    yield SimpleNamespace(constants=huggingface_hub.constants, datasets=datasets.config)
    hub.hub_in_reach.cache_clear()


def test_out_of_reach_is_found_once_and_turns_the_clients_offline(fresh_hub, monkeypatch, caplog):
    probes = []
    monkeypatch.setattr(hub, "_hub_responds", lambda: bool(probes.append(1)))
    assert not hub.hub_in_reach()
    assert not hub.hub_in_reach()
    assert probes == [1]
    assert caplog.messages == ["The Hugging Face hub is out of reach: using cached files only."]
    assert hub.os.environ["HF_HUB_OFFLINE"] == "1"
    assert fresh_hub.constants.is_offline_mode()
    assert fresh_hub.datasets.HF_HUB_OFFLINE
    assert fresh_hub.datasets.HF_DATASETS_OFFLINE


def test_a_hub_that_hangs_is_out_of_reach(fresh_hub, monkeypatch):
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.05)
    release, answers = threading.Event(), []

    def hang():
        release.wait(limit(60))
        answers.append(False)
        return False

    monkeypatch.setattr(hub, "_hub_responds", hang)
    assert not hub.hub_in_reach()
    assert answers == []  # nobody waited for it
    release.set()


def test_a_hub_that_answers_leaves_the_clients_alone(fresh_hub, monkeypatch, caplog):
    monkeypatch.setattr(hub, "_hub_responds", lambda: True)
    assert hub.hub_in_reach()
    assert not fresh_hub.constants.is_offline_mode()
    assert caplog.messages == []


@pytest.mark.parametrize(("status", "answers"), [(200, True), (404, True), (502, False), (None, False)])
def test_what_counts_as_an_answer(fresh_hub, monkeypatch, status, answers):
    import huggingface_hub.utils

    def head(url, timeout):
        assert (url, timeout) == ("https://mirror.example", 3.0)
        if status is None:
            raise ConnectionError
        return SimpleNamespace(status_code=status)

    monkeypatch.setattr(fresh_hub.constants, "ENDPOINT", "https://mirror.example")
    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: SimpleNamespace(head=head))
    assert hub._hub_responds() is answers


def test_no_probe_where_the_user_is_offline(fresh_hub, monkeypatch):
    monkeypatch.setattr(fresh_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_hub_responds", lambda: pytest.fail("probed"))
    assert not hub.hub_in_reach()


def test_glue_without_the_hub_is_a_quick_clear_error(fresh_hub, monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "_hub_responds", lambda: False)
    monkeypatch.setattr(sources.datasets.config, "HF_DATASETS_CACHE", tmp_path)
    start = time.perf_counter()
    assert message(TASKS["rte"]) == (
        "Cannot load the dataset nyu-mll/glue (rte):"
        " the Hugging Face hub is out of reach (or HF_HUB_OFFLINE is set) and the cache does not hold it."
        " Connect, or give a folder with data_dir=DIR, or try task=demo, which needs neither."
    )
    assert time.perf_counter() - start < limit(5)


def test_glue_from_the_hub(monkeypatch):
    import datasets

    def split(**labels):
        features = datasets.Features(
            premise=datasets.Value("string"),
            hypothesis=datasets.Value("string"),
            label=datasets.ClassLabel(names=["entailment", "neutral", "contradiction"]),
            idx=datasets.Value("int32"),
        )
        rows = {"premise": ["a", "b"], "hypothesis": ["c", ""], "label": [2, 0], "idx": [0, 1]}
        return datasets.Dataset.from_dict(rows | labels, features=features)

    hub_splits = {"train": split(), "validation_matched": split(), "validation_mismatched": split()}
    monkeypatch.setattr(
        sources.datasets, "load_dataset", lambda *name: hub_splits if name == ("nyu-mll/glue", "mnli") else 0
    )
    monkeypatch.setattr(hub, "hub_in_reach", lambda: True)
    splits = load_splits(TASKS["mnli"])
    assert list(splits.validation) == ["validation_matched", "validation_mismatched"]
    assert splits.train.to_list() == (
        [{"premise": "a", "hypothesis": "c", "label": 2}, {"premise": "b", "hypothesis": "", "label": 0}]
    )
    hub_splits["validation_mismatched"] = split(label=[0, -1])
    assert message(TASKS["mnli"]) == (
        "nyu-mll/glue (mnli), split validation_mismatched: row 2 has label -1:"
        " the split is unlabelled, as the hub's test splits are; use a labelled one."
    )


def test_loads_that_fail_although_the_hub_answers(monkeypatch):
    monkeypatch.setattr(hub, "hub_in_reach", lambda: True)
    with (
        pytest.raises(UserError, match=r"^Cannot load the model x: no\s?such repository\. Give another name\.$"),
        hub.loading_from_hub("the model x", "Give another name."),
    ):
        raise OSError("no\nsuch repository.")


def test_local_directories_need_no_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "hub_in_reach", lambda: pytest.fail("probed"))
    with (
        pytest.raises(UserError, match=r"^Cannot load the model: no config\.json\. Give another\.$"),
        hub.loading_from_hub("the model", "Give another.", source=tmp_path),
    ):
        raise OSError("no config.json")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('{"sentence": "a", "label": NaN}', "row 2 has no label in column 'label'"),
        ('{"sentence": NaN, "label": 1}', "row 2 has no text in column 'sentence'"),
    ],
)
def test_nan_in_jsonl_is_a_missing_value(tmp_path, record, message):
    folder = tmp_path / "sst2"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"sentence": "a", "label": 0}\n' + record + "\n")
    (folder / "validation.jsonl").write_text('{"sentence": "a", "label": 0}\n')
    with pytest.raises(UserError, match=re.escape(message)):
        load_splits(TASKS["sst2"], data_dir=tmp_path)


class TestBombs:
    """Small files that hold more than fits into memory."""

    @pytest.fixture(autouse=True)
    def _memory(self, monkeypatch):
        known = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 512}  # 2 MiB
        monkeypatch.setattr(tables.os, "sysconf", known.__getitem__)

    def test_a_parquet_file_of_many_rows(self, tmp_path):
        table = pa.table({"text": pa.DictionaryArray.from_arrays(pa.array([0] * 100_000), ["a"])})
        pq.write_table(table, tmp_path / "a.parquet")
        assert (tmp_path / "a.parquet").stat().st_size < 10_000
        for read in (tables.read_table, tables.read_records):
            with pytest.raises(UserError, match=r"a\.parquet: .* more than half of this machine's memory"):
                list(read(tmp_path / "a.parquet", ["text"], remedy=""))

    def test_a_parquet_file_of_one_long_text_in_every_row(self, tmp_path):
        table = pa.table({"text": pa.DictionaryArray.from_arrays(pa.array([0] * 100), ["good " * 20_000])})
        pq.write_table(table, tmp_path / "a.parquet")
        assert (tmp_path / "a.parquet").stat().st_size < 20_000
        with pytest.raises(UserError, match=r"a\.parquet: its texts: holds .* more than half"):
            tables.read_table(tmp_path / "a.parquet", ["text"], remedy="")
        records = tables.read_records(tmp_path / "a.parquet", ["text"], remedy="")  # a few at a time
        assert [len(record["text"]) for record in records] == [100_000] * 100

    @pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
    def test_a_file_with_a_hole(self, tmp_path, suffix):
        with (tmp_path / f"a.{suffix}").open("wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(UserError, match=rf"a\.{suffix}: it holds 1,024\.0 GiB, more than half"):
            tables.read_table(tmp_path / f"a.{suffix}", ["text"], remedy="")

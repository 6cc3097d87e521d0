"""Test splits: scored where they have labels, labelled where they have none, and written as GLUE takes them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import SMALL, in_process, ltp_train

from ltp import evaluate, predict
from ltp.data.demo import demo_rows
from ltp.data.files import CLASSIC_FOLDERS
from ltp.data.sources import load_test
from ltp.data.tasks import TASKS
from ltp.errors import UserError
from ltp.evaluation.prediction import Prediction
from ltp.evaluation.submission import submission, submission_name

SENTENCES = [row["sentence"] for row in demo_rows("test", rows=6)]


def ltp_evaluate(command):
    return in_process("ltp.evaluate", command, evaluate.COMMAND, COLUMNS="160")


def ltp_predict(command):
    return in_process("ltp.predict", command, predict.COMMAND, COLUMNS="160")


def report_of(command):
    finished = ltp_evaluate(f"{command} output=-")
    assert finished.code == 0, finished.err
    return json.loads(finished.out)


def write_rows(folder, name, columns):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if name.endswith("parquet"):
        pq.write_table(pa.table(columns), path)
    elif name.endswith("jsonl"):
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        rows = [columns, *zip(*columns.values(), strict=True)]
        path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    return path


class TestReading:
    @pytest.mark.parametrize(
        ("task", "split", "name", "columns"),
        [
            ("rte", "test", "rte/test.parquet", {"sentence1": ["a"], "sentence2": ["b"], "label": [-1]}),
            ("rte", "test", "RTE/test.tsv", {"index": [0], "sentence1": ["a"], "sentence2": ["b"]}),
            ("mrpc", "test", "MRPC/test.tsv", {"index": [0], "#1 ID": [1], "#1 String": ["a"], "#2 String": ["b"]}),
            ("mnli", "test", "MNLI/test_matched.tsv", {"index": [0], "sentence1": ["a"], "sentence2": ["b"]}),
            ("mnli", "test_mismatched", "mnli/test_mismatched.jsonl", {"premise": ["a"], "hypothesis": ["b"]}),
            ("cola", "test", "CoLA/test.tsv", {"index": [0], "sentence": ["a"]}),
        ],
    )
    def test_without_labels(self, tmp_path, task, split, name, columns):
        folder, _, file = name.partition("/")
        write_rows(tmp_path / folder, file, columns)
        rows = load_test(TASKS[task], split, data_dir=tmp_path)
        assert rows.column_names == list(TASKS[task].text_columns)
        assert list(rows[0].values()) == ["a", "b"][: len(TASKS[task].text_columns)]

    def test_with_labels(self, tmp_path):
        write_rows(tmp_path / "sst2", "test.tsv", {"sentence": ["good", "bad"], "label": [1, 0]})
        assert load_test(TASKS["sst2"], "test", data_dir=tmp_path)["label"][:] == [1, 0]
        corpus = tmp_path / "MRPC"
        write_rows(corpus, "msr_paraphrase_train.txt", {"Quality": [1], "#1 String": ["a"], "#2 String": ["b"]})
        write_rows(corpus, "msr_paraphrase_test.txt", {"Quality": [1], "#1 String": ["a"], "#2 String": ["b"]})
        assert load_test(TASKS["mrpc"], "test", data_dir=tmp_path)["label"][:] == [1]

    def test_the_demos_shares_no_sentence(self):
        rows = load_test(TASKS["demo"], "test")
        seen = {row["sentence"] for split in ("train", "validation") for row in demo_rows(split)}
        assert len(rows) == 1000
        assert not seen & set(rows["sentence"])
        assert sum(rows["label"]) == 500

    @pytest.mark.parametrize(
        ("task", "split", "message"),
        [
            ("rte", "test_matched", "split=test_matched: task=rte has no such split. Test splits: test"),
            ("rte", "test", "no test.{parquet,jsonl,csv,tsv} or test.tsv in "),
        ],
    )
    def test_what_is_not_there(self, tmp_path, task, split, message):
        (tmp_path / "rte").mkdir()
        with pytest.raises(UserError) as error:
            load_test(TASKS[task], split, data_dir=tmp_path)
        assert message in str(error.value)

    def test_a_row_that_is_broken_is_no_row_left_out(self, tmp_path):
        path = write_rows(tmp_path / "sst2", "test.tsv", {"index": range(300), "sentence": ["good"] * 300})
        path.write_text(path.read_text() + "300\tgood\tfilm\n")
        with pytest.raises(UserError, match=r"row 301 has 3 fields instead of 2"):
            load_test(TASKS["sst2"], "test", data_dir=tmp_path)


class TestSubmissions:
    def test_classes_are_numbers_or_names_as_glue_has_them(self):
        predictions = [Prediction({"label": label, "probability": 0.9}, "", "", 1.0, []) for label in ("b", "a", "b")]
        assert submission(TASKS["sst2"], ("a", "b"), predictions) == "index\tprediction\n0\t1\n1\t0\n2\t1\n"
        assert submission(TASKS["rte"], ("a", "b"), predictions).splitlines()[1:3] == [
            *("0\tnot_entailment", "1\tentailment"),
        ]
        scores = [Prediction({"score": score}, "", "", 1.0, []) for score in (-0.2, 3.14159, 6)]
        assert submission(TASKS["stsb"], ("x",), scores) == "index\tprediction\n0\t0.000\n1\t3.142\n2\t5.000\n"

    def test_names(self):
        names = {
            (task.name, split): submission_name(task, split)
            for task in TASKS.values()
            if task.name in CLASSIC_FOLDERS
            for split in task.test_splits
        }
        assert names == {
            ("rte", "test"): "RTE.tsv",
            ("mrpc", "test"): "MRPC.tsv",
            ("stsb", "test"): "STS-B.tsv",
            ("cola", "test"): "CoLA.tsv",
            ("sst2", "test"): "SST-2.tsv",
            ("qnli", "test"): "QNLI.tsv",
            ("qqp", "test"): "QQP.tsv",
            ("mnli", "test_matched"): "MNLI-m.tsv",
            ("mnli", "test_mismatched"): "MNLI-mm.tsv",
        }  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    assert (finished := ltp_train([*SMALL, f"output_root={root}"])).code == 0, finished.err
    return next(root.rglob("results.json")).parent


def test_a_labelled_test_split_is_scored(run, tmp_path):
    (result,) = report_of(f"restore={run} split=test task.max_validation_samples=100")["results"]
    assert ltp_predict(f"restore={run} split=test output={tmp_path / 'out.jsonl'}").code == 0
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(records) == 48  # the run's own limit
    records = records[:100]
    (same,) = report_of(f"restore={run} split=test")["results"]
    names = TASKS["demo"].labels
    right = [
        names[row["label"]] == record["label"] for row, record in zip(demo_rows("test", rows=48), records, strict=True)
    ]
    assert same["metrics"]["accuracy"] == pytest.approx(sum(right) / 48)
    assert result["examples"] == 100


def test_a_split_without_labels_is_labelled_and_submitted(run, tmp_path):
    texts = [*SENTENCES, "", SENTENCES[0]]  # blank or not, each row has its number
    write_rows(tmp_path / "sst2", "test.tsv", {"index": range(8), "sentence": texts})
    command = f"restore={run} task=sst2 data_dir={tmp_path} split=test"
    finished = ltp_predict(f"{command} submission={tmp_path / 'glue'} output={tmp_path / 'out.jsonl'}")
    assert finished.code == 0, finished.err
    labels = [json.loads(line)["label"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    lines = (tmp_path / "glue" / "SST-2.tsv").read_text().splitlines()
    numbers = [("negative", "positive").index(label) for label in labels]
    assert lines == ["index\tprediction", *(f"{index}\t{number}" for index, number in enumerate(numbers))]
    assert len(lines) == 9
    for split in ("train", "validation"):
        write_rows(tmp_path / "sst2", f"{split}.tsv", {"sentence": ["good"], "label": [1]})
    finished = ltp_evaluate(f"restore={run} task=sst2 data_dir={tmp_path} split=test")
    assert finished.code == 2
    assert (
        "split=test: task=sst2 has no labels for it, so that it cannot be scored. python -m ltp.predict" in finished.err
    )


def test_a_custom_tasks_test_file(tmp_path):
    rows = {"text": SENTENCES, "label": ["x", "y"] * 3}
    paths = {name: write_rows(tmp_path, f"{name}.jsonl", rows) for name in ("train", "validation", "test")}
    files = [f"task.{name}_file={path}" for name, path in paths.items()]
    small = [word for word in SMALL if not word.startswith(("task.", "batch_size"))]
    command = [
        "task=custom",
        "model=tiny",
        "recipe=demo",
        "batch_size=3",
        *files,
        *small,
        f"output_root={tmp_path}/out",
    ]
    assert (finished := ltp_train(command)).code == 0, finished.err
    run = next((tmp_path / "out").rglob("results.json")).parent
    (tested,), (validated,) = (report_of(f"restore={run} split={split}")["results"] for split in ("test", "validation"))
    assert tested["metrics"] == validated["metrics"]
    assert ltp_predict(f"restore={run} split=test output={tmp_path / 'out.csv'}").code == 0
    finished = ltp_evaluate(f"restore={run} split=test task.test_file=null")
    assert finished.err == "error: split=test: task.test_file is missing: task=custom needs it\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("text=a split=test", "give what is to be classified: either text=… or input=FILE "),
        ("text=a submission=x", "submission goes with split=…, a split of the run's task"),
        ("text=a task=rte", "task goes with split=…, a split of the run's task"),
        ("split=dev", "split=dev: task=demo has no such split. Splits: train, validation, test"),
        ("split=test submission=x", "submission=x: GLUE has no task demo; write output=FILE"),
        ("split=train task=sst2 submission=x", "submission=x is for split=test, not split=train"),
        ("split=test task=mnli", "restore=RUN has 2 labels, task=mnli has 3; "),
        ("split=test task=sst2 task.max_validation_samples=3 submission=x", "submission=x needs the whole split: "),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(run, options, message):
    finished = ltp_predict(f"restore={run} {options}")
    assert (finished.code, finished.out) == (2, "")
    assert finished.err.replace(str(run), "RUN").startswith(f"error: {message}")

"""Every kind of output through the commands: trained, pruned, evaluated, predicted, exported."""

import json
import re

import pyarrow.parquet as pq
import pytest
import torch
from helpers import SMALL, in_process, install_stranger, ltp_train, run_in
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

from ltp import bench, calibrate, evaluate, export, leaderboard, predict
from ltp.model import model_class

TASKS = ("demo-multilabel", "demo-tokens", "demo-span", "demo-ranking")
SIZES = [word for word in SMALL if word != "epochs=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """``trained(task)``: the run of a task at half of the FLOPs."""
    runs = {}

    def run(task):
        if task not in runs:
            root = tmp_path_factory.mktemp(task)
            words = [*SMALL, f"task={task}", f"output_root={root}", "prune=topk", "prune.target_flops=0.6"]
            done = ltp_train(words)
            assert done.code == 0, done.err
            (path,) = [path for path in root.rglob("results.json") if "topk" in str(path)]
            runs[task] = path.parent
        return runs[task]

    return run


def results_of(run):
    return json.loads((run / "results.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("execution", ["packed", "masked", "deployed"])
def test_an_evaluation_is_that_of_the_training(trained, task, execution):
    run = trained(task)
    done = in_process("ltp.evaluate", f"restore={run} execution={execution} output=-", evaluate.COMMAND)
    assert done.code == 0, done.err
    (report,) = json.loads(done.out)["results"]
    results = results_of(run)
    assert results["relative_flops"] == pytest.approx(0.6, abs=0.05)
    for name, value in results["metrics"].items():
        assert report["metrics"][name] == pytest.approx(value, abs=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_graph_equals_the_model(trained, task, tmp_path):
    pytest.importorskip("onnxruntime")
    run = trained(task)
    done = in_process(
        "ltp.export", f"restore={run} format=onnx to={tmp_path / 'graph'} rounds=0 sequences=20", export.COMMAND
    )
    assert done.code == 0, done.err
    from ltp.deploy.onnx import load

    model = model_class(json.loads((run / "model/config.json").read_text())["architectures"][0]).from_pretrained(run)
    ids = torch.randint(5, 100, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0  # padding on the left, which a graph moves
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    *results, lengths = load(tmp_path / "graph/model.onnx")(batch)
    with torch.no_grad():
        alone = model(input_ids=ids[1:, 5:])
    assert torch.equal(lengths[1:], alone.token_lengths)
    for name, value in zip(model.output_class.results, results, strict=True):
        own = value[1:, 5:] if model.output_class.is_of_tokens else value[1:]
        torch.testing.assert_close(own, alone[name], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_predictions_of_several_labels(trained, tmp_path):
    run = trained("demo-multilabel")
    output = tmp_path / "out.jsonl"
    done = in_process(
        "ltp.predict", ["text=the film was good .", f"restore={run}", f"output={output}"], predict.COMMAND
    )
    assert done.code == 0, done.err
    row = json.loads(output.read_text())
    assert list(row) == ["row", "text", "labels", "probabilities"]
    assert list(row["probabilities"]) == ["praise", "criticism", "negation", "place"]
    assert row["labels"] == [name for name, value in row["probabilities"].items() if value > 0.5]


@pytest.mark.slow
def test_predictions_of_words_are_those_of_hugging_face_s_pipeline(trained, tmp_path):
    run = trained("demo-tokens")
    output = tmp_path / "out.jsonl"
    text = "The film, it wasn't good at all"
    done = in_process("ltp.predict", [f"text={text}", f"restore={run}", f"output={output}"], predict.COMMAND)
    assert done.code == 0, done.err
    row = json.loads(output.read_text())
    assert row["words"] == ["The", "film", ",", "it", "wasn", "'", "t", "good", "at", "all"]
    model = AutoModelForTokenClassification.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    found = pipeline("token-classification", model=model, tokenizer=tokenizer, ignore_labels=[])(text)
    first = [item for item in found if not item["word"].startswith("##")]
    assert row["labels"] == [item["entity"] for item in first]
    assert row["probabilities"] == pytest.approx([float(item["score"]) for item in first], abs=1e-5)


@pytest.mark.slow
def test_predictions_of_a_split_of_words(trained, tmp_path):
    run = trained("demo-tokens")
    output = tmp_path / "out.parquet"
    command = f"restore={run} split=validation task.max_validation_samples=3 output={output} html={tmp_path / 'o.html'}"
    done = in_process("ltp.predict", command, predict.COMMAND)
    assert done.code == 0, done.err
    rows = pq.read_table(output).to_pylist()
    assert [row["words"] for row in rows] == [row["tokens"] for row in rows]
    assert "/" in (tmp_path / "o.html").read_text() or all(set(row["labels"]) == {"O"} for row in rows)


@pytest.mark.slow
def test_what_does_not_fit_is_said_before_it_starts(trained, tmp_path):
    run = trained("demo-tokens")
    done = ltp_train([*SMALL, "task=demo", f"restore={run}", "prune=topk", f"output_root={tmp_path}"])
    assert done.code == 2
    assert "is a LTPForTokenClassification, and task=demo needs a …ForSequenceClassification; restore a" in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "command", "words", "message"),
    [
        ("demo-span", evaluate, "by_length=2", "by_length=2: the metrics of task=demo-span are not of single rows"),
        ("demo-ranking", evaluate, "by_length=2", "the metrics of task=demo-ranking are not of single rows"),
        ("demo-tokens", bench, "", "is a LTPForTokenClassification; ltp.bench is for classifiers of texts"),
        (
            "demo-tokens",
            calibrate,
            "search=evolution target_flops=0.5",
            "; search=evolution is for classifiers of texts",
        ),
    ],
)
def test_what_a_kind_does_not_have(trained, task, command, words, message):
    done = in_process(command.COMMAND.name, f"restore={trained(task)} {words}", command.COMMAND)
    assert done.code == 2
    assert message in done.err


@pytest.mark.slow
def test_an_agreement_is_of_texts(trained):
    parent = results_of(trained("demo-span"))["parent"]
    done = in_process("ltp.calibrate", f"restore={parent} agreement=0.9", calibrate.COMMAND)
    assert done.code == 2
    assert "is a LTPForQuestionAnswering; agreement=0.9 is for classifiers of texts" in done.err


def test_a_leaderboard_of_a_ranking():
    done = in_process("ltp.leaderboard", "task=demo-ranking", leaderboard.COMMAND)
    assert done.code == 2
    assert "task=demo-ranking: the errors of a leaderboard are of resampled rows" in done.err


@pytest.mark.slow
def test_a_page_marks_the_tokens_of_an_answer(trained, tmp_path):
    run = trained("demo-span")
    page = tmp_path / "page.html"
    context = "the film was not good and the old sailor was funny"
    words = ["text=film", f"text_pair={context}", f"restore={run}", f"html={page}", f"output={tmp_path / 'o.jsonl'}"]
    assert in_process("ltp.predict", words, predict.COMMAND).code == 0
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])
    marked = [token[0] for token in data["examples"][0]["tokens"] if token[5] == "answer"]
    assert marked == json.loads((tmp_path / "o.jsonl").read_text())["answer"].split()


@pytest.mark.slow
def test_accumulated_batches_of_tokens_train_the_same(tmp_path):
    weights = []
    for parts in (1, 4):
        root = tmp_path / str(parts)
        words = [*SIZES, "task=demo-tokens", f"output_root={root}", f"trainer.accumulate_grad_batches={parts}"]
        done = ltp_train([*words, "epochs=1", "stage=soft", "prune=threshold", "lr=1e-3", "prune.lambda_threshold=5"])
        assert done.code == 0, done.err
        (path,) = [path for path in root.rglob("results.json") if "threshold" in str(path)]
        model = model_class("LTPForTokenClassification").from_pretrained(path.parent)
        weights.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
    torch.testing.assert_close(*weights, atol=2e-4, rtol=1e-3)


@pytest.mark.slow
def test_predictions_of_spans(trained, tmp_path):
    run = trained("demo-span")
    output = tmp_path / "out.jsonl"
    question, context = "film", "the film was not good and the old sailor was funny"
    words = [f"text={question}", f"text_pair={context}", f"restore={run}", f"output={output}"]
    done = in_process("ltp.predict", words, predict.COMMAND)
    assert done.code == 0, done.err
    row = json.loads(output.read_text())
    assert row["answer"] == context[row["start"] : row["end"]] != ""
    model = model_class("LTPForQuestionAnswering").from_pretrained(run)
    inputs = AutoTokenizer.from_pretrained(run / "model")(question, context, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    start, end = output.start_logits[0].softmax(0), output.end_logits[0].softmax(0)
    first = inputs.sequence_ids().index(1)
    spans = {
        (inputs.token_to_chars(i).start, inputs.token_to_chars(j).end): float(start[i] * end[j])
        for i in range(first, len(start) - 1)
        for j in range(i, len(start) - 1)
    }
    best = max(spans, key=spans.get)
    assert (row["start"], row["end"]) == best
    assert row["probability"] == pytest.approx(spans[best], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["demo-tokens", "demo-span"])
def test_two_processes_measure_the_same(task, tmp_path):
    found = []
    for devices, strategy in ((1, "auto"), (2, "ddp")):
        root = tmp_path / str(devices)
        words = [*SMALL, f"task={task}", f"output_root={root}", f"trainer.devices={devices}"]
        # an odd number of rows, so that the processes have not as many
        done = run_in(
            *(tmp_path, "-m", "ltp.train", *words, f"trainer.strategy={strategy}", "task.max_validation_samples=47")
        )
        assert done.returncode == 0, done.stderr
        (path,) = root.rglob("results.json")
        found.append(json.loads(path.read_text())["metrics"])
    assert found[0] == pytest.approx(found[1], abs=1e-6)


STRANGER = """
from ltp.data.tasks import MultiLabelTask

COLOURS = MultiLabelTask(
    "colours", ("text",), ("red", "blue"), ("f1_micro",), "small", 1e-3, label_column="colours",
    generate=lambda split: [
        {"text": f"the {word} film", "colours": [word] if word != "old" else []} for word in ("red", "blue", "old") * 40
    ],
)
"""


@pytest.mark.slow
def test_a_stranger_s_task_is_trained_and_evaluated(tmp_path):
    (tmp_path / "colours.py").write_text(STRANGER)
    words = [*SMALL, "task=colours", "prune=topk", "prune.target_flops=0.7"]
    done = run_in(tmp_path, "-m", "ltp.train", "plugins=[colours]", *words)
    assert done.returncode == 0, done.stderr
    (path,) = [path for path in tmp_path.rglob("results.json") if "topk" in str(path)]
    assert json.loads(path.read_text())["metric"]["name"] == "f1_micro"
    install_stranger(tmp_path, "[ltp.tasks]\ncolours = colours\n")  # from now on without plugins
    evaluated = run_in(tmp_path, "-m", "ltp.evaluate", f"restore={path.parent}", "output=-")
    assert evaluated.returncode == 0, evaluated.stderr

"""The evaluation: equal to what training found, by length, along the trade-off, and its file of predictions."""

import dataclasses
import itertools
import json
import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from helpers import SMALL, in_process, ltp_train, write_json

from ltp import evaluate
from ltp.data.tasks import TASKS
from ltp.evaluation.report import report_table
from ltp.evaluation.scoring import Outcome, by_layers, by_length, chance_warning, summarise, write_predictions
from ltp.reporting.predictions import read_outcomes

pytestmark = pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions.*:UserWarning")


def ltp_evaluate(command):
    """``python -m ltp.evaluate`` in this process."""
    return in_process("ltp.evaluate", command, evaluate.COMMAND, COLUMNS="160")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A threshold run and a top-k run, with the dense run that both start from."""
    root = tmp_path_factory.mktemp("runs")
    common = (*SMALL, f"output_root={root}")
    for command in (
        ("stage=finetune",),
        ("prune=manual", "prune.final_token_threshold=0.02"),
        ("prune=topk", "prune.token_keep_rate=-0.5"),
    ):
        assert (finished := ltp_train([*command, *common])).code == 0, finished.err
    found = {json.loads(path.read_text())["method"]: path.parent for path in root.rglob("results.json")}
    assert set(found) == {"dense", "manual", "topk"}
    return found


def results_of(run):
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


def report_of(command):
    finished = ltp_evaluate(f"{command} output=-")
    assert finished.code == 0, finished.err
    return json.loads(finished.out)


# -- what training found ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dense", "manual", "topk"])
def test_a_runs_own_results_come_out_again(runs, method):
    run = runs[method]
    (result,) = report_of(f"restore={run}")["results"]
    stored = results_of(run)
    assert result["metrics"] == pytest.approx(stored["metrics"], abs=1e-6)
    assert result["metric"]["name"] == stored["metric"]["name"]
    for key in ("relative_flops", "gflops", "dense_gflops", "gflops_per_layer", "tokens_per_layer"):
        assert result[key] == pytest.approx(stored[key], rel=1e-9), key
    assert result["examples"] == 48
    assert result["thresholds"] == stored["thresholds"]


@pytest.mark.parametrize("how", ["execution=masked", "execution=deployed", "batch_size=7"])
def test_every_way_to_compute_finds_the_same(runs, how):
    (result,) = report_of(f"restore={runs['manual']} {how}")["results"]
    stored = results_of(runs["manual"])
    assert result["metrics"] == pytest.approx(stored["metrics"], abs=1e-6)
    assert result["tokens_per_layer"] == pytest.approx(stored["tokens_per_layer"])


@pytest.mark.parametrize("how", ["dtype=bfloat16", "execution=deployed dtype=bfloat16"])
def test_half_precision_finds_nearly_the_same(runs, how):
    report = report_of(f"restore={runs['topk']} {how}")
    assert report["dtype"] == "bfloat16"
    stored = results_of(runs["topk"])
    assert report["results"][0]["tokens_per_layer"] == pytest.approx(stored["tokens_per_layer"])
    assert report["results"][0]["metrics"]["accuracy"] == pytest.approx(stored["metrics"]["accuracy"], abs=0.05)


def test_a_run_in_mixed_precision_is_evaluated_in_it(runs, tmp_path):
    (tmp_path / "run").mkdir()
    for item in runs["topk"].iterdir():
        if item.name != "config.yaml":
            os.symlink(item, tmp_path / "run" / item.name)
    config = yaml.safe_load((runs["topk"] / "config.yaml").read_text(encoding="utf-8"))
    config["trainer"]["precision"] = "bf16-mixed"
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    shown = yaml.safe_load(ltp_evaluate(f"--cfg job restore={tmp_path / 'run'}").out)
    assert shown["dtype"] == "bfloat16"


def test_the_number_of_threads_is_as_wanted(runs):
    before = torch.get_num_threads()
    try:
        assert report_of(f"restore={runs['manual']} threads={before + 1}")["results"]
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_the_training_split(runs):
    report = report_of(f"restore={runs['dense']} split=train")
    assert report["results"][0]["examples"] == 96
    assert report["predictions"] is None


def test_another_task_and_folder(runs, tmp_path):
    (tmp_path / "sst2").mkdir()
    rows = [{"sentence": f"this film is {word}", "label": label} for word, label in (("good", 1), ("bad", 0))]
    for split in ("train", "validation"):
        text = "\n".join(map(json.dumps, rows))
        (tmp_path / "sst2" / f"{split}.jsonl").write_text(text, encoding="utf-8")
    report = report_of(f"restore={runs['topk']} task=sst2 task.max_length=16 data_dir={tmp_path}")
    assert report["task"] == "sst2"
    assert report["results"][0]["examples"] == 2
    assert report["predictions"] is None


# -- the trade-off ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_scaled_thresholds_walk_along_the_trade_off(runs):
    run = runs["manual"]
    results = report_of(f"restore={run} threshold_scale=[0,0.5,1,2,100]")["results"]
    costs = [result["relative_flops"] for result in results]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == 1
    assert costs[2] == pytest.approx(results_of(run)["relative_flops"])
    assert results[-1]["tokens_per_layer"][-1] == 1  # the classification tokens
    assert results[3]["thresholds"] == pytest.approx([2 * value for value in results_of(run)["thresholds"]])
    again = report_of(f"restore={run} threshold_scale=2 execution=deployed")["results"][0]
    assert again["tokens_per_layer"] == pytest.approx(results[3]["tokens_per_layer"])


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("topk", "prunes by topk, which has no thresholds to scale; train it with other settings, or calibrate it with "
         "target_flops=…"),
        ("dense", "is dense and has no thresholds to scale"),
    ],
)  # fmt: skip
def test_a_model_without_thresholds_has_none_to_scale(runs, method, message):
    finished = ltp_evaluate(f"restore={runs[method]} threshold_scale=[0.8,1.2]")
    expected = f"error: threshold_scale=[0.8,1.2]: restore={runs[method]} {message}\n"
    assert (finished.code, finished.err) == (2, expected)


# -- budgets ----------------------------------------------------------------------------------------------------

COSTS = (0.3, 0.5, 0.8)


@pytest.fixture(scope="module")
def several(runs, tmp_path_factory):
    """The threshold run with other thresholds for each of several budgets; the largest is in use."""
    from ltp import LTPForSequenceClassification

    run = shutil.copytree(runs["manual"], tmp_path_factory.mktemp("several") / "run")
    (run / "predictions.parquet").unlink(missing_ok=True)
    model = LTPForSequenceClassification.from_pretrained(run)
    model.set_budgets(COSTS)
    for budget, last in zip(COSTS, (0.04, 0.02, 0.01), strict=True):
        model.use_budget(budget)
        with torch.no_grad():
            model.thresholds.copy_(last * torch.arange(1, 5) / 4)
    model.save_pretrained(run / "model")
    results = results_of(run)
    results["hyperparameters"] |= {"final_token_threshold": None, "target_flops": None, "budgets": list(COSTS)}
    write_json(run / "results.json", results)
    return run


def test_a_budget_is_evaluated_with_its_own_thresholds(several, runs):
    reports = {budget: report_of(f"restore={several} budget={budget}") for budget in COSTS}
    for budget, last in zip(COSTS, (0.04, 0.02, 0.01), strict=True):
        (result,) = reports[budget]["results"]
        assert result["thresholds"] == pytest.approx([last / 4, last / 2, last * 3 / 4, last])
        assert reports[budget]["budget"] == budget
        assert reports[budget]["method"] == f"manual, budget {budget} of 0.3/0.5/0.8"
    costs = [reports[budget]["results"][0]["relative_flops"] for budget in COSTS]
    assert costs == sorted(set(costs))
    stored = results_of(runs["manual"])  # trained with the thresholds that are the middle ones here
    (middle,) = reports[0.5]["results"]
    assert middle["metrics"] == pytest.approx(stored["metrics"], abs=1e-6)
    assert middle["tokens_per_layer"] == pytest.approx(stored["tokens_per_layer"], rel=1e-9)
    scaled = report_of(f"restore={several} budget=0.3 threshold_scale=[0.5,1]")["results"]
    assert scaled[0]["tokens_per_layer"] == pytest.approx(middle["tokens_per_layer"])
    deployed = report_of(f"restore={several} budget=0.3 execution=deployed")["results"][0]
    assert deployed["tokens_per_layer"] == pytest.approx(scaled[1]["tokens_per_layer"])


def test_only_the_budget_in_use_has_its_predictions_in_the_run(several, tmp_path):
    own = several / "predictions.parquet"
    own.unlink(missing_ok=True)
    finished = ltp_evaluate(f"restore={several} budget=0.8")
    assert finished.code == 0, finished.err
    assert "budget 0.8" in finished.out
    assert not own.exists()
    assert ltp_evaluate(f"restore={several} budget=0.3 to={tmp_path / 'there.parquet'}").code == 0
    default = report_of(f"restore={several}")
    assert (default["budget"], default["predictions"]) == (0.8, str(own))
    lengths = [np.array(pq.read_table(file)["token_lengths"].to_pylist()) for file in (tmp_path / "there.parquet", own)]
    assert lengths[0].mean() < lengths[1].mean()


@pytest.mark.parametrize(
    ("method", "budget", "message"),
    [
        ("several", 0.4, "restore=RUN has no thresholds for it; it holds 0.3, 0.5, 0.8. python -m ltp.calibrate "
         "restore=RUN budgets=[0.3,0.4,0.5,0.8] makes a run that does, without training."),
        ("manual", 0.4, "restore=RUN has no thresholds for it; it holds no budgets. python -m ltp.calibrate "
         "restore=RUN budgets=[0.4] makes a run that does, without training."),
        ("topk", 0.4, "restore=RUN has no thresholds and holds no budgets. python -m ltp.calibrate restore=RUN "
         "target_flops=0.4 makes a run at this one, without training."),
        ("dense", 0.4, "restore=RUN is dense and holds no budgets. python -m ltp.train prune=threshold "
         "restore=RUN prune.target_flops=0.4 trains it for this budget."),
        ("several", 1.5, "is out of range: it must be in (0, 1] (of the dense FLOPs)"),
    ],
)  # fmt: skip
def test_a_budget_that_is_not_held_is_one_message(runs, several, monkeypatch, method, budget, message):
    from ltp import LTPForSequenceClassification

    monkeypatch.setattr(LTPForSequenceClassification, "from_pretrained", None)  # it is told before a model is loaded
    run = several if method == "several" else runs[method]
    finished = ltp_evaluate(f"restore={run} budget={budget}")
    colon = " " if "range" in message else ": "
    assert (finished.code, finished.out) == (2, "")
    assert finished.err == f"error: budget={budget}{colon}{message.replace('RUN', str(run))}\n"


# -- by length --------------------------------------------------------------------------------------------------


def test_groups_by_length_add_up(runs):
    (result,) = report_of(f"restore={runs['manual']} by_length=4")["results"]
    groups = result["by_length"]
    assert sum(group["examples"] for group in groups) == result["examples"]
    assert groups[0]["input_tokens"][0] == result["input_tokens"][0]
    assert groups[-1]["input_tokens"][1] == result["input_tokens"][1]
    for shorter, longer in itertools.pairwise(groups):
        assert shorter["input_tokens"][1] < longer["input_tokens"][0]
    for key in ("gflops", "relative_flops"):
        assert min(group[key] for group in groups) <= result[key] <= max(group[key] for group in groups)
    mean = sum(group["metrics"]["accuracy"] * group["examples"] for group in groups) / result["examples"]
    assert mean == pytest.approx(result["metrics"]["accuracy"])


def outcome(labels, predictions, lengths):
    lengths = torch.tensor(lengths)
    return Outcome(
        TASKS["demo"],
        torch.tensor(labels),
        torch.eye(2)[torch.tensor(predictions)],
        lengths[:, None].expand(-1, 3).contiguous(),
    )


def test_groups_have_the_expected_members():
    whole = outcome([0, 1, 0, 1, 0, 1], [0, 1, 0, 1, 1, 1], [5, 9, 5, 7, 12, 5])
    groups = by_length(whole, 2)
    assert [group.token_lengths[:, 0].tolist() for group in groups] == [[5, 5, 5], [9, 7, 12]]
    assert [group.labels.tolist() for group in groups] == [[0, 0, 1], [1, 1, 0]]
    assert len(by_length(outcome([0, 1], [0, 1], [4, 4]), 5)) == 1
    assert [len(group.labels) for group in by_length(whole, 1)] == [6]


@pytest.mark.parametrize(
    ("metric", "predictions", "labels", "expected"),
    [
        ("accuracy", [1, 1], [1, 1], True),
        ("matthews", [0, 1], [1, 1], False),
        ("matthews", [1, 1], [0, 1], True),  # 0 by convention, as while training
        ("f1", [0, 0], [0, 0], False),
        ("f1", [0, 1], [0, 0], True),
        ("pearson", [0.5], [0.5], False),
        ("pearson", [0.5, 0.5], [0.1, 0.5], False),
        ("spearman", [0.5, 0.1], [0.1, 0.5], True),
    ],
)
def test_metrics_that_say_nothing_of_some_examples(metric, predictions, labels, expected):
    assert TASKS["mrpc"].is_defined(metric, torch.tensor(predictions), torch.tensor(labels)) is expected


def test_an_undefined_metric_is_a_dash(make_dense):
    from ltp import LTPForSequenceClassification

    model = LTPForSequenceClassification.from_dense(make_dense("bert", num_hidden_layers=2))
    of_cola = dataclasses.replace(outcome([1, 1], [0, 1], [4, 6]), task=TASKS["cola"])
    result = summarise(of_cola, model)
    assert result["metric"] == {"name": "matthews", "value": None}
    report = {"task": "cola", "split": "validation", "model": "m", "method": "dense", "execution": "packed"}
    table = report_table({**report, "dtype": "float32", "results": [{"threshold_scale": 1, **result}]})
    assert list(table.columns[1].cells) == ["–"]
    json.dumps(result, allow_nan=False)


# -- predictions ------------------------------------------------------------------------------------------------


def test_predictions_stand_in_the_order_of_the_split(runs):
    from ltp.data.demo import demo_rows

    run = runs["manual"]
    finished = ltp_evaluate(f"restore={run}")
    assert finished.out.endswith(f"predictions: {run / 'predictions.parquet'}\n")
    table = pq.read_table(run / "predictions.parquet")
    assert table.column_names == ["label", "prediction", "probability", "token_lengths"]
    rows = demo_rows("validation")[:48]
    assert table["label"].to_pylist() == [row["label"] for row in rows]
    lengths = np.array(table["token_lengths"].to_pylist())
    stored = results_of(run)
    assert lengths.mean(axis=0) == pytest.approx(stored["tokens_per_layer"])
    words_of = [len(row["sentence"].split()) for row in rows]
    assert np.corrcoef(words_of, lengths[:, 0])[0, 1] > 0.9
    correct = np.array(table["label"]) == np.array(table["prediction"])
    assert correct.mean() == pytest.approx(stored["metrics"]["accuracy"])
    assert all(0.5 <= value <= 1 for value in table["probability"].to_pylist())


@pytest.mark.parametrize("change", ["threshold_scale=1.5", "split=train", "execution=masked", "dtype=bfloat16"])
def test_other_predictions_do_not_take_the_place_of_a_runs_own(runs, change, tmp_path):
    run = runs["manual"]
    own = run / "predictions.parquet"
    own.unlink(missing_ok=True)
    assert ltp_evaluate(f"restore={run} {change}").code == 0
    assert not own.exists()
    assert ltp_evaluate(f"restore={run} {change} to={tmp_path / 'new' / 'there.parquet'}").code == 0
    assert pq.read_table(tmp_path / "new" / "there.parquet").num_rows == (96 if change == "split=train" else 48)


def test_predictions_of_a_regression_are_numbers(tmp_path):
    scores = Outcome(
        TASKS["stsb"], torch.tensor([1.5, 2.0]), torch.tensor([[1.25], [2.5]]), torch.tensor([[4, 3], [6, 2]])
    )
    write_predictions(tmp_path / "p.parquet", scores)
    assert pq.read_table(tmp_path / "p.parquet").to_pydict() == {
        "label": [1.5, 2.0],
        "prediction": [1.25, 2.5],
        "token_lengths": [[4, 3], [6, 2]],
    }


def test_labels_by_the_layers_of_their_tokens(tmp_path):
    task = dataclasses.replace(TASKS["demo-tokens"], labels=("O", "B-a"))
    labels = torch.tensor([[-100, 0, 1, 1], [-100, -100, -100, -100], [-100, 1, 0, -100]])
    predictions = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    layers = torch.tensor([[2, 0, 2, 1], [2, 0, 0, 0], [2, 2, 1, 0]])
    lengths = torch.tensor([[4, 3, 2], [1, 1, 1], [3, 3, 2]])
    scored = Outcome(task, labels, torch.eye(2)[predictions], lengths, layers)
    assert by_layers(*scored.labelled_tokens()[1:], 2) == {"count": [1, 2, 2], "accuracy": [1.0, 0.5, 0.5]}
    assert by_layers(*scored[torch.tensor([2])].labelled_tokens()[1:], 2)["accuracy"] == [None, 1.0, 0.0]
    write_predictions(tmp_path / "p.parquet", scored)
    table = pq.read_table(tmp_path / "p.parquet").to_pydict()
    assert table["token_layers"] == [[0, 2, 1], [], [2, 1]]
    assert table["token_is_right"] == [[True, True, False], [], [False, True]]
    read = read_outcomes(tmp_path / "p.parquet")
    assert (read.layers.tolist(), read.is_right.tolist()) == ([0, 2, 1, 2, 1], [True, True, False, False, True])


def test_predictions_are_never_half_written(tmp_path, monkeypatch):
    import pyarrow.parquet

    path = tmp_path / "p.parquet"
    path.write_bytes(b"before")

    def fails(table, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pyarrow.parquet, "write_table", fails)
    with pytest.raises(OSError, match="disk full"):
        write_predictions(
            path, Outcome(TASKS["demo"], torch.tensor([1]), torch.tensor([[0.0, 1]]), torch.tensor([[4, 3]]))
        )
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


# -- the command ------------------------------------------------------------------------------------------------


def test_the_table(runs, tmp_path):
    command = f"restore={runs['manual']} by_length=2 threshold_scale=[1,2] output={tmp_path / 'r' / 'report.json'}"
    finished = ltp_evaluate(command)
    assert finished.code == 0, finished.err
    assert "demo, validation · tiny · manual, 0.02 · packed float32" in finished.out
    for text in ("thresholds", "input tokens", "examples", "accuracy", "rel. FLOPs", "GFLOPs", "× 2", "all"):
        assert text in finished.out
    report = json.loads((tmp_path / "r" / "report.json").read_text(encoding="utf-8"))
    assert [len(result["by_length"]) for result in report["results"]] == [2, 2]
    assert report["flops_definition"].startswith("FLOPs = 2 MACs")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "restore has no value; give it on the command line: restore=…"),
        ("restore=./nowhere", "restore=./nowhere: no such directory. Give a run directory, a Hugging Face directory "
         "or a hub id."),
        ("restore=x tasks=sst2", "unknown key tasks; did you mean task?"),
        ("restore=x model=tiny", "unknown key model; what is evaluated is chosen by restore=… (a demo run brings its "
         "task)"),
        ("restore=x execution=pack", "execution=pack: no such option. Did you mean packed? Options: packed, masked, "
         "deployed"),
        ("restore=x dtype=float16", "dtype=float16: no such option. Did you mean bfloat16 or float32? Options: "
         "float32, bfloat16, int8"),
        ("restore=x dtype=int8", "dtype=int8 goes with execution=deployed, not execution=packed"),
        ("restore=x execution=deployed device=cuda", "execution=deployed is for CPUs: use device=cpu, or "
         "execution=packed"),
        ("restore=x by_length=0", "by_length=0 is out of range: it must be 1 or more (groups)"),
        ("restore=x threads=0", "threads=0 is out of range: it must be 1 or more"),
        ("restore=x batch_size=0", "batch_size=0 is out of range: it must be 1 or more"),
        ("restore=x threshold_scale=-1", "threshold_scale=-1 is out of range: it must be one or more numbers from 0 "
         "on, as [0.8,1,1.2]"),
        ("restore=x threshold_scale=[]", "threshold_scale=[] is out of range: it must be one or more numbers from 0 "
         "on, as [0.8,1,1.2]"),
        ("restore=x threshold_scale=[1,much]", "threshold_scale=[1,much] is out of range: it must be one or more "
         "numbers from 0 on, as [0.8,1,1.2]"),
        ("restore=x to=a output=a", "output=a and to=a are one file: give two"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(tmp_path, monkeypatch, command, message):
    monkeypatch.chdir(tmp_path)
    finished = ltp_evaluate(command)
    assert (finished.code, finished.out, finished.err) == (2, "", f"error: {message}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("split=dev", "split=dev: task=demo has no such split. Splits: validation, train, test"),
        ("threshold_scale=[1,2] to=a.parquet", "to=a.parquet holds the predictions of one threshold_scale, not of 2"),
        ("to=.", "to=. is a directory; give a file"),
        ("task=stsb data_dir=nowhere", "data_dir=nowhere: no such directory."),
        ("task=sst2 task.max_length=4096 data_dir=glue", "task.max_length=4096: the model reads at most 512 tokens"),
    ],
)
def test_what_a_run_cannot_do_is_one_message(runs, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glue" / "sst2").mkdir(parents=True)
    for split in ("train", "validation"):
        (tmp_path / "glue" / "sst2" / f"{split}.tsv").write_text("sentence\tlabel\ngood\t1\n", encoding="utf-8")
    finished = ltp_evaluate(f"restore={runs['manual']} {options}")
    assert (finished.code, finished.out, finished.err) == (2, "", f"error: {message}\n")


def test_a_directory_that_is_no_run_of_a_known_task(runs, tmp_path):
    os.symlink(runs["topk"] / "model", tmp_path / "model")
    finished = ltp_evaluate(f"restore={tmp_path / 'model'}")
    assert finished.code == 2
    assert finished.err.endswith("is not a run directory that names its task: give task=… (and data_dir=…)\n")
    (tmp_path / "empty").mkdir()
    assert "is neither a run directory" in ltp_evaluate(f"restore={tmp_path / 'empty'}").err


def test_help_explains_every_key():
    text = ltp_evaluate("--help").out
    for key in evaluate.EvaluateSettings.__dataclass_fields__:
        assert f"\n  {key}" in text or f" {key} " in text or f", {key}" in text, key


def test_keys_of_the_task_change_the_runs_own(runs, tmp_path):
    run = runs["topk"]
    (whole,) = report_of(f"restore={run}")["results"]
    before = (run / "predictions.parquet").read_bytes()
    (cut,) = report_of(f"restore={run} task.max_length=6 task.max_validation_samples=20 to={tmp_path / 'p.parquet'}")[
        "results"
    ]
    assert (whole["examples"], cut["examples"]) == (48, 20)
    assert (
        max(pq.read_table(tmp_path / "p.parquet")["token_lengths"].to_pylist())[0] == 6 < whole["tokens_per_layer"][0]
    )
    (rows,) = report_of(f"restore={run} task.max_validation_samples=null")["results"]
    assert rows["examples"] > 48
    assert (run / "predictions.parquet").read_bytes() == before  # which holds those of the run's own split
    finished = ltp_evaluate(f"restore={run} task.max_lenght=6")
    assert finished.err == "error: unknown key task.max_lenght; did you mean task.max_length?\n"


def test_a_key_of_a_task_that_is_not_known(runs, tmp_path):
    os.symlink(runs["topk"] / "model", tmp_path / "model")
    finished = ltp_evaluate(f"restore={tmp_path / 'model'} task.max_length=64")
    assert finished.code == 2
    assert finished.err.endswith("is not a run directory that names its task: give task=… (and data_dir=…)\n")


@pytest.mark.parametrize(
    ("accuracy", "examples", "labels", "warns"),
    [
        *((0.017, 872, 2, True), (0.48, 872, 2, False), (0.4, 20, 2, False), (0.2, 400, 3, True)),
        *((0.9, 872, 2, False), (None, 872, 2, False)),
    ],
)
def test_a_classifier_below_chance_is_told(accuracy, examples, labels, warns):
    task = dataclasses.replace(TASKS["sst2"], labels=("a", "b", "c")[:labels])
    warning = chance_warning({"metrics": {"accuracy": accuracy}, "examples": examples}, task)
    assert (warning is not None) == warns
    if warns:
        assert warning.startswith(f"accuracy {accuracy:.4f} is below chance ({1 / labels:.4f}): ")

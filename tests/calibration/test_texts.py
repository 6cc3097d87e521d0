"""A dense classifier brought to a cost, or to an agreement with itself, on texts alone."""

import importlib
import json
import math
from pathlib import Path

import pytest
import torch
from helpers import SMALL, in_process, ltp_train
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

import ltp
from ltp import LTPForSequenceClassification
from ltp.calibration import agreement as searching
from ltp.calibration.agreement import Measured, decisions, keep_agreement
from ltp.calibration.search import StrengthControl
from ltp.data.demo import demo_rows, demo_tokenizer

TEXTS = [row["sentence"] for row in demo_rows("train", rows=300)]


def ltp_calibrate(command):
    return in_process("ltp.calibrate", command, importlib.import_module("ltp.calibrate").COMMAND)


@pytest.fixture(scope="module")
def dense_run(tmp_path_factory):
    """A dense run on the demo, cut down."""
    root = tmp_path_factory.mktemp("dense")
    finished = ltp_train([*SMALL, "stage=finetune", f"output_root={root}", "task.max_train_samples=512"])
    assert finished.code == 0, finished.err
    return next(root.rglob("results.json")).parent


@pytest.fixture(scope="module")
def hugging_face(make_dense, tmp_path_factory):
    """A directory with a classifier of Hugging Face's that decides half of the texts either way."""
    directory = tmp_path_factory.mktemp("hf") / "classifier"
    tokenizer = demo_tokenizer()
    model = make_dense("bert", vocab_size=len(tokenizer), num_labels=2, num_hidden_layers=4)
    _, outputs = one_by_one(model, tokenizer, TEXTS)
    logits = torch.cat([output.logits for output in outputs])
    with torch.no_grad():
        model.classifier.bias[0] -= (logits[:, 0] - logits[:, 1]).sort().values[149:151].mean()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def one_by_one(model, tokenizer, texts):
    """Predictions of single texts, without padding, and the outputs."""
    with torch.inference_mode():
        outputs = [model(**tokenizer(text, return_tensors="pt")) for text in texts]
    return [int(output.logits.argmax()) for output in outputs], outputs


@pytest.mark.slow
@pytest.mark.parametrize("goal", [{"target_flops": 0.6}, {"agreement": 0.9}])
def test_what_is_recorded_is_what_the_model_does(hugging_face, goal):
    tokenizer = AutoTokenizer.from_pretrained(hugging_face)
    dense = BertForSequenceClassification.from_pretrained(hugging_face).eval()
    wanted, _ = one_by_one(dense, tokenizer, TEXTS)
    assert 0.4 < sum(wanted) / len(TEXTS) < 0.6
    model = ltp.calibrate(dense, tokenizer, TEXTS, **goal)
    record = model.config.calibration
    found, outputs = one_by_one(model, tokenizer, TEXTS)
    assert record["agreement"] == pytest.approx(
        sum(one == two for one, two in zip(found, wanted, strict=True)) / len(TEXTS)
    )
    lengths = torch.cat([output.token_lengths for output in outputs]).double()
    width, inner, layers = model.config.hidden_size, model.config.intermediate_size, model.config.num_hidden_layers
    n, m, full = lengths[:, :-1], lengths[:, 1:], lengths[:, :1]
    cost = (4 * width**2 * n + 2 * width * n**2 + 2 * width * inner * m).sum()
    dense_cost = layers * (4 * width**2 * full + 2 * width * full**2 + 2 * width * inner * full).sum()
    assert record["relative_flops"] == pytest.approx((cost / dense_cost).item(), rel=1e-6)
    assert record["texts"] == len(TEXTS)
    if "target_flops" in goal:
        assert record["relative_flops"] == pytest.approx(0.6, abs=0.01)
    else:
        assert record["agreement"] >= 0.9
        assert record["relative_flops"] < 0.95
    assert model.config.scoring_mode == "mean_norm"
    ratios = model.thresholds / model.thresholds[-1]  # the published shape
    torch.testing.assert_close(ratios.detach(), torch.arange(1, 5) / 4)


@pytest.mark.slow
def test_the_command_makes_a_model_that_everything_loads(hugging_face, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("\n".join(TEXTS))
    command = f"restore={hugging_face} target_flops=0.6 texts=texts.txt examples=200"
    finished = ltp_calibrate(command)
    assert finished.code == 0, finished.err
    directory = Path(finished.out.split("model directory: ")[1].strip())
    assert directory.parts[-2:] == ("calibrated", "texts_target_0.6")
    record = json.loads((directory / "config.json").read_text())["calibration"]
    assert (record["texts"], record["target_flops"]) == (200, 0.6)
    assert f"relative FLOPs   {record['relative_flops']:.3f} on 200 texts" in finished.out
    assert f"agreement        {record['agreement']:.3f} with the predictions of the unpruned model" in finished.out
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    _, outputs = one_by_one(model, AutoTokenizer.from_pretrained(directory), TEXTS[:20])
    assert any(output.token_lengths[0, -1] < output.token_lengths[0, 0] for output in outputs)
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]  # nothing half-written

    again = ltp_calibrate(command)
    assert (again.code, again.err) == (
        2,
        f"error: {directory} holds a calibrated model already: overwrite=true replaces it, to=DIR keeps both\n",
    )
    assert ltp_calibrate(f"{command} overwrite=true").code == 0
    other = ltp_calibrate(f"{command} overwrite=true to={hugging_face}")
    assert other.code == 2
    assert "holds something else than a calibrated model" in other.err


@pytest.mark.slow
@pytest.mark.parametrize("goal", ["target_flops=0.7", "agreement=0.9", "budgets=[0.6,0.8]"])
def test_a_dense_run_is_calibrated_on_its_own_task(dense_run, tmp_path, goal):
    finished = ltp_calibrate(f"restore={dense_run} {goal} to={tmp_path / 'run'} examples=256")
    assert finished.code == 0, finished.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["method"], results["prune_mode"]) == ("manual", "absolute_threshold")
    assert results["hyperparameters"]["scoring_mode"] == "mean_norm"
    calibrated = results["calibrated"]
    assert calibrated["before"]["sample_relative_flops"] == 1.0
    assert "agreement with dense, sample" in finished.out
    if goal.startswith("agreement"):
        assert calibrated["agreement_bound"] == 0.9
        assert calibrated["agreement"] >= 0.9
    model = LTPForSequenceClassification.from_pretrained(tmp_path / "run")
    assert model.thresholds.tolist() == pytest.approx(results["thresholds"])


class Plain(StrengthControl):
    """Controls nothing but its number."""

    initial, weakest, strongest = 1.0, 1e-6, 1e6
    strength = 1.0

    def apply(self, strength):
        self.strength = strength

    def reset_to_start(self):
        self.strength = self.initial


@pytest.mark.parametrize("limit", [1e-3, 0.5, 1.0, 37.0, 1e9])
def test_the_strongest_pruning_that_keeps_the_agreement(monkeypatch, limit):
    control = Plain()
    monkeypatch.setattr(searching, "strength_control", lambda model: control)
    kept = keep_agreement(
        None, lambda: Measured(1 / (1 + control.strength), 1.0 if control.strength <= limit else 0.8), 0.9
    )
    assert control.strength == kept.strength
    assert kept.agreement == 1.0
    assert kept.strength <= limit
    assert math.log(min(limit, Plain.strongest) / kept.strength) <= 0.021


def test_without_any_agreement_nothing_is_pruned(monkeypatch):
    control = Plain()
    monkeypatch.setattr(searching, "strength_control", lambda model: control)
    kept = keep_agreement(None, lambda: Measured(0.9, 0.5), 0.9)
    assert (kept.strength, kept.relative_flops, control.strength) == (0.0, 1.0, 0.0)


def test_what_a_classifier_decides():
    logits = torch.tensor([[2.0, -1.0, 3.0], [0.1, -0.1, -3.0]])
    assert decisions(logits, None).tolist() == [2, 0]
    assert decisions(logits, "multi_label_classification").tolist() == [[True, False, True], [True, False, False]]
    assert decisions(logits[:, :1], "regression").dtype.is_floating_point


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give exactly one of target_flops and agreement"),
        ({"target_flops": 0.5, "agreement": 0.9}, "give exactly one of target_flops and agreement"),
        ({"target_flops": 1.5}, r"target_flops=1.5 is out of range: it must be in \(0, 1\]"),
        ({"agreement": 0.0}, r"agreement=0.0 is out of range: it must be in \(0, 1\]"),
        ({"agreement": 0.9, "texts": []}, "there are no texts to calibrate on"),
    ],
)
def test_arguments_that_mean_nothing(make_dense, arguments, message):
    with pytest.raises(ValueError, match=message):
        ltp.calibrate(make_dense("bert"), None, **{"texts": ["a"], **arguments})


def test_a_regression_has_no_agreement(make_dense):
    with pytest.raises(ValueError, match="a regression has none: give target_flops"):
        ltp.calibrate(make_dense("bert", num_labels=1), None, ["a"], agreement=0.9)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "target_latency_ms=5",
            "target_latency_ms needs a task with its data, in place of texts=t.txt: leave one of them out",
        ),
        ("budgets=[0.5]", "budgets needs a task with its data, in place of texts=t.txt: leave one of them out"),
        (
            "task=mrpc target_flops=0.5",
            "task needs a task with its data, in place of texts=t.txt: leave one of them out",
        ),
        ("agreement=1.5", "agreement=1.5 is out of range: it must be in (0, 1] (of the dense model's predictions)"),
    ],
)
def test_keys_that_contradict_each_other(words, message):
    finished = ltp_calibrate(f"restore=somewhere texts=t.txt {words}")
    assert (finished.code, finished.err) == (2, f"error: {message}\n")


def test_the_call_and_the_command_share_a_name():
    module = importlib.import_module("ltp.calibrate")
    assert callable(module)
    with pytest.raises(ValueError, match="give exactly one of"):
        ltp.calibrate(None, None, ["a"])
    assert module.COMMAND.name == "calibrate"

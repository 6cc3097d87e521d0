"""``deploy("auto")``: which form is chosen, and what is remembered."""

import dataclasses
import json
import os

import pytest
import torch

from ltp import LTPForSequenceClassification, LTPForTokenClassification
from ltp.deploy import fastest
from ltp.deploy.fastest import FILE, FORMS, FastestModel, Form
from ltp.deploy.requirements import missing_packages

PYTORCH = tuple(form for form in FORMS if form.runtime == "pytorch")


@pytest.fixture
def saved(make_dense, tmp_path):
    LTPForSequenceClassification.from_dense(make_dense("bert"), prune_mode="topk").save_pretrained(tmp_path)
    return LTPForSequenceClassification.from_pretrained(tmp_path)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(20) < torch.tensor([[20], [5], [13]])).long()
    return {"input_ids": torch.randint(5, 100, (3, 20), generator=generator) * mask, "attention_mask": mask}


@pytest.fixture
def timed(monkeypatch):
    """Decide which form is the fastest: ``timed[size] = form``; counts the measurements."""
    chosen = {"measurements": 0}

    def interleaved(passes, rounds):
        chosen["measurements"] += 1
        size = 1 if chosen["measurements"] % 2 else 32
        return {form: [0.5 if form == chosen.get(size) else 1.0] * rounds for form in passes}

    monkeypatch.setattr(fastest, "interleaved", interleaved)
    monkeypatch.setattr(fastest, "has_bfloat16_instructions", lambda: True)
    monkeypatch.setattr(fastest, "FORMS", PYTORCH)
    return chosen


def test_a_call_takes_the_form_of_the_nearest_size(saved, batch, timed):
    timed |= {1: Form("pytorch", "int8"), 32: Form("pytorch", "float32")}
    deployed = saved.deploy("auto", least_answers=0)
    assert deployed.forms == {1: timed[1], 32: timed[32]}
    expected = saved.deploy()
    one = {name: value[:1] for name, value in batch.items()}
    many = {name: value.repeat(4, 1) for name, value in batch.items()}
    assert torch.equal(deployed(**many).logits, expected(**many).logits)
    assert torch.equal(deployed(**many).token_lengths, expected(**many).token_lengths)
    assert not torch.equal(deployed(**one).logits, expected(**one).logits)  # int8


def test_the_choice_is_remembered_beside_the_model(saved, tmp_path, timed):
    timed |= {1: Form("pytorch", "bfloat16"), 32: Form("pytorch", "float32")}
    first = saved.deploy("auto", least_answers=0)
    assert {trial.form for trial in first.trials} == set(PYTORCH)
    assert json.loads((tmp_path / FILE).read_text())["forms"] == {
        "1": ["pytorch", "bfloat16"],
        "32": ["pytorch", "float32"],
    }
    again = saved.deploy("auto", least_answers=0)
    assert (again.forms, again.trials, timed["measurements"]) == (first.forms, [], 2)
    for change in (
        lambda: saved.set_pruning(token_keep_rate=0.3),
        lambda: os.utime(tmp_path / "model.safetensors", ns=(1, 1)),  # other weights
        lambda: (tmp_path / FILE).write_text("{"),
    ):
        before = timed["measurements"]
        change()
        saved.deploy("auto", least_answers=0)
        assert timed["measurements"] == before + 2


def test_a_form_with_other_answers_is_left_out(saved, batch, timed, monkeypatch):
    timed |= dict.fromkeys((1, 32), Form("pytorch", "int8"))
    compare = fastest.compare_results

    def worse(model, infer, examples, *, dtype):
        found = compare(model, infer, examples, dtype=dtype)
        return dataclasses.replace(found, answers=0.97) if dtype == "int8" else found

    monkeypatch.setattr(fastest, "compare_results", worse)
    deployed = saved.deploy("auto", [batch])
    assert Form("pytorch", "int8") not in deployed.forms.values()
    (trial,) = [trial for trial in deployed.trials if trial.form.dtype == "int8"]
    assert str(trial) == "PyTorch int8: 97.0% of its answers are those of float32, less than 98.0%"


def test_what_is_not_here_is_said(saved, timed, monkeypatch):
    monkeypatch.setattr(fastest, "FORMS", FORMS)
    monkeypatch.setattr(fastest, "missing_packages", lambda extra: ["onnxscript"])
    monkeypatch.setattr(fastest, "has_bfloat16_instructions", lambda: False)
    reasons = {trial.form: trial.reason for trial in saved.deploy("auto", least_answers=0).trials}
    assert reasons[Form("onnx", "int8")] == reasons[Form("openvino", "float32")] == "onnxscript not installed"
    assert reasons[Form("pytorch", "bfloat16")] == "the CPU has no instructions for it"


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_packages("onnx")), reason="needs the extra onnx")
@pytest.mark.parametrize("head", [LTPForSequenceClassification, LTPForTokenClassification])
def test_a_graph_is_called_like_the_model(make_dense, batch, head, monkeypatch):
    form = Form("onnx", "float32")
    monkeypatch.setattr(fastest, "FORMS", (form,))
    model = head.from_dense(make_dense("bert", auto_class=head.auto_class), prune_mode="topk")
    deployed = FastestModel(model, [batch], batch_sizes=[2])
    assert deployed.forms == {2: form}
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        expected, output = model(**batch), deployed(**batch)
    assert torch.equal(output.token_lengths, expected.token_lengths)
    logits = (output.logits, expected.logits)
    if head is LTPForTokenClassification:
        logits = tuple(value[real] for value in logits)
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)

"""Distillation losses against their definitions."""

import math

import pytest
import torch
from helpers import METHODS

from ltp import LTPForSequenceClassification
from ltp.data.tasks import TASKS
from ltp.training.distillation import Distillation, hidden_loss, logits_loss, ranking_loss


def test_the_logits_loss_by_hand():
    student, teacher = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 4.0]])
    # T = 2: the students' probabilities are sigmoid(1) and 1/2, the teachers' 1/2 and sigmoid(-2)
    q, p = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2))
    first = 0.5 * math.log(0.5 / q) + 0.5 * math.log(0.5 / (1 - q))
    second = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    assert logits_loss(student, teacher, 2.0).item() == pytest.approx(4 * (first + second) / 2)
    assert logits_loss(teacher, teacher, 3.0).item() == pytest.approx(0, abs=1e-7)


def test_the_gradient_keeps_its_size_as_the_temperature_rises():
    """Which is what T² is for: for T far above the logits it is that of half their squared difference, centred."""
    student = torch.tensor([[0.3, -0.2, 0.1]], requires_grad=True)
    teacher = torch.tensor([[-0.1, 0.4, 0.0]])
    logits_loss(student, teacher, 100.0).backward()
    difference = student.detach() - teacher
    torch.testing.assert_close(student.grad, (difference - difference.mean()) / 3, rtol=2e-2, atol=1e-3)


def test_a_regression_s_teacher():
    assert logits_loss(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [4.0]]), 5.0).item() == 2.5


def test_the_ranking_loss_by_hand():
    # the teacher ranks 0, 2, 1 (gains 2/3, 0, 1/3); the student 1, 0, 2; token 3 is padding
    teacher = torch.tensor([[0.5, 0.1, 0.3, -1.0]])
    student = torch.tensor([[[0.2, 0.4, 0.1, -1.0]]])
    discount = {1: 1 / math.log2(2), 0: 1 / math.log2(3), 2: 1 / math.log2(4)}  # by the student's ranks
    best = 2 / 3 / math.log2(2) + 1 / 3 / math.log2(3)

    def pair_loss(above, below, difference):
        swapped = difference * abs(discount[above] - discount[below]) / best
        score = student[0, 0].log()
        return swapped * math.log(1 + math.exp((score[below] - score[above]).item()))

    expected = pair_loss(0, 1, 2 / 3) + pair_loss(0, 2, 1 / 3) + pair_loss(2, 1, 1 / 3)
    assert ranking_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    # a pruned token is in no pair, and a ranking that is right costs less than one that is not
    gone = torch.tensor([[[0.2, -1.0, 0.1, -1.0]]])
    assert 0 < ranking_loss(gone, teacher).item() < expected
    assert ranking_loss(torch.tensor([[[0.9, 1e-9, 1e-4, -1.0]]]), teacher) < 1e-3


def test_the_ranking_s_teacher_is_hugging_face_s_last_attention(pair, batch):
    student, teacher = pair
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    teacher.dense.set_attn_implementation("eager")
    with torch.no_grad():
        attention = teacher.dense(**inputs, output_attentions=True).attentions[-1]  # (B, H, N, N)
    received = (attention * inputs["attention_mask"][:, None, :, None]).sum(dim=(1, 2)) / (4 * 128)
    expected = received.masked_fill(inputs["attention_mask"] == 0, -1)
    output = student(**batch, output_scores=True)
    added = Distillation(teacher, TASKS["demo"], 0.3, 2.0, ranking_weight=0.7).added_loss(output, batch, output.loss)
    logits = Distillation(teacher, TASKS["demo"], 0.3, 2.0).added_loss(output, batch, output.loss)
    torch.testing.assert_close(added - logits, 0.7 * ranking_loss(output.scores, expected), rtol=1e-4, atol=1e-6)
    added.backward()
    assert student.dense.base_model.encoder.layer[0].attention.self.query.weight.grad.abs().max() > 0


@pytest.fixture
def pair(make_dense, family):
    """A pruned student and its dense teacher of other weights, without dropout."""
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    student = LTPForSequenceClassification.from_dense(make_dense(family, **quiet), **METHODS["threshold"]).train()
    return student, LTPForSequenceClassification.from_dense(make_dense(family, seed=1, **quiet))


@pytest.fixture
def batch():
    mask = (torch.arange(9) < torch.tensor([9, 4, 7])[:, None]).long()
    return {"input_ids": torch.randint(5, 100, mask.shape), "attention_mask": mask, "labels": torch.tensor([0, 2, 1])}


def test_what_is_added_to_the_loss(pair, batch):
    student, teacher = pair
    output = student(**batch, output_class_states=True)
    added = Distillation(teacher, TASKS["demo"], 0.3, 2.0, hidden_weight=0.7).added_loss(output, batch, output.loss)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    hidden = teacher.dense(**inputs, output_hidden_states=True)  # Hugging Face's own
    states = torch.stack([state[:, 0] for state in hidden.hidden_states[1:]])
    wanted = 0.3 * (logits_loss(output.logits, hidden.logits, 2.0) - output.loss)
    wanted = wanted + 0.7 * ((output.class_states - states) ** 2).mean()
    torch.testing.assert_close(added, wanted)
    assert hidden_loss(output.class_states, states) > 0


def test_the_teacher_does_not_learn(pair, batch):
    student, teacher = pair
    teacher.train()
    distillation = Distillation(teacher, TASKS["demo"], 1.0, 2.0, hidden_weight=1.0)
    assert not teacher.training
    output = student(**batch, output_class_states=True)
    (output.loss + distillation.added_loss(output, batch, output.loss)).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.dense.base_model.embeddings.word_embeddings.weight.grad.abs().max() > 0


@pytest.mark.parametrize("form", ["masked", "packed"])
@pytest.mark.parametrize("method", METHODS)
def test_the_states_of_the_classification_tokens(make_dense, family, batch, method, form):
    model = LTPForSequenceClassification.from_dense(make_dense(family), **METHODS[method])
    model.execution = form
    states = model(**batch, output_class_states=True).class_states
    wanted = model(**batch, output_hidden_states=True).hidden_states[1:]
    torch.testing.assert_close(states, torch.stack([state[:, 0] for state in wanted]), rtol=1e-5, atol=1e-5)
    assert model(**batch).class_states is None

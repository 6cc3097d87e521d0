"""REINFORCE against the gradient of the expected reward, and its part in a training step."""

import itertools

import pytest
import torch

from ltp import LTPForSequenceClassification, LTPForTokenClassification
from ltp.data.tasks import TASKS
from ltp.training.module import LTPModule
from ltp.training.policy import policy_loss, row_losses


def test_the_loss_by_hand():
    """Two examples, two samples of each, two layers; the second example has padding."""
    probabilities = torch.tensor([[[1.0, 0.8, 0.6], [1.0, 0.5, -1.0]] * 2, [[1.0, 0.9, 0.0], [1.0, 0.7, -1.0]] * 2])
    kept = torch.tensor(
        [
            [[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]],
            [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]],
        ]
    )
    probabilities[1, 2, 2] = 0.3  # kept by the first layer in this sample
    logarithm = lambda *chosen: torch.tensor(chosen).log().mean()  # noqa: E731
    likelihoods = [
        logarithm(1.0, 0.8, 0.4) + logarithm(1.0, 0.1),
        logarithm(1.0, 0.5) + logarithm(1.0),  # what has left is not asked again
        logarithm(1.0, 0.2, 0.6) + logarithm(1.0, 0.3),
        logarithm(1.0, 0.5) + logarithm(1.0, 0.7),
    ]
    rewards = torch.tensor([-1.0, -2.0, -3.0, -1.0])
    advantages = [1.0, -0.5, -1.0, 0.5]
    expected = -sum(a * b for a, b in zip(advantages, likelihoods, strict=True)) / 4
    assert policy_loss(probabilities, kept, rewards, 2).item() == pytest.approx(expected.item(), abs=1e-4)


def test_its_gradient_is_that_of_the_expected_reward():
    """With the mean of S samples as the baseline it is (S - 1)/S of it, and 1/N for the mean over the tokens."""
    torch.manual_seed(0)
    logits = torch.tensor([0.3, -0.4, 1.0], dtype=torch.float64, requires_grad=True)
    reward = lambda kept: kept @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + 3 * kept[..., 0] * kept[..., 1]  # noqa: E731
    actions = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64)
    chances = torch.where(actions > 0.5, logits.sigmoid(), 1 - logits.sigmoid()).prod(dim=1)
    (expected,) = torch.autograd.grad(-(chances * reward(actions)).sum(), logits)
    samples, repeats = 8, 20000
    probabilities = logits.sigmoid().expand(1, samples * repeats, 3)
    kept = probabilities.detach().bernoulli()
    loss = policy_loss(probabilities, kept, reward(kept)[0], samples)
    (actual,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(actual, expected * (samples - 1) / samples / 3, atol=5e-3, rtol=0)


def test_losses_of_rows(make_dense, family):
    model = LTPForSequenceClassification.from_dense(make_dense(family))
    logits, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    expected = -logits.log_softmax(dim=1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(row_losses(model, logits, labels), expected)
    tokens = LTPForTokenClassification.from_dense(make_dense(family, auto_class="AutoModelForTokenClassification"))
    logits, labels = torch.randn(2, 4, 3), torch.tensor([[0, -100, 2, -100], [-100] * 4])
    losses = row_losses(tokens, logits, labels)
    expected = -logits[0].log_softmax(dim=1)[[0, 2], [0, 2]].mean()
    torch.testing.assert_close(losses, torch.tensor([expected.item(), 0.0]))  # a row without a label has none


@pytest.mark.parametrize("execution", ["packed", "masked"])
def test_a_step_teaches_which_tokens_matter(make_dense, family, execution):
    """A policy that is rewarded for keeping what the answer depends on learns to keep it, and drops the rest."""
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    settings = {"prune_mode": "tr_bert", "masking_mode": "survival", "select_layers": [1], "imitation_weight": 0.0}
    model = LTPForSequenceClassification.from_dense(make_dense(family, **quiet), **settings).train()
    model.execution = execution
    LTPModule(model, TASKS["demo"], learns=True)
    torch.manual_seed(0)
    ids = torch.tensor([[2, 11, 12, 13, 14, 15]]).repeat(64, 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    optimizer = torch.optim.Adam(model.pruner.parameters(), lr=5e-2)
    for _ in range(40):
        output = model(**inputs, output_scores=True)
        assert torch.equal(output.gates[0, :, 0], torch.ones(64))
        # word 12 is worth a reward, each kept token costs
        rewards = output.gates[0, :, 2].detach() - 0.3 * output.gates[0].detach().sum(dim=1)
        loss = policy_loss(output.scores, output.gates, rewards, samples=64)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(weight.grad is None for weight in model.dense.parameters())  # rewards teach the policy alone
    kept = output.scores[0, 0]
    assert kept[2] > 0.9
    assert kept[[1, 3, 4, 5]].max() < 0.5


def test_samples_pass_no_gradient_to_the_states(make_dense, family):
    settings = {"prune_mode": "tr_bert", "masking_mode": "survival", "select_weight": 0.0}
    for execution in ("packed", "masked"):
        model = LTPForSequenceClassification.from_dense(make_dense(family), **settings).train()
        model.execution = execution
        ids = torch.randint(5, 100, (4, 9))
        output = model(input_ids=ids, labels=torch.tensor([0, 1, 2, 0]), output_hidden_states=True)
        (output.loss + output.hidden_states[-1].square().sum()).backward(retain_graph=True)
        assert all(weight.grad is None or not weight.grad.any() for weight in model.pruner.parameters())
        output.expected_lengths.sum().backward()  # the cost does
        assert any(weight.grad is not None and weight.grad.any() for weight in model.pruner.parameters())

"""Budgets: the FLOPs that a soft training expects, the multiplier that leads it, and runs that end where asked."""

import math

import pytest
import torch
from helpers import METHODS, attention_received, flops_and_dense, lowest_relative_flops, total_relative_flops

from ltp import LTPForSequenceClassification
from ltp.execution.attention import attention_by_length, attention_by_rows, masked_attention
from ltp.execution.packing import Packing
from ltp.pruning.flops import CostModel
from ltp.training.budget import BudgetMultiplier, sampled_budget

READS = frozenset({"received"})
SIZES = (32, 48)


def batch(lengths):
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    labels = torch.randint(0, 3, (len(lengths),))
    return {"input_ids": torch.randint(5, 100, mask.shape), "attention_mask": mask, "labels": labels}


@pytest.fixture
def relaxed(make_dense, family):
    """``relaxed(temperature)``: a classifier in training by the survival rule, without dropout."""

    def make(temperature, **pruning):
        dense = make_dense(family, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        return LTPForSequenceClassification.from_dense(
            dense,
            **METHODS["threshold"] | {"masking_mode": "survival", "threshold_temperature": temperature} | pruning,
        ).train()

    return make


# -- expected FLOPs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["masked", "packed"])
def test_expected_flops_are_the_counted_ones_as_the_temperature_goes_to_zero(relaxed, form):
    inputs = batch([17, 3, 14, 9, 23])
    model = relaxed(1e-3)
    model.execution = form
    counted = model.eval()(**inputs)
    assert counted.token_lengths.sum(dim=0).diff().lt(0).sum() >= 3  # tokens leave in several layers
    model.train()
    away = []
    for temperature in (3e-3, 1e-3, 3e-4, 1e-4, 1e-5):
        model.pruner.method.temperature = temperature
        soft = model(**inputs)
        cost, wanted = (total_relative_flops(x, *SIZES) for x in (soft.expected_lengths, counted.token_lengths))
        away.append(abs(cost - wanted).item())
    model.pruner.method.temperature = 1e-9
    soft = model(**inputs)
    torch.testing.assert_close(soft.expected_lengths, counted.token_lengths.float(), rtol=0, atol=1e-4)
    torch.testing.assert_close(soft.logits, counted.logits, rtol=1e-4, atol=1e-4)
    assert total_relative_flops(soft.expected_lengths, *SIZES).item() == pytest.approx(wanted.item(), abs=1e-6)
    assert away[0] > 0.05
    assert away[-1] < 0.01


def test_expected_flops_by_hand(relaxed):
    """The product of the gates, layer by layer, from the definition."""
    model = relaxed(2e-3)
    model.execution = "masked"
    inputs = batch([6, 4])
    gates = []
    gate = model.pruner.gate
    model.pruner.gate = lambda *arguments: gates.append(gate(*arguments)) or gates[-1]
    lengths = model(**inputs).expected_lengths
    for example, length in enumerate([6, 4]):
        alive = [1.0] * length
        assert lengths[example, 0] == length
        for layer, m in enumerate(gates, start=1):
            alive = [p * m[example, token].item() for token, p in enumerate(alive)]
            assert lengths[example, layer].item() == pytest.approx(sum(alive), rel=1e-5)


def test_the_gradient_of_the_expected_flops(relaxed):
    """Against central differences."""
    model = relaxed(2e-3)
    inputs = batch([17, 3, 14, 9])

    def cost():
        return total_relative_flops(model(**inputs).expected_lengths, *SIZES)

    cost().backward()
    thresholds = model.pruner.thresholds
    gradient = thresholds.grad.clone()
    assert (gradient < 0).all()  # a higher threshold costs less
    weight = model.family.layers(model.dense)[0].attention.self.key.weight
    assert weight.grad.abs().max() > 0  # through the scores
    step = 1e-4  # scores are float32
    largest = gradient.abs().max().item()
    for layer in range(len(thresholds)):
        with torch.no_grad():
            thresholds[layer] += step
            above = cost().item()
            thresholds[layer] -= 2 * step
            below = cost().item()
            thresholds[layer] += step
        assert gradient[layer].item() == pytest.approx((above - below) / 2 / step, abs=3e-3 * largest)


def test_both_forms_are_one(relaxed):
    model = relaxed(1e-3)
    inputs = batch([17, 3, 14, 9])
    results = {}
    for form in ("masked", "packed"):
        model.execution = form
        model.zero_grad()
        output = model(**inputs, output_class_states=True)
        (output.loss + total_relative_flops(output.expected_lengths, *SIZES)).backward()
        results[form] = output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    (masked, wanted), (packed, gradients) = results["masked"], results["packed"]
    torch.testing.assert_close(packed.logits, masked.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed.expected_lengths, masked.expected_lengths)
    torch.testing.assert_close(packed.class_states, masked.class_states, atol=1e-5, rtol=1e-5)
    scale = max(gradient.norm() for gradient in wanted.values())
    for name, gradient in wanted.items():
        assert (gradient - gradients[name]).norm() <= 1e-4 * gradient.norm() + 1e-6 * scale, name


@pytest.mark.parametrize("attend", [attention_by_length, attention_by_rows])
def test_a_token_weighs_what_its_survival_is(attend):
    """Two tokens that each survive with probability 1/2 are one: as keys, and in what is received."""
    query, key, value = (torch.randn(3, 2, 4) for _ in range(3))
    packing = Packing(torch.tensor([3]), torch.tensor([0]))
    context, received = attend(query, key, value, packing, 0.0, reads=READS)
    doubled = torch.tensor([0, 1, 2, 2])
    four = Packing(torch.tensor([4]), torch.tensor([0]))
    survival = torch.tensor([1.0, 1.0, 0.5, 0.5])
    twice = attend(
        query[doubled],
        key[doubled],
        value[doubled],
        four,
        0.0,
        reads=READS,
        key_weights=survival,
        query_weights=survival,
    )
    torch.testing.assert_close(twice[0][:3], context)
    torch.testing.assert_close(twice[1]["received"][:2], received["received"][:2])
    torch.testing.assert_close(twice[1]["received"][2:].sum(), received["received"][2])


def test_a_token_that_is_surely_gone_is_not_there():
    query, key, value = (torch.randn(1, 4, 2, 4, requires_grad=True) for _ in range(3))
    alive = torch.tensor([[True, True, False, True]])
    context, probs = masked_attention(query, key, value, alive, 0.0)
    survival = alive.float().requires_grad_()
    everyone = torch.ones_like(alive)
    soft_context, soft_probs = masked_attention(query, key, value, everyone, 0.0, survival)
    torch.testing.assert_close(soft_context[:, alive[0]], context[:, alive[0]])
    received = attention_received(soft_probs, survival)
    torch.testing.assert_close(received[0, alive[0]], attention_received(probs, alive)[0, alive[0]])
    received.sum().backward()
    assert survival.grad.isfinite().all()


def test_the_lowest_cost_by_hand():
    # one example of 10 tokens, 2 layers, D = 2, I = 3: 4·D²·n + 2·D·n² + 2·D·I·m, first n = 10, m = 1, then 1 and 1
    first, second, dense = 16 * 10 + 4 * 100 + 12, 16 + 4 + 12, 2 * (16 * 10 + 4 * 100 + 12 * 10)
    assert lowest_relative_flops(torch.tensor([10]), 2, 2, 3) == pytest.approx((first + second) / dense)


# -- the multiplier ------------------------------------------------------------------------------------------


def multiplier(budget=0.5):
    return BudgetMultiplier(budget, dense_flops=1e6, cost=CostModel(6, 32, 48))


def same(value):
    """The sum over one process."""
    return value


def test_the_multiplier_leads_to_the_budget():
    """On thresholds of two layers that gradients move by a step each, as Adam moves them."""
    for budget in (0.5, 0.65, 0.8):
        control = multiplier(budget)
        thresholds, costs = torch.full((2,), 0.3), []
        for step in range(600):
            lengths = torch.full((8, 3), 20.0)
            lengths[:, 1:] = 20 * torch.sigmoid((1 - thresholds.cumsum(0)) / 0.3)
            control.penalty(lengths)
            cost = total_relative_flops(lengths, *SIZES).item()
            control.update(thresholds, same)
            if step % 20 == 0:  # an evaluation counts more than the training expects
                control.measured(cost + 0.05)
            # the task's loss resists pruning in both layers, at a price of 0.7 for the FLOPs that this saves
            thresholds += 0.005 * max(min(5 * (control.value.item() - 0.7), 1), -1)
            costs.append(cost + 0.05)
        assert costs[-1] == pytest.approx(budget, abs=0.01)
        assert max(costs[450:]) - min(costs[450:]) < 0.02  # it does not swing
        assert control.value.item() == pytest.approx(0.7, abs=0.2)


def test_the_penalty_adds_up_over_micro_batches_and_processes():
    lengths = torch.rand(8, 7, requires_grad=True)
    with torch.no_grad():
        lengths += 3
    control = multiplier()
    control.value.fill_(0.7)
    whole = torch.autograd.grad(control.penalty(lengths), lengths)[0]
    parts = control.penalty(lengths[:4]) / 2 + control.penalty(lengths[4:]) / 2
    torch.testing.assert_close(torch.autograd.grad(parts, lengths)[0], whole)
    cost, dense = flops_and_dense(lengths, *SIZES)
    wanted = 0.7 * cost.mean() / 1e6
    assert control.penalty(lengths).item() == pytest.approx(wanted.item(), rel=1e-6)
    # what was seen: both halves and the whole, twice
    expected = control.update(torch.ones(6), same)
    assert expected == pytest.approx((cost.sum() / dense.sum()).item())


def test_a_step_of_the_multiplier_by_hand():
    control = multiplier(0.7)
    thresholds = torch.tensor([0.01, 0.02])
    cheap, dear = torch.tensor([[9.0, 8, 7, 6, 5, 4, 3]]), torch.full((2, 7), 9.0)
    for lengths in (cheap, dear):
        control.penalty(lengths)
        control.update(thresholds, same)
    begun = total_relative_flops(cheap, *SIZES).item()  # which the calibrated start is expected to cost
    mean = 0.7 * begun + 0.3  # in training a dense batch costs 1
    assert control.value.item() == pytest.approx(0.3 * (mean - begun))
    control.measured(0.8)
    control.penalty(dear)
    before = control.value.item()
    thresholds = torch.tensor([0.01, 0.02])
    control.update(thresholds, same)
    gap = 0.8 + 0.3 * (1 - mean) - 0.7
    assert control.value.item() == pytest.approx(before + 0.3 * gap)
    factor = math.exp(0.3 * gap)  # all thresholds at once, towards the budget
    assert thresholds.tolist() == pytest.approx([0.01 * factor, 0.02 * factor])


def test_without_thresholds_the_price_is_proportional_to_the_gap():
    control = multiplier(0.7)
    cheap, dense = torch.tensor([[9.0, 8, 7, 6, 5, 4, 3]]), torch.full((2, 7), 9.0)
    control.penalty(dense)
    control.update(None, same)
    assert control.value.item() == pytest.approx(20 * (1 - 0.7))  # the gradient of 10 · (E − 0.7)²
    control.penalty(cheap)
    control.update(None, same)
    mean = 0.7 + 0.3 * total_relative_flops(cheap, *SIZES).item()
    assert control.value.item() == pytest.approx(20 * (mean - 0.7))


def test_every_budget_is_sampled_the_harder_ones_more_often_and_the_same_everywhere():
    budgets = [0.25, 0.5, 1.0]
    drawn = [sampled_budget(budgets, 5, step) for step in range(2190)]
    assert drawn == [sampled_budget(budgets, 5, step) for step in range(2190)]
    counts = [drawn.count(number) for number in range(3)]  # drawn as 64 to 8 to 1
    assert counts[0] == pytest.approx(1920, abs=60)
    assert counts[1] == pytest.approx(240, abs=60)
    assert counts[2] == pytest.approx(30, abs=20)
    assert drawn != [sampled_budget(budgets, 6, step) for step in range(2190)]
    assert [sampled_budget([0.3], 5, step) for step in range(9)] == [0] * 9


# -- several budgets in one model ----------------------------------------------------------------------------


@pytest.fixture
def several(make_dense):
    """A classifier that holds thresholds for three budgets."""
    model = LTPForSequenceClassification.from_dense(make_dense("bert"), **METHODS["threshold"])
    model.set_budgets([0.3, 0.5, 0.7])
    for factor, budget in ((3, 0.3), (2, 0.5), (1, 0.7)):
        model.use_budget(budget)
        with torch.no_grad():
            model.thresholds.fill_(factor / 100)
    return model


def test_a_checkpoint_holds_every_budget(several, tmp_path):
    several.save_pretrained(tmp_path)
    inputs = batch([17, 3, 14, 9])
    costs = []
    for budget, value in ((0.3, 0.03), (0.5, 0.02), (0.7, 0.01)):
        model = LTPForSequenceClassification.from_pretrained(tmp_path, budget=budget)
        assert model.budget == budget
        assert model.thresholds.tolist() == pytest.approx([value] * 6)
        several.use_budget(budget)
        torch.testing.assert_close(model(**inputs).logits, several(**inputs).logits)
        costs.append(total_relative_flops(model(**inputs).token_lengths, *SIZES).item())
    assert costs == sorted(costs)
    assert len(set(costs)) == 3
    assert LTPForSequenceClassification.from_pretrained(tmp_path).budget == 0.7  # the one in use when it was saved


def test_a_budget_that_is_not_held(several, tmp_path, make_dense):
    several.save_pretrained(tmp_path / "several")
    with pytest.raises(ValueError, match=r"budget=0.4: the model has no thresholds for it, it holds 0.3, 0.5, 0.7"):
        LTPForSequenceClassification.from_pretrained(tmp_path / "several", budget=0.4)
    make_dense("bert").save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match="is a dense model; it holds no budgets"):
        LTPForSequenceClassification.from_pretrained(tmp_path / "dense", budget=0.4)


def test_budgets_are_kept_while_the_thresholds_are(several):
    several.set_pruning(masking_mode="hard")
    assert several.config.budgets == [0.3, 0.5, 0.7]
    several.use_budget(0.3)
    assert several.thresholds.tolist() == pytest.approx([0.03] * 6)
    several.set_pruning(final_token_threshold=0.2)
    assert several.config.budgets == []
    assert several.budget is None


@pytest.mark.parametrize(
    ("budgets", "message"),
    [([0.5, 0.3], "ascending"), ([0.5, 0.5], "ascending"), ([1.2], "in \\(0, 1\\]"), (["0.5"], "shares")],
)
def test_budgets_out_of_range(several, budgets, message):
    with pytest.raises(ValueError, match=message):
        several.set_budgets(budgets)
    assert several.config.budgets == [0.3, 0.5, 0.7]


def test_only_thresholds_are_held_for_several_budgets(make_dense):
    model = LTPForSequenceClassification.from_dense(make_dense("bert"), **METHODS["topk"])
    with pytest.raises(ValueError, match="prune_mode topk has no thresholds to hold for them"):
        model.set_budgets([0.5])


def test_new_budgets_keep_what_the_method_has_learned(make_dense, family):
    model = LTPForSequenceClassification.from_dense(make_dense(family), prune_mode="adapler")
    learned = {name: parameter.detach().clone() for name, parameter in model.pruner.named_parameters()}
    for budgets in ([0.3, 0.6], [0.5], []):
        model.set_budgets(budgets)
        assert model.config.budgets == budgets
        for name, parameter in model.pruner.named_parameters():
            assert torch.equal(parameter, learned[name])

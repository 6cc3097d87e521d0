"""Every method: an example worked by hand, and the same results in every form that executes it."""

import ast
import dataclasses
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers import new_pruner, tokens_of

import ltp
from ltp.deploy.graph import GraphForm
from ltp.model.classifier import LTPForSequenceClassification
from ltp.model.tracing import recording
from ltp.pruning import RankedMethod, all_methods, variants
from ltp.pruning.importance import SCORING_MODES
from ltp.pruning.method import READS, Method
from ltp.pruning.methods.adapler import AdapLeR
from ltp.pruning.methods.every import Every
from ltp.pruning.methods.first import First
from ltp.pruning.methods.lat import LAT
from ltp.pruning.methods.ltc import LTC
from ltp.pruning.methods.ltmp import LTMP
from ltp.pruning.methods.power_bert import PowerBert, retained_counts
from ltp.pruning.methods.random import Random, drawn
from ltp.pruning.methods.tome import ToMe, matched
from ltp.pruning.methods.top import BINS, ToP, hard_concrete
from ltp.pruning.methods.tr_bert import TRBERT
from ltp.pruning.methods.transkimmer import Transkimmer
from ltp.pruning.pruner import Pruner, check_fits
from ltp.pruning.ranking import keep_rates
from ltp.pruning.tokens import EncoderShape, SoftPass, Tokens

#: Settings with which each method loses tokens in several layers of the small classifier.
SETTINGS = {
    "none": [{}],
    "absolute_threshold": [
        {"final_token_threshold": 0.012},
        {"scoring_mode": "max_norm", "final_token_threshold": 0.7},
    ],
    "topk": [{"first_layer": 1, "scoring_mode": mode} for mode in SCORING_MODES]
    + [{"keep_shape": "constant", "first_layer": 2}, {"keep_rates": [1.0, 0.8, 0.6, 0.5, 0.3, 0.1]}],
    "random": [{"first_layer": 1}],
    "first": [{"first_layer": 1}],
    "every": [{"first_layer": 1}],
    "ltmp": [{"scoring_mode": "mean_norm"}],
    "power_bert": [{"retention_scale": 0.06}],
    "top": [{"keep_power": 600.0}],
    "transkimmer": [{"skim_threshold": 0.9933}],
    "tr_bert": [{"select_threshold": 0.8808}, {"select_layers": [1, 3, 6], "select_threshold": 0.8808}],
    "tome": [{"first_layer": 1, "token_keep_rate": 0.1}],
    "lat": [{"first_layer": 1}],
    "adapler": [{"initial_share": 0.999}],
    "ltc": [{"pool_layer": 2, "pool_rate": 0.4}],
}
CASES = [(name, settings) for name, several in SETTINGS.items() for settings in several]


def bools(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def seen(alive, *, layer=1, num_layers=2, lengths=None, training=False, attention=None, **states):
    lengths = alive.sum(dim=1) if lengths is None else torch.tensor(lengths)
    return Tokens(layer, num_layers, 1, alive, lengths, attention=attention or {}, states=states, training=training)


@pytest.fixture
def pruned(make_dense, family):
    def make(name, settings):
        model = LTPForSequenceClassification.from_dense(make_dense(family), prune_mode=name, **settings).eval()
        if name == "ltmp":
            with torch.no_grad():
                model.thresholds.copy_(torch.linspace(0.02, 0.08, 6))
        return model

    return make


@pytest.fixture
def inputs():
    lengths = torch.tensor([17, 3, 30, 2, 14, 9, 17])
    mask = (torch.arange(30) < lengths[:, None]).long()
    return {"input_ids": torch.randint(5, 100, mask.shape), "attention_mask": mask}


def test_every_method_is_here():
    assert SETTINGS.keys() == {name for name, method in all_methods().items() if method.__module__.startswith("ltp.")}


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_all_forms_agree(pruned, inputs, name, settings):
    """Packed, deployed and as a graph, against the masked reference."""
    model = pruned(name, settings)
    model.execution = "masked"
    with torch.no_grad():
        expected = model(**inputs)
        model.execution = "packed"
        graph_logits, graph_lengths = GraphForm(model)(**inputs)
        forms = {"packed": model(**inputs), "deployed": model.deploy()(**inputs)}
    for form, output in forms.items():
        assert torch.equal(output.token_lengths, expected.token_lengths), form
        torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=1e-5, msg=form)
    assert torch.equal(graph_lengths, expected.token_lengths)
    torch.testing.assert_close(graph_logits, expected.logits, atol=1e-5, rtol=1e-5)
    leaving = expected.token_lengths.sum(dim=0).diff().lt(0).sum()
    assert leaving >= {"none": 0, "ltc": 1, "power_bert": 1}.get(name, 2)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_a_token_that_leaves_keeps_its_last_state(pruned, inputs, name, settings):
    model = pruned(name, settings)
    states, scores = {}, {}
    with torch.no_grad():
        for form in ("masked", "packed"):
            model.execution = form
            output = model(**inputs, output_hidden_states=True, output_scores=True)
            states[form], scores[form] = torch.stack(output.hidden_states), output.scores  # (L+1, B, N, D), (L, B, N)
        with recording(model) as recorder:
            model(**inputs)
    torch.testing.assert_close(states["packed"], states["masked"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores["packed"], scores["masked"], atol=1e-6, rtol=1e-5)
    masked = states["masked"]
    for number, (_, before, after) in recorder.layers.items():
        left = inputs["attention_mask"].bool() & ~after
        if not model.pruner.merges:
            assert torch.equal(masked[number][left], masked[number - 1][left])
        elif (before & ~after).any():  # a merged token has the state of one that is left
            distances = torch.cdist(masked[number], masked[number]).masked_fill(~after[:, None, :], torch.inf)
            assert distances.amin(dim=2)[left].max() < 0.01
        assert torch.equal(scores["masked"][number - 1] >= 0, after)
        moved = (masked[number] - masked[number - 1]).abs().amax(dim=2)
        assert (moved[after] > 1e-3).all()
    assert (masked[:, ~inputs["attention_mask"].bool()] == 0).all()


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_an_input_alone_gives_what_it_gives_in_a_batch(pruned, inputs, name, settings):
    model = pruned(name, settings)
    with torch.no_grad():
        together = model(**inputs)
        alone = model(input_ids=inputs["input_ids"][4:5, :14])
    assert alone.token_lengths[0].tolist() == together.token_lengths[4].tolist()
    torch.testing.assert_close(alone.logits[0], together.logits[4], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name, method in all_methods().items() if method.learns])
def test_soft_forms_agree_and_gradients_reach_the_parameters(pruned, inputs, name, monkeypatch):
    # both forms sample the same tokens, although their rows stand in another order
    monkeypatch.setattr(torch.Tensor, "bernoulli", lambda probabilities: (probabilities >= 0.8808).float())
    settings = {"transkimmer": {"skim_noise": False}, "top": {"gate_noise": False}}.get(name, {})
    method = all_methods()[name]
    model = pruned(name, {"masking_mode": method.masking, **settings}).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if name == "top":  # an open gate has no gradient
        with torch.no_grad():
            model.pruner.rank_logits.zero_()
    gradients = {}
    for form in ("masked", "packed"):
        model.execution = form
        model.zero_grad()
        output = model(**inputs, labels=torch.arange(7) % 3, output_hidden_states=True)
        output.loss.backward()
        gradients[form] = [parameter.grad.clone() for parameter in model.pruner.parameters()]
        logits = output.logits.detach()
        states = torch.stack(output.hidden_states).detach()
        if form == "masked":
            expected, expected_states = logits, states
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states, expected_states, atol=1e-5, rtol=1e-5)
    for packed, masked in zip(gradients["packed"], gradients["masked"], strict=True):
        torch.testing.assert_close(packed, masked, atol=1e-5, rtol=1e-3)
    assert any(gradient.abs().sum() > 0 for gradient in gradients["packed"])


@pytest.mark.parametrize("name", [name for name, method in all_methods().items() if method.has_strength()])
def test_the_strength_turns_a_method_from_dense_to_its_hardest(pruned, inputs, name):
    from ltp.calibration.search import strength_control

    model = pruned(name, SETTINGS[name][0])
    control = strength_control(model)
    costs = []
    with torch.no_grad():
        for strength in (0.0, 0.5, 1.0, 2.0, control.strongest):
            control.apply(strength)
            costs.append(model.cost.total_relative_flops(model(**inputs).token_lengths))
    own = model.pruner.method.own_flops(model.pruner.shape)
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == pytest.approx(1.0) or own
    assert costs[-1] < 0.85
    control.reset_to_start()
    with torch.no_grad():
        assert model.cost.total_relative_flops(model(**inputs).token_lengths) == pytest.approx(costs[2])


# -- examples by hand ----------------------------------------------------------------------------------------


def test_keep_rates_as_shapes():
    assert keep_rates(0.2, 4, first_layer=1) == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert keep_rates(0.25, 4, first_layer=3, shape="constant") == pytest.approx([1, 1, 0.5, 0.25])
    assert keep_rates(-0.5, 4, shape="constant", first_layer=1) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("name", "settings"), [case for case in CASES if issubclass(all_methods()[case[0]], RankedMethod)]
)
def test_the_counts_of_keep_rates_are_known_beforehand(pruned, inputs, name, settings):
    model = pruned(name, settings)
    with torch.no_grad():
        counted = model(**inputs).token_lengths
    assert torch.equal(model.pruner.method.expected_lengths(counted[:, 0], [True] * 6), counted)


def test_first_keeps_the_first():
    alive = bools([1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0])
    kept = First(token_keep_rate=0.5, first_layer=1, keep_rates=[0.5, 0.5]).survivors(seen(alive), None)
    assert kept.int().tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]]


def test_every_keeps_tokens_at_equal_distances():
    alive = bools([1] * 8, [1, 1, 1, 1, 1, 1, 0, 0])
    kept = Every(keep_rates=[0.5, 0.5]).survivors(seen(alive), None)
    # floor(i·4/8) rises at 0, 2, 4, 6; floor(i·3/6) at 0, 2, 4
    assert kept.int().tolist() == [[1, 0, 1, 0, 1, 0, 1, 0], [1, 0, 1, 0, 1, 0, 0, 0]]


def test_random_draws_by_length_and_position_alone():
    positions = torch.arange(40).repeat(2, 1)
    numbers = drawn(positions, torch.tensor([40, 40]), seed=0)
    assert torch.equal(numbers[0], numbers[1])
    assert not torch.equal(numbers[0], drawn(positions, torch.tensor([39, 40]), seed=0)[0])
    assert not torch.equal(numbers[0], drawn(positions, torch.tensor([40, 40]), seed=1)[0])
    many = drawn(torch.arange(500)[None], torch.tensor([500]), seed=3)
    assert many.mean().item() == pytest.approx(0.5, abs=0.05)
    assert len(many.unique()) == 500
    kept = Random(keep_rates=[0.5, 0.5]).survivors(seen(torch.ones(2, 40).bool(), positions=positions), None)
    assert kept[:, 0].all()
    assert kept.sum(dim=1).tolist() == [20, 20]


def test_ltmp_s_gate_is_hard_forwards_and_soft_backwards():
    method = LTMP(score_length=1, gate_temperature=0.5, kept_share=0.4, penalty_weight=10)
    pruner = new_pruner(method, 1)
    with torch.no_grad():
        pruner.thresholds.fill_(0.3)
    gate = pruner.gate(tokens_of(torch.tensor([[0.1, 0.2, 0.4, 0.9]]), bools([1, 1, 1, 0])))
    assert gate.tolist() == [[1, 0, 1, 0]]
    gate.sum().backward()
    sigmoids = [1 / (1 + torch.tensor(-(s - 0.3) / 0.5).exp()) for s in (0.2, 0.4)]
    assert pruner.thresholds.grad.item() == pytest.approx(-sum((m * (1 - m) / 0.5).item() for m in sigmoids), rel=1e-5)
    soft = SoftPass(torch.zeros(2, 2), torch.tensor([[10.0, 6.0, 2.0], [4.0, 4.0, 2.0]]))
    # kept: (6 + 2)/2/10 = 0.4 and (4 + 2)/2/4 = 0.75; mean 0.575
    assert float(method.penalty(soft, pruner)) == pytest.approx(10 * 0.175**2)


def test_power_bert_by_hand():
    pruner = new_pruner(PowerBert(score_length=4, lambda_retention=0.1), 2)
    with torch.no_grad():
        pruner.retention.copy_(torch.tensor([[1.0, 0.9, 0.5, 0.0], [1.0, 1.0, 0.6, 0.2]]))
    assert retained_counts(pruner.retention).tolist() == [3, 3]  # ⌈2.4⌉, ⌈2.8⌉
    assert retained_counts(torch.tensor([[1.0, 0.0], [1.0, 1.0]])).tolist() == [1, 1]  # it does not rise
    sums = {"received": torch.tensor([[9.0, 5.0, 7.0, 6.0]]), "diagonal": torch.tensor([[0.0, 0.0, 6.0, 0.0]])}
    tokens = seen(bools([1, 1, 1, 1]), attention=sums)  # off the diagonal: 9, 5, 1, 6: ranks 0, 2, 3, 1
    assert pruner.gate(tokens).tolist() == [pytest.approx([1.0, 0.5, 0.0, 0.9])]
    assert pruner.survivors(tokens).int().tolist() == [[1, 1, 0, 1]]
    soft = SoftPass(torch.zeros(1, 2), torch.zeros(1, 3))
    assert pruner.method.penalty(soft, pruner).item() == pytest.approx(0.1 * (1 * 2.4 + 2 * 2.8))


def test_transkimmer_keeps_everything_at_first_and_then_what_the_predictor_says():
    pruner = new_pruner(Transkimmer(skim_noise=False), 2)
    alive, hidden = bools([1, 1, 1, 0]), torch.randn(1, 4, 8)
    assert torch.equal(pruner.survivors(seen(alive, hidden=hidden)), alive)
    assert pruner.gate(seen(alive, hidden=hidden, training=True)).tolist() == [[1, 1, 1, 0]]
    with torch.no_grad():  # reject all
        pruner.predictors[0][4].bias.copy_(torch.tensor([9.0, -9.0]))
    assert pruner.survivors(seen(alive, hidden=hidden)).int().tolist() == [[1, 0, 0, 0]]
    soft = SoftPass(torch.zeros(1, 2), torch.tensor([[8.0, 4.0, 2.0]]))
    assert float(pruner.method.penalty(soft, pruner)) == pytest.approx(0.5 * 3 / 8)
    assert pruner.cost.own_flops == (2 * (8 * 8 + 2 * 8),) * 2
    noisy = Transkimmer()
    alive = torch.ones(1, 4001, dtype=torch.bool)
    gate = noisy.gate(seen(alive, hidden=torch.zeros(1, 4001, 8), training=True), new_pruner(noisy, 2))
    kept = 1 / (1 + torch.tensor(-5.0).exp().item())  # the difference of two Gumbel variables is logistic
    assert gate[0, 1:].mean().item() == pytest.approx(kept, abs=0.004)


def test_adapler_by_hand():
    method = AdapLeR(initial_share=0.5, removal_slope=10.0, saliency_weight=2.0, length_weight=0.1)
    pruner = new_pruner(method, 2)
    with torch.no_grad():  # the logit of a token is gelu(x), x its first number
        for linear in (pruner.predictors[0][0], pruner.predictors[0][2]):
            linear.weight.zero_()
            linear.weight[0, 0] = 1.0
    hidden = torch.zeros(1, 5, 8)
    hidden[0, :, 0] = torch.tensor([50.0, 3.0, 0.0, -9.0, 70.0])  # the class token has no share, and padding none
    alive = bools([1, 1, 1, 1, 0])
    logits = [3 * (1 + math.erf(3 / math.sqrt(2))) / 2, 0.0, 0.0]
    shares = [math.exp(logit) / sum(map(math.exp, logits)) for logit in logits]
    tokens = seen(alive, hidden=hidden)
    scores = method.scores(tokens, pruner)
    assert scores.tolist() == [pytest.approx([0, 3 * shares[0], 3 * shares[1], 3 * shares[2], 0], rel=1e-5)]
    assert pruner.survivors(tokens).int().tolist() == [[1, 1, 0, 0, 0]]
    above = 0.01 * (3 * shares[0] - 3) / (3 - 0.5)
    below = 10 * (3 * shares[1] / 0.5 - 1) - 0.01
    gate = [1, math.exp(above), math.exp(below), math.exp(below), 0]
    assert pruner.gate(tokens).tolist() == [pytest.approx(gate, rel=1e-4)]
    # above the even share of all that is left: a soft removal all the same, with a gradient
    with torch.no_grad():
        pruner.thresholds.fill_(4.0)
    gate = pruner.gate(tokens)
    assert gate[0, 1].item() == pytest.approx(math.exp(10 * (3 * shares[0] / 4 - 1) - 0.01), rel=1e-4)
    gate.sum().backward()
    assert pruner.thresholds.grad[0] < 0
    with torch.no_grad():
        pruner.thresholds.fill_(0.5)
    # a token that is nearly gone is not counted: the even share is that of the other two
    present = dataclasses.replace(tokens, survival=torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]]))
    even = 2 * shares[1] / (shares[0] + shares[1])
    assert pruner.gate(present)[0, 2].item() == pytest.approx(math.exp(10 * (even / 0.5 - 1) - 0.01), rel=1e-4)

    saliency = torch.tensor([[9.0, 2.0, 1.0, 1.0, 0.0]])
    layers = torch.stack([scores.masked_fill(~alive, -1)] * 2)
    expected = sum(t * math.log(t / share) for t, share in zip((0.5, 0.25, 0.25), shares, strict=True))
    assert method.guidance(layers, saliency, pruner).item() == pytest.approx(2.0 * expected * (2 + 1), rel=1e-5)
    soft = SoftPass(torch.zeros(2, 2), torch.tensor([[10.0, 6.0, 2.0], [4.0, 4.0, 2.0]]))
    assert float(method.penalty(soft, pruner)) == pytest.approx(0.1 * (8 + 6) / 2)
    assert pruner.cost.own_flops == (2 * 32 * (8 + 1),) * 2


def test_adapler_with_the_class_token_alone():
    pruner = new_pruner(AdapLeR(), 2)
    tokens = seen(bools([1, 0], [1, 1]), hidden=torch.randn(2, 2, 8))
    assert pruner.survivors(tokens).int().tolist() == [[1, 0], [1, 1]]
    assert pruner.gate(tokens)[0].tolist() == [1, 0]
    scores = torch.stack([pruner.scores(tokens).masked_fill(~tokens.alive, -1)] * 2)
    assert pruner.method.guidance(scores, torch.tensor([[3.0, 0.0], [1.0, 2.0]]), pruner).item() == pytest.approx(0)


def test_tr_bert_by_hand():
    method = TRBERT(select_layers=[2], imitation_weight=2.0, select_weight=0.1)
    pruner = new_pruner(method, 3)
    assert [pruner.decides_in(number) for number in (1, 2, 3)] == [False, True, False]
    assert pruner.cost.own_flops == (0, 2 * 32 * (8 + 1), 0)
    assert len(list(pruner.parameters())) == 4  # one policy
    policy = pruner.policies[1]
    with torch.no_grad():  # the log-odds of a token are gelu(x), x its first number
        for linear in (policy[0], policy[2]):
            linear.weight.zero_()
            linear.bias.zero_()
            linear.weight[0, 0] = 1.0
    hidden = torch.zeros(1, 5, 8)
    hidden[0, :, 0] = torch.tensor([-9.0, 3.0, 0.0, 1.0, 70.0])  # the class token stays, and padding has no part
    alive = bools([1, 1, 1, 1, 0])
    tokens = seen(alive, layer=2, num_layers=3, hidden=hidden, training=True)
    odds = [math.exp(x * (1 + math.erf(x / math.sqrt(2))) / 2) for x in (3.0, 0.0, 1.0)]
    high, even, some = (value / (1 + value) for value in odds)
    scores = pruner.scores(tokens)
    assert scores.tolist() == [pytest.approx([1, high, even, some, 0])]
    assert pruner.survivors(tokens).int().tolist() == [[1, 1, 1, 1, 0]]
    stricter = dataclasses.replace(method, **method.at_strength(1.5))  # odds of 1.5
    assert stricter.survivors(tokens, pruner).int().tolist() == [[1, 1, 0, 1, 0]]

    torch.manual_seed(0)
    gates = torch.cat([pruner.gate(tokens) for _ in range(2000)])
    assert set(gates.detach().unique().tolist()) == {0.0, 1.0}
    shares = gates.detach().mean(dim=0).tolist()
    assert shares == pytest.approx([1, high, even, some, 0], abs=4 * 0.5 / math.sqrt(2000))
    gate = pruner.gate(tokens)
    (gradient,) = torch.autograd.grad(gate.sum(), policy[2].bias)  # that of the probabilities: p (1 - p)
    assert gradient.item() == pytest.approx(sum(p * (1 - p) for p in (high, even, some)), rel=1e-5)
    evaluated = dataclasses.replace(tokens, training=False)
    assert pruner.gate(evaluated).tolist() == [[1, 1, 1, 1, 0]]
    # a token that an earlier policy dropped is not asked again
    left = dataclasses.replace(tokens, survival=torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0]]))
    assert pruner.scores(left).tolist() == [pytest.approx([1, 0, even, some, 0])]

    # imitation: the policy keeps 0.95 + 0.5 + 0.73 tokens, so that the two most salient are to stay
    layers = scores.masked_fill(~alive, -1)[None]
    saliency = torch.tensor([[9.0, 1.0, 3.0, 2.0, 0.0]])
    expected = -(math.log(1 - high) + math.log(even) + math.log(some)) / 3
    assert method.guidance(layers, saliency, pruner).item() == pytest.approx(2.0 * expected, rel=1e-5)
    soft = SoftPass(torch.zeros(1, 2), torch.tensor([[8.0, 4.0, 2.0]]))
    assert float(method.penalty(soft, pruner)) == pytest.approx(0.1 * 3 / 8)


def test_the_layers_of_tr_bert():
    assert [list(TRBERT().layers(number)) for number in (12, 6, 2, 1)] == [[2, 7], [2, 4], [2], [1]]
    with pytest.raises(ValueError, match="select_layers has layer 4; the encoder has 3 layers"):
        check_fits(TRBERT(select_layers=[1, 4]), EncoderShape(3), "skip")


def test_a_method_must_fit_the_encoder():
    shape = EncoderShape(4, 8, 16, 1, windows=(None, 65, 65, None))
    with pytest.raises(ValueError, match="ltc drops tokens in layer 2 alone, with a sliding window, where"):
        check_fits(LTC(), shape, "skip")
    check_fits(LTC(), shape, "scale")
    check_fits(LTC(pool_layer=4), shape, "skip")
    refused = {"pool_layer is 5; the enc": LTC(pool_layer=5), "first_layer is 9; the enc": Random(first_layer=9)}
    for message, method in refused.items():
        with pytest.raises(ValueError, match=message):
            check_fits(method, shape, "scale")


def test_settings_that_do_not_fit_change_nothing(make_dense):
    model = LTPForSequenceClassification.from_dense(make_dense("bert"), prune_mode="tr_bert", select_layers=[1, 3])
    for wrong in ([99], [], [0], [3, 1], [True], 2, {2}):
        with pytest.raises(ValueError, match="select_layers"):
            model.set_pruning(select_layers=wrong)
        assert model.config.select_layers == [1, 3]
        assert [number for number in range(1, 7) if model.pruner.decides_in(number)] == [1, 3]
    windowed = make_dense("modernbert", num_hidden_layers=7)
    model = LTPForSequenceClassification.from_dense(windowed, prune_mode="ltc", pool_layer=4)
    with pytest.raises(ValueError, match="ltc drops tokens in layer 2 alone"):
        model.set_pruning(pool_layer=2)
    assert model.config.pool_layer == model.pruner.method.pool_layer == 4


def test_hard_concrete_gates():
    # without noise: the clamped stretch of the sigmoid
    logits = torch.tensor([-10.0, -2.0, 0.0, 1.0, 10.0])
    expected = [0.0, 1.2 / (1 + math.e**2) - 0.1, 0.5, 1.2 / (1 + math.e**-1) - 0.1, 1.0]
    assert hard_concrete(logits, noise=False).tolist() == pytest.approx(expected, abs=1e-6)
    # drawn: at logits of 0 a gate is 0 where the logistic noise is below 2/3 · log(1/11), and 1 as often
    drawn_gates = hard_concrete(torch.zeros(100_000), noise=True)
    share = 1 / (1 + 11 ** (2 / 3))
    assert (drawn_gates == 0).float().mean().item() == pytest.approx(share, abs=0.005)
    assert (drawn_gates == 1).float().mean().item() == pytest.approx(share, abs=0.005)


def test_top_keeps_the_ranks_whose_gates_are_open():
    method = ToP(score_length=1, gate_noise=False)
    pruner = new_pruner(method, 2)
    with torch.no_grad():
        pruner.rank_logits[:, BINS // 2 :] = -10.0  # the lower half of the ranks is gone
        pruner.layer_logits[0] = -10.0  # but layer 1 does not prune
    scores = torch.tensor([[0.1, 0.9, 0.3, 0.8, 0.2, 0.7]])
    alive = bools([1] * 6)
    first, second = (tokens_of(scores, alive, layer=layer, num_layers=2) for layer in (1, 2))
    assert pruner.gate(first).tolist() == [[1, 1, 1, 1, 1, 1]]
    assert pruner.gate(second).tolist() == [[1, 1, 0, 1, 0, 0]]  # ranks 0, 1 and 2 of 6
    assert pruner.survivors(first).tolist() == [[True] * 6]
    assert pruner.survivors(second).int().tolist() == [[1, 1, 0, 1, 0, 0]]
    pruner.method = dataclasses.replace(method, keep_power=2.0)
    assert pruner.survivors(second).sum() == 2  # round(0.5² · 6)


def test_tome_merges_the_most_alike_pair():
    # tokens 0, 2, 4 are the first set (0 is the class token and receives none), 1, 3, 5 the second
    keys = torch.tensor([[[1.0, 0], [1, 0.1], [0, 1], [0.1, 1], [-1, 0], [-1, 0.9]]])
    alive = bools([1, 1, 1, 1, 1, 1])
    # cosines: 3 with 2 is .995; 5 with 4 is .743; 1 with 2 is .0995
    assert matched(keys, alive, torch.tensor([1])).tolist() == [[0, 1, 2, 2, 4, 5]]
    assert matched(keys, alive, torch.tensor([2])).tolist() == [[0, 1, 2, 2, 4, 4]]
    assert matched(keys, alive, torch.tensor([9])).tolist() == [[0, 2, 2, 2, 4, 4]]
    assert matched(keys, bools([1, 1, 0, 0, 0, 0]), torch.tensor([1])).tolist() == [[0, 1, 2, 3, 4, 5]]
    targets = new_pruner(ToMe(keep_rates=[0.8, 0.8]), 2).merge_targets(seen(alive, keys=keys))
    assert targets.tolist() == [[0, 1, 2, 2, 4, 5]]  # round(0.8 · 6) = 5 stay


def test_lat_s_passes():
    method = LAT(length_drop=0.5, random_passes=2)
    smallest, *between = method.passes(3, seed=1, step=7)
    assert smallest.rates(3) == [0.5, 0.25, 0.125]
    assert len(between) == 2
    for drawn_one in between:
        assert all(high >= low >= high / 2 for high, low in pairwise([1.0, *drawn_one.rates(3)]))
    assert method.passes(3, seed=1, step=7) == [smallest, *between]
    assert method.passes(3, seed=1, step=8) != [smallest, *between]


def test_ltc_pools_neighbours():
    alive = bools([1] * 7, [1, 1, 1, 1, 0, 0, 0])
    targets = LTC(pool_layer=1, pool_rate=0.5).merge_targets(seen(alive), None)
    # six others into three groups of two; three others into ⌈1.5⌉ groups: tokens 1 and 2, and token 3
    assert targets.tolist() == [[0, 1, 1, 3, 3, 5, 5], [0, 1, 1, 3, 4, 5, 6]]
    assert [LTC(pool_layer=2).decides_in(layer, 3) for layer in (1, 2, 3)] == [False, True, False]


def test_a_token_that_others_go_into_is_their_mean_and_counts_as_many(make_dense, family):
    """Four equal tokens that merge into one change nothing: attention counts it four times."""
    dense = make_dense(family)
    dense.base_model.embeddings.position_embeddings.weight.data.zero_()
    ids = torch.tensor([[2, 7, 7, 7, 7]])
    plain = LTPForSequenceClassification.from_dense(dense).eval()
    merged = LTPForSequenceClassification.from_dense(dense, prune_mode="ltc", pool_layer=1, pool_rate=0.0).eval()
    with torch.no_grad():
        output = merged(ids)
        assert output.token_lengths[0].tolist() == [5, 2, 2, 2, 2, 2, 2]
        torch.testing.assert_close(output.logits, plain(ids).logits, atol=1e-5, rtol=1e-5)


# -- the contract --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", all_methods())
def test_the_contract(name):
    method = all_methods()[name]
    assert method.__doc__
    for field, fact in method.settings().items():
        assert fact.help, field
    assert method().reads <= READS
    for variant in method.variants:
        assert variant.label
        assert variant.description, "model cards describe it"
        assert {*variant.defaults, *variant.demo, *variant.shown} <= method.settings().keys()
        assert all(key == "lr" or key.removeprefix("prune.") in method.settings() for key in variant.grid)
    method.check(method.defaults())


def test_names_and_styles_are_distinct():
    styles = [(item.color, item.marker) for item in variants().values() if item.color]
    assert len(set(styles)) == len(styles)
    labels = [item.label for item in variants().values()]
    assert len(set(labels)) == len(labels)


def test_nothing_but_its_file_names_a_method():
    package = Path(ltp.__file__).parent
    words = {"none", "dense", "learned", "random", "first", "every"}  # in use for other things, too
    names = {*all_methods(), *variants()} - words
    names |= {field for method in all_methods().values() for field in method.settings()}
    names -= {"scoring_mode", "score_length"}  # of many methods: ltp/pruning/scored.py
    names -= {"temperature"}  # distillation has one, too
    for path in package.rglob("*.py"):
        if (package / "pruning") in path.parents:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        strings = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        named = names & (strings | attributes)
        assert not named, path
        assert not any(module.startswith("ltp.pruning.methods.") for module in modules), path


def test_reading_what_a_method_does_not_name_is_an_error():
    with pytest.raises(LookupError, match=r"^keys was not computed in layer 1: name it in the method's reads$"):
        seen(bools([1, 1])).keys  # noqa: B018


def test_own_flops_are_counted():
    plain = new_pruner(all_methods()["topk"](), 2).cost
    skimming = new_pruner(Transkimmer(), 2).cost
    lengths = torch.tensor([[10, 5, 2]])
    # D = 8, I = 16: entering tokens of layer 1 are those after its decision
    first = 2 * (4 * 64 * 5 + 2 * 8 * 25 + 2 * 8 * 16 * 5) + 160 * 10
    second = 2 * (4 * 64 * 2 + 2 * 8 * 4 + 2 * 8 * 16 * 2) + 160 * 5
    assert skimming.layer_flops(lengths).tolist() == [[first, second]]
    assert plain.layer_flops(lengths)[0, 0] == 2 * (4 * 64 * 10 + 2 * 8 * 100 + 2 * 8 * 16 * 5)
    # a layer with a window in which no token leaves runs no network
    windowed = EncoderShape(2, 8, 16, 1, windows=(None, 65))
    assert Pruner(Transkimmer(), windowed).cost.own_flops == (160.0, 0.0)
    assert Pruner(Transkimmer(), windowed, sliding_layers="scale").cost.own_flops == (160.0, 160.0)


def test_the_base_of_all_has_no_name():
    assert Method.name == ""
    assert dataclasses.is_dataclass(Method)
    assert EncoderShape(2).max_positions == 512

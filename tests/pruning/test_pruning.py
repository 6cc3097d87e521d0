"""The method, against arithmetic done another way: loops in plain Python, ``math``, and numbers worked by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers import importance, new_pruner, tokens_of

from ltp.pruning import all_methods
from ltp.pruning.methods.absolute_threshold import (
    AbsoluteThreshold,
    sparsity_penalty,
    threshold_gate,
    threshold_schedule,
    threshold_survivors,
)
from ltp.pruning.methods.none import NoPruning
from ltp.pruning.methods.topk import TopK
from ltp.pruning.ranking import keep_counts, keep_highest, keep_rates

# One example of three tokens and two heads: probabilities of query (row) on key (column).
HEADS = [
    [[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.25, 0.25, 0.5]],
    [[0.25, 0.5, 0.25], [0.5, 0.25, 0.25], [0.0, 0.5, 0.5]],
]


def random_probs(batch, heads, tokens, alive):
    """Attention probabilities with exact zeros on the keys that are not alive."""
    logits = torch.randn(batch, heads, tokens, tokens)
    return logits.masked_fill(~alive[:, None, None, :], -math.inf).softmax(dim=-1)


def importance_in_plain_python(probs, alive, divisor):
    """One example: lists of (H, N, N) and (N,), and Z."""
    heads, tokens = len(probs), len(alive)
    scores = []
    for key in range(tokens):
        received = 0.0
        for head in range(heads):
            for query in range(tokens):
                if alive[query]:
                    received += probs[head][query][key]
        scores.append(received / (heads * divisor))
    return scores


def bools(*values):
    return torch.tensor(values, dtype=torch.bool)


class TestImportance:
    def test_worked_by_hand(self):
        probs, alive = torch.tensor([HEADS]), bools([1, 1, 1])
        # Columns: .5+.125+.25 + .25+.5+0 = 1.625; .25+.75+.25 + .5+.25+.5 = 2.5; .25+.125+.5 + .25+.25+.5 = 1.875
        expected = torch.tensor([[1.625, 2.5, 1.875]])
        assert torch.equal(importance(probs, alive, score_length=8), expected / (2 * 8))
        assert torch.equal(importance(probs, alive, scoring_mode="mean_norm"), expected / (2 * 3))

    @pytest.mark.parametrize("scoring_mode", ["mean", "mean_norm"])
    def test_equals_loops_in_plain_python(self, scoring_mode):
        alive = bools([1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0])
        probs = random_probs(3, 4, 6, alive)
        scores = importance(probs, alive, scoring_mode=scoring_mode, score_length=32)
        for example in range(3):
            divisor = 32 if scoring_mode == "mean" else int(alive[example].sum())
            expected = importance_in_plain_python(probs[example].tolist(), alive[example].tolist(), divisor)
            assert scores[example].tolist() == pytest.approx(expected, rel=1e-6)

    def test_rows_of_dead_queries_are_ignored(self):
        alive = bools([1, 0, 1, 0])
        probs = random_probs(1, 2, 4, alive)
        garbage = probs.clone()
        garbage[:, :, ~alive[0]] = 1e3
        assert torch.equal(importance(garbage, alive), importance(probs, alive))

    def test_z_is_a_constant_whatever_the_length(self):
        for tokens in (2, 10, 100):
            uniform = torch.full((1, 3, tokens, tokens), 1 / tokens)
            alive = torch.ones(1, tokens, dtype=torch.bool)
            assert importance(uniform, alive)[0].tolist() == pytest.approx([1 / 128] * tokens, rel=1e-5)
            per_token = importance(uniform, alive, scoring_mode="mean_norm")[0].tolist()
            assert per_token == pytest.approx([1 / tokens] * tokens, rel=1e-5)

    @pytest.mark.parametrize("scoring_mode", ["mean", "mean_norm"])
    def test_independent_of_padding_and_of_batch_mates(self, scoring_mode):
        alive = bools([1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1])
        probs = random_probs(2, 4, 6, alive)
        together = importance(probs, alive, scoring_mode=scoring_mode)
        alone = importance(probs[:1, :, :3, :3], alive[:1, :3], scoring_mode=scoring_mode)
        assert torch.allclose(together[:1, :3], alone, rtol=1e-6, atol=0)
        assert together[0, 3:].tolist() == [0, 0, 0]

    @pytest.mark.parametrize("scoring_mode", ["mean", "mean_norm"])
    def test_accumulates_in_float32_under_autocast(self, scoring_mode):
        alive = torch.ones(1, 200, dtype=torch.bool)
        probs = random_probs(1, 2, 200, alive).bfloat16()
        divisor = 128 if scoring_mode == "mean" else 200
        exact = probs.double().sum(dim=(1, 2)) / (2 * divisor)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = importance(probs, alive, scoring_mode=scoring_mode)
        assert scores.dtype == torch.float32
        assert torch.allclose(scores.double(), exact, rtol=1e-5, atol=0)  # a bfloat16 sum is off by 1e-3 and more

    def test_gradient_is_one_over_heads_times_z_for_living_queries(self):
        alive = bools([1, 0, 1])
        probs = random_probs(1, 2, 3, alive).requires_grad_()
        importance(probs, alive, score_length=8)[0, 2].backward()
        expected = torch.zeros(1, 2, 3, 3)
        expected[:, :, [0, 2], 2] = 1 / (2 * 8)
        assert torch.equal(probs.grad, expected)

    def test_unknown_scoring_mode(self):
        with pytest.raises(ValueError, match=r"^scoring_mode is 'max'; it must be one of mean, mean_norm, max_norm, "):
            importance(torch.tensor([HEADS]), bools([1, 1, 1]), scoring_mode="max")


class TestThresholds:
    def test_published_schedule_at_layers_3_6_9_12(self):
        thresholds = new_pruner(AbsoluteThreshold(final_token_threshold=0.01)).thresholds
        assert thresholds.dtype == torch.float32
        assert thresholds[[2, 5, 8, 11]].tolist() == torch.tensor([0.0025, 0.005, 0.0075, 0.01]).tolist()

    def test_schedule_is_linear_from_the_first_layer(self):
        assert threshold_schedule(0.02, 4) == [0.005, 0.01, 0.015, 0.02]
        assert threshold_schedule(0.0, 3) == [0, 0, 0]
        assert threshold_schedule(0.02, 3, "flat") == [0.02, 0.02, 0.02]

    def test_hard_rule_keeps_equality_and_the_classification_token(self):
        scores = torch.tensor([[0.0, 0.25, 0.125, 0.5], [0.5, 0.24, 0.26, 0.25]])
        alive = bools([1, 1, 1, 1], [1, 1, 1, 1])
        survivors = threshold_survivors(scores, torch.tensor(0.25), alive)
        assert survivors.tolist() == [[True, True, False, True], [True, False, True, True]]

    def test_hard_rule_never_brings_a_token_back(self):
        survivors = threshold_survivors(torch.ones(1, 4), torch.tensor(0.5), bools([1, 0, 1, 0]))
        assert survivors.tolist() == [[True, False, True, False]]

    def test_hard_rule_leaves_its_arguments_alone(self):
        alive, scores = bools([1, 1]), torch.tensor([[0.0, 0.0]])
        threshold_survivors(scores, torch.tensor(0.5), alive)
        assert alive.tolist() == [[True, True]]

    def test_pruner_reads_the_threshold_of_its_layer(self):
        pruner = new_pruner(AbsoluteThreshold(final_token_threshold=0.4, score_length=1), 4)  # .1, .2, .3, .4
        scores, alive = torch.tensor([[0.0, 0.05, 0.15, 0.25, 0.35, 0.45]]), torch.ones(1, 6, dtype=torch.bool)
        kept = [pruner.survivors(tokens_of(scores, alive, layer=layer, num_layers=4)) for layer in (1, 2, 3, 4)]
        assert [int(survivors.sum()) for survivors in kept] == [5, 4, 3, 2]
        assert not kept[0].requires_grad

    def test_reset_puts_the_schedule_back(self):
        pruner = new_pruner(AbsoluteThreshold(final_token_threshold=0.4), 4)
        with torch.no_grad():
            pruner.thresholds.fill_(2.9e32)
        pruner.reset()
        assert pruner.thresholds.tolist() == torch.tensor(threshold_schedule(0.4, 4)).tolist()
        assert pruner.thresholds.dtype == torch.float32


class TestSoftRule:
    def test_gate_is_the_logistic_function(self):
        values = [0.9, 0.004, 0.006, 0.0049, 0.5]
        gate = threshold_gate(torch.tensor([values]), torch.tensor(0.005), bools([1, 1, 1, 1, 0]), 1e-3)
        expected = [1.0, *(1 / (1 + math.exp(-(s - 0.005) / 1e-3)) for s in values[1:4]), 0.0]
        assert gate.dtype == torch.float32
        assert gate[0].tolist() == pytest.approx(expected, rel=1e-5)

    def test_classification_token_is_1_whatever_its_score(self):
        gate = threshold_gate(torch.zeros(2, 3), torch.tensor(0.5), bools([1, 1, 1], [1, 1, 0]), 1e-3)
        assert gate[:, 0].tolist() == [1, 1]

    def test_becomes_the_hard_rule_as_temperature_goes_to_0(self):
        scores = torch.rand(5, 20)
        threshold, alive = torch.tensor(0.4), torch.ones(5, 20, dtype=torch.bool)
        hard = threshold_survivors(scores, threshold, alive).float()
        margin = (scores - threshold).abs().min().item()
        assert margin > 1e-4
        distances = [
            (threshold_gate(scores, threshold, alive, t) - hard).abs().max().item() for t in (1e-1, 1e-2, 1e-3, 1e-5)
        ]
        assert distances == sorted(distances, reverse=True)
        assert distances[0] > 0.1
        assert distances[-1] <= math.exp(-margin / 1e-5) + 1e-7

    def test_extreme_arguments_stay_finite(self):
        scores = torch.tensor([[0.0, 0.0, 1.0]], requires_grad=True)
        threshold = torch.tensor(0.5, requires_grad=True)
        gate = threshold_gate(scores, threshold, bools([1, 1, 1]), 1e-5)
        gate.sum().backward()
        assert gate.tolist() == [[1, 0, 1]]
        assert scores.grad.isfinite().all()
        assert threshold.grad.isfinite()

    def test_gradients_against_finite_differences(self):
        scores = torch.rand(2, 5, dtype=torch.float64, requires_grad=True)
        threshold = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        alive = bools([1, 1, 1, 1, 1], [1, 1, 1, 0, 0])

        def penalty(scores, threshold):
            gate = threshold_gate(scores, threshold, alive, temperature=0.3)
            return gate, sparsity_penalty(gate.sum(dim=1, keepdim=True), 16)

        assert torch.autograd.gradcheck(penalty, (scores, threshold))

    def test_threshold_gradient_in_closed_form(self):
        scores, threshold = torch.tensor([[0.3, 0.1, 0.7, 0.4]]), torch.tensor(0.35, requires_grad=True)
        threshold_gate(scores, threshold, bools([1, 1, 1, 0]), 0.2).sum().backward()
        gates = [1 / (1 + math.exp(-(s - 0.35) / 0.2)) for s in (0.1, 0.7)]  # neither [CLS] nor padding
        assert threshold.grad.item() == pytest.approx(-sum(m * (1 - m) / 0.2 for m in gates), rel=1e-5)

    def test_only_thresholds_have_a_soft_form(self):
        for method in (NoPruning(), TopK()):
            with pytest.raises(TypeError, match=r"has no soft form: it has nothing to learn$"):
                new_pruner(method).gate(tokens_of(torch.zeros(1, 2), bools([1, 1])))


class TestPenalty:
    def test_closed_form(self):
        # Two examples, three layers, Z = 16: (1/2 · (4 + 2) + 1/2 · (3 + 2) + 1/2 · (1 + 2)) / 16
        gate_sums = torch.tensor([[4.0, 3.0, 1.0], [2.0, 2.0, 2.0]])
        assert sparsity_penalty(gate_sums, 16).item() == pytest.approx((3 + 2.5 + 1.5) / 16)

    def test_sum_over_layers_of_means_over_examples(self):
        gates = torch.rand(4, 3, 10)  # B, L, N
        layers = [[sum(gates[b, layer].tolist()) / 128 for b in range(4)] for layer in range(3)]
        expected = sum(sum(of_examples) / 4 for of_examples in layers)
        assert sparsity_penalty(gates.sum(dim=2), 128).item() == pytest.approx(expected, rel=1e-5)

    def test_full_gates_cost_length_times_layers_over_z(self):
        assert sparsity_penalty(torch.full((2, 12), 64.0), 128).item() == 12 * 64 / 128

    def test_padding_is_free(self):
        scores, threshold = torch.rand(2, 6), torch.tensor(0.5)
        padded = torch.cat([scores, torch.rand(2, 9)], dim=1)
        real = torch.arange(15).expand(2, 15) < 6
        short = threshold_gate(scores, threshold, real[:, :6], 0.1).sum(dim=1, keepdim=True)
        long = threshold_gate(padded, threshold, real, 0.1).sum(dim=1, keepdim=True)
        assert sparsity_penalty(short, 128).item() == pytest.approx(sparsity_penalty(long, 128).item(), rel=1e-6)

    def test_mean_of_equal_micro_batches_is_the_batch(self):
        gate_sums = torch.rand(6, 4)
        parts = [sparsity_penalty(part, 128).item() for part in gate_sums.split(2)]
        assert sum(parts) / 3 == pytest.approx(sparsity_penalty(gate_sums, 128).item(), rel=1e-5)


class TestTopKSchedule:
    @pytest.mark.parametrize(
        ("rate", "layers", "expected"),
        [
            (0.2, 12, [1, 1, 1, 8.2 / 9, 7.4 / 9, 6.6 / 9, 5.8 / 9, 5 / 9, 4.2 / 9, 3.4 / 9, 2.6 / 9, 0.2]),
            (-0.2, 12, [1, 1, 1, 7.8 / 9, 6.6 / 9, 0.6, 4.2 / 9, 1 / 3, 0.2, 0.6 / 9, 0, 0]),
            (0.25, 6, [1, 1, 1, 0.75, 0.5, 0.25]),
            (0.2, 4, [1, 1, 1, 0.2]),
            (0.5, 3, [1, 1, 1]),
            (0.2, 24, [1, 1, 1, 1, *(1 - 0.04 * step for step in range(1, 21))]),  # ceil(0.15 · 24) = 4 dense layers
            (1.0, 12, [1] * 12),
            (0.0, 6, [1, 1, 1, 2 / 3, 1 / 3, 0]),
        ],
    )
    def test_rates_by_hand(self, rate, layers, expected):
        assert keep_rates(rate, layers) == pytest.approx(expected, abs=1e-9)

    def test_clipping_comes_after_the_line_is_drawn(self):
        # The line to -1 over layers 4, 5, 6 is 1/3, -1/3, -1: layer 4 prunes harder than with a rate of 0.
        assert keep_rates(-1.0, 6) == pytest.approx([1, 1, 1, 1 / 3, 0, 0])
        assert all(rate >= 0 for rate in keep_rates(-10, 24))

    @pytest.mark.parametrize(("layers", "dense"), [(4, 3), (12, 3), (20, 3), (21, 4), (24, 4), (27, 5), (40, 6)])
    def test_the_first_layers_keep_everything(self, layers, dense):
        rates = keep_rates(0.2, layers)  # max(3, ceil(0.15 · L)) layers
        assert rates[:dense] == [1] * dense
        assert all(rate < 1 for rate in rates[dense:])

    @pytest.mark.parametrize("layers", [4, 6, 12, 24])
    def test_last_layers_rate_is_exactly_token_keep_rate(self, layers):
        for percent in range(0, 101, 5):
            assert keep_rates(percent / 100, layers)[-1] == percent / 100

    def test_counts_round_halves_to_even_and_keep_one(self):
        lengths = [1, 3, 5, 7, 9, 11, 128]
        assert keep_counts(0.5, torch.tensor(lengths)).tolist() == [1, 2, 2, 4, 4, 6, 64]
        assert keep_counts(0.0, torch.tensor(lengths)).tolist() == [1] * 7
        assert keep_counts(keep_rates(0.3, 12)[-1], torch.tensor([15])).tolist() == [4]  # round(4.5), not 5

    def test_counts_are_pythons(self):
        lengths = torch.arange(1, 513)
        for rate in (0.05, 0.2, 1 / 3, 0.45, 0.7, 8.2 / 9, 1.0):
            counts = keep_counts(rate, lengths)
            assert counts.dtype == torch.int64
            assert counts.tolist() == [max(1, round(rate * n)) for n in range(1, 513)]


class TestTopKSurvivors:
    def test_most_important_by_hand(self):
        scores = torch.tensor([[0.9, 0.1, 0.4, 0.3, 0.2], [0.9, 0.4, 0.3, 0.2, 0.1]])
        alive = torch.ones(2, 5, dtype=torch.bool)
        survivors = keep_highest(scores, torch.tensor([3, 2]), alive)
        assert survivors.int().tolist() == [[1, 0, 1, 1, 0], [1, 1, 0, 0, 0]]

    def test_classification_token_takes_one_place_even_with_the_lowest_score(self):
        scores, alive = torch.tensor([[0.0, 0.5, 0.6, 0.7]]), torch.ones(1, 4, dtype=torch.bool)
        assert keep_highest(scores, torch.tensor([2]), alive).int().tolist() == [[1, 0, 0, 1]]
        assert keep_highest(scores, torch.tensor([1]), alive).int().tolist() == [[1, 0, 0, 0]]

    def test_ties_go_to_the_earlier_token(self):
        alive = torch.ones(1, 40, dtype=torch.bool)
        survivors = keep_highest(torch.full((1, 40), 0.25), torch.tensor([17]), alive)
        assert survivors[0].nonzero().flatten().tolist() == list(range(17))

    def test_counts_above_what_is_alive_keep_all_that_is_alive(self):
        alive = bools([1, 0, 1, 1, 0])
        assert keep_highest(torch.rand(1, 5), torch.tensor([9]), alive).tolist() == alive.tolist()

    def test_dead_tokens_never_return_whatever_their_score(self):
        alive = bools([1, 0, 1, 1])
        survivors = keep_highest(torch.tensor([[0.1, 9.0, 0.2, 0.3]]), torch.tensor([2]), alive)
        assert survivors.int().tolist() == [[1, 0, 0, 1]]

    def test_leaves_its_arguments_alone(self):
        scores = torch.tensor([[0.1, 0.2]])
        keep_highest(scores, torch.tensor([1]), bools([1, 0]))
        assert scores.tolist() == torch.tensor([[0.1, 0.2]]).tolist()

    def test_equals_sorting_in_plain_python(self):
        scores, alive = torch.rand(8, 30).mul(10).round() / 10, torch.rand(8, 30) < 0.7  # many ties
        alive[:, 0] = True
        counts = torch.randint(1, 25, (8,))
        survivors = keep_highest(scores, counts, alive)
        for example in range(8):
            candidates = [j for j in range(1, 30) if alive[example, j]]
            candidates.sort(key=lambda j: (-scores[example, j].item(), j))
            expected = {0, *candidates[: counts[example] - 1]}
            assert set(survivors[example].nonzero().flatten().tolist()) == expected

    def test_cascade_counts_shares_of_the_input_not_of_what_is_left(self):
        pruner, length = new_pruner(TopK(token_keep_rate=0.25), 6), torch.tensor([10])  # rates 1, 1, 1, .75, .5, .25
        alive, kept = torch.ones(1, 10, dtype=torch.bool), []
        for layer in range(1, 7):
            survivors = pruner.survivors(tokens_of(torch.rand(1, 10), alive, length, layer=layer, num_layers=6))
            assert not (survivors & ~alive).any()
            alive = survivors
            kept.append(int(alive.sum()))
        assert kept == [10, 10, 10, 8, 5, 2]


class TestRegistry:
    def test_the_dense_method_is_the_first(self):
        names = list(all_methods())
        assert names[0] == "none"
        assert names[1:] == sorted(names[1:])
        assert {"absolute_threshold", "topk"} < set(names)

    def test_methods_are_built_from_a_configuration(self):
        config = SimpleNamespace(final_token_threshold=0.4, threshold_temperature=0.25, token_keep_rate=0.5)
        threshold, topk = AbsoluteThreshold.from_config(config), TopK.from_config(config)
        assert (threshold.final_token_threshold, threshold.temperature) == (0.4, 0.25)
        assert new_pruner(threshold, 4).thresholds.tolist() == torch.tensor(threshold_schedule(0.4, 4)).tolist()
        assert topk.rates(4) == [1, 1, 1, 0.5]
        assert not list(new_pruner(topk).parameters())

    def test_no_pruning_keeps_everything_and_reads_nothing(self):
        alive = bools([1, 1, 0])
        assert NoPruning().survivors(tokens_of(torch.zeros(1, 3), alive), None) is alive
        assert not NoPruning().reads
        assert AbsoluteThreshold().reads == TopK().reads == {"received"}

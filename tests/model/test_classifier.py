"""The model, against Hugging Face's own and against a forward pass that really removes tokens."""

import json
import logging
import math
import os
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from helpers import layer_flops
from torch.nn.functional import mse_loss
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    pipeline,
)

from ltp import LTPConfig, LTPForSequenceClassification
from ltp.data.demo import demo_tokenizer
from ltp.execution.attention import masked_attention
from ltp.pruning.methods.absolute_threshold import AbsoluteThreshold, threshold_schedule
from ltp.pruning.methods.none import NoPruning
from ltp.pruning.methods.topk import TopK

THRESHOLD = {"prune_mode": "absolute_threshold", "final_token_threshold": 0.01}
TOPK = {"prune_mode": "topk", "token_keep_rate": -0.2}
METHODS = {
    "threshold": THRESHOLD,
    "threshold-mean_norm": {**THRESHOLD, "final_token_threshold": 0.1, "scoring_mode": "mean_norm"},
    "topk": TOPK,
    "topk-mean_norm": {**TOPK, "token_keep_rate": 0.2, "scoring_mode": "mean_norm"},
}
SOFT = {**THRESHOLD, "masking_mode": "soft", "threshold_temperature": 5e-3, "lambda_threshold": 0.15}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LABELS = torch.tensor([0, 2, 1, 1])


@pytest.fixture(params=METHODS.values(), ids=METHODS.keys())
def method(request):
    return request.param


@pytest.fixture
def batch(dense, sentences, make_batch):
    return make_batch(dense, sentences)


def close(actual, expected, tolerance=1e-5):
    return torch.allclose(actual, expected, rtol=tolerance, atol=tolerance)


# A forward pass written out: one example, no padding, Hugging Face's modules, heads in a loop.


def attend(layer, hidden):
    """Context (n, D) of one example and, per key, the attention that it received, summed over heads and queries."""
    attention = layer.attention.self
    query, key, value = attention.query(hidden), attention.key(hidden), attention.value(hidden)
    size = attention.attention_head_size
    contexts, received = [], 0
    for head in range(attention.num_attention_heads):
        part = slice(head * size, (head + 1) * size)
        probs = torch.softmax(query[:, part] @ key[:, part].T / math.sqrt(size), dim=-1)
        contexts.append(probs @ value[:, part])
        received = received + probs.sum(dim=0)
    return torch.cat(contexts, dim=-1), received


def finish(layer, context, residual):
    """The rest of a layer, after attention."""
    hidden = layer.attention.output(context, residual)
    return layer.output(layer.intermediate(hidden), hidden)


def classify(dense, hidden):
    hidden = hidden[None]  # (1, n, D): the pooler and RoBERTa's head read position 0
    return dense.classifier(dense.base_model.pooler(hidden) if dense.base_model.pooler else hidden)[0]


def keep_above_threshold(scores, layer, final):
    """Hard rule on six layers: places in ``scores`` that survive, and how far the nearest score is from the rule."""
    threshold = final * layer / 6
    kept = [j for j, score in enumerate(scores) if j == 0 or score >= threshold]
    return kept, min((abs(score - threshold) for score in scores[1:]), default=1.0)


def keep_most_important(scores, rates, layer, length):
    count = max(1, round(rates[layer - 1] * length))
    ranking = sorted(range(1, len(scores)), key=lambda j: -scores[j])
    kept, dropped = ranking[: count - 1], ranking[count - 1 :]
    margin = scores[kept[-1]] - scores[dropped[0]] if kept and dropped else 1.0
    return sorted([0, *kept]), margin


TOPK_RATES = {-0.2: [1, 1, 1, 0.6, 0.2, 0], 0.2: [1, 1, 1, 2.2 / 3, 1.4 / 3, 0.2]}  # six layers, by hand


@torch.no_grad()
def run_removing_tokens(dense, ids, prune_mode, scoring_mode="mean", final_token_threshold=None, token_keep_rate=None):
    """Logits and tokens alive of one example; what does not survive is cut out right after the attention."""
    hidden = dense.base_model.embeddings(input_ids=torch.tensor([ids]))[0]
    lengths = [len(ids)]
    for number, layer in enumerate(dense.base_model.encoder.layer, start=1):
        context, received = attend(layer, hidden)
        divisor = 128 if scoring_mode == "mean" else len(hidden)
        scores = (received.double() / (dense.config.num_attention_heads * divisor)).tolist()
        if prune_mode == "topk":
            kept, margin = keep_most_important(scores, TOPK_RATES[token_keep_rate], number, len(ids))
        else:
            kept, margin = keep_above_threshold(scores, number, final_token_threshold)
        assert margin > 1e-6, "a score too near the rule for a comparison in float32: take another seed"
        hidden = finish(layer, context[kept], hidden[kept])
        lengths.append(len(kept))
    return classify(dense, hidden), lengths


def run_soft(dense, ids, thresholds, temperature):
    """Logits and Σ_l Σ_j m_l(j) of one example under the soft rule."""
    hidden = dense.base_model.embeddings(input_ids=torch.tensor([ids]))[0]
    total = 0.0
    for layer, threshold in zip(dense.base_model.encoder.layer, thresholds, strict=True):
        context, received = attend(layer, hidden)
        scores = received / (dense.config.num_attention_heads * 128)
        rest = 1 / (1 + torch.exp(-(scores[1:] - threshold) / temperature))
        gate = torch.cat([torch.ones(1), rest])
        hidden = finish(layer, context, hidden) * gate[:, None]
        total = total + gate.sum()
    return classify(dense, hidden), total


def cross_entropy_in_plain_python(logits, labels):
    losses = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        losses.append(math.log(sum(math.exp(logit) for logit in row)) - row[label])
    return sum(losses) / len(losses)


class TestDense:
    """With pruning off it is the Hugging Face model."""

    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    def test_logits_equal_hugging_faces(self, make_dense, family, sentences, make_batch, implementation):
        dense = make_dense(family, attn_implementation=implementation)
        batch = make_batch(dense, sentences)
        with torch.no_grad():
            expected = dense(**batch).logits
            output = LTPForSequenceClassification.from_dense(dense)(**batch)
        assert close(output.logits, expected)
        assert output.token_lengths.tolist() == [[n] * 7 for n in (14, 9, 17, 3)]
        assert output.loss is None
        assert output.gate_sums is None
        assert output.hidden_states is None
        assert output.attentions is None

    def test_hidden_states_and_attentions_equal_eager_hugging_faces(self, make_dense, family, sentences, make_batch):
        dense = make_dense(family, attn_implementation="eager")
        batch = make_batch(dense, sentences)
        wanted = {"output_hidden_states": True, "output_attentions": True}
        with torch.no_grad():
            expected = dense(**batch, **wanted)
            output = LTPForSequenceClassification.from_dense(dense)(**batch, **wanted)
        assert len(output.hidden_states) == 7
        assert len(output.attentions) == 6
        for example, ids in enumerate(sentences):
            n = len(ids)
            for mine, theirs in zip(output.hidden_states, expected.hidden_states, strict=True):
                assert close(mine[example, :n], theirs[example, :n])
            for mine, theirs in zip(output.attentions, expected.attentions, strict=True):
                assert close(mine[example, :, :n], theirs[example, :, :n])

    def test_token_types_and_positions_reach_the_embeddings(self, dense, batch):
        tokens = batch["input_ids"].shape[1]
        position_ids = torch.arange(tokens).flip(0)[None] + 3
        types = torch.arange(tokens).ge(tokens // 2).long().expand_as(batch["input_ids"])
        extra = {"position_ids": position_ids, "token_type_ids": types % dense.config.type_vocab_size}
        model = LTPForSequenceClassification.from_dense(dense)
        with torch.no_grad():
            assert close(model(**batch, **extra).logits, dense(**batch, **extra).logits)
            assert not close(model(**batch, **extra).logits, dense(**batch).logits, 1e-2)

    def test_without_a_mask_every_token_is_real(self, dense, sentences):
        ids = torch.tensor([sentences[0]])
        with torch.no_grad():
            output = LTPForSequenceClassification.from_dense(dense)(ids)
            assert close(output.logits, dense(ids).logits)
        assert output.token_lengths.tolist() == [[14] * 7]

    def test_loss_equals_hugging_faces(self, dense, batch):
        with torch.no_grad():
            expected = dense(**batch, labels=LABELS).loss
            actual = LTPForSequenceClassification.from_dense(dense)(**batch, labels=LABELS).loss
        assert close(actual, expected)

    def test_wrapping_shares_the_weights_and_keeps_the_mode(self, dense):
        assert LTPForSequenceClassification.from_dense(dense).dense is dense
        assert not LTPForSequenceClassification.from_dense(dense).training
        assert LTPForSequenceClassification.from_dense(dense.train(), **THRESHOLD).training


class TestPruned:
    def test_equals_a_forward_pass_that_removes_tokens(self, dense, method, sentences, batch):
        with torch.no_grad():
            output = LTPForSequenceClassification.from_dense(dense, **method)(**batch)
        for example, ids in enumerate(sentences):
            logits, lengths = run_removing_tokens(dense, ids, **method)
            assert output.token_lengths[example].tolist() == lengths
            assert close(output.logits[example], logits)
        longest = output.token_lengths[2].tolist()
        assert len(set(longest)) >= 4, "the comparison says little unless several layers prune"

    def test_alone_padded_further_reordered_or_with_batch_mates(self, dense, method, sentences, make_batch):
        model = LTPForSequenceClassification.from_dense(dense, **method)
        order = [2, 0, 3, 1]
        with torch.no_grad():
            together = model(**make_batch(dense, sentences))
            padded = model(**make_batch(dense, sentences, length=40))
            reordered = model(**make_batch(dense, [sentences[i] for i in order]))
            alone = [model(**make_batch(dense, [ids])) for ids in sentences]
        assert padded.token_lengths.tolist() == together.token_lengths.tolist()
        assert close(padded.logits, together.logits)
        assert reordered.token_lengths.tolist() == together.token_lengths[order].tolist()
        assert close(reordered.logits, together.logits[order])
        for example, output in enumerate(alone):
            assert output.token_lengths.tolist() == [together.token_lengths[example].tolist()]
            assert close(output.logits[0], together.logits[example])

    def test_input_embeddings_equal_input_ids(self, dense, method, batch):
        model = LTPForSequenceClassification.from_dense(dense, **method)
        with torch.no_grad():
            by_ids = model(**batch)
            embeddings = dense.get_input_embeddings()(batch["input_ids"])
            by_embeddings = model(inputs_embeds=embeddings, attention_mask=batch["attention_mask"])
        assert close(by_embeddings.logits, by_ids.logits)
        assert by_embeddings.token_lengths.tolist() == by_ids.token_lengths.tolist()

    def test_explicit_positions_equal_the_defaults(self, dense, family, method, batch):
        model = LTPForSequenceClassification.from_dense(dense, **method)
        positions = torch.arange(17)[None] + (2 if family == "roberta" else 0)  # RoBERTa counts from its padding id
        with torch.no_grad():
            assert close(model(**batch, position_ids=positions).logits, model(**batch).logits)

    def test_score_length_is_the_constant_z(self, dense, batch):
        with torch.no_grad():
            by_128 = LTPForSequenceClassification.from_dense(dense, **THRESHOLD)(**batch)
            twice = {**THRESHOLD, "final_token_threshold": 0.02, "score_length": 64}
            by_64 = LTPForSequenceClassification.from_dense(dense, **twice)(**batch)
        assert by_64.token_lengths.tolist() == by_128.token_lengths.tolist()
        assert close(by_64.logits, by_128.logits)

    def test_threshold_0_prunes_nothing(self, dense, batch):
        model = LTPForSequenceClassification.from_dense(dense, **{**THRESHOLD, "final_token_threshold": 0.0})
        with torch.no_grad():
            output = model(**batch)
            assert close(output.logits, dense(**batch).logits)
        assert output.token_lengths.tolist() == [[n] * 7 for n in (14, 9, 17, 3)]

    def test_only_the_classification_token_is_left_by_thresholds_nobody_reaches(self, dense, batch):
        model = LTPForSequenceClassification.from_dense(dense, **{**THRESHOLD, "final_token_threshold": 0.99})
        with torch.no_grad():
            output = model(**batch)
        assert output.token_lengths.tolist() == [[n, 1, 1, 1, 1, 1, 1] for n in (14, 9, 17, 3)]
        assert output.logits.isfinite().all()

    def test_a_tuple_holds_what_the_output_holds(self, dense, batch):
        model = LTPForSequenceClassification.from_dense(dense, **THRESHOLD)
        with torch.no_grad():
            named, plain = model(**batch, labels=LABELS), model(**batch, labels=LABELS, return_dict=False)
        assert list(named) == ["loss", "logits", "token_lengths"]
        assert all(torch.equal(a, b) for a, b in zip(named.to_tuple(), plain, strict=True))

    def test_cost_model_against_what_torch_counts_while_tokens_are_removed(self, dense, sentences):
        """The literature's count charges the output projection for all tokens that enter a layer."""
        for ids in sentences:
            with FlopCounterMode(display=False) as counter:
                _, lengths = run_removing_tokens(dense, ids, **THRESHOLD)
            head = FlopCounterMode(display=False)
            with head, torch.no_grad():
                classify(dense, torch.zeros(1, 32))
            left = sum(n - m for n, m in pairwise(lengths))
            expected = layer_flops(torch.tensor([lengths]), 32, 48).sum().item() - 2 * 32**2 * left
            assert counter.get_total_flops() - head.get_total_flops() == expected


class TestSoftTraining:
    @pytest.fixture
    def model(self, make_dense, family):
        return LTPForSequenceClassification.from_dense(make_dense(family, **NO_DROPOUT), **SOFT).train()

    def test_objective_is_cross_entropy_plus_lambda_times_the_penalty(self, model, sentences, make_batch):
        output = model(**make_batch(model, sentences), labels=LABELS)
        runs = [run_soft(model.dense, ids, torch.tensor(threshold_schedule(0.01, 6)), 5e-3) for ids in sentences]
        for example, (logits, total) in enumerate(runs):
            assert close(output.logits[example], logits)
            assert output.gate_sums[example].sum().item() == pytest.approx(total.item(), rel=1e-5)
        penalty = sum(total.item() for _, total in runs) / 4 / 128
        assert penalty < 0.9 * sum(map(len, sentences)) * 6 / 4 / 128, "the gates should be partly closed"
        task_loss = cross_entropy_in_plain_python(output.logits, LABELS)
        assert output.loss.item() == pytest.approx(task_loss + 0.15 * penalty, rel=1e-5)

    def test_the_penalty_divides_by_score_length(self, model, sentences, make_batch):
        model.set_pruning(score_length=64)
        output = model(**make_batch(model, sentences), labels=LABELS)
        penalty = output.gate_sums.sum().item() / 4 / 64
        task_loss = cross_entropy_in_plain_python(output.logits, LABELS)
        assert output.loss.item() == pytest.approx(task_loss + 0.15 * penalty, rel=1e-5)

    def test_all_real_tokens_stay(self, model, sentences, make_batch):
        output = model(**make_batch(model, sentences))
        assert output.token_lengths.tolist() == [[n] * 7 for n in (14, 9, 17, 3)]
        assert output.gate_sums.shape == (4, 6)
        assert output.gate_sums.dtype == torch.float32

    def test_independent_of_padding_and_of_accumulation(self, model, sentences, make_batch):
        loss = model(**make_batch(model, sentences), labels=LABELS).loss
        padded = model(**make_batch(model, sentences, length=40), labels=LABELS).loss
        alone = [
            model(**make_batch(model, [ids]), labels=label[None]).loss
            for ids, label in zip(sentences, LABELS, strict=True)
        ]
        assert close(padded, loss)
        assert close(sum(alone) / 4, loss)

    def test_gradients_reach_every_threshold_and_weight(self, model, sentences, make_batch):
        model(**make_batch(model, sentences), labels=LABELS).loss.backward()
        assert (model.thresholds.grad != 0).all()
        without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        # A key's bias shifts all logits of a query alike: its gradient is zero but for rounding.
        assert [name for name in without if not name.endswith("key.bias")] == []

    def test_the_penalty_alone_moves_weights_through_the_scores(self, model, sentences, make_batch):
        output = model(**make_batch(model, sentences))
        output.gate_sums[:, 0].sum().backward()
        first, second = (layer.attention.self for layer in model.dense.base_model.encoder.layer[:2])
        assert first.query.weight.grad.any()
        assert first.key.weight.grad.any()
        assert not first.value.weight.grad.any()
        assert not second.query.weight.grad.any()
        assert (model.thresholds.grad != 0).tolist() == [True, False, False, False, False, False]

    def test_threshold_gradients_against_finite_differences(self, model, sentences, make_batch):
        model.double()  # importance stays float32, hence the tolerance
        batch = {**make_batch(model, sentences), "labels": LABELS}
        model(**batch).loss.backward()
        step, thresholds = 1e-4, model.thresholds.detach().clone()
        for layer in range(6):
            losses = []
            for sign in (1, -1):
                with torch.no_grad():
                    model.pruner.thresholds.copy_(thresholds)
                    model.pruner.thresholds[layer] += sign * step
                    losses.append(model(**batch).loss.item())
            slope = (losses[0] - losses[1]) / (2 * step)
            assert model.thresholds.grad[layer].item() == pytest.approx(slope, rel=1e-2, abs=1e-3)

    def test_evaluation_uses_the_hard_rule(self, model, sentences, make_batch):
        batch = make_batch(model, sentences)
        hard = LTPForSequenceClassification.from_dense(model.dense, **THRESHOLD).eval()
        with torch.no_grad():
            actual, expected = model.eval()(**batch, labels=LABELS), hard(**batch, labels=LABELS)
        assert actual.gate_sums is None
        assert actual.token_lengths.tolist() == expected.token_lengths.tolist()
        assert torch.equal(actual.logits, expected.logits)
        assert actual.loss.item() == pytest.approx(cross_entropy_in_plain_python(expected.logits, LABELS), rel=1e-5)

    def test_first_layers_gates_become_its_survivors_as_temperature_goes_to_0(self, model, sentences, make_batch):
        batch = make_batch(model, sentences)
        model.set_pruning(threshold_temperature=1e-9, final_token_threshold=0.03)
        soft = model(**batch).gate_sums[:, 0]
        hard = model.eval()(**batch).token_lengths[:, 1]
        assert close(soft, hard.float())
        assert hard.tolist() != [14, 9, 17, 3]

    def test_thresholds_train_in_float32_under_bfloat16_autocast(self, model, sentences, make_batch):
        batch = {**make_batch(model, sentences), "labels": LABELS}
        model(**batch).loss.backward()
        expected = model.thresholds.grad.clone()
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(**batch)
        output.loss.backward()
        assert output.loss.dtype == torch.float32
        assert output.gate_sums.dtype == torch.float32
        assert model.thresholds.dtype == torch.float32
        gradient = model.thresholds.grad
        assert gradient.dtype == torch.float32
        assert gradient.isfinite().all()
        assert (gradient != 0).all()
        # bfloat16 has 8 bits, so a single threshold may be a few per cent off; all of them are not
        assert (gradient - expected).norm() < 0.02 * expected.norm()


class TestHardTraining:
    def test_tokens_leave_and_no_gradient_reaches_the_thresholds(self, make_dense, family, sentences, make_batch):
        dense = make_dense(family, **NO_DROPOUT)
        model = LTPForSequenceClassification.from_dense(dense, **THRESHOLD, lambda_threshold=0.15)
        batch = {**make_batch(dense, sentences), "labels": LABELS}
        with torch.no_grad():
            evaluated = model(**batch)
        trained = model.train()(**batch)
        trained.loss.backward()
        assert trained.token_lengths.tolist() == evaluated.token_lengths.tolist()
        assert torch.equal(trained.logits, evaluated.logits)
        assert trained.gate_sums is None
        assert trained.loss.item() == pytest.approx(cross_entropy_in_plain_python(trained.logits, LABELS), rel=1e-5)
        assert model.thresholds.grad is None
        assert dense.base_model.encoder.layer[0].attention.self.query.weight.grad.any()

    def test_dropout_is_active_in_training_only(self, dense, batch):
        model = LTPForSequenceClassification.from_dense(dense, **THRESHOLD)
        with torch.no_grad():
            assert torch.equal(model(**batch).logits, model(**batch).logits)
            model.train()
            assert not close(model(**batch).logits, model(**batch).logits, 1e-3)

    def test_importance_is_taken_before_dropout(self, make_dense, family, sentences, make_batch):
        dense = make_dense(family, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)
        batch = make_batch(dense, sentences)
        model = LTPForSequenceClassification.from_dense(dense, **THRESHOLD)
        with torch.no_grad():
            evaluated = model(**batch, output_attentions=True)
            trained = model.train()(**batch, output_attentions=True)
        assert close(trained.attentions[0], evaluated.attentions[0])
        assert trained.token_lengths[:, 1].tolist() == evaluated.token_lengths[:, 1].tolist()
        for probs in trained.attentions:
            assert close(probs.sum(dim=-1), torch.ones(probs.shape[:-1]))
        assert not close(trained.logits, evaluated.logits, 1e-3)


class TestAttention:
    def test_returns_probabilities_before_dropout_and_a_context_after_it(self):
        query, key, value = torch.randn(3, 2, 5, 4, 8).unbind()
        alive = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0]], dtype=torch.bool)
        context, probs = masked_attention(query, key, value, alive, 0.0)
        dropped, same_probs = masked_attention(query, key, value, alive, 0.5)
        assert torch.equal(probs, same_probs)
        assert not close(context, dropped, 1e-2)

    def test_equals_torchs_own(self):
        query, key, value = torch.randn(3, 2, 5, 4, 8).unbind()
        alive = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0]], dtype=torch.bool)
        context, probs = masked_attention(query, key, value, alive, 0.0)
        expected = torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in (query, key, value)), attn_mask=alive[:, None, None, :]
        )
        assert context.shape == (2, 5, 32)
        assert close(context, expected.transpose(1, 2).flatten(2))
        assert (probs[1, :, :, [1, 3, 4]] == 0).all()


class TestRegression:
    def test_loss_is_the_mean_squared_error(self, make_dense, family, sentences, make_batch):
        dense = make_dense(family, num_labels=1)
        model = LTPForSequenceClassification.from_dense(dense, **THRESHOLD)
        targets = [0.5, 5.0, 2.25, 0.0]
        with torch.no_grad():
            output = model(**make_batch(dense, sentences), labels=torch.tensor(targets))
        predictions = output.logits.flatten().tolist()
        assert output.logits.shape == (4, 1)
        squares = [(p - t) ** 2 for p, t in zip(predictions, targets, strict=True)]
        assert output.loss.item() == pytest.approx(sum(squares) / 4, rel=1e-5)

    def test_soft_objective(self, make_dense, sentences, make_batch):
        dense = make_dense("bert", num_labels=1, **NO_DROPOUT).train()
        model, targets = LTPForSequenceClassification.from_dense(dense, **SOFT), torch.tensor([0.5, 5.0, 2.25, 0.0])
        output = model(**make_batch(dense, sentences), labels=targets)
        penalty = output.gate_sums.sum().item() / 4 / 128
        expected = mse_loss(output.logits[:, 0], targets).item() + 0.15 * penalty
        assert output.loss.item() == pytest.approx(expected, rel=1e-5)


class TestBadInput:
    @pytest.fixture
    def model(self, make_dense):
        return LTPForSequenceClassification.from_dense(make_dense("bert"), **THRESHOLD)

    @pytest.mark.parametrize("mask", [[[0, 1, 1], [1, 1, 1]], [[1, 1, 1], [0, 0, 0]]])
    def test_padding_on_the_left(self, model, mask):
        message = (
            r"^position 0 of an example is padding, or it has no real token; the classification token must stand "
            r"there: pad on the right \(tokenizer.padding_side = 'right'\)$"
        )
        with pytest.raises(ValueError, match=message):
            model(torch.tensor([[2, 5, 3], [2, 6, 3]]), torch.tensor(mask))

    def test_input_ids_or_embeddings_but_not_both(self, model):
        with pytest.raises(ValueError, match=r"^give either input_ids or inputs_embeds$"):
            model(attention_mask=torch.ones(1, 3))
        with pytest.raises(ValueError, match=r"^give either input_ids or inputs_embeds$"):
            model(input_ids=torch.tensor([[2, 5, 3]]), inputs_embeds=torch.randn(1, 3, 32))

    THRESHOLDS = "in [0, 1); published: 0.004–0.016"
    OUT_OF_RANGE = (
        (
            "prune_mode",
            "threshold",
            "prune_mode is 'threshold'; that is an option of prune=; the method is absolute_threshold",
        ),
        ("prune_mode", "threshhold", "prune_mode is 'threshhold'; did you mean threshold or absolute_threshold?"),
        (
            "scoring_mode",
            "max",
            "scoring_mode is 'max'; it must be one of mean, mean_norm, max_norm, off_diagonal, class, cumulated, "
            "value_weighted",
        ),
        ("score_length", 0, "score_length is 0; it must be 1 or more (tokens)"),
        ("final_token_threshold", -0.1, f"final_token_threshold is -0.1; it must be {THRESHOLDS}"),
        ("final_token_threshold", 1, f"final_token_threshold is 1; it must be {THRESHOLDS}"),
        ("final_token_threshold", math.nan, f"final_token_threshold is nan; it must be {THRESHOLDS}"),
        ("final_token_threshold", "0.01", "final_token_threshold is '0.01'; it must be a number"),
        ("masking_mode", "medium", "masking_mode is 'medium'; it must be one of hard, soft, survival"),
        (
            "threshold_temperature",
            0,
            "threshold_temperature is 0; it must be in (0, 1]; published: 1e-5 to 2e-3",
        ),
        ("lambda_threshold", -1, "lambda_threshold is -1; it must be 0 or more; published: 0.01–0.2"),
        ("lambda_threshold", math.inf, "lambda_threshold is inf; it must be 0 or more; published: 0.01–0.2"),
    )

    @pytest.mark.parametrize(("key", "value", "message"), OUT_OF_RANGE)
    def test_values_out_of_range_name_the_key(self, model, key, value, message):
        with pytest.raises(ValueError) as raised:  # noqa: PT011 (compared whole below)
            LTPConfig(**THRESHOLD | {key: value})
        assert str(raised.value) == message
        before = model.config.to_dict()
        with pytest.raises(ValueError) as raised:  # noqa: PT011
            model.set_pruning(**{key: value})
        assert str(raised.value) == message
        assert model.config.to_dict() == before

    @pytest.mark.parametrize("prune_mode", ["none", "topk"])
    def test_soft_masking_needs_thresholds_to_learn(self, model, prune_mode):
        message = f"masking_mode is 'soft'; it must be hard with prune_mode {prune_mode}, which has nothing to learn"
        with pytest.raises(ValueError) as raised:  # noqa: PT011
            LTPConfig(prune_mode=prune_mode, masking_mode="soft")
        assert str(raised.value) == message
        with pytest.raises(ValueError) as raised:  # noqa: PT011
            model.set_pruning(prune_mode=prune_mode, masking_mode="soft")
        assert str(raised.value) == message

    def test_unknown_pruning_keys(self, model):
        with pytest.raises(
            ValueError, match=r"^temperature is an unknown pruning setting; did you mean threshold_temperature\?$"
        ):
            model.set_pruning(temperature=1e-3, keep_rate=0.2)

    def test_unknown_backbone(self):
        dense = GPT2ForSequenceClassification(GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=1))
        with pytest.raises(ValueError, match=r"^model_type is 'gpt2'; ltp prunes albert, bert, .*xlm-roberta\."):
            LTPForSequenceClassification.from_dense(dense)

    def test_not_a_classifier(self, make_dense):
        with pytest.raises(ValueError, match=r"^BertModel is not a BertForSequenceClassification$"):
            LTPForSequenceClassification.from_dense(BertModel(make_dense("bert").config))


class TestDenseDirectory:
    """``from_pretrained`` of a dense classifier's directory."""

    @pytest.fixture
    def directory(self, dense, tmp_path):
        dense.save_pretrained(tmp_path)
        return tmp_path

    def write_keys(self, directory, **keys):
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | keys))

    def test_without_pruning_keys_nothing_is_pruned(self, directory, dense, batch):
        model = LTPForSequenceClassification.from_pretrained(directory)
        assert model.config.prune_mode == "none"
        assert isinstance(model.pruner.method, NoPruning)
        assert model.thresholds is None
        assert not any(module.training for module in model.modules())
        with torch.no_grad():
            assert close(model(**batch).logits, dense(**batch).logits)

    def test_a_null_key_is_a_missing_one(self, directory):
        self.write_keys(directory, prune_mode=None, score_length=None)
        assert LTPForSequenceClassification.from_pretrained(directory).config.prune_mode == "none"
        config = LTPForSequenceClassification.from_pretrained(directory, prune_mode="topk").config
        assert (config.prune_mode, config.score_length) == ("topk", 128)

    def test_pruning_keys_in_the_file_are_honoured(self, directory, method, dense, batch):
        self.write_keys(directory, **method)
        model = LTPForSequenceClassification.from_pretrained(directory)
        expected = LTPForSequenceClassification.from_dense(dense, **method)
        assert {key: getattr(model.config, key) for key in method} == method
        with torch.no_grad():
            actual, expected = model(**batch), expected(**batch)
        assert actual.token_lengths.tolist() == expected.token_lengths.tolist()
        assert close(actual.logits, expected.logits)

    def test_arguments_win_over_the_file_and_the_file_over_the_defaults(self, directory):
        self.write_keys(directory, **THRESHOLD, score_length=64, scoring_mode="mean_norm")
        model = LTPForSequenceClassification.from_pretrained(
            directory, final_token_threshold=0.02, scoring_mode="mean", lambda_threshold=0.1
        )
        assert model.config.pruning == {
            "prune_mode": "absolute_threshold",
            "masking_mode": "hard",
            "sliding_layers": "skip",
            "scoring_mode": "mean",
            "score_length": 64,
            "final_token_threshold": 0.02,
            "threshold_shape": "rising",
            "threshold_temperature": 1e-3,
            "lambda_threshold": 0.1,
        }
        assert torch.equal(model.thresholds, torch.tensor(threshold_schedule(0.02, 6)))
        other = LTPForSequenceClassification.from_pretrained(directory, prune_mode="topk", token_keep_rate=-0.2)
        assert isinstance(other.pruner.method, TopK)

    def test_a_value_out_of_range_in_the_file_names_the_key(self, directory):
        self.write_keys(directory, **THRESHOLD | {"final_token_threshold": 4.0})
        with pytest.raises(
            ValueError, match=r"^final_token_threshold is 4.0; it must be in \[0, 1\); published: 0.004–0.016$"
        ):
            LTPForSequenceClassification.from_pretrained(directory)

    def test_a_float16_file_loads_as_float32(self, dense, tmp_path, batch):
        dense.half().save_pretrained(tmp_path)
        model = LTPForSequenceClassification.from_pretrained(tmp_path, **THRESHOLD)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        with torch.no_grad():
            expected = LTPForSequenceClassification.from_dense(dense.float(), **THRESHOLD)(**batch)
            assert close(model(**batch).logits, expected.logits)


class TestOwnDirectory:
    """``save_pretrained``, as a run writes ``model/``, and back."""

    LEARNED = (0.0011, 0.0022, 0.0055, 0.0044, 0.0077, 0.0099)

    @pytest.fixture
    def model(self, dense):
        model = LTPForSequenceClassification.from_dense(dense, **SOFT)
        with torch.no_grad():
            model.thresholds.copy_(torch.tensor(self.LEARNED))
        return model

    @pytest.fixture
    def directory(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        return tmp_path

    @pytest.mark.parametrize("loader", [AutoModelForSequenceClassification, LTPForSequenceClassification])
    def test_round_trip_keeps_logits_and_learned_thresholds(self, loader, model, directory, batch):
        loaded = loader.from_pretrained(directory)
        assert type(loaded) is LTPForSequenceClassification
        assert torch.equal(loaded.thresholds, torch.tensor(self.LEARNED))
        assert loaded.config.to_dict() == model.config.to_dict() | {"_name_or_path": str(directory)}
        with torch.no_grad():
            expected, actual = model(**batch), loaded(**batch)
        assert torch.equal(actual.logits, expected.logits)
        assert actual.token_lengths.tolist() == expected.token_lengths.tolist()
        assert all(torch.equal(p, loaded.get_parameter(name)) for name, p in model.named_parameters())

    def test_pruning_keys_stand_at_the_top_level_of_the_file(self, directory, family):
        content = json.loads((directory / "config.json").read_text())
        assert content["model_type"] == "ltp"
        keys = {"prune_mode", "scoring_mode", "score_length", "final_token_threshold", "token_keep_rate"}
        assert {key: content[key] for key in keys & content.keys()} == {
            "prune_mode": "absolute_threshold",
            "scoring_mode": "mean",
            "score_length": 128,
            "final_token_threshold": 0.01,
        }
        assert content["dense_config"]["model_type"] == family
        assert not set(content["dense_config"]) & {*keys, "id2label", "label2id"}

    def test_the_configuration_loads_by_itself_and_knows_the_sizes(self, directory, family):
        config = AutoConfig.from_pretrained(directory)
        assert type(config) is LTPConfig
        assert config.dense_model_type == family
        sizes = (config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_attention_heads)
        assert sizes == (32, 48, 6, 4)
        assert (config.vocab_size, config.num_labels) == (100, 3)

    def test_sizes_that_the_file_leaves_out_are_the_backbones_defaults(self):
        config = LTPConfig(dense_config={"model_type": "bert", "hidden_size": 128})
        assert (config.hidden_size, config.num_hidden_layers) == (128, BertConfig().num_hidden_layers)

    def test_labels_keep_their_names(self, make_dense, tmp_path):
        names = {0: "no", 1: "maybe", 2: "yes"}
        dense = make_dense("bert", id2label=names, label2id={name: i for i, name in names.items()})
        LTPForSequenceClassification.from_dense(dense).save_pretrained(tmp_path)
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert loaded.config.id2label == names
        assert loaded.dense.config.id2label == names

    def test_arguments_win_over_the_file(self, directory):
        topk = LTPForSequenceClassification.from_pretrained(
            directory, prune_mode="topk", token_keep_rate=0.5, masking_mode="hard"
        )
        assert topk.pruner.method.token_keep_rate == 0.5
        assert topk.thresholds is None
        restarted = LTPForSequenceClassification.from_pretrained(directory, final_token_threshold=0.02)
        assert torch.equal(restarted.thresholds, torch.tensor(threshold_schedule(0.02, 6)))
        same = LTPForSequenceClassification.from_pretrained(directory, final_token_threshold=0.01, masking_mode="hard")
        assert torch.equal(same.thresholds, torch.tensor(self.LEARNED))

    def test_thresholds_missing_from_the_weights_follow_the_schedule(self, make_dense, tmp_path):
        LTPForSequenceClassification.from_dense(make_dense("bert")).save_pretrained(tmp_path)
        path = tmp_path / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | THRESHOLD))
        model = LTPForSequenceClassification.from_pretrained(tmp_path)
        assert torch.equal(model.thresholds, torch.tensor(threshold_schedule(0.01, 6)))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_thresholds_are_not_rounded_by_loading_in_half_precision(self, directory, dtype):
        model = LTPForSequenceClassification.from_pretrained(directory, dtype=dtype)
        assert model.dense.dtype == dtype
        assert model.thresholds.dtype == torch.float32
        assert torch.equal(model.thresholds, torch.tensor(self.LEARNED))

    def test_a_float16_file_loads_as_float32(self, model, tmp_path):
        model.half().save_pretrained(tmp_path)
        loaded = LTPForSequenceClassification.from_pretrained(tmp_path)
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}

    @pytest.mark.slow
    def test_without_ltp_it_fails_to_load_rather_than_run_unpruned(self, make_dense, tmp_path):
        LTPForSequenceClassification.from_dense(make_dense("bert"), **THRESHOLD).save_pretrained(tmp_path)
        code = (
            "import sys; from transformers import AutoModelForSequenceClassification as Auto;"
            "assert 'ltp' not in sys.modules; Auto.from_pretrained(sys.argv[1])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path],
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert "ValueError" in done.stderr
        assert "model type `ltp`" in done.stderr


class TestSetPruning:
    @pytest.fixture
    def model(self, make_dense):
        model = LTPForSequenceClassification.from_dense(make_dense("bert"), **THRESHOLD)
        with torch.no_grad():
            model.thresholds.mul_(1.5)
        return model

    @pytest.mark.parametrize(
        "change",
        [
            {},
            {"masking_mode": "soft", "lambda_threshold": 0.1, "threshold_temperature": 1e-4},
            {"scoring_mode": "mean_norm"},
            {"final_token_threshold": 0.01},
        ],
        ids=str,
    )
    def test_learned_thresholds_are_kept(self, model, change):
        learned = model.thresholds.detach().clone()
        model.set_pruning(**change)
        assert torch.equal(model.thresholds, learned)
        assert {key: getattr(model.config, key) for key in change} == change

    def test_another_final_token_threshold_starts_them_again(self, model, caplog):
        with caplog.at_level(logging.WARNING, logger="ltp"):
            model.set_pruning(final_token_threshold=0.02)
        assert torch.equal(model.thresholds, torch.tensor(threshold_schedule(0.02, 6)))
        assert caplog.messages == ["thresholds start again from final_token_threshold=0.02"]

    def test_the_soft_rule_sees_the_new_temperature(self, model):
        model.set_pruning(threshold_temperature=0.5)
        assert model.pruner.method.temperature == 0.5

    def test_methods_change_in_place(self, model, sentences, make_batch):
        batch = make_batch(model, sentences)
        for change in (TOPK, THRESHOLD, {"prune_mode": "none"}):
            model.set_pruning(**change)
            expected = LTPForSequenceClassification.from_dense(model.dense, **change)
            assert type(model.pruner) is type(expected.pruner)
            with torch.no_grad():
                assert torch.equal(model(**batch).logits, expected(**batch).logits)

    def test_the_mode_stays(self, model):
        model.eval().set_pruning(**TOPK)
        assert not model.pruner.training
        model.train().set_pruning(**THRESHOLD)
        assert model.pruner.training
        assert isinstance(model.pruner.method, AbsoluteThreshold)


def test_pipeline_round_trip(make_dense, tmp_path):
    tokenizer = demo_tokenizer()
    names = {0: "negative", 1: "neutral", 2: "positive"}
    dense = make_dense("bert", vocab_size=len(tokenizer), id2label=names, label2id={v: k for k, v in names.items()})
    model = LTPForSequenceClassification.from_dense(dense, **THRESHOLD)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    texts = ["the film was good", "a very bad and rather long evening, all in all", "no"]
    with torch.no_grad():
        output = model(**tokenizer(texts, padding=True, return_tensors="pt"))
    assert (output.token_lengths[:, -1] < output.token_lengths[:, 0]).all()
    classifier = pipeline("text-classification", model=str(tmp_path), device="cpu")
    assert type(classifier.model) is LTPForSequenceClassification
    for batch_size in (1, 3):
        answers = classifier(texts, top_k=None, batch_size=batch_size)
        for answer, logits in zip(answers, output.logits, strict=True):
            scores = {entry["label"]: entry["score"] for entry in answer}
            exps = [math.exp(logit) for logit in logits.tolist()]
            assert scores == pytest.approx({names[i]: e / sum(exps) for i, e in enumerate(exps)}, rel=1e-4)


def test_every_backbone_reads_its_own_head(make_dense):
    assert isinstance(make_dense("bert"), BertForSequenceClassification)
    assert make_dense("roberta").base_model.pooler is None


@pytest.mark.parametrize(("family", "settings"), [("bert", {}), ("roberta", {}), ("roberta", {"pad_token_id": 4})])
def test_the_longest_input_is_read_and_no_longer_one(make_dense, family, settings):
    dense = make_dense(family, **settings)
    longest = LTPConfig.from_dense(dense.config).max_input_tokens
    tokens = torch.full((1, longest + 1), 7)
    dense(input_ids=tokens[:, 1:])
    with pytest.raises((IndexError, RuntimeError)):
        dense(input_ids=tokens)

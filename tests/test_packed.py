"""The packed form equals the masked one, and computes nothing for tokens that have left."""

import pytest
import torch

from ltp import LTPForSequenceClassification

METHODS = {
    "threshold": {"prune_mode": "absolute_threshold", "final_token_threshold": 0.012},
    "threshold, mean_norm": {
        "prune_mode": "absolute_threshold",
        "scoring_mode": "mean_norm",
        "final_token_threshold": 0.05,
    },
    "topk": {"prune_mode": "topk", "token_keep_rate": -0.2},
    "none": {},
}


@pytest.fixture(params=METHODS)
def pruned(request, make_dense, family):
    dense = make_dense(family, max_position_embeddings=520)
    return LTPForSequenceClassification.from_dense(dense, **METHODS[request.param])


def batch(lengths, longest=None):
    longest = longest or max(lengths)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return {
        "input_ids": torch.randint(5, 100, mask.shape),
        "attention_mask": mask,
        "labels": torch.randint(0, 3, (len(lengths),)),
    }


def both_forms(model, inputs):
    """Output and gradients of each form, from the same weights."""
    results = {}
    for form in ("masked", "packed"):
        model.execution = form
        model.zero_grad()
        output = model(**inputs)
        output.loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results[form] = output, gradients
    return results["masked"], results["packed"]


def assert_same_gradients(masked, packed):
    assert masked.keys() == packed.keys()
    scale = max(gradient.norm() for gradient in masked.values())
    for name, gradient in masked.items():
        difference = (gradient - packed[name]).norm()
        # some gradients are 0 but for rounding (a key's bias does not change a softmax): these count against the scale
        assert difference <= 1e-4 * gradient.norm() + 1e-6 * scale, name


@pytest.mark.parametrize("lengths", [[2], [9], [17, 3, 14, 9], [5] * 8, [2, 30, 2, 29, 7, 11, 13, 1]])
def test_equals_the_masked_form(pruned, lengths):
    (masked, masked_gradients), (packed, packed_gradients) = both_forms(pruned, batch(lengths, longest=32))
    torch.testing.assert_close(packed.logits, masked.logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(packed.token_lengths, masked.token_lengths)
    assert_same_gradients(masked_gradients, packed_gradients)


def test_equals_the_masked_form_at_batch_64(pruned):
    lengths = torch.randint(2, 60, (64,)).tolist()
    (masked, _), (packed, _) = both_forms(pruned, batch(lengths))
    torch.testing.assert_close(packed.logits, masked.logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(packed.token_lengths, masked.token_lengths)


def test_equals_the_masked_form_on_long_inputs(pruned):
    (masked, _), (packed, _) = both_forms(pruned, batch([512, 2, 300]))
    torch.testing.assert_close(packed.logits, masked.logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(packed.token_lengths, masked.token_lengths)


def test_the_fixture_prunes(make_dense):
    # the comparisons above mean something only where tokens leave in several layers
    for name in ("threshold", "threshold, mean_norm", "topk"):
        model = LTPForSequenceClassification.from_dense(make_dense("bert"), **METHODS[name])
        lengths = model(**batch([60, 50, 40])).token_lengths.sum(dim=0)
        assert (lengths.diff() < 0).sum() >= 3, name


@pytest.mark.parametrize("form", ["masked", "packed"])
def test_order_and_padding_of_the_batch_do_not_matter(pruned, form):
    pruned.execution = form
    inputs = batch([17, 3, 14, 9])
    order = torch.tensor([2, 0, 3, 1])
    shuffled = {name: value[order] for name, value in inputs.items()}
    wider = {
        "input_ids": torch.nn.functional.pad(inputs["input_ids"], (0, 7), value=pruned.dense.config.pad_token_id),
        "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 7)),
    }
    output = pruned(**inputs)
    torch.testing.assert_close(pruned(**shuffled).logits, output.logits[order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pruned(**wider).logits, output.logits, atol=1e-5, rtol=1e-5)


def test_soft_training_equals_the_masked_form(make_dense, family):
    dense = make_dense(family, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = LTPForSequenceClassification.from_dense(
        dense, **METHODS["threshold"], masking_mode="soft", lambda_threshold=0.1, threshold_temperature=2e-3
    ).train()
    (masked, masked_gradients), (packed, packed_gradients) = both_forms(model, batch([17, 3, 14, 9]))
    torch.testing.assert_close(packed.loss, masked.loss)
    torch.testing.assert_close(packed.gate_sums, masked.gate_sums)
    assert torch.equal(packed.token_lengths, masked.token_lengths)
    assert packed_gradients["pruner.thresholds"].abs().min() > 0
    assert_same_gradients(masked_gradients, packed_gradients)


def test_a_token_that_left_costs_nothing(make_dense, family):
    """The rows that each layer's linears see are the tokens alive: none for padding, none for pruned tokens."""
    model = LTPForSequenceClassification.from_dense(make_dense(family), **METHODS["threshold"])
    entering, surviving = [], []
    for layer in model.backbone.layers(model.dense):
        layer.attention.self.query.register_forward_hook(lambda _, inputs, __: entering.append(inputs[0].shape))
        layer.intermediate.register_forward_hook(lambda _, inputs, __: surviving.append(inputs[0].shape))
    inputs = batch([17, 3, 14, 9], longest=40)
    lengths = model(**inputs).token_lengths.sum(dim=0).tolist()
    assert lengths[0] == 17 + 3 + 14 + 9
    assert lengths[-1] < lengths[0]
    assert entering == [(count, 32) for count in lengths[:-1]]
    # behind the last layer's attention nothing but the 4 classification tokens is read
    assert surviving == [(count, 32) for count in [*lengths[1:-1], 4]]


def test_a_mask_with_a_hole_leaves_the_token_out(make_dense, family):
    model = LTPForSequenceClassification.from_dense(make_dense(family), **METHODS["threshold"])
    inputs = batch([9, 9])
    inputs["attention_mask"][0, 4] = 0
    (masked, _), (packed, _) = both_forms(model, inputs)
    torch.testing.assert_close(packed.logits, masked.logits, atol=1e-5, rtol=1e-5)
    assert packed.token_lengths[:, 0].tolist() == [8, 9]


def test_attentions_and_hidden_states_come_from_the_masked_form(make_dense, family):
    model = LTPForSequenceClassification.from_dense(make_dense(family), **METHODS["threshold"])
    inputs = batch([9, 5])
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 7
    assert len(output.attentions) == 6
    torch.testing.assert_close(output.logits, model(**inputs).logits, atol=1e-5, rtol=1e-5)

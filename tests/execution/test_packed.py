"""The packed form equals the masked one, and computes nothing for tokens that have left."""

import pytest
import torch
from helpers import METHODS
from torch.utils._python_dispatch import TorchDispatchMode

from ltp import LTPForSequenceClassification
from ltp.execution import packed
from ltp.execution.attention import attention_by_length, attention_by_rows
from ltp.execution.packing import Packing


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


@pytest.mark.slow
def test_equals_the_masked_form_on_long_inputs(pruned):
    (masked, _), (packed, _) = both_forms(pruned, batch([512, 2, 300]))
    torch.testing.assert_close(packed.logits, masked.logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(packed.token_lengths, masked.token_lengths)


@pytest.mark.parametrize("lengths", [[2], [17, 3, 14, 9], [5] * 8, [2, 30, 2, 29, 7, 11, 13, 1]])
def test_equals_the_masked_form_as_on_a_gpu(pruned, lengths, monkeypatch):
    monkeypatch.setattr(packed, "packed_attention", attention_by_rows)
    (masked, masked_gradients), (by_rows, gradients) = both_forms(pruned, batch(lengths, longest=32))
    torch.testing.assert_close(by_rows.logits, masked.logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(by_rows.token_lengths, masked.token_lengths)
    assert_same_gradients(masked_gradients, gradients)


def test_packing_by_hand():
    rows = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 1]], dtype=torch.bool)
    packing, indices = Packing.from_mask(rows)
    assert packing.lengths == [2, 3, 3]
    assert packing.order.tolist() == [1, 0, 2]
    assert indices.tolist() == [4, 6, 0, 1, 2, 8, 9, 11]
    assert packing.starts.tolist() == [0, 2, 5]
    assert packing.groups == [(1, 2), (2, 3)]
    assert packing.pad(torch.arange(1, 9)).tolist() == [[1, 2, 0], [3, 4, 5], [6, 7, 8]]
    assert packing.pack(packing.pad(torch.arange(8))).tolist() == list(range(8))
    assert packing.to_example_order(torch.tensor([10, 20, 30])).tolist() == [20, 10, 30]

    kept, indices = packing.keep(torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 1]], dtype=torch.bool))
    assert kept.lengths == [1, 2, 2]
    assert indices.tolist() == [2, 0, 1, 5, 7]
    assert kept.order.tolist() == [0, 1, 2]


@pytest.mark.parametrize("attention", [attention_by_length, attention_by_rows])
@pytest.mark.parametrize(
    "reads", [frozenset(), frozenset({"received", "diagonal", "class_attention", "value_weighted"})]
)
def test_attention_of_each_sequence_is_its_own(attention, reads):
    """Against the formula, sequence by sequence."""
    packing, _ = Packing.from_mask(torch.arange(6) < torch.tensor([3, 6, 1, 3])[:, None])
    query, key, value = torch.randn(3, 13, 2, 4)
    context, sums = attention(query, key, value, packing, 0.0, reads=reads)
    for start, length in zip(packing.starts.tolist(), packing.lengths, strict=True):
        own = slice(start, start + length)
        probs = torch.einsum("qhd,khd->hqk", query[own], key[own]).div(2.0).softmax(dim=-1)
        expected = torch.einsum("hqk,khd->qhd", probs, value[own]).flatten(1)
        torch.testing.assert_close(context[own], expected)
        if reads:
            by_head = probs.sum(dim=1)
            torch.testing.assert_close(sums["received"][own], by_head.sum(dim=0))
            torch.testing.assert_close(sums["diagonal"][own], torch.einsum("hqq->q", probs))
            torch.testing.assert_close(sums["class_attention"][own], probs[:, 0].sum(dim=0))
            norms = value[own].norm(dim=-1)
            torch.testing.assert_close(sums["value_weighted"][own], torch.einsum("hk,kh->k", by_head, norms))


class Waits(TorchDispatchMode):
    """Counts the operators for whose results the host waits on a GPU."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "_unique2")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put") and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in self.NAMES or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_a_layer_waits_for_a_gpu_at_most_once(pruned, monkeypatch):
    """Each packing reads its lengths, and nothing else but the check of the batch's padding waits."""
    monkeypatch.setattr(packed, "packed_attention", attention_by_rows)
    made = []
    monkeypatch.setattr(Packing, "__init__", lambda self, *args, make=Packing.__init__: made.append(make(self, *args)))
    inputs = batch([17, 3, 14, 9])
    with torch.no_grad(), Waits() as waits:
        pruned(**{name: inputs[name] for name in ("input_ids", "attention_mask")})
    assert waits.found == ["_local_scalar_dense"]
    assert len(made) == 1 + (pruned.config.num_hidden_layers if pruned.pruner.reads else 0)


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
    embedded, entering, surviving = [], [], []
    model.dense.base_model.embeddings.LayerNorm.register_forward_hook(lambda _, __, out: embedded.append(out.shape))
    for layer in model.family.layers(model.dense):
        layer.attention.self.query.register_forward_hook(lambda _, inputs, __: entering.append(inputs[0].shape))
        layer.intermediate.register_forward_hook(lambda _, inputs, __: surviving.append(inputs[0].shape))
    inputs = batch([17, 3, 14, 9], longest=40)
    lengths = model(**inputs).token_lengths.sum(dim=0).tolist()
    assert lengths[0] == 17 + 3 + 14 + 9
    assert embedded == [(1, lengths[0], 32)]
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


def test_given_positions_and_embeddings(pruned):
    inputs = batch([17, 3, 14, 9])
    inputs["position_ids"] = torch.randint(2, 60, inputs["input_ids"].shape)
    (masked, masked_gradients), (packed, packed_gradients) = both_forms(pruned, inputs)
    torch.testing.assert_close(packed.logits, masked.logits, atol=1e-5, rtol=1e-5)
    assert_same_gradients(masked_gradients, packed_gradients)
    inputs["inputs_embeds"] = torch.randn(*inputs.pop("input_ids").shape, 32)
    (masked, _), (packed, _) = both_forms(pruned, inputs)
    torch.testing.assert_close(packed.logits, masked.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_a_cpu(make_dense, family, dtype):
    # top-k with spread scores: a threshold's decisions may differ where a score is next to it
    dense = make_dense(family).to(dtype)
    model = LTPForSequenceClassification.from_dense(dense, **METHODS["topk"])
    inputs = batch([17, 3, 14, 9])
    packed = model(**inputs)
    assert packed.logits.dtype == dtype
    exact = LTPForSequenceClassification.from_dense(make_dense(family), **METHODS["topk"])(**inputs)
    assert torch.equal(packed.token_lengths, exact.token_lengths)
    torch.testing.assert_close(packed.logits.float(), exact.logits, atol=0.05, rtol=0.05)


def test_an_example_without_a_real_token(pruned):
    inputs = batch([9, 5])
    inputs["attention_mask"][1] = 0
    with pytest.raises(ValueError, match="position 0 of an example is padding, or it has no real token"):
        pruned(**inputs)

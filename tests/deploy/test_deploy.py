"""A deployed model equals the packed form, in the types and on the back ends that it offers."""

import copy

import pytest
import torch
from helpers import METHODS, tokens_of
from torch.nn import functional

from ltp import LTPForSequenceClassification
from ltp.deploy import attention, linears
from ltp.deploy.linears import (
    FeedForward,
    Int8FeedForward,
    Int8Linear,
    ObservedLinear,
    OneDNNLinear,
    PlainLinear,
    gelu_approximation,
    onednn_works,
)

needs_onednn = pytest.mark.skipif(not onednn_works(torch.float32), reason="needs oneDNN's prepacked linear layers")
needs_int8 = pytest.mark.skipif(not linears.int8_works(), reason="needs FBGEMM")


@pytest.fixture(params=METHODS)
def pruned(request, make_dense, family):
    dense = make_dense(family, max_position_embeddings=320)
    return LTPForSequenceClassification.from_dense(dense, **METHODS[request.param])


@pytest.fixture(params=[pytest.param("oneDNN", marks=needs_onednn), "plain"])
def back_end(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(linears, "onednn_works", lambda dtype: False)
    return {"oneDNN": OneDNNLinear, "plain": PlainLinear}[request.param]


def batch(lengths, longest=None):
    mask = (torch.arange(longest or max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.randint(5, 100, mask.shape), "attention_mask": mask}


@torch.no_grad()
def assert_equals_the_packed_form(deployed, model, inputs):
    packed, output = model(**inputs), deployed(**inputs)
    assert output.logits.dtype == torch.float32
    assert torch.equal(output.token_lengths, packed.token_lengths)
    torch.testing.assert_close(output.logits, packed.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "lengths", [[2], [9], [300], [17, 3, 14, 9], [5] * 8, [2, 300, 2, 29, 130], [*range(2, 66, 2)]], ids=str
)
def test_equals_the_packed_form(pruned, back_end, lengths):
    deployed = pruned.deploy()
    assert deployed.back_end is back_end
    assert_equals_the_packed_form(deployed, pruned, batch(lengths))


@pytest.mark.parametrize("size", [1, 2, 3, 8, 16, 31, 32])
def test_equals_the_packed_form_at_any_batch_size(pruned, size):
    deployed = pruned.deploy()
    for _ in range(3):
        assert_equals_the_packed_form(deployed, pruned, batch(torch.randint(2, 60, (size,)).tolist(), longest=64))


def test_the_order_of_the_batch_does_not_matter(pruned):
    deployed, inputs = pruned.deploy(), batch([17, 3, 14, 9])
    order = torch.tensor([2, 0, 3, 1])
    logits = deployed(**{name: value[order] for name, value in inputs.items()}).logits
    torch.testing.assert_close(logits, deployed(**inputs).logits[order], atol=1e-5, rtol=1e-5)


def test_long_sequences_are_attended_to_some_heads_at_a_time(make_dense, family, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK_BYTES", 4 * 3 * 40 * 40)  # three of four heads of 40 tokens
    model = LTPForSequenceClassification.from_dense(make_dense(family), **METHODS["threshold"])
    assert_equals_the_packed_form(model.deploy(), model, batch([40, 50, 4]))


def test_all_inputs_of_the_model_are_honoured(make_dense, family):
    model = LTPForSequenceClassification.from_dense(make_dense(family, type_vocab_size=2), **METHODS["threshold"])
    deployed, inputs = model.deploy(), batch([9, 14])
    assert_equals_the_packed_form(deployed, model, {"input_ids": inputs["input_ids"]})
    inputs["token_type_ids"] = (torch.arange(14) > 6).long().expand(2, -1)
    inputs["position_ids"] = torch.arange(20, 34).expand(2, -1)
    assert_equals_the_packed_form(deployed, model, inputs)
    inputs["attention_mask"][0, 4] = 0  # a hole: the token is left out
    assert_equals_the_packed_form(deployed, model, inputs)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "quick_gelu"])
def test_every_activation(make_dense, back_end, activation):
    model = LTPForSequenceClassification.from_dense(make_dense("bert"), **METHODS["threshold"])
    dense = make_dense("bert", hidden_act=activation)
    dense.load_state_dict(model.dense.state_dict())
    other = LTPForSequenceClassification.from_dense(dense, **METHODS["threshold"])
    assert_equals_the_packed_form(other.deploy(), other, batch([17, 3, 14, 9]))


@pytest.mark.parametrize(
    ("activation", "approximation"),
    [
        (functional.gelu, "none"),
        (torch.nn.GELU(approximate="tanh"), "tanh"),
        (functional.relu, None),
        (lambda x: functional.gelu(x).clamp(-10, 10), None),
        (lambda x: x * torch.sigmoid(1.702 * x), None),
        (None, None),
    ],
)
def test_which_gelu_an_activation_is(activation, approximation):
    assert gelu_approximation(activation) == approximation


@pytest.mark.skipif(not linears.onednn_int8_works(), reason="needs a CPU with AMX")
@pytest.mark.parametrize("activation", [None, functional.gelu, torch.tanh])
def test_onednn_s_products_in_int8_are_fbgemm_s(activation):
    weight, bias, rows = torch.randn(96, 64), torch.randn(96), torch.randn(70, 64)
    inputs = linears.Scale.of(rows.amin(dim=0), rows.amax(dim=0))
    first, second = (kind(weight, bias, inputs, activation) for kind in (linears.OneDNNInt8Linear, Int8Linear))
    with torch.inference_mode():
        together, expected = first(rows), second(rows)
        # both round inputs that lie between two bytes; a step of the input is at most that of the result
        step = inputs.step * weight.abs().max()
        assert (together - expected).abs().max() <= 2 * step
        assert (together - expected).abs().mean() < 1e-3
        torch.testing.assert_close(torch.cat([first(row[None]) for row in rows]), together, atol=1e-5, rtol=0)
        residual = torch.randn(70, 96)
        torch.testing.assert_close(
            first.add(rows, residual) - residual, first.add(rows, 0 * residual), atol=1e-5, rtol=0
        )


def test_a_scale_has_0_in_its_range():
    for low, high in ((0.5, 2.0), (-2.0, -0.5), (-1.0, 3.0)):
        scale = linears.Scale.of(torch.tensor([low]), torch.tensor([high]))
        assert 0 <= scale.zero <= 255
        assert -scale.zero * scale.step <= min(low, 0) + scale.step / 2
        assert (255 - scale.zero) * scale.step >= max(high, 0) - scale.step / 2


@pytest.mark.parametrize("tokens", [*range(1, 200), 1023, 1024, 1025, 4000])
def test_rounded_row_counts_add_little(tokens):
    rows = OneDNNLinear.row_count(tokens)
    assert tokens <= rows <= 1.04 * tokens
    assert tokens > 64 or rows == tokens
    assert PlainLinear.row_count(tokens) == Int8Linear.row_count(tokens) == tokens


def test_rounded_row_counts_are_few():
    assert len({OneDNNLinear.row_count(tokens) for tokens in range(1, 4097)}) <= 256  # times 4 products: oneDNN's cache


@pytest.mark.parametrize("missing", [AttributeError, RuntimeError])
def test_without_the_private_operators_plain_products_serve(make_dense, monkeypatch, missing):
    def fail(*_):
        raise missing("gone")

    monkeypatch.setattr(OneDNNLinear, "__init__", fail)
    monkeypatch.setattr(linears, "onednn_works", onednn_works.__wrapped__)  # not what it found before
    model = LTPForSequenceClassification.from_dense(make_dense("bert"))
    assert model.deploy().back_end is PlainLinear


def test_operators_with_wrong_results_are_not_used(make_dense, monkeypatch):
    monkeypatch.setattr(OneDNNLinear, "add", lambda self, rows, residual: self(rows))
    assert not onednn_works.__wrapped__(torch.float32)


TOLERANCE = 0.03  # on logits, which differ by some tenths here; the largest differences seen are 0.011 and 0.016
LOW_PRECISION = ["bfloat16", pytest.param("int8", marks=needs_int8)]


def margin(model, inputs):
    """Distance of each example's scores to the thresholds, as a share of the threshold, (B,)."""
    with torch.no_grad():
        attentions = model(**inputs, output_attentions=True).attentions
    alive, nearest = inputs["attention_mask"].bool(), torch.full((len(inputs["input_ids"]),), torch.inf)
    lengths = alive.sum(dim=1)
    for number, (probs, threshold) in enumerate(zip(attentions, model.thresholds.detach(), strict=True), start=1):
        scores = (probs * alive[:, None, :, None]).sum(dim=(1, 2)) / (probs.shape[1] * model.config.score_length)
        decided = alive.clone()
        decided[:, 0] = False
        distance = ((scores - threshold).abs() / threshold).masked_fill(~decided, torch.inf)
        nearest = torch.minimum(nearest, distance.amin(dim=1))
        tokens = tokens_of(scores * model.config.score_length, alive, lengths, layer=number, num_layers=len(attentions))
        alive = model.pruner.survivors(tokens)
    return nearest


@pytest.mark.slow
@pytest.mark.parametrize("dtype", LOW_PRECISION)
@pytest.mark.parametrize("method", ["threshold", "none"])
def test_low_precision_is_close_to_float32(make_dense, family, back_end, dtype, method):
    model = LTPForSequenceClassification.from_dense(make_dense(family, max_position_embeddings=320), **METHODS[method])
    inputs = batch(torch.randint(2, 40, (600,)).tolist())
    if method == "threshold":  # where a score is next to a threshold, rounding decides
        clear = margin(model, inputs) > {"bfloat16": 0.05, "int8": 0.1}[dtype]
        assert clear.sum() >= 20
        inputs = {name: value[clear] for name, value in inputs.items()}
    exact, output = model.deploy()(**inputs), model.deploy(dtype)(**inputs)
    assert output.logits.dtype == torch.float32
    assert torch.equal(output.token_lengths, exact.token_lengths)
    assert (output.logits - exact.logits).abs().max() < TOLERANCE
    best, second = exact.logits.topk(2).values.T
    confident = best - second > 2 * TOLERANCE
    assert confident.sum() >= 10
    assert torch.equal(output.logits.argmax(dim=1)[confident], exact.logits.argmax(dim=1)[confident])


def test_bfloat16_on_long_inputs(make_dense, family):
    model = LTPForSequenceClassification.from_dense(make_dense(family, max_position_embeddings=320))
    inputs = batch([300, 2, 129, 128])
    torch.testing.assert_close(
        model.deploy("bfloat16")(**inputs).logits, model.deploy()(**inputs).logits, atol=TOLERANCE, rtol=0
    )


@needs_int8
@pytest.mark.parametrize("method", ["threshold", "none"])
def test_int8_does_not_depend_on_the_batch(make_dense, family, method):
    model = LTPForSequenceClassification.from_dense(make_dense(family), **METHODS[method])
    deployed, inputs = model.deploy("int8"), batch([17, 3, 14, 2, 9])
    together = deployed(**inputs)
    for row, length in enumerate([17, 3, 14, 2, 9]):
        alone = deployed(**{name: value[row : row + 1, :length] for name, value in inputs.items()})
        assert torch.equal(alone.token_lengths[0], together.token_lengths[row])
        torch.testing.assert_close(alone.logits[0], together.logits[row], atol=1e-5, rtol=1e-5)


@needs_int8
def test_the_largest_inner_channels_stay_in_float32():
    generator = torch.Generator().manual_seed(0)
    up, down = (torch.randn(*shape, generator=generator) / 8 for shape in ((256, 64), (64, 256)))
    up[17] *= 100  # a channel like those of pretrained encoders
    rows = torch.randn(50, 64, generator=generator)

    def layers(linear):
        return FeedForward(
            linear(up, torch.zeros(256), torch.float32, torch.nn.functional.gelu),
            None,
            linear(down, torch.zeros(64), torch.float32),
        )

    expected, observed = layers(PlainLinear)(rows, rows), layers(ObservedLinear)
    assert torch.equal(observed(rows, rows), expected)
    plain = observed.down.quantised().add(observed.up.quantised()(rows), rows)  # one range for all channels
    errors = [(result - expected).norm() / expected.norm() for result in (Int8FeedForward(observed)(rows, rows), plain)]
    assert errors[0] < 0.02 < errors[1]


@needs_int8
@pytest.mark.parametrize("family", ["bert", "modernbert"])  # the norm after the residual, and before
def test_large_inputs_of_the_feed_forward_products_cost_no_accuracy(make_dense, monkeypatch, family):
    model = LTPForSequenceClassification.from_dense(make_dense(family), prune_mode="none")
    with torch.no_grad():
        for layer in model.family.layers(model.dense):
            parts = model.family.parts(layer)
            norm = parts.output_norm if parts.norm_first else parts.attention_norm
            norm.weight[3] *= 60  # as in trained models
            parts.up.weight[:, 3] /= 60
    inputs = batch([17, 3, 14, 2, 9])
    with torch.no_grad():
        exact = model(**inputs).logits

    def error():
        return (model.deploy("int8")(**inputs).logits - exact).norm() / exact.norm()

    smoothed = error()
    monkeypatch.setattr("ltp.deploy.model.smoothing", lambda layers: torch.ones(layers[0].weight.shape[1]))
    assert smoothed < 0.5 * error()


@needs_int8
@pytest.mark.parametrize("has_vnni", [True, False])
def test_int8_sums_do_not_overflow(monkeypatch, has_vnni):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: has_vnni, raising=False)
    if has_vnni and not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        pytest.skip("this CPU has no VNNI")
    weight = torch.full((8, 64), 1.0)
    layer = Int8Linear(weight, torch.zeros(8), linears.Scale.of(torch.tensor([0.0]), torch.tensor([2.0])))
    torch.testing.assert_close(layer(torch.full((5, 64), 2.0)), torch.full((5, 8), 128.0), rtol=1e-3, atol=0)


@needs_int8
def test_int8_tells_how_the_examples_come_out(make_dense, caplog, monkeypatch):
    model = LTPForSequenceClassification.from_dense(make_dense("bert")).train()
    inputs = batch(list(range(2, 40)))
    assert model.deploy("int8").agreement is None
    deployed = model.deploy("int8", examples=[{**inputs, "labels": torch.zeros(38)}])
    same = deployed(**inputs).logits.argmax(dim=1) == model.deploy()(**inputs).logits.argmax(dim=1)
    assert model.training
    assert deployed.agreement.sequences == 38
    assert deployed.agreement.answers == pytest.approx(same.double().mean().item())
    assert not caplog.records
    monkeypatch.setattr("ltp.deploy.agreement.FEW_ANSWERS", 1.01)
    model.deploy("int8", examples=[inputs])
    assert "of the answers are the model's" in caplog.text and "on 38 examples" in caplog.text


@needs_int8
def test_examples_give_the_ranges_of_int8(make_dense):
    model = LTPForSequenceClassification.from_dense(make_dense("bert"))
    inputs = batch(list(range(2, 40)))
    exact = model.deploy()(**inputs).logits
    narrow = {name: value[:1, :2] for name, value in inputs.items()}
    good, clipped = (
        (model.deploy("int8", examples=[examples])(**inputs).logits - exact).norm() for examples in (inputs, narrow)
    )
    assert good < clipped / 2


@needs_int8
def test_int8_leaves_the_quantised_engine_as_it_was(make_dense):
    engine = torch.backends.quantized.engine
    LTPForSequenceClassification.from_dense(make_dense("bert")).deploy("int8")
    assert torch.backends.quantized.engine == engine


def test_it_is_a_frozen_copy(make_dense, family):
    dense = make_dense(family).train()
    model = LTPForSequenceClassification.from_dense(dense, **METHODS["threshold"])
    before = copy.deepcopy(model.state_dict())
    deployed, inputs = model.deploy(), batch([17, 3, 14, 9])
    first = deployed(**inputs)
    assert not first.logits.requires_grad
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    again = deployed(**inputs)  # neither dropout nor the source's new weights
    assert torch.equal(again.logits, first.logits)
    assert torch.equal(again.token_lengths, first.token_lengths)


def test_a_model_in_half_precision_is_deployed_in_float32(make_dense):
    dense = make_dense("bert").bfloat16()
    inputs = batch([17, 3])
    deployed = LTPForSequenceClassification.from_dense(dense).deploy()
    expected = LTPForSequenceClassification.from_dense(dense.float())
    assert_equals_the_packed_form(deployed, expected, inputs)


@pytest.mark.parametrize("has_instructions", [True, False])
def test_bfloat16_without_its_instructions_warns(make_dense, monkeypatch, caplog, has_instructions):
    monkeypatch.setattr("ltp.deploy.model.has_bfloat16_instructions", lambda: has_instructions)
    LTPForSequenceClassification.from_dense(make_dense("bert")).deploy("bfloat16")
    assert ("this CPU has no instructions for bfloat16" in caplog.text) is not has_instructions


def test_an_unknown_dtype_names_the_choices(make_dense):
    model = LTPForSequenceClassification.from_dense(make_dense("bert"))
    with pytest.raises(ValueError, match=r"^dtype is 'float16'; deploy offers float32, bfloat16, int8$"):
        model.deploy("float16")


def test_int8_without_its_engine_says_what_would_work(make_dense, monkeypatch):
    def fail(*_):
        raise RuntimeError("no engine")

    monkeypatch.setattr(Int8Linear, "__init__", fail)
    monkeypatch.setattr(linears, "int8_works", linears.int8_works.__wrapped__)
    model = LTPForSequenceClassification.from_dense(make_dense("bert"))
    with pytest.raises(RuntimeError, match=r"'int8', which needs .* FBGEMM.* deploy with float32 or bfloat16$"):
        model.deploy("int8")


def test_a_model_elsewhere_than_on_the_cpu(make_dense):
    model = LTPForSequenceClassification.from_dense(make_dense("bert")).to("meta")
    with pytest.raises(ValueError, match=r"^the model is on meta; deploy is for CPUs: move the model there first$"):
        model.deploy()


def test_padding_on_the_left(make_dense):
    deployed = LTPForSequenceClassification.from_dense(make_dense("bert")).deploy()
    inputs = batch([9, 9])
    inputs["attention_mask"][0, 0] = 0
    with pytest.raises(ValueError, match="position 0 of an example is padding"):
        deployed(**inputs)


def test_what_is_not_plainly_a_linear_is_refused(make_dense):
    """Its weight alone would be taken: what an adapter or a hook adds would be lost without a word."""

    class Adapter(torch.nn.Linear):
        """As peft replaces layers."""

    model = LTPForSequenceClassification.from_dense(make_dense("bert"))
    layer = model.family.layers(model.dense)[1]
    handle = layer.output.dense.register_forward_hook(lambda module, inputs, output: output + 1)
    with pytest.raises(ValueError, match=r"^layer 2: down is a Linear with hooks, and deploy would copy its weight"):
        model.deploy()
    handle.remove()
    layer.attention.self.value = Adapter(32, 32)
    with pytest.raises(ValueError, match=r"^layer 2: value is a Adapter, .* \(peft: model\.merge_and_unload\(\)"):
        model.deploy()
    layer.attention.self.value = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(32, 32))
    with pytest.raises(ValueError, match=r"^layer 2: value is a ParametrizedLinear"):
        model.deploy()

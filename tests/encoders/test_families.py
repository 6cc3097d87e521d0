"""Every encoder family: Hugging Face's own numbers, and the same results in every form that executes it."""

import dataclasses

import pytest
import torch

from ltp import LTPForSequenceClassification
from ltp.deploy.graph import GraphForm
from ltp.encoders import encoder_family, known_families
from ltp.pruning.flops import CostModel

FAMILIES = known_families()
#: Methods that read, decide and leave differently; the settings lose tokens in several layers.
METHODS = {
    "topk": {"first_layer": 1, "token_keep_rate": 0.1},
    "absolute_threshold": {"final_token_threshold": 0.012},
    "every": {"first_layer": 1},
    "tome": {"first_layer": 1, "token_keep_rate": 0.1},
    "transkimmer": {"skim_threshold": 0.9933},
    "adapler": {"initial_share": 0.999},
    "tr_bert": {"select_threshold": 0.8808},
}


@pytest.fixture
def inputs():
    """Seven examples of 2 to 30 tokens; padding on the right."""

    def make(model):
        lengths = torch.tensor([17, 3, 30, 2, 14, 9, 17])
        mask = (torch.arange(30) < lengths[:, None]).long()
        ids = torch.randint(5, 100, mask.shape).where(mask.bool(), torch.tensor(model.config.pad_token_id))
        return {"input_ids": ids, "attention_mask": mask}

    return make


@pytest.fixture(params=FAMILIES)
def dense(request, make_dense):
    return make_dense(request.param)


def pruned(dense, method, **settings):
    # so that all layers of every family decide
    pruning = {"sliding_layers": "scale"} | METHODS.get(method, {}) | settings
    return LTPForSequenceClassification.from_dense(dense, prune_mode=method, **pruning)


def close(actual, expected, message=None):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5, msg=message)


@pytest.mark.parametrize("form", ["packed", "masked"])
def test_without_pruning_logits_are_hugging_faces(dense, inputs, form):
    batch = inputs(dense)
    model = pruned(dense, "none")
    model.execution = form
    with torch.no_grad():
        close(model(**batch).logits, dense(**batch).logits)
        embeds = dense.get_input_embeddings()(batch["input_ids"])
        mask = batch["attention_mask"]
        if dense.config.model_type not in ("roberta", "xlm-roberta", "camembert", "mpnet"):
            # those count positions of embeddings with the padding
            close(
                model(inputs_embeds=embeds, attention_mask=mask).logits,
                dense(inputs_embeds=embeds, attention_mask=mask).logits,
            )


def test_gradients_of_dense_training_are_hugging_faces(dense, inputs):
    batch, labels = inputs(dense), torch.arange(7) % 3
    dense(**batch, labels=labels).loss.backward()
    expected = {name: value.grad.clone() for name, value in dense.named_parameters() if value.grad is not None}
    dense.zero_grad()
    model = pruned(dense, "none")
    model(**batch, labels=labels).loss.backward()
    actual = {name: value.grad for name, value in dense.named_parameters() if value.grad is not None}
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_all_forms_agree(dense, inputs, method):
    batch = inputs(dense)
    model = pruned(dense, method).eval()
    with torch.no_grad():
        output = {"packed": model(**batch, output_hidden_states=True), "deployed": model.deploy()(**batch)}
        graph_logits, graph_lengths = GraphForm(model)(**batch)
        model.execution = "masked"
        expected = model(**batch, output_hidden_states=True)
        model.execution = "packed"
        alone = model(input_ids=batch["input_ids"][4:5, :14])
    assert (expected.token_lengths[:, -1] < expected.token_lengths[:, 0]).sum() >= 4
    for form, result in output.items():
        assert torch.equal(result.token_lengths, expected.token_lengths), form
        close(result.logits, expected.logits, form)
    assert torch.equal(graph_lengths, expected.token_lengths)
    close(graph_logits, expected.logits)
    for mine, theirs in zip(output["packed"].hidden_states, expected.hidden_states, strict=True):
        close(mine, theirs)
    assert torch.equal(alone.token_lengths[0], expected.token_lengths[4])
    close(alone.logits[0], expected.logits[4])


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_deployed_in_less_precision(dense, inputs, dtype):
    if dtype == "int8":
        from ltp.deploy.linears import int8_works

        if not int8_works():
            pytest.skip("no quantised engine")
    batch = inputs(dense)
    model = pruned(dense, "none")
    with torch.no_grad():
        expected, deployed = model(**batch).logits, model.deploy(dtype)(**batch).logits
    assert deployed.dtype == torch.float32
    assert (deployed - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("rule", ["soft", "survival"])
def test_soft_forms_agree(dense, inputs, rule):
    batch, labels = inputs(dense), torch.arange(7) % 3
    model = pruned(dense, "absolute_threshold", masking_mode=rule, threshold_temperature=1e-2)
    for module in model.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    gradients, logits = [], []
    for form in ("masked", "packed"):
        model.execution = form
        model.zero_grad()
        output = model(**batch, labels=labels)
        output.loss.backward()
        logits.append(output.logits.detach())
        gradients.append([value.grad.clone() for value in model.parameters() if value.grad is not None])
    close(*logits)
    for masked, packed in zip(*gradients, strict=True):
        torch.testing.assert_close(packed, masked, atol=1e-4, rtol=1e-3)


def test_flops_are_those_of_the_matrix_products(dense, inputs):
    """Counted by PyTorch as it runs the dense model on one input without padding."""
    from torch.utils.flop_counter import FlopCounterMode

    family = encoder_family(dense.config.model_type)
    dense.set_attn_implementation("eager")
    ids = inputs(dense)["input_ids"][2:3]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        dense(input_ids=ids)
    shape = family.shape(dense.config)
    one = torch.tensor([[30] * (shape.num_layers + 1)])
    flops = CostModel.of_method(pruned(dense, "none").pruner.method, dataclasses.replace(shape, windows=()))
    expected = flops.layer_flops(one).sum().item()
    width = shape.hidden_size
    # the projections before the first layer, pooler or head, classifier
    ends = 2 * width * (width + 3)
    if dense.config.model_type in ("electra", "albert"):
        ends += 2 * 30 * 16 * width
    if dense.config.model_type == "deberta-v2":  # computes every position, and projects them in each layer
        every = 2 * dense.config.position_buckets
        ends += shape.num_layers * 2 * (2 * every * width * width + 2 * 30 * width * (every - min(every, 59)))
    assert counter.get_total_flops() == expected + ends


def test_a_window_counts_what_it_sees():
    shape = encoder_family("modernbert").shape(encoder_family("modernbert").config_class(num_hidden_layers=4))
    assert (shape.ffn_products, shape.windows) == (3, (None, 129, 129, None))
    model = CostModel.of_method(None or _dense_method(), shape)
    flops = model.layer_flops(torch.tensor([[1000] * 5]))[0].tolist()
    products = 2 * (4 * 768**2 * 1000 + 3 * 768 * 1152 * 1000)
    assert flops[0] == flops[3] == products + 4 * 768 * 1000 * 1000
    assert flops[1] == flops[2] == products + 4 * 768 * 1000 * 129


def _dense_method():
    from ltp.pruning import method_class

    return method_class("none")()


# -- long inputs, windows and means -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "modernbert", "mpnet", "deberta-v2"])
@pytest.mark.parametrize("method", ["topk", "none"])
def test_parts_of_the_queries_give_the_same(make_dense, inputs, monkeypatch, family, method):
    from ltp.deploy import attention as deployed
    from ltp.execution import attention

    dense = make_dense(family)
    batch = inputs(dense)
    batch["labels"] = torch.arange(7) % 3
    model = pruned(dense, method)

    def run():
        model.zero_grad()
        output = model(**batch)
        output.loss.backward()
        frozen = model.deploy()(batch["input_ids"], batch["attention_mask"]).logits
        return output, [value.grad.clone() for value in model.parameters() if value.grad is not None], frozen

    whole, gradients, frozen = run()
    monkeypatch.setattr(attention, "CHUNK", 7 * 4 * 9)
    monkeypatch.setattr(deployed, "CHUNK", 7 * 4 * 9)
    parts, of_parts, frozen_parts = run()
    assert torch.equal(parts.token_lengths, whole.token_lengths)
    close(parts.logits, whole.logits)
    close(frozen_parts, frozen)
    for mine, theirs in zip(of_parts, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_scores_of_layers_with_and_without_a_window_compare(make_dense):
    """With equal weights for all keys, a token receives 1 from each head, however many queries see it."""
    dense = make_dense("modernbert")
    with torch.no_grad():
        for layer in dense.model.layers:
            layer.attn.Wqkv.weight.zero_()
    for form in ("packed", "masked"):
        model = pruned(dense, "topk", scoring_mode="mean", score_length=1)
        model.set_pruning(prune_mode="topk", token_keep_rate=1.0, first_layer=1, score_length=1)
        model.execution = form
        with torch.no_grad():
            scores = model(input_ids=torch.randint(5, 100, (1, 30)), output_scores=True).scores
        middle = scores[:, 0, 8:22]  # away from the ends, where queries see fewer keys
        torch.testing.assert_close(middle[0], torch.ones(14))
        # a window of 9: each query gives 1/9; it is seen by 9 of 30 queries, and 30/9 · 9 · 1/9 = 30/9
        torch.testing.assert_close(middle[1], torch.full((14,), 30 / 9))


@pytest.mark.parametrize("form", ["packed", "masked"])
def test_layers_with_a_window_may_decide_nothing(make_dense, inputs, form):
    dense = make_dense("modernbert")
    model = LTPForSequenceClassification.from_dense(dense, prune_mode="topk", **METHODS["topk"])
    model.execution = form
    with torch.no_grad():
        lengths = model(**inputs(dense)).token_lengths
    change = lengths.diff(dim=1).sum(dim=0) < 0
    assert change.tolist() == [True, False, False, True, False, False]  # layers 1 and 4 have no window
    with pytest.raises(ValueError, match="sliding_layers is 'none'; it must be one of skip, scale"):
        pruned(dense, "topk", sliding_layers="none")


@pytest.mark.parametrize("method", ["none", *METHODS])
def test_a_mean_is_over_all_tokens_with_their_last_states(make_dense, inputs, method):
    dense = make_dense("modernbert", classifier_pooling="mean")
    batch = inputs(dense)
    model = pruned(dense, method)
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
        mask = batch["attention_mask"][:, :, None]
        mean = (dense.model.final_norm(output.hidden_states[-1]) * mask).sum(dim=1) / mask.sum(dim=1)
        close(output.logits, dense.classifier(dense.head(mean)))
        close(model.deploy()(**batch).logits, output.logits)
        close(GraphForm(model)(**batch)[0], output.logits)
        model.execution = "masked"
        close(model(**batch).logits, output.logits)
        if method == "none":
            close(dense(**batch).logits, output.logits)


def test_given_positions_are_those_of_the_rotation(make_dense, inputs):
    dense = make_dense("modernbert", local_attention=200)
    batch = inputs(dense)
    batch["position_ids"] = (torch.arange(30) * 2)[None].expand(7, 30)
    with torch.no_grad():
        close(pruned(dense, "none")(**batch).logits, dense(**batch).logits)


# -- what is not supported --------------------------------------------------------------------------------------


def test_an_unknown_family_is_told_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"model_type is 'gpt2'; ltp prunes albert, bert, .*xlm-roberta\. Another family"
    ):
        encoder_family("gpt2")


def test_a_convolution_between_layers_is_refused(make_dense):
    dense = make_dense("deberta-v2", conv_kernel_size=3)
    with pytest.raises(ValueError, match="conv_kernel_size is 3: a convolution after the first layer reads neighbours"):
        pruned(dense, "topk")


@pytest.mark.parametrize("terms", [["c2p"], ["p2c"], []])
@pytest.mark.parametrize("buckets", [8, -1])
def test_disentangled_terms_may_be_absent_or_have_weights_of_their_own(make_dense, inputs, terms, buckets):
    config = {"pos_att_type": terms, "share_att_key": False, "position_buckets": buckets}
    dense = make_dense("deberta-v2", **config)
    batch = inputs(dense)
    with torch.no_grad():
        close(pruned(dense, "none")(**batch).logits, dense(**batch).logits)


def test_inner_layers_of_a_group(make_dense, inputs):
    dense = make_dense("albert", inner_group_num=2, num_hidden_layers=2)
    batch = inputs(dense)
    model = pruned(dense, "topk")
    with torch.no_grad():
        assert model(**batch).token_lengths.shape[1] == 5
        close(pruned(dense, "none")(**batch).logits, dense(**batch).logits)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "config", "method"),
    [
        ("modernbert", {"classifier_pooling": "mean"}, "every"),
        ("deberta-v2", {}, "absolute_threshold"),
        ("mpnet", {}, "tome"),
        ("distilbert", {"num_hidden_layers": 2}, "power_bert"),
        ("distilbert", {"num_hidden_layers": 2}, "top"),
    ],
)
def test_an_onnx_graph(make_dense, inputs, tmp_path, family, config, method):
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from ltp.deploy.graph import write_onnx
    from ltp.deploy.onnx import load

    dense = make_dense(family, **config)
    model = pruned(dense, method).eval()
    write_onnx(model, tmp_path / "model.onnx")
    quant_pre_process(tmp_path / "model.onnx", tmp_path / "shaped.onnx")  # fails where shapes cannot be inferred
    infer = load(tmp_path / "model.onnx")
    batch = inputs(dense)
    for rows in (slice(0, 7), slice(4, 5)):
        part = {name: value[rows, : 30 if rows.start == 0 else 14] for name, value in batch.items()}
        logits, lengths = infer(part)
        with torch.no_grad():
            expected = model(**part)
        close(logits, expected.logits)
        assert torch.equal(lengths, expected.token_lengths)

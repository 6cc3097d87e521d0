"""Models with other outputs than one of a text: Hugging Face's own numbers, and the same results in both forms."""

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForMaskedLM,
)

import ltp
from ltp import LTPForQuestionAnswering, LTPForSequenceClassification, LTPForTokenClassification, LTPModel
from ltp.encoders import known_families
from ltp.model import MODEL_CLASSES

HEADS = {auto_class: getattr(ltp, name) for name, (_, auto_class) in MODEL_CLASSES.items()}
OF_TOKENS = ("AutoModelForTokenClassification", "AutoModelForQuestionAnswering", "AutoModel")
AUTO = {
    "AutoModel": AutoModel,
    "AutoModelForQuestionAnswering": AutoModelForQuestionAnswering,
    "AutoModelForSequenceClassification": AutoModelForSequenceClassification,
    "AutoModelForTokenClassification": AutoModelForTokenClassification,
}
#: Ways to lose tokens: decided after and before attention, merged, and under both soft rules.
METHODS = {
    "none": {},
    "topk": {"first_layer": 1, "token_keep_rate": 0.1},
    "tome": {"first_layer": 1, "token_keep_rate": 0.1},
    "transkimmer": {"skim_threshold": 0.9933},
    "adapler": {"initial_share": 0.999},
    "tr_bert": {"select_threshold": 0.8808},
}


def labels_of(auto_class):
    return {"num_labels": 2} if auto_class == "AutoModelForQuestionAnswering" else {}


@pytest.fixture
def make_model(make_dense):
    def make(family, auto_class, method="none", **settings):
        dense = make_dense(family, auto_class=auto_class, **labels_of(auto_class))
        pruning = METHODS.get(method, {}) | settings
        return HEADS[auto_class].from_dense(dense, prune_mode=method, sliding_layers="scale", **pruning)

    return make


def batch_of(model):
    lengths = torch.tensor([11, 3, 20, 2])
    mask = (torch.arange(20) < lengths[:, None]).long()
    ids = torch.randint(5, 100, mask.shape, generator=torch.Generator().manual_seed(3))
    pad = torch.tensor(model.dense.config.pad_token_id)
    return {"input_ids": ids.where(mask.bool(), pad), "attention_mask": mask}


def targets_of(auto_class, mask):
    if auto_class == "AutoModelForTokenClassification":
        return {"labels": (torch.arange(20) % 3).expand(mask.shape).where(mask.bool(), torch.tensor(-100))}
    return {"start_positions": torch.tensor([1, 0, 7, 99]), "end_positions": torch.tensor([4, 2, 7, 99])}


def results(output):
    names = ("logits", "start_logits", "end_logits", "last_hidden_state")
    return {name: output[name] for name in names if name in output}


def close(actual, expected, **tolerance):
    torch.testing.assert_close(actual, expected, **{"atol": 1e-5, "rtol": 1e-5} | tolerance)


@pytest.mark.parametrize("auto_class", OF_TOKENS)
@pytest.mark.parametrize("family", known_families())
def test_without_pruning_results_are_hugging_faces(make_model, family, auto_class):
    model = make_model(family, auto_class)
    batch = batch_of(model)
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        expected = results(model.dense(**batch))
        for form in ("packed", "masked"):
            model.execution = form
            actual = results(model(**batch))
            assert actual.keys() == expected.keys()
            for name, value in expected.items():
                close(actual[name][real], value[real])


@pytest.mark.parametrize("auto_class", OF_TOKENS[:2])
def test_loss_and_gradients_are_hugging_faces(make_model, auto_class):
    model = make_model("bert", auto_class)
    batch = batch_of(model)
    batch = {name: value[2:3] for name, value in batch.items()}  # no padding: Hugging Face's spans count it
    targets = {name: value[2:3] for name, value in targets_of(auto_class, torch.ones(4, 20)).items()}
    gradients = []
    for one in (model.dense, model):
        model.zero_grad()
        one(**batch, **targets).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.dense.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        close(gradients[1][name], gradient, rtol=1e-3)


@pytest.mark.parametrize("auto_class", OF_TOKENS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_packed_is_masked_and_alone_is_in_a_batch(make_model, family, method, auto_class):
    model = make_model(family, auto_class, method)
    batch = batch_of(model)
    with torch.no_grad():
        packed = model(**batch)
        alone = model(input_ids=batch["input_ids"][:1, :11])
        model.execution = "masked"
        masked = model(**batch)
    assert torch.equal(packed.token_lengths, masked.token_lengths)
    assert method == "none" or (packed.token_lengths[:, -1] < packed.token_lengths[:, 0]).sum() >= 2
    for name, value in results(masked).items():
        close(results(packed)[name], value)
        close(results(alone)[name][0], value[0, :11])


@pytest.mark.parametrize("rule", ["soft", "survival"])
@pytest.mark.parametrize("auto_class", OF_TOKENS[:2])
def test_gradients_under_a_soft_rule(make_model, auto_class, rule):
    model = make_model("bert", auto_class, "absolute_threshold", masking_mode=rule, threshold_temperature=1e-2).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch = batch_of(model)
    gradients = []
    for form in ("masked", "packed"):
        model.execution = form
        model.zero_grad()
        model(**batch, **targets_of(auto_class, batch["attention_mask"])).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0]["pruner.thresholds"].abs().max() > 0
    for name, gradient in gradients[0].items():
        close(gradients[1][name], gradient, atol=1e-4, rtol=1e-3)


def test_a_pruned_token_is_labelled_from_the_state_with_which_it_left(make_model):
    model = make_model("bert", "AutoModelForTokenClassification", "topk", keep_rates=[1.0, *[0.3] * 5])
    batch = batch_of(model)
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True, output_scores=True)
        left = (output.scores[1] == -1) & batch["attention_mask"].bool()  # in layer 2
        expected = model.dense.classifier(output.hidden_states[1][left])  # what layer 1 gave it
    assert left.sum() > 10
    close(output.logits[left], expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("auto_class", OF_TOKENS[:2])
def test_layers_of_tokens(make_model, auto_class, method):
    model = make_model("bert", auto_class, method)
    batch = batch_of(model)
    with torch.no_grad():
        packed = model(**batch)
        deployed = model.deploy()(**batch)
        states = model(**batch, output_hidden_states=True).hidden_states
        model.execution = "masked"
        masked = model(**batch)
    layers = packed.token_layers
    assert torch.equal(layers, masked.token_layers) and torch.equal(layers, deployed.token_layers)
    assert (layers[~batch["attention_mask"].bool()] == 0).all()
    for number in range(1, 7):  # as many tokens leave a layer as went through it
        assert torch.equal((layers >= number).sum(dim=1), packed.token_lengths[:, number])
        if method != "tome":  # a merged token has the states of another
            changes = (states[number] != states[number - 1]).any(dim=2)
            assert torch.equal(changes, (layers >= number) & batch["attention_mask"].bool())


def test_a_classifier_does_not_follow_tokens(make_model):
    model = make_model("bert", "AutoModelForSequenceClassification", "topk")
    assert model(**batch_of(model)).token_layers is None


def test_padding_does_not_change_the_loss_of_spans(make_model):
    model = make_model("bert", "AutoModelForQuestionAnswering")
    batch = batch_of(model)
    targets = {"start_positions": torch.tensor([4]), "end_positions": torch.tensor([6])}
    with torch.no_grad():
        padded = model(**{name: value[:1] for name, value in batch.items()}, **targets).loss
        expected = model.dense(input_ids=batch["input_ids"][:1, :11], **targets).loss
    close(padded, expected)


@pytest.mark.parametrize("auto_class", AUTO)
def test_saved_and_loaded(make_model, auto_class, tmp_path):
    model = make_model("bert", auto_class, "topk")
    batch = batch_of(model)
    model.save_pretrained(tmp_path)
    loaded = AUTO[auto_class].from_pretrained(tmp_path)
    assert type(loaded) is HEADS[auto_class]
    assert loaded.config.architectures == [HEADS[auto_class].__name__]
    with torch.no_grad():
        for name, value in results(model(**batch)).items():
            assert torch.equal(results(loaded(**batch))[name], value)


@pytest.mark.parametrize("family", ["bert", "modernbert", "distilbert"])
def test_the_encoder_of_a_classifier_and_back(make_model, family, tmp_path):
    classifier = make_model(family, "AutoModelForSequenceClassification", "topk")
    batch = batch_of(classifier)
    classifier.save_pretrained(tmp_path / "classifier")
    bare = LTPModel.from_pretrained(tmp_path / "classifier")
    with torch.no_grad():
        expected = classifier(**batch, output_hidden_states=True)
        output = bare(**batch)
        last = classifier.family.finish(classifier.dense, expected.hidden_states[-1])
    assert torch.equal(output.token_lengths, expected.token_lengths)
    close(output.last_hidden_state, last * batch["attention_mask"][:, :, None])
    bare.save_pretrained(tmp_path / "bare")
    again = LTPForSequenceClassification.from_pretrained(tmp_path / "bare")
    with torch.no_grad():
        assert torch.equal(again(**batch).token_lengths, expected.token_lengths)


def test_a_dense_checkpoint_of_each_kind_is_loaded(make_dense, tmp_path):
    for auto_class, pruned in HEADS.items():
        dense = make_dense("bert", auto_class=auto_class, **labels_of(auto_class))
        dense.save_pretrained(tmp_path / auto_class)
        model = pruned.from_pretrained(tmp_path / auto_class, prune_mode="topk")
        assert type(model) is pruned
        assert type(model.dense) is type(dense)


def test_prune_takes_each_kind(make_dense):
    for auto_class, pruned in HEADS.items():
        dense = make_dense("bert", auto_class=auto_class, **labels_of(auto_class))
        assert type(ltp.prune(dense, "topk")) is pruned


def test_prune_names_the_kinds(make_dense):
    model = BertForMaskedLM(make_dense("bert").config)
    expected = (
        "BertForMaskedLM has a head that ltp does not know; of this family it prunes BertForSequenceClassification, "
        "BertForTokenClassification, BertForQuestionAnswering, BertModel"
    )
    with pytest.raises(ValueError, match=expected):
        ltp.prune(model)


def test_a_model_with_another_head_is_refused(make_dense):
    with pytest.raises(ValueError, match="BertForSequenceClassification is not a BertForTokenClassification"):
        LTPForTokenClassification.from_dense(make_dense("bert"))
    with pytest.raises(ValueError, match="BertForSequenceClassification is not a BertForQuestionAnswering"):
        LTPForQuestionAnswering.from_dense(make_dense("bert"))

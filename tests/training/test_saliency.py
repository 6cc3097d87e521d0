"""The saliency of tokens against Hugging Face's own gradients, and its part in a training step."""

import pytest
import torch

from ltp import LTPForSequenceClassification, LTPForTokenClassification
from ltp.data.tasks import TASKS
from ltp.training.module import LTPModule
from ltp.training.saliency import saliency


@pytest.fixture
def dense(make_dense, family):
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return LTPForSequenceClassification.from_dense(make_dense(family, **quiet)).eval()


@pytest.fixture
def batch():
    mask = (torch.arange(9) < torch.tensor([9, 4, 7])[:, None]).long()
    return {"input_ids": torch.randint(5, 100, mask.shape), "attention_mask": mask, "labels": torch.tensor([0, 2, 1])}


def hugging_face_s(dense, batch, answer):
    """Gradient times input of what ``answer`` reads of Hugging Face's output, one example at a time."""
    rows = []
    for ids, mask, label in zip(*batch.values(), strict=True):
        embeddings = dense.dense.get_input_embeddings()(ids[mask.bool()][None]).detach().requires_grad_()
        answer(dense.dense(inputs_embeds=embeddings, labels=label[None]), label).backward()
        row = (embeddings * embeddings.grad)[0].square().sum(dim=1).sqrt()
        rows.append(torch.nn.functional.pad(row, (0, len(mask) - len(row))))
    return torch.stack(rows).detach()


def test_it_is_gradient_times_input_for_the_true_label(dense, batch):
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    expected = hugging_face_s(dense, batch, lambda output, label: output.logits[0, label])
    dense.requires_grad_(False)
    with torch.no_grad():  # as under Lightning's contexts: it asks for its own gradients
        actual = saliency(dense, inputs, {"labels": batch["labels"]})
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-7)
    assert (actual[batch["attention_mask"] == 0] == 0).all()
    assert not actual.requires_grad


@pytest.mark.parametrize(
    ("labels", "answer"),
    [
        ([0.1, 2.0, 1.0], lambda logits, label: logits[0, 0]),  # a regression, or a ranking
        (
            [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]],
            lambda logits, label: (logits[0] * (2 * label - 1)).sum(),
        ),
    ],
)
def test_kinds_without_one_true_label(make_dense, family, batch, labels, answer):
    batch["labels"] = torch.tensor(labels)
    count = 1 if batch["labels"].ndim == 1 else 3
    dense = LTPForSequenceClassification.from_dense(make_dense(family, num_labels=count)).eval()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    expected = hugging_face_s(dense, batch, lambda output, label: answer(output.logits, label))
    torch.testing.assert_close(saliency(dense, inputs, {"labels": batch["labels"]}), expected, rtol=1e-4, atol=1e-7)


def test_labels_of_tokens_have_that_of_their_loss(make_dense, family, batch):
    dense = make_dense(family, auto_class="AutoModelForTokenClassification")
    model = LTPForTokenClassification.from_dense(dense).eval()
    batch["labels"] = torch.where(batch["attention_mask"].bool(), batch["input_ids"] % 3, -100)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    actual = saliency(model, inputs, {"labels": batch["labels"]})
    embeddings = dense.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    mask, labels = batch["attention_mask"], batch["labels"]
    dense(inputs_embeds=embeddings, attention_mask=mask, labels=labels).loss.backward()
    expected = (embeddings * embeddings.grad).square().sum(dim=2).sqrt() * mask
    torch.testing.assert_close(actual, expected.detach(), rtol=1e-4, atol=1e-7)


def test_it_teaches_the_predictors(dense, batch):
    """A few steps on the guidance bring their shares nearer to it."""
    settings = {"prune_mode": "adapler", "masking_mode": "survival", "saliency_weight": 1.0, "length_weight": 0.0}
    model = LTPForSequenceClassification.from_dense(dense.dense, **settings).train()
    guide = LTPForSequenceClassification.from_dense(dense.dense)
    module = LTPModule(model, TASKS["demo"], learns=True, guide=guide)
    assert all(name.startswith("model.") for name, _ in module.named_parameters())  # what is trained, and saved
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    target = saliency(guide, inputs, {"labels": batch["labels"]})
    optimizer = torch.optim.Adam(model.pruner.predictors.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        scores = model(**inputs, output_scores=True).scores
        loss = model.pruner.method.guidance(scores, target, model.pruner)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert all(parameter.grad is None for parameter in guide.parameters())

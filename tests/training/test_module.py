"""The LightningModule: what is optimised, by how much, and what is counted."""

import copy

import datasets
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers import layer_flops, relative_flops
from torch import nn

from ltp.data.batching import global_batches
from ltp.data.datamodule import Collator, GLUEDataModule
from ltp.data.demo import demo_rows, demo_tokenizer
from ltp.data.sources import Splits
from ltp.data.tasks import TASKS
from ltp.errors import RunError
from ltp.evaluation.cost import CostMetric
from ltp.model.classifier import LTPForSequenceClassification
from ltp.pruning.flops import CostModel
from ltp.training.module import LTPModule
from ltp.training.policy import policy_loss
from ltp.training.saliency import saliency

ROWS = 22  # batches of 8, 8 and 6


@pytest.fixture(scope="module")
def tokenizer():
    return demo_tokenizer()


@pytest.fixture
def pruned(make_dense, tokenizer):
    """``pruned(prune_mode, dropout=0, **pruning)``: a classifier for the demo task, in evaluation mode."""

    def make(prune_mode, *, dropout=0.0, **pruning):
        dense = make_dense(
            "bert",
            vocab_size=len(tokenizer),
            num_hidden_layers=2,
            num_labels=2,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        return LTPForSequenceClassification.from_dense(dense, prune_mode=prune_mode, **pruning)

    return make


@pytest.fixture
def fit(tokenizer):
    """``fit(model, steps=3, batch_size=8, accumulate=1, probe=Callback(), clip=None, **of_the_module)``: trained."""

    def run(model, *, steps=3, batch_size=8, accumulate=1, probe=None, clip=None, **arguments):
        splits = Splits(
            TASKS["demo"],
            datasets.Dataset.from_list(demo_rows("train", rows=ROWS)),
            {"validation": datasets.Dataset.from_list(demo_rows("validation", rows=7))},
        )
        datamodule = GLUEDataModule(
            splits, tokenizer, batch_size=batch_size, eval_batch_size=4, accumulate=accumulate, max_length=64
        )
        module = LTPModule(model, splits.task, total_steps=steps, **arguments)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=steps,
            accumulate_grad_batches=accumulate,
            gradient_clip_val=clip,
            callbacks=[probe] if probe else [],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        trainer.fit(module, datamodule=datamodule)
        return module

    return run


# -- parameter groups ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("learned", [True, False])
def test_parameter_groups(pruned, learned):
    model = pruned("absolute_threshold", masking_mode="soft" if learned else "hard")
    arguments = {"lr": 1e-4, "learns": learned, "lr_pruning": 3e-3, "weight_decay": 0.1}
    optimizer = LTPModule(model, TASKS["demo"], total_steps=10, **arguments).configure_optimizers()["optimizer"]

    matrices = {id(part.weight) for part in model.modules() if isinstance(part, nn.Linear | nn.Embedding)}
    thresholds = {id(model.thresholds)}
    others = {id(parameter) for parameter in model.parameters()} - matrices - thresholds
    wanted = [(matrices, 0.1, 1e-4), (others, 0.0, 1e-4)]
    if learned:
        wanted.append((thresholds, 0.0, 3e-3))
    found = [
        ({id(parameter) for parameter in group["params"]}, group["weight_decay"], group["initial_lr"])
        for group in optimizer.param_groups
    ]
    assert found == wanted
    norms = {id(part.bias) for part in model.modules() if isinstance(part, nn.LayerNorm | nn.Linear)}
    assert norms <= others
    assert isinstance(optimizer, torch.optim.AdamW)


def test_a_fused_optimiser_takes_the_same_steps(pruned):
    """Up to float32's rounding: it is only one pass over memory instead of several."""
    fused, plain = (pruned("absolute_threshold", masking_mode="soft") for _ in range(2))
    for model in (fused, plain):
        module = LTPModule(
            model,
            TASKS["demo"],
            lr=1e-2,
            learns=True,
            lr_pruning=1e-3,
            weight_decay=0.1,
            fused=model is fused,
            total_steps=10,
        )
        optimizer = module.configure_optimizers()["optimizer"]
        assert optimizer.defaults["fused"] is (model is fused)
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
    ends = dict(plain.named_parameters())
    for name, parameter in fused.named_parameters():
        torch.testing.assert_close(parameter, ends[name], rtol=1e-6, atol=1e-7)
    assert (fused.thresholds - pruned("absolute_threshold").thresholds).abs().min() > 1e-4


def test_thresholds_take_a_gradient_only_where_they_are_learned(pruned):
    model = pruned("absolute_threshold")
    LTPModule(model, TASKS["demo"], learns=True, lr_pruning=1e-3)
    assert model.thresholds.requires_grad
    LTPModule(model, TASKS["demo"], learns=False)
    assert not model.thresholds.requires_grad


@pytest.mark.parametrize(("warmup_ratio", "warmup"), [(0.0, 0), (0.1, 2), (0.25, 5), (0.21, 5)])
def test_the_learning_rate_rises_and_falls_linearly(pruned, warmup_ratio, warmup):
    module = LTPModule(
        pruned("absolute_threshold", masking_mode="soft"),
        TASKS["demo"],
        lr=1e-3,
        learns=True,
        lr_pruning=5e-3,
        warmup_ratio=warmup_ratio,
        total_steps=20,
    )
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    assert configured["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(21):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    shape = [step / warmup if step < warmup else (20 - step) / (20 - warmup) for step in range(21)]
    assert max(shape) == 1
    assert shape[20] == 0
    torch.testing.assert_close(rates, [[1e-3 * part, 1e-3 * part, 5e-3 * part] for part in shape])


# -- training ------------------------------------------------------------------------------------------------


class Gradients(pl.Callback):
    """Keeps the gradient of every optimiser step."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.steps.append({name: p.grad.clone() for name, p in module.model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_a_step_s_gradient_is_that_of_the_mean_over_its_examples(pruned, fit, tokenizer, accumulate):
    pruning = {"masking_mode": "soft", "lambda_threshold": 0.3, "threshold_temperature": 0.01}
    model = pruned("absolute_threshold", **pruning)
    gradients = Gradients()
    # with a learning rate of next to nothing every step sees the same weights
    fit(model, accumulate=accumulate, probe=gradients, lr=1e-20, learns=True, lr_pruning=1e-20)
    assert len(gradients.steps) == 3

    reference = pruned("absolute_threshold", **pruning).train()
    rows = demo_rows("train", rows=ROWS)
    encoded = [dict(tokenizer(row["sentence"]), label=row["label"]) for row in rows]
    lengths = torch.tensor([len(row["input_ids"]) for row in encoded]).numpy()
    collate = Collator(tokenizer.pad_token_id, TASKS["demo"])
    batches = global_batches(lengths, 8, seed=0, epoch=0)
    assert sorted(map(len, batches)) == [6, 8, 8]
    for numbers, step in zip(batches, gradients.steps, strict=True):
        reference.zero_grad()
        for number in numbers:  # one by one: no padding, no batching
            loss = reference(**collate([encoded[number]])).loss / len(numbers)
            loss.backward()
        wanted = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
        assert wanted.keys() == step.keys()
        for name, gradient in wanted.items():
            torch.testing.assert_close(step[name], gradient, rtol=2e-4, atol=2e-6, msg=lambda text, n=name: n + text)


def test_a_loss_that_is_not_finite_stops_before_the_update(pruned, fit, monkeypatch):
    model = pruned("none")
    objective, losses, states = model.objective, [], []

    def broken(*arguments):
        losses.append(objective(*arguments))
        states.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return losses[-1] * float("nan") if len(losses) == 3 else losses[-1]

    monkeypatch.setattr(model, "objective", broken)
    with pytest.raises(RunError) as caught:
        fit(model, steps=6, lr=1e-3)
    assert str(caught.value) == (
        "the loss is nan at step 2: training stopped before this step's update, and the last checkpoint holds finite "
        "weights. Lower lr, or the weight of the method's penalty, or use trainer.precision=32-true."
    )
    assert len(losses) == 3
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, states[2][name])
        assert torch.isfinite(parameter).all()
    assert not torch.equal(states[0]["dense_model.classifier.weight"], states[2]["dense_model.classifier.weight"])


def test_an_infinite_loss_stops_too(pruned, fit, monkeypatch):
    model = pruned("none")
    monkeypatch.setattr(model, "objective", lambda logits, *_: logits.sum() * float("inf"))
    with pytest.raises(RunError, match=r"the loss is -?(inf|nan) at step 0"):
        fit(model)


def test_the_soft_stage_moves_weights_and_thresholds(pruned, fit):
    model = pruned("absolute_threshold", masking_mode="soft", lambda_threshold=0.3, threshold_temperature=0.01)
    thresholds, weight = model.thresholds.detach().clone(), model.dense.classifier.weight.detach().clone()
    fit(model, lr=1e-4, learns=True, lr_pruning=1e-3)
    assert (model.thresholds != thresholds).all()
    assert not torch.equal(model.dense.classifier.weight, weight)


@pytest.mark.parametrize("budgets", [[], [0.5]])
def test_with_budgets_the_thresholds_gradient_does_not_shrink_the_weights(pruned, fit, budgets):
    model = pruned("absolute_threshold", masking_mode="survival" if budgets else "soft")
    model.set_budgets(budgets)
    parameters = dict(model.named_parameters())
    thresholds = parameters.pop("pruner.thresholds")
    norms = {}

    class Probe(pl.Callback):
        def on_after_backward(self, trainer, module):
            thresholds.grad += 50.0

        def on_train_batch_end(self, *_):
            norms.update({"weights": norm(parameters.values()), "thresholds": norm([thresholds])})

    def norm(group):
        return torch.cat([one.grad.flatten() for one in group if one.grad is not None]).norm().item()

    fit(model, steps=1, probe=Probe(), learns=True, lr_pruning=1e-3, budgets=budgets, dense_flops=1e6, clip=0.01)
    assert norms["thresholds"] == pytest.approx(0.01, rel=1e-2)
    assert (norms["weights"] == pytest.approx(0.01, rel=1e-2)) == bool(budgets)
    if not budgets:
        assert 0 < norms["weights"] < 0.005


@pytest.mark.parametrize(
    ("mode", "settings"), [("absolute_threshold", {"final_token_threshold": 0.01}), ("topk", {}), ("none", {})]
)
def test_the_hard_stage_moves_weights_only(pruned, fit, mode, settings):
    model = pruned(mode, masking_mode="hard", **settings)
    before = None if model.thresholds is None else model.thresholds.detach().clone()
    weight = model.dense.classifier.weight.detach().clone()
    fit(model, lr=1e-4, weight_decay=0.1)
    assert not torch.equal(model.dense.classifier.weight, weight)
    if before is not None:
        assert torch.equal(model.thresholds, before)
        assert not model.thresholds.requires_grad


class Losses(pl.Callback):
    """Keeps every training loss, and whether the model was in training mode."""

    def __init__(self):
        self.values, self.modes = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].item())
        self.modes.append(module.model.training)

    def on_validation_batch_end(self, trainer, module, *_):
        self.modes.append(not module.model.training)


def test_dropout_is_on_in_training_though_from_pretrained_returns_evaluation_mode(pruned, fit, tmp_path):
    pruned("none", dropout=0.3).save_pretrained(tmp_path)

    def losses(seed, lr=1e-20):
        model = LTPForSequenceClassification.from_pretrained(tmp_path)
        assert not model.training
        probe = Losses()
        fit(model, steps=4, batch_size=ROWS, probe=probe, lr=lr, seed=seed)
        assert all(probe.modes)
        assert len(probe.values) == 4
        return probe.values

    values = losses(seed=0)
    # the same batch and the same weights in each of the four epochs: only the masks differ
    assert len(set(values)) == 4
    assert losses(seed=0) == values  # they are a function of seed and step
    assert losses(seed=1)[0] != values[0]


def test_without_dropout_the_same_weights_give_the_same_loss(pruned, fit):
    probe = Losses()
    fit(pruned("none"), steps=4, batch_size=ROWS, probe=probe, lr=1e-20)
    torch.testing.assert_close(probe.values, [probe.values[0]] * 4)


# -- what is counted -----------------------------------------------------------------------------------------


def test_cost_by_hand():
    # two layers, D = 2, I = 3; FLOPs = 2 · (4·D²·n + 2·D·n² + 2·D·I·m) = 32·n + 8·n² + 24·m
    cost = CostMetric(CostModel(2, 2, 3))
    cost.update(torch.tensor([[5, 3, 1]]))
    cost.update(torch.tensor([[4, 4, 2], [3, 1, 1]]))
    first = (32 * 5 + 8 * 25 + 24 * 3) + (32 * 4 + 8 * 16 + 24 * 4) + (32 * 3 + 8 * 9 + 24 * 1)
    second = (32 * 3 + 8 * 9 + 24 * 1) + (32 * 4 + 8 * 16 + 24 * 2) + (32 * 1 + 8 * 1 + 24 * 1)
    dense = 2 * ((32 * 5 + 8 * 25 + 24 * 5) + (32 * 4 + 8 * 16 + 24 * 4) + (32 * 3 + 8 * 9 + 24 * 3))
    result = cost.compute()
    assert result["relative_flops"] == pytest.approx((first + second) / dense, rel=1e-12)
    assert result["gflops"] == pytest.approx((first + second) / 3 / 1e9, rel=1e-12)
    assert result["dense_gflops"] == pytest.approx(dense / 3 / 1e9, rel=1e-12)
    assert result["gflops_per_layer"] == pytest.approx([first / 3 / 1e9, second / 3 / 1e9], rel=1e-12)
    assert result["tokens_per_layer"] == pytest.approx([12 / 3, 8 / 3, 4 / 3], rel=1e-12)


def test_cost_over_batches_is_the_cost_of_the_split():
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 40, (50, 7), generator=generator).sort(dim=1, descending=True).values
    lengths[0] = 200  # one long example, of which nothing is pruned
    cost = CostMetric(CostModel(6, 32, 48))
    for batch in lengths.split([1, 20, 3, 26]):
        cost.update(batch)
    result = cost.compute()
    per_layer = layer_flops(lengths, 32, 48)
    assert result["gflops_per_layer"] == pytest.approx((per_layer.mean(dim=0) / 1e9).tolist(), rel=1e-12)
    assert result["tokens_per_layer"] == pytest.approx(lengths.double().mean(dim=0).tolist(), rel=1e-12)
    # a split's ratio weighs examples by their cost, so it is not the mean of the examples' ratios
    assert result["relative_flops"] != pytest.approx(relative_flops(lengths, 32, 48).mean().item(), rel=1e-2)


def test_an_evaluation_is_over_exactly_the_split(pruned, fit, tokenizer):
    model = pruned("topk", token_keep_rate=0.3)
    module = fit(model, lr=1e-20)
    right, lengths = 0, []
    for row in demo_rows("validation", rows=7):
        with torch.no_grad():
            output = model.eval()(**tokenizer(row["sentence"], return_tensors="pt"))
        right += output.logits.argmax().item() == row["label"]
        lengths.append(output.token_lengths[0])
    (evaluated,) = module.evaluated
    assert evaluated.scores == {"accuracy": pytest.approx(right / 7)}
    lengths = torch.stack(lengths)
    assert evaluated.cost["tokens_per_layer"] == pytest.approx(lengths.double().mean(dim=0).tolist())
    assert evaluated.cost["gflops"] == pytest.approx(layer_flops(lengths, 32, 48).sum(dim=1).mean().item() / 1e9)


def test_a_method_with_passes_trains_the_whole_model_and_teaches_the_others(pruned, fit):
    """The loss of a step: the labels' of the whole model, and the others' distance from it, a mean over the passes."""
    model = pruned("lat", masking_mode="hard", length_drop=0.5, random_passes=1, first_layer=1)
    before, own = copy.deepcopy(model).train(), model.pruner.method

    class Probe(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.batch, self.loss = batch, trainer.callback_metrics["train/loss"].item()

    probe = Probe()
    fit(model, steps=1, probe=probe, lr=1e-4, seed=3)
    inputs = {name: values for name, values in probe.batch.items() if name != "labels"}
    passes = own.passes(model.config.num_hidden_layers, 3, 0)
    with torch.no_grad():
        before.set_pruning(prune_mode="none")
        whole = before(**inputs).logits
        losses = [torch.nn.functional.cross_entropy(whole, probe.batch["labels"])]
        for number, method in enumerate(passes):
            before.set_pruning(prune_mode="topk", keep_rates=method.keep_rates)
            output = before(**inputs)
            assert output.token_lengths[:, -1].sum() < output.token_lengths[:, 0].sum(), number
            log_whole, log_part = whole.log_softmax(dim=-1), output.logits.log_softmax(dim=-1)
            losses.append((log_whole.exp() * (log_whole - log_part)).sum(dim=-1).mean())
    assert len(losses) == 3
    assert probe.loss == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert model.pruner.method == own


@pytest.mark.parametrize("budgets", [(), (0.6,)])
def test_a_guide_adds_to_the_loss_of_a_step(pruned, fit, budgets):
    """With a budget, too, where the method's penalty is left out; the price of the budget is 0 in the first step."""
    model = pruned("adapler", masking_mode="survival", saliency_weight=2.0)
    if budgets:
        model.set_budgets(budgets)
    model.has_penalty = not budgets
    before, guide = copy.deepcopy(model).train(), pruned("none")

    class Probe(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.batch, self.loss = batch, trainer.callback_metrics["train/loss"].item()

    probe = Probe()
    arguments = {"budgets": budgets, "dense_flops": 1e6} if budgets else {}
    fit(model, steps=1, probe=probe, lr=0.0, learns=True, guide=guide, **arguments)
    labels = probe.batch["labels"]
    inputs = {name: values for name, values in probe.batch.items() if name != "labels"}
    before.load_state_dict(model.state_dict())  # a budget has calibrated the thresholds
    target = saliency(guide, inputs, {"labels": labels})
    with torch.no_grad():
        output = before(**inputs, labels=labels, output_scores=True)
        added = before.pruner.method.guidance(output.scores, target, before.pruner)
    assert added.item() > 0.01
    assert probe.loss == pytest.approx((output.loss + added).item(), rel=1e-4)


@pytest.mark.parametrize("budgets", [(), (0.8,)])
def test_a_step_of_samples(pruned, fit, budgets):
    """Each example runs three times; rewards, imitation and the cost add to the loss."""
    settings = {"policy_samples": 3, "imitation_weight": 0.5, "select_weight": 0.3, "select_layers": [1]}
    model = pruned("tr_bert", masking_mode="survival", **settings)
    model.has_penalty = not budgets
    before, guide = copy.deepcopy(model).train(), pruned("none")

    class Probe(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.batch, self.loss = batch, trainer.callback_metrics["train/loss"].item()
            self.state = np.random.SeedSequence((0, 0, 0, 0)).generate_state(1)

    probe = Probe()
    arguments = {"budgets": budgets, "dense_flops": 1e6} if budgets else {}
    fit(model, steps=1, probe=probe, lr=0.0, learns=True, guide=guide, **arguments)
    labels = probe.batch["labels"]
    assert len(labels) == 8  # the batch itself is as it was
    inputs = {name: values for name, values in probe.batch.items() if name != "labels"}
    repeated = {name: values.repeat(3, 1) for name, values in inputs.items()}
    torch.manual_seed(int(probe.state[0]))
    with torch.no_grad():
        output = before(**repeated, labels=labels.repeat(3), output_scores=True)
        losses = torch.nn.functional.cross_entropy(output.logits, labels.repeat(3), reduction="none")
        assert losses.view(3, 8).std(dim=0).max() > 1e-4  # samples differ
        target = saliency(guide, inputs, {"labels": labels})
        taught = before.pruner.method.guidance(output.scores[:1, :8], target, before.pruner)
        learned = policy_loss(output.scores[:1], output.gates[:1], -losses, 3)
    assert min(abs(taught.item()), abs(learned.item())) > 1e-5
    assert probe.loss == pytest.approx((output.loss + taught + learned).item(), rel=1e-4)

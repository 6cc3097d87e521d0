"""A finished run at another budget: the search, the sample, the clock, and the run that is left."""

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import SMALL, in_process, lowest_relative_flops, ltp_train

from ltp import LTPForSequenceClassification, calibrate, evaluate
from ltp.calibration import directory as folder
from ltp.calibration import flops, latency
from ltp.calibration import run as calibrating_run
from ltp.calibration.evolution import evolve
from ltp.calibration.flops import calibrate_flops, flops_of, prepare_budgets
from ltp.calibration.latency import ServedModel, Stopwatch, calibrate_latency
from ltp.calibration.sample import Sample
from ltp.calibration.search import (
    AboveDenseError,
    SettingsControl,
    StrengthControl,
    ThresholdControl,
    UnreachableError,
    _search,
    measured_flops,
    strength_control,
)
from ltp.calibration.search import calibrate as turn_to
from ltp.data.batching import matched_rows
from ltp.data.datamodule import GLUEDataModule
from ltp.data.demo import demo_tokenizer
from ltp.data.sequences import make_batches
from ltp.data.sources import load_splits
from ltp.data.tasks import get_task
from ltp.errors import RunError, UserError
from ltp.reporting.collect import collect

pytestmark = pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions.*:UserWarning")


def ltp_calibrate(command):
    """``python -m ltp.calibrate`` in this process."""
    return in_process("ltp.calibrate", command, calibrate.COMMAND, COLUMNS="160")


def ltp_evaluate(command):
    finished = in_process("ltp.evaluate", f"{command} output=-", evaluate.COMMAND, COLUMNS="160")
    assert finished.code == 0, finished.err
    return json.loads(finished.out)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A threshold run and a top-k run, with the dense run that both start from."""
    root = tmp_path_factory.mktemp("runs")
    common = (*SMALL, f"output_root={root}")
    for command in (
        ("stage=finetune",),
        ("prune=manual", "prune.final_token_threshold=0.02"),
        ("prune=topk", "prune.token_keep_rate=-0.5"),
    ):
        assert (finished := ltp_train([*command, *common])).code == 0, finished.err
    found = {json.loads(path.read_text())["method"]: path.parent for path in root.rglob("results.json")}
    assert set(found) == {"dense", "manual", "topk"}
    return found


def calibrated(command):
    """The new run's directory, and its results."""
    finished = ltp_calibrate(command)
    assert finished.code == 0, finished.err
    directory = Path(finished.out.split("run directory: ")[1].strip())
    return directory, results_of(directory)


def results_of(run):
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


def demo_data(tokenizer=None, *, labels=None, rows=96):
    splits = load_splits(get_task("demo"), max_train_samples=rows, max_validation_samples=48)
    if labels is not None:
        train = splits.train.remove_columns("label").add_column("label", labels(splits.train["label"]))
        splits = dataclasses.replace(splits, train=train)
    data = GLUEDataModule(splits, tokenizer or demo_tokenizer(), batch_size=16)
    data.setup("fit")
    return data


def closed_form(model, batches):
    """Relative FLOPs of the reference execution, written out once more."""
    config = model.config
    width, inner = config.hidden_size, config.intermediate_size
    model.execution = "masked"
    cost = dense = 0
    for batch in batches:
        with torch.inference_mode():
            alive = model(**batch).token_lengths.numpy().astype(float)
        for n, m in zip(alive[:, :-1].T, alive[:, 1:].T, strict=True):
            cost += (4 * width**2 * n + 2 * width * n**2 + 2 * width * inner * m).sum()
        n = alive[:, 0]
        layers = alive.shape[1] - 1
        dense += layers * (4 * width**2 * n + 2 * width * n**2 + 2 * width * inner * n).sum()
    model.execution = "packed"
    return cost / dense


# -- the search -------------------------------------------------------------------------------------------------


class Plain(StrengthControl):
    """Controls nothing: its cost is a function of the strength."""

    def __init__(self, cost, *, weakest=1e-9, strongest=1e6, initial=1.0):
        self.function, self.weakest, self.strongest, self.initial = cost, weakest, strongest, initial
        self.strength, self.tried = initial, []

    def apply(self, strength):
        assert 0 <= strength <= self.strongest * (1 + 1e-9)
        self.strength = strength

    def reset_to_start(self):
        self.strength = self.initial

    def cost(self):
        self.tried.append(self.strength)
        return self.function(self.strength)


def smooth(middle, steepness):
    return lambda strength: 1 / (1 + (strength / middle) ** steepness)


@pytest.mark.parametrize("middle", [1e-3, 0.3, 1.0, 7.0, 500.0])
@pytest.mark.parametrize("steepness", [0.4, 1.0, 5.0])
@pytest.mark.parametrize("target", [0.2, 0.5, 0.9])
def test_smooth_costs_are_met_in_few_trials(middle, steepness, target):
    plain = Plain(smooth(middle, steepness))
    found = _search(plain, plain.cost, target, 0.002)
    assert abs(found.best.cost - target) <= 0.002
    assert plain.function(found.best.strength) == found.best.cost
    assert found.best.trials == len(plain.tried) <= 20
    near = Plain(smooth(1.3, steepness))  # what training meets again and again: a little off
    assert _search(near, near.cost, 0.5, 0.002).best.trials <= 6


def test_a_search_starts_where_the_model_stands_and_ends_there_if_it_can():
    plain = Plain(lambda strength: 0.501)
    found = _search(plain, plain.cost, 0.5, 0.002)
    assert (found.best.trials, found.best.strength) == (1, 1.0)


@pytest.mark.parametrize("steepness", [0.3, 1.0, 6.0])
@pytest.mark.parametrize("target", [0.3, 0.5, 0.8])
def test_a_slope_that_an_earlier_search_found_spares_trials(steepness, target):
    part = Plain(smooth(4.0, steepness))
    found = _search(part, part.cost, target, 0.01).best
    # all examples cost a little more than the part; the model stands where the search on the part ended
    whole = Plain(lambda strength: 0.008 + smooth(4.0, steepness)(strength * found.strength))
    assert _search(whole, whole.cost, target, 0.002, found.slope).best.trials <= 3


@pytest.mark.parametrize("initial", [0.0, 1.0])
@pytest.mark.parametrize("at", [1e-4, 0.4, 3.0, 900.0])
def test_of_a_step_both_sides_are_found(at, initial):
    plain = Plain(lambda strength: 0.9 if strength < at else 0.2, initial=initial)
    found = _search(plain, plain.cost, 0.5, 0.002)
    assert (found.over, found.under) == (0.9, 0.2)
    assert found.best.cost == 0.2
    assert found.best.strength == pytest.approx(at, rel=1e-3)
    assert found.best.trials == len(plain.tried) <= 40


def test_many_small_steps_are_met():
    plain = Plain(lambda strength: round(50 * smooth(2.0, 1.0)(strength)) / 50)
    found = _search(plain, plain.cost, 0.30, 0.002)
    assert found.best.cost == 0.30


def test_the_ends_of_what_can_be_reached():
    floor = Plain(lambda strength: 0.3 + 0.7 * smooth(1.0, 2.0)(strength))
    found = _search(floor, floor.cost, 0.1, 0.002)
    assert found.under is None
    assert found.best.cost == pytest.approx(0.3, abs=1e-4)
    assert max(floor.tried) == pytest.approx(floor.strongest)
    ceiling = Plain(lambda strength: 0.5 * smooth(1.0, 2.0)(strength))
    found = _search(ceiling, ceiling.cost, 0.8, 0.002)
    assert found.over is None
    assert (found.best.cost, found.best.strength) == (0.5, 0.0)


@pytest.fixture
def model(make_dense):
    return LTPForSequenceClassification.from_dense(
        make_dense("bert"), prune_mode="absolute_threshold", final_token_threshold=0.012
    )


def synthetic(model, middle=0.02, steepness=2.0):
    """A cost that falls with the last threshold, from 1."""
    return lambda: smooth(middle, steepness)(max(model.thresholds[-1].item(), 1e-30))


@pytest.mark.parametrize("target", [0.15, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("start", [[0.002, 0.004, 0.006, 0.008, 0.01, 0.012], [0.0] * 6, [-0.01] * 6])
def test_thresholds_keep_their_ratios_wherever_they_begin(model, target, start):
    with torch.no_grad():
        model.thresholds.copy_(torch.tensor(start))
    before = model.thresholds.detach().clone()
    cost = synthetic(model)
    found = turn_to(model, cost, target)
    assert abs(cost() - target) <= 0.002
    assert cost() == found.cost
    after = model.thresholds.detach()
    if target == 1.0:  # without pruning already, or by none at all
        assert torch.equal(after, before) or after[-1] < 0.001
    else:
        assert torch.allclose(after / after[-1], torch.arange(1, 7) / 6, rtol=1e-5)


def test_some_thresholds_may_be_none(model):
    with torch.no_grad():
        model.thresholds.copy_(torch.tensor([-0.01, 0.0, 0.0, 0.004, 0.0, 0.01]))
    turn_to(model, synthetic(model), 0.4)
    smallest = model.thresholds[3].item()
    assert model.thresholds[5].item() == pytest.approx(2.5 * smallest)
    assert model.thresholds[[0, 1, 2, 4]].tolist() == pytest.approx([0.05 * smallest] * 4)


def test_a_first_layer_that_learned_to_keep_everything_does_not_bound_the_budget(model):
    with torch.no_grad():
        model.thresholds.copy_(torch.tensor([-0.01, 0.002, 0.004, 0.006, 0.008, 0.01]))
    lengths = [30, 12, 25, 7]
    mask = (torch.arange(30) < torch.tensor(lengths)[:, None]).long()
    batch = {"input_ids": torch.randint(5, 100, mask.shape), "attention_mask": mask}

    def cost():
        flops, dense = measured_flops(model, [batch]).tolist()
        return flops / dense

    lowest = lowest_relative_flops(torch.tensor(lengths), 6, 32, 48)
    turn_to(model, cost, lowest, tolerance=1e-6, reached=1e-6)
    assert cost() == pytest.approx(lowest)


@pytest.mark.parametrize("start", [[0.001, 0.01, 0.003, 0.02, 0.007, 0.011], [0.0] * 6, [-0.5, -0.1, 0, 0, 0, 0]])
def test_a_model_that_is_there_is_left_alone(model, start):
    with torch.no_grad():
        model.thresholds.copy_(torch.tensor(start))
    before = model.thresholds.detach().clone()
    found = turn_to(model, lambda: 0.7, 0.7)
    assert torch.equal(model.thresholds, before)
    assert (found.trials, found.strength) == (1, 1.0 if any(value > 0 for value in start) else 0.0)


def test_a_keep_rate_that_is_there_is_left_alone(make_dense):
    for rate in (0.2, 1.0, -0.4, 0.3333):
        model = LTPForSequenceClassification.from_dense(make_dense("bert"), prune_mode="topk", token_keep_rate=rate)
        turn_to(model, lambda: 0.7, 0.7)
        assert model.config.token_keep_rate == rate


def test_errors_leave_the_model_as_it_was(model):
    before = model.thresholds.detach().clone()

    def stepped():
        return 0.9 if model.thresholds[-1].item() < 0.03 else 0.2

    with pytest.raises(UnreachableError, match=r"jumps from 0\.900 to 0\.200") as caught:
        turn_to(model, stepped, 0.5)
    assert (caught.value.lowest, caught.value.highest) == (0.2, 0.9)
    assert turn_to(model, stepped, 0.25, reached=0.06).cost == 0.2
    with torch.no_grad():
        model.thresholds.copy_(before)
    with pytest.raises(UnreachableError, match=r"a cost of 0\.1 cannot be reached: the lowest is 0\.200") as caught:
        turn_to(model, stepped, 0.1)
    assert (caught.value.lowest, caught.value.highest) == (0.2, None)
    with pytest.raises(AboveDenseError, match=r"without pruning it is 0\.900"):
        turn_to(model, stepped, 0.95)
    trials = iter([0.9, 0.8])
    with pytest.raises(StopIteration):
        turn_to(model, lambda: next(trials), 0.1)
    assert torch.equal(model.thresholds, before)


def test_dials(model, make_dense):
    assert isinstance(strength_control(model), ThresholdControl)
    with pytest.raises(ValueError, match="nothing to calibrate"):
        strength_control(LTPForSequenceClassification.from_dense(make_dense("bert")))
    topk = LTPForSequenceClassification.from_dense(make_dense("bert"), prune_mode="topk", token_keep_rate=-0.5)
    control = strength_control(topk)
    assert isinstance(control, SettingsControl)
    for strength, rate in ((0, 1.0), (0.5, 0.25), (control.strongest, -10.0)):
        control.apply(strength)
        assert topk.config.token_keep_rate == pytest.approx(rate)
    control.reset_to_start()
    assert topk.config.token_keep_rate == -0.5


def test_the_hardest_pruning_leaves_the_classification_token(model, sentences, make_batch):
    control = strength_control(model)
    batch = make_batch(model, sentences)
    control.apply(control.strongest)
    assert model(**batch).token_lengths[:, 1:].unique().tolist() == [1]
    control.apply(0.0)
    assert model(**batch).token_lengths[:, -1].tolist() == [14, 9, 17, 3]


# -- rows of like lengths ---------------------------------------------------------------------------------------


def test_matched_rows_have_the_wished_lengths():
    generator = np.random.default_rng(1)
    lengths = generator.integers(3, 40, 5000)
    wanted = np.sort(generator.integers(20, 40, 90))
    rows = matched_rows(lengths, wanted, 60)
    assert rows.dtype == np.int64
    assert len(set(rows.tolist())) == 60
    quantiles = wanted[((np.arange(60) + 0.5) * 1.5).astype(int)]
    assert lengths[rows].tolist() == quantiles.tolist()  # there are enough of each
    assert matched_rows(lengths, wanted, 60).tolist() == rows.tolist()
    assert matched_rows(lengths, wanted, 60, seed=1).tolist() != rows.tolist()


@pytest.mark.parametrize(
    ("lengths", "wanted", "count", "expected"),
    [
        ([5, 5, 5], [9, 9], 10, [5, 5, 5]),  # all of them
        ([3, 8, 20], [9], 1, [8]),  # the nearest
        ([3, 8, 10], [9], 1, [10]),  # of two as near the longer one
        ([1, 2, 3, 4, 50], [50, 50, 50], 3, [3, 4, 50]),  # the longest there are
        ([9, 10, 12], [10, 10, 9], 3, [9, 10, 12]),  # ascending, though 12 is what is left for a 9
        ([7], [1, 2, 3], 1, [7]),
    ],
)
def test_matched_rows_where_few_match(lengths, wanted, count, expected):
    rows = matched_rows(np.array(lengths), np.array(wanted), count)
    assert np.array(lengths)[rows].tolist() == expected
    assert len(set(rows.tolist())) == len(rows)


# -- the sample -------------------------------------------------------------------------------------------------


@pytest.fixture
def small(make_dense):
    """A threshold model that reads the demo's tokens."""
    dense = make_dense("bert", vocab_size=len(demo_tokenizer()), num_labels=2, max_position_embeddings=512)
    return LTPForSequenceClassification.from_dense(
        dense, prune_mode="absolute_threshold", final_token_threshold=0.012
    ).eval()


def test_the_sample_is_that_of_the_training(small):
    data = demo_data()
    sample = Sample.from_data(data, 20)
    assert len(sample) == 20
    assert [len(ids) for ids in sample.ids] == data.calibration_lengths(20).tolist()
    lengths = torch.cat([small(**batch).token_lengths[:, 0] for batch in sample.batches(7)])
    assert lengths.tolist() == [len(ids) for ids in sample.ids]
    assert set(sample.batches(7)[0]) == {"input_ids", "attention_mask", "token_type_ids"}  # no labels
    assert len(Sample.from_data(data, 1000)) == 96


def test_labels_are_not_read(small):
    found = []
    for labels in (None, lambda given: given[::-1], lambda given: [0] * len(given)):
        data = demo_data(labels=labels)
        with torch.no_grad():
            small.thresholds.copy_(torch.arange(1, 7) * 0.002)
        turn_to(small, flops_of(small, Sample.from_data(data, 40).batches(64), "float32"), 0.5)
        found.append(small.thresholds.detach().clone())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.slow
def test_a_search_on_few_examples_first_ends_like_one_on_all(small):
    data = demo_data(rows=400)
    sample = Sample.from_data(data, 300)
    few = sample.batches(64, every=8)
    lengths = [int(length) for batch in few for length in batch["attention_mask"].sum(dim=1)]
    assert lengths == [len(ids) for ids in sample.ids[4::8]]
    start = small.thresholds.detach().clone()
    asked = []
    cost, rough = (flops_of(small, batches, "float32", asked.append) for batches in (sample.batches(64), few))
    for target in (0.3, 0.6, 0.9, 1.0):
        asked.clear()
        with torch.no_grad():
            small.thresholds.copy_(start)
        found = calibrate_flops(small, cost, rough, target)
        assert abs(cost() - target) <= 0.002
        assert cost() == found.cost
        assert torch.allclose(small.thresholds, start * found.strength, rtol=1e-5)
        assert asked.count(300) <= 5
        assert found.trials <= 4
    with torch.no_grad():
        small.thresholds.copy_(start)
    assert calibrate_flops(small, cost, rough, cost()).strength == 1.0
    assert torch.equal(small.thresholds, start)
    with torch.no_grad():
        small.thresholds.zero_()
    calibrate_flops(small, cost, rough, 0.5)
    assert torch.allclose(small.thresholds / small.thresholds[-1], torch.arange(1, 7) / 6, rtol=1e-5)
    with pytest.raises(UnreachableError):
        calibrate_flops(small, cost, rough, 0.01)


def test_timed_batches_have_the_sample_s_lengths():
    sample = Sample([[2] * length for length in range(1, 501)], None, 0)
    single = sample.timed_batches(1)
    lengths = [batch["input_ids"].shape[1] for batch in single]
    assert len(single) == 64
    assert lengths != sorted(lengths)
    assert np.median(lengths) == pytest.approx(250, abs=5)
    assert [batch["input_ids"].shape[1] for batch in sample.timed_batches(1)] == lengths  # seeded
    assert [len(batch["input_ids"]) for batch in sample.timed_batches(32)] == [32] * 5
    assert [len(batch["input_ids"]) for batch in sample.timed_batches(300)] == [300]
    with pytest.raises(UserError, match="batch_size=501: there are 500 examples to measure with"):
        sample.timed_batches(501)


def test_a_budget_begins_at_the_nearest_that_was_held(model):
    prepare_budgets(model, [0.3, 0.6])
    for budget, value in ((0.3, 0.05), (0.6, 0.01)):
        model.use_budget(budget)
        with torch.no_grad():
            model.thresholds.fill_(value)
    prepare_budgets(model, [0.2, 0.5, 0.7])
    found = {}
    for budget in model.config.budgets:
        model.use_budget(budget)
        found[budget] = model.thresholds[0].item()
    assert found == pytest.approx({0.2: 0.05, 0.5: 0.01, 0.7: 0.01})
    prepare_budgets(model, [])
    assert model.config.budgets == []
    assert model.thresholds[0].item() == pytest.approx(0.01)  # those in use


# -- the clock --------------------------------------------------------------------------------------------------


class Paced:
    """A machine whose passes take a time of their own: some for the call, some for each token in each layer."""

    def __init__(self, model, noise=lambda: 1.0):
        self.model, self.noise, self.now, self.followed = model, noise, 0.0, 0
        self.tokens = {}

    def update_pruning(self):
        self.followed += 1
        self.tokens = {}  # rounds take no time but the clock's own

    def __call__(self, batch):
        if id(batch) not in self.tokens:
            with torch.inference_mode():
                self.tokens[id(batch)] = int(self.model(**batch).token_lengths[:, 1:].sum())
        self.now += 1e-3 * (1 + 0.1 * self.tokens[id(batch)]) * self.noise()

    def clock(self):
        return self.now


@pytest.fixture
def paced(small):
    def make(noise=lambda: 1.0):
        machine = Paced(small, noise)
        sample = Sample.from_data(demo_data(), 24)
        return Stopwatch(machine, sample.timed_batches(1), clock=machine.clock), machine

    return make


def test_the_stopwatch_takes_medians_in_rounds(small):
    batches = make_batches([[2, 7, 3], [2, 7, 8, 3], [2] * 11], 1)
    machine = Paced(small, noise=iter([50] * 3 + [1.0, 1.0, 9.0] * 99).__next__)  # the first round warms up
    control = strength_control(small)
    control.apply(0.0)
    ticks = []
    stopwatch = Stopwatch(machine, batches, clock=machine.clock, tick=lambda: ticks.append(1))
    middle = 1 + 0.1 * 6 * 4  # of 3, 4 and 11 tokens, whatever delays the last
    assert stopwatch((0.1, 1.0)) == pytest.approx(middle)
    assert machine.followed == len(ticks) == 1


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("share", [0.45, 0.6, 0.8])
def test_a_latency_is_met_on_a_machine_with_moods(small, paced, share, noise):
    generator = np.random.default_rng(0)
    stopwatch, machine = paced(lambda: math.exp(noise * generator.standard_normal()))
    before = small.thresholds.detach().clone()
    target = share * 11.0  # of some 11 ms
    found = calibrate_latency(small, stopwatch, target)
    assert found.reached == pytest.approx(target, rel=0.1)
    assert found.lowest < target < found.dense
    assert found.lowest <= found.before <= found.dense * 1.05
    machine.noise = lambda: 1.0
    assert stopwatch((1.0, 1.0)) == pytest.approx(target, rel=0.1)
    assert torch.allclose(small.thresholds, before * found.strength)
    assert found.trials < 15


@pytest.mark.slow
def test_what_the_clock_cannot_meet(small, paced):
    before = small.thresholds.detach().clone()
    stopwatch, machine = paced()
    with pytest.raises(UserError, match=r"target_latency_ms=40 is more than the [\d.]+ ms that a batch takes without"):
        calibrate_latency(small, stopwatch, 40)
    with pytest.raises(UserError, match=r"target_latency_ms=1 cannot be reached: on this machine a batch takes 1\.6 "):
        calibrate_latency(small, stopwatch, 1)
    at = iter([1.0] * (24 * 20))  # so long the machine is as fast as ever, then a hundred times slower
    machine.noise = lambda: next(at, 100.0)
    with pytest.raises(
        RunError, match=r"target_latency_ms=5: no later measurement was below \d+ ms\. Measurements are"
    ):
        calibrate_latency(small, stopwatch, 5)
    assert torch.equal(small.thresholds, before)


@pytest.mark.slow
def test_a_search_is_repeated_where_a_fresh_measurement_differs(small, paced, monkeypatch):
    stopwatch, machine = paced()
    target = 6.0
    real = turn_to
    searches = []

    def disturbed(*args, **kwargs):
        found = real(*args, **kwargs)
        searches.append(found)
        machine.noise = lambda: 1.5  # somebody starts a job, and stays
        return found

    monkeypatch.setattr(latency, "calibrate", disturbed)
    found = calibrate_latency(small, stopwatch, target)
    assert len(searches) == 2
    assert found.reached == pytest.approx(target, rel=0.1)


def test_what_is_served_follows_the_model_without_being_made_again(small, sentences, make_batch):
    batch = make_batch(small, sentences)
    for execution, dtype in (("deployed", "float32"), ("deployed", "int8"), ("packed", "float32")):
        served = ServedModel(small, execution, dtype, torch.device("cpu"))
        forward = served._engine.forward
        control = strength_control(small)
        for strength in (0.0, control.strongest):
            control.apply(strength)
            served.update_pruning()
            served(batch)
            lengths = served._engine(batch).token_lengths
            assert lengths[:, -1].tolist() == ([14, 9, 17, 3] if strength == 0 else [1] * 4)
        control.reset_to_start()
        assert served._engine.forward is forward


# -- the new run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "target"), [("manual", 0.6), ("manual", 0.97), ("topk", 0.93)])
def test_a_run_meets_its_budget_on_its_own_sample(runs, method, target):
    run = runs[method]
    directory, results = calibrated(f"restore={run} target_flops={target} overwrite=true")
    assert directory == run / "calibrated" / f"target_{target:g}"
    model = LTPForSequenceClassification.from_pretrained(directory)
    sample = Sample.from_data(demo_data(), 512)
    assert closed_form(model, sample.batches(10)) == pytest.approx(target, abs=0.01)
    details = results["calibrated"]
    assert details["target_flops"] == target
    assert details["reached"] == pytest.approx(closed_form(model, sample.batches(96)), abs=1e-4)
    assert details["reached"] == details["relative_flops"]
    assert details["examples"] == 96
    parent = LTPForSequenceClassification.from_pretrained(run)
    if method == "manual":
        assert torch.allclose(model.thresholds, parent.thresholds * details["strength"])
        assert (model.config.budgets, model.budget) == ([target], target)
        assert model.config.final_token_threshold == pytest.approx(model.thresholds[-1].item())
    else:
        assert 1 - model.config.token_keep_rate == pytest.approx(1.5 * details["strength"])
        assert details["token_keep_rate"] == model.config.token_keep_rate
        assert results["thresholds"] is None
    for name, value in parent.dense.state_dict().items():  # nothing else is touched
        assert torch.equal(value, model.dense.state_dict()[name]), name


def test_evolution_finds_keep_rates_at_the_same_cost(runs):
    directory, results = calibrated(f"restore={runs['topk']} target_flops=0.9 search=evolution generations=2")
    assert directory.name == "target_0.9_evolution_2"
    model = LTPForSequenceClassification.from_pretrained(directory)
    details = results["calibrated"]
    assert model.config.keep_rates == details["rates"] == results["hyperparameters"]["keep_rates"]
    assert sorted(model.config.keep_rates, reverse=True) == model.config.keep_rates
    assert details["reached"] == pytest.approx(0.9, abs=0.01)
    sample = Sample.from_data(demo_data(), 512)
    assert closed_form(model, sample.batches(96)) == pytest.approx(details["reached"], abs=1e-4)
    assert 2 < details["configurations"] <= 33
    assert details["divergence"] <= details["divergence_before"]


def test_evolution_comes_nearer_to_the_unpruned_model(make_dense):
    model = LTPForSequenceClassification.from_dense(make_dense("bert"), prune_mode="topk", first_layer=1)
    lengths = torch.tensor([17, 3, 30, 21, 14, 9, 17, 28])
    mask = (torch.arange(30) < lengths[:, None]).long()
    batch = {"input_ids": torch.randint(5, 100, mask.shape), "attention_mask": mask}

    def divergence_and_cost():
        with torch.no_grad():
            dense, output = model.dense(**batch).logits.double(), model(**batch)
        dense, pruned = dense.softmax(-1), output.logits.double().softmax(-1)
        cost = model.cost.total_relative_flops(output.token_lengths)
        return (dense * (dense / pruned).log()).sum(dim=1).mean().item(), cost

    before, cost = divergence_and_cost()
    found = evolve(model, [batch], generations=3)
    after, cost_after = divergence_and_cost()
    assert found.start_divergence == pytest.approx(before, rel=1e-3)
    assert found.divergence == pytest.approx(after, rel=1e-3)
    assert after < 0.7 * before
    assert cost_after == pytest.approx(cost, abs=0.002)
    assert model.config.keep_rates == list(found.rates)


def test_evolution_is_for_keep_rates(runs):
    for words, message in [
        ("manual target_flops=0.7 search=evolution", "search=evolution finds keep rates, and restore="),
        ("topk target_latency_ms=3 search=evolution", "search=evolution goes with target_flops=…, not with target_lat"),
        ("topk target_flops=0.7 generations=2", "generations=2 goes with search=evolution"),
        ("topk target_flops=0.7 search=evolution generations=0", "generations=0"),
    ]:
        run, *rest = words.split()
        failed = ltp_calibrate(f"restore={runs[run]} {' '.join(rest)}")
        assert failed.code == 2
        assert message in failed.err


@pytest.mark.slow
def test_the_results_are_those_of_a_run(runs):
    run = runs["manual"]
    directory, results = calibrated(f"restore={run} target_flops=0.7")
    parent = results_of(run)
    assert set(parent) - {"measured_speedup"} <= set(results)
    for key in ("task", "model", "method", "prune_mode", "stage", "seed", "flops_definition", "dense_gflops"):
        assert results[key] == parent[key], key
    assert (results["parent"], results["parent_run_id"]) == (str(run), parent["run_id"])
    assert results["run_id"] != parent["run_id"]
    assert results["hyperparameters"]["target_flops"] == 0.7
    assert (results["train_examples"], results["validation_examples"], results["train_steps"]) == (96, 48, 0)
    (budget,) = results["budgets"]
    assert budget["budget"] == 0.7
    assert {key: results[key] for key in budget if key != "budget"} == {
        key: value for key, value in budget.items() if key != "budget"
    }
    assert results["calibrated"]["before"]["relative_flops"] == parent["relative_flops"]
    json.dumps(results, allow_nan=False)
    config = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
    assert config == results["config"]
    assert config["task"] == yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["task"]
    assert config["parent"] == {"name": str(run), "run_id": parent["run_id"]}
    assert {path.name for path in directory.iterdir()} <= {"config.yaml", "model", "results.json", ".lock"}
    # and other commands take it for one
    (found,) = ltp_evaluate(f"restore={directory}")["results"]
    assert found["metrics"] == pytest.approx(results["metrics"], abs=1e-6)
    assert found["relative_flops"] == pytest.approx(results["relative_flops"], rel=1e-9)
    assert found["thresholds"] == results["thresholds"]
    collected = collect([run])
    assert directory in [one.directory for one in collected.runs]
    again, results = calibrated(f"restore={directory} target_flops=0.8")
    assert again == directory / "calibrated" / "target_0.8"
    assert results["parent"] == str(directory)
    finished = ltp_train(
        ["prune=manual", f"restore={directory}", "task=demo", *SMALL, f"output_root={run / 'below'}", "epochs=0.2"]
    )
    assert finished.code == 0, finished.err


@pytest.mark.slow
def test_several_budgets_are_stored_and_chosen(runs):
    run = runs["manual"]
    directory, results = calibrated(f"restore={run} budgets=[0.9,0.6]")
    assert directory == run / "calibrated" / "budgets_0.6_0.9"
    assert [one["budget"] for one in results["budgets"]] == [0.6, 0.9]
    assert results["thresholds"] == results["budgets"][-1]["thresholds"]
    assert results["calibrated"]["budgets"] == [0.6, 0.9]
    assert results["calibrated"]["reached"] == pytest.approx([0.6, 0.9], abs=0.01)
    for one in results["budgets"]:
        model = LTPForSequenceClassification.from_pretrained(directory, budget=one["budget"])
        assert model.thresholds.tolist() == one["thresholds"]
        sample = Sample.from_data(demo_data(), 512)
        assert closed_form(model, sample.batches(64)) == pytest.approx(one["budget"], abs=0.01)
    assert LTPForSequenceClassification.from_pretrained(directory).budget == 0.9
    assert len(results["calibrated"]["strength"]) == len(results["calibrated"]["trials"]) == 2
    assert results["hyperparameters"]["budgets"] == [0.6, 0.9]
    _, results = calibrated(f"restore={directory} target_flops=0.6")  # thresholds in use are those of 0.9
    assert results["calibrated"]["before"]["sample_relative_flops"] == pytest.approx(0.9, abs=0.01)
    assert (results["calibrated"]["strength"], results["calibrated"]["trials"]) == (1.0, 1)  # from those of 0.6
    assert results["hyperparameters"]["budgets"] is None


@pytest.mark.slow
def test_the_table_shows_before_and_after(runs):
    finished = ltp_calibrate(f"restore={runs['manual']} budgets=[0.65,0.85]")
    for text in ("manual", "calibrated to 0.65, 0.85 of the FLOPs", "before", "budget 0.65", "budget 0.85",
                 "relative FLOPs, sample", "accuracy, validation", "96 training examples", "48 examples"):  # fmt: skip
        assert text in finished.out, text


def test_a_budget_that_cannot_be_reached_leaves_nothing(runs, tmp_path):
    finished = ltp_calibrate(f"restore={runs['topk']} target_flops=0.2 to={tmp_path / 'a' / 'b'}")
    assert finished.code == 2
    assert finished.err.startswith(
        "error: target_flops=0.2 cannot be reached: the hardest pruning of this model costs 0."
    )
    assert finished.err.endswith("of the dense FLOPs on 96 examples. Ask for more than that.\n")
    lowest = float(finished.err.split("model costs ")[1].split()[0])
    assert list(tmp_path.iterdir()) == []
    finished = ltp_calibrate(f"restore={runs['topk']} target_flops={lowest + 0.005} to={tmp_path / 'a'}")
    assert finished.code == 0, finished.err
    finished = ltp_calibrate(f"restore={runs['manual']} budgets=[0.01,0.8] to={tmp_path / 'b'}")
    assert finished.err.startswith("error: budgets=[0.01,0.8]: 0.01 cannot be reached: the hardest")
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["execution=packed", "", "dtype=int8 batch_size=4"])
def test_a_latency_of_this_machine(runs, tmp_path, monkeypatch, how):
    """A real clock, on models so small that pruning hardly shows: only that all of it works together."""
    monkeypatch.setattr(latency, "ACCEPTED", 50.0)
    monkeypatch.setattr(latency, "_SEARCHED", 40.0)
    monkeypatch.setattr(latency, "_SHORT", (0.01, 0.1))
    monkeypatch.setattr(latency, "_LONG", (0.01, 0.1))
    to = tmp_path / "run"
    directory, results = calibrated(f"restore={runs['manual']} target_latency_ms=2.5 to={to} threads=1 {how}")
    assert directory == to
    details = results["calibrated"]
    assert details["target_latency_ms"] == 2.5
    assert details["reached"] > 0
    assert details["dense_ms"] > 0
    assert details["lowest_ms"] > 0
    assert details["threads"] == 1
    assert details["processor"]
    assert details["examples"] == 64
    assert results["budgets"] == []
    assert results["hyperparameters"]["target_latency_ms"] == 2.5
    assert LTPForSequenceClassification.from_pretrained(to).config.budgets == []
    shown = ltp_calibrate(f"restore={runs['manual']} target_latency_ms=2.5 to={to} threads=1 {how}")
    assert "milliseconds a batch" in shown.out
    assert "ms without pruning" in shown.out


def test_what_is_finished_is_skipped(runs, tmp_path):
    command = f"restore={runs['manual']} target_flops=0.75 to={tmp_path / 'run'}"
    directory, results = calibrated(command)
    finished = ltp_calibrate(command)
    assert finished.code == 0
    assert f"finished already, skipped: {directory} (overwrite=true calibrates afresh)" in finished.err
    assert "relative FLOPs, sample" in finished.out
    assert results_of(directory) == results
    shutil.copytree(runs["manual"], tmp_path / "copy", ignore=shutil.ignore_patterns("calibrated"))
    moved = ltp_calibrate(f"restore={tmp_path / 'copy'} target_flops=0.75 to={directory}")  # the same run
    assert moved.code == 0, moved.err
    changed = ltp_calibrate(f"{command} examples=50")
    assert (changed.code, changed.err) == (
        2,
        f"error: {directory} holds a finished calibration with another configuration:\n  examples: 512 there, 50 now\n"
        "Start it afresh with overwrite=true, or keep both with another to=DIR\n",
    )
    assert results_of(directory) == results
    _, results = calibrated(f"{command} examples=50 overwrite=true")
    assert results["calibrated"]["examples"] == 50


@pytest.mark.slow
def test_an_unfinished_one_is_made_afresh(runs, tmp_path):
    command = f"restore={runs['manual']} target_flops=0.75 to={tmp_path / 'run'}"
    directory, _ = calibrated(command)
    (directory / "results.json").unlink()
    (directory / "model" / "model.safetensors").write_bytes(b"half")
    _, results = calibrated(command)
    assert results["calibrated"]["reached"] == pytest.approx(0.75, abs=0.01)
    assert LTPForSequenceClassification.from_pretrained(directory).budget == 0.75


@pytest.mark.slow
def test_nothing_is_left_when_writing_fails(runs, tmp_path, monkeypatch):
    def fails(self, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LTPForSequenceClassification, "save_pretrained", fails)
    finished = ltp_calibrate(f"restore={runs['manual']} target_flops=0.75 to={tmp_path / 'run'}")
    assert (finished.code, finished.err) == (1, f"error: cannot write {tmp_path / 'run'}: No space left on device\n")
    assert [path.name for path in (tmp_path / "run").iterdir() if not path.name.startswith(".")] == []
    monkeypatch.undo()
    calibrated(f"restore={runs['manual']} target_flops=0.75 to={tmp_path / 'run'}")


def test_what_is_something_else_is_never_overwritten(runs, tmp_path, monkeypatch):
    run = runs["manual"]
    before = results_of(run)
    for to, message in (
        (run, f"to={run} is the run that is calibrated: name another directory"),
        (runs["dense"], f"to={runs['dense']} holds something else than a run of ltp.calibrate, which is never "
         "overwritten: name another directory with to=DIR"),
    ):  # fmt: skip
        finished = ltp_calibrate(f"restore={run} target_flops=0.75 overwrite=true to={to}")
        assert (finished.code, finished.err) == (2, f"error: {message}\n")
    assert results_of(run) == before
    (tmp_path / "file").write_text("mine")
    assert "is a file" in ltp_calibrate(f"restore={run} target_flops=0.75 to={tmp_path / 'file'}").err
    inside = tmp_path / "file" / "inside"
    finished = ltp_calibrate(f"restore={run} target_flops=0.75 to={inside}")
    message = f"cannot write {inside}: {tmp_path / 'file'} is a file; name another place with to=DIR"
    assert (finished.code, finished.err) == (2, f"error: {message}\n")
    monkeypatch.setattr(folder.os, "access", lambda folder, mode: folder != tmp_path)
    finished = ltp_calibrate(f"restore={run} target_flops=0.75 to={tmp_path / 'a' / 'b'}")
    message = f"cannot write {tmp_path / 'a' / 'b'}: Permission denied; name another place with to=DIR"
    assert (finished.code, finished.err) == (2, f"error: {message}\n")


@pytest.mark.slow
def test_a_hugging_face_directory(runs, tmp_path):
    os.symlink(runs["manual"] / "model", tmp_path / "mine")
    restore = f"restore={tmp_path / 'mine'} target_flops=0.75"
    assert ltp_calibrate(restore).err.endswith(
        "is not a run directory that names its task: give task=… (and data_dir=…)\n"
    )
    (tmp_path / "sst2").mkdir()
    rows = [{"sentence": f"this film is {'very ' * (number % 7)}good", "label": number % 2} for number in range(30)]
    for split in ("train", "validation"):
        text = "\n".join(map(json.dumps, rows))
        (tmp_path / "sst2" / f"{split}.jsonl").write_text(text, encoding="utf-8")
    task = f"task=sst2 task.max_length=16 data_dir={tmp_path}"
    finished = ltp_calibrate(f"{restore} {task}")
    message = f"restore={tmp_path / 'mine'} is no run directory: say where the new run goes with to=DIR"
    assert finished.err == f"error: {message}\n"
    directory, results = calibrated(f"{restore} {task} to={tmp_path / 'new'}")
    assert (results["task"], results["model"], results["stage"], results["parent_run_id"]) == (
        "sst2",
        "mine",
        "hard",
        None,
    )
    assert directory in [one.directory for one in collect([directory]).runs]
    (found,) = ltp_evaluate(f"restore={directory}")["results"]  # without task=
    assert found["relative_flops"] == pytest.approx(results["relative_flops"])
    directory, _ = calibrated(f"{restore} {task} output_root={tmp_path / 'root'}")
    assert directory == tmp_path / "root" / "mine" / "sst2" / "calibrated" / "target_0.75"


def test_every_validation_split_is_scored(make_dense, tmp_path):
    dense = make_dense("bert", vocab_size=len(demo_tokenizer()), max_position_embeddings=64)
    model = LTPForSequenceClassification.from_dense(dense, prune_mode="absolute_threshold")
    model.save_pretrained(tmp_path / "hf")
    demo_tokenizer().save_pretrained(tmp_path / "hf")
    (tmp_path / "mnli").mkdir()
    rows = [{"premise": "a film " * (1 + row % 5), "hypothesis": "bad", "label": row % 3} for row in range(24)]
    for split, count in (("train", 24), ("validation_matched", 12), ("validation_mismatched", 7)):
        text = "\n".join(map(json.dumps, rows[-count:]))
        (tmp_path / "mnli" / f"{split}.jsonl").write_text(text, encoding="utf-8")
    command = f"restore={tmp_path / 'hf'} task=mnli task.max_length=32 data_dir={tmp_path} to={tmp_path / 'run'}"
    directory, results = calibrated(f"{command} target_flops=0.6")
    assert set(results["metrics"]) == {"accuracy", "accuracy_mismatched"}
    assert results["validation_examples"] == 12
    (found,) = ltp_evaluate(f"restore={directory} split=validation_mismatched")["results"]
    assert found["metrics"]["accuracy"] == results["metrics"]["accuracy_mismatched"]
    (found,) = ltp_evaluate(f"restore={directory}")["results"]
    assert found["relative_flops"] == pytest.approx(results["relative_flops"])


@pytest.mark.slow
def test_of_two_that_calibrate_the_same_the_second_takes_the_first_s(runs, tmp_path, monkeypatch):
    run, directory = runs["manual"], tmp_path / "run"
    _, first = calibrated(f"restore={run} target_flops=0.75 to={tmp_path / 'first'}")
    measure = calibrating_run.measure

    def overtaken(*arguments):
        measured = measure(*arguments)
        shutil.copytree(tmp_path / "first", directory, dirs_exist_ok=True)
        return measured

    monkeypatch.setattr(calibrating_run, "measure", overtaken)
    finished = ltp_calibrate(f"restore={run} target_flops=0.75 to={directory}")
    assert f"another process has calibrated it meanwhile: {directory}" in finished.err
    assert results_of(directory) == first


def test_another_root_has_the_same_tree(runs, tmp_path):
    run = runs["topk"]
    shown = yaml.safe_load(ltp_calibrate(f"--cfg job restore={run} target_flops=0.95 output_root={tmp_path}").out)
    place = Path(*run.parts[run.parts.index("tiny") :])
    assert shown["to"] == str(tmp_path / place / "calibrated/target_0.95")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_in_mixed_precision_is_counted_in_it(runs, tmp_path, monkeypatch):
    shutil.copytree(runs["manual"], tmp_path / "run", ignore=shutil.ignore_patterns("calibrated"))
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    config["trainer"]["precision"] = "bf16-mixed"
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    seen = []
    count = flops.measured_flops

    def counted(*arguments):
        seen.append(torch.is_autocast_enabled("cpu"))
        return count(*arguments)

    monkeypatch.setattr(flops, "measured_flops", counted)
    _, results = calibrated(f"restore={tmp_path / 'run'} target_flops=0.8")
    assert seen
    assert all(seen)
    assert results["calibrated"]["reached"] == pytest.approx(0.8, abs=0.01)
    assert ltp_evaluate(f"restore={tmp_path / 'run' / 'calibrated' / 'target_0.8'}")["dtype"] == "bfloat16"


# -- the command ------------------------------------------------------------------------------------------------

BUDGETS = (
    "target_flops=0.4 (a share of the dense FLOPs), target_latency_ms=12 (milliseconds a batch, measured on this "
    "machine), budgets=[0.3,0.5,0.7] (several in one checkpoint), agreement=0.98 (share of the dense model's "
    "predictions to keep)"
)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "restore has no value; give it on the command line: restore=…"),
        ("restore=x", f"no budget is given: give exactly one of {BUDGETS}"),
        ("restore=x target_flops=0.5 budgets=[0.3,0.5]", "target_flops=0.5 and budgets=[0.3,0.5] are given: give "
         f"exactly one of {BUDGETS}"),
        ("restore=./nowhere target_flops=0.5", "restore=./nowhere: no such directory. Give a run directory, a Hugging "
         "Face directory or a hub id."),
        ("restore=x target_flops=1.5", "target_flops=1.5 is out of range: it must be in (0, 1] (of the dense FLOPs)"),
        ("restore=x target_flops=0", "target_flops=0 is out of range: it must be in (0, 1] (of the dense FLOPs)"),
        ("restore=x target_flops=nan", "target_flops=nan is out of range: it must be in (0, 1] (of the dense FLOPs)"),
        ("restore=x budgets=[]", "budgets=[] is out of range: it must be one or more different shares of the "
         "dense FLOPs"),
        ("restore=x budgets=[0.5,2]", "budgets=[0.5,2] is out of range: it must be in (0, 1] (of the dense FLOPs)"),
        ("restore=x budgets=[0.5,0.5]", "budgets=[0.5,0.5] is out of range: it must be one or more different shares of "
         "the dense FLOPs"),
        ("restore=x target_latency_ms=0", "target_latency_ms=0 is out of range: it must be above 0 (milliseconds)"),
        ("restore=x target_flop=0.5", "unknown key target_flop; did you mean target_flops?"),
        ("restore=x target_latency=5", "unknown key target_latency; did you mean target_latency_ms?"),
        ("restore=x model=tiny", "unknown key model; what is calibrated is chosen by restore=… (a demo run brings its "
         "task)"),
        ("restore=x target_flops=0.5 execution=packed", "execution=packed goes with target_latency_ms, not with "
         "target_flops=0.5: FLOPs are counted, and do not depend on how the model is served"),
        ("restore=x target_latency_ms=5 execution=deploy", "execution=deploy: no such option. Did you mean deployed? "
         "Options: deployed, packed"),
        ("restore=x target_latency_ms=5 dtype=float16", "dtype=float16: no such option. Did you mean bfloat16 or "
         "float32? Options: float32, bfloat16, int8"),
        ("restore=x target_latency_ms=5 execution=packed dtype=int8", "dtype=int8 goes with execution=deployed, not "
         "execution=packed"),
        ("restore=x target_latency_ms=5 device=cuda", "execution=deployed is for CPUs: use device=cpu, or "
         "execution=packed"),
        ("restore=x target_latency_ms=5 batch_size=0", "batch_size=0 is out of range: it must be 1 or more"),
        ("restore=x target_flops=0.5 examples=0", "examples=0 is out of range: it must be 1 or more"),
        ("restore=x target_flops=0.5 threads=0", "threads=0 is out of range: it must be 1 or more"),
        ("restore=x target_flops=0.5 to=a output_root=b", "to=a and output_root=b both set the new run's folder: "
         "give one of them"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(tmp_path, monkeypatch, command, message):
    monkeypatch.chdir(tmp_path)
    finished = ltp_calibrate(command)
    assert (finished.code, finished.out, finished.err) == (2, "", f"error: {message}\n")
    assert list(tmp_path.iterdir()) == []


def test_what_prunes_by_one_rate_or_was_trained_to(runs):
    manual, topk = runs["manual"], runs["topk"]
    finished = ltp_calibrate(f"restore={manual} agreement=0.98")
    assert (finished.code, finished.err) == (
        2,
        f"error: agreement=0.98 keeps the predictions of a dense model, and restore={manual} was trained to prune: "
        "give target_flops=…, or restore its dense parent\n",
    )
    finished = ltp_calibrate(f"restore={topk} budgets=[0.5,0.7]")
    assert finished.err == (
        f"error: budgets=[0.5,0.7]: restore={topk} prunes by one keep rate (topk), and several budgets are several "
        "thresholds a layer. Use target_flops=…, once for each\n"
    )
    assert not (topk / "calibrated" / "budgets_0.5_0.7").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("task=sst2 data_dir=nowhere", "data_dir=nowhere: no such directory."),
        ("task=stsb data_dir=glue", "restore={run} has 2 labels, task=stsb has 1; restore a checkpoint that was "
         "fine-tuned on stsb."),
        ("task=sst2 task.max_length=4096 data_dir=glue", "task.max_length=4096: the model reads at most 512 tokens"),
    ],
)  # fmt: skip
def test_what_a_run_cannot_read_is_one_message(runs, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    for task, header in (("sst2", "sentence\tlabel\ngood\t1\n"), ("stsb", "sentence1\tsentence2\tlabel\na\tb\t1\n")):
        (tmp_path / "glue" / task).mkdir(parents=True)
        for split in ("train", "validation"):
            (tmp_path / "glue" / task / f"{split}.tsv").write_text(header, encoding="utf-8")
    run = runs["manual"]
    finished = ltp_calibrate(f"restore={run} target_flops=0.5 to=new {options}")
    assert (finished.code, finished.out, finished.err) == (2, "", f"error: {message.format(run=run)}\n")
    assert not (tmp_path / "new").exists()


def test_show_fills_the_nulls(runs):
    run = runs["manual"]
    shown = yaml.safe_load(ltp_calibrate(f"--cfg job restore={run} target_latency_ms=12").out)
    assert shown["to"] == str(run / "calibrated" / "latency_12ms_batch_1_deployed_float32")
    assert (shown["batch_size"], shown["execution"], shown["dtype"], shown["examples"]) == (
        1,
        "deployed",
        "float32",
        512,
    )
    assert shown["task"]["name"] == "demo"


def test_help_explains_every_key():
    text = ltp_calibrate("--help").out
    for key in calibrate.CalibrateSettings.__dataclass_fields__:
        assert f"\n  {key}" in text or f" {key} " in text or f", {key}" in text, key

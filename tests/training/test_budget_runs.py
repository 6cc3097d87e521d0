"""Runs with a budget: where they end, what they write, and that neither a kill nor a second process changes them.

Marked slow: they train for seconds.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import SMALL, ltp_train, total_relative_flops
from interrupting import (
    assert_the_same,
    interrupted,
    lines_of,
    results_of,
    run_directory,
    trained,
    trained_by_two,
)
from safetensors.torch import load_file

from ltp import LTPForSequenceClassification
from ltp.data.datamodule import GLUEDataModule
from ltp.data.demo import demo_tokenizer
from ltp.data.sources import load_splits
from ltp.runs.plan import task_of
from ltp.runs.settings import TaskSettings

pytestmark = pytest.mark.slow

ROWS = ("task.max_train_samples=160", "task.max_validation_samples=200")
#: Twenty optimiser steps with dropout.
SOFT = (*SMALL, *ROWS, "prune=threshold", "stage=soft", "epochs=2", "seed=3", "prune.lr_threshold=1e-3")


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def dense_run(tmp_path_factory):
    """A small dense run with dropout, to start from."""
    folder = tmp_path_factory.mktemp("dense")
    return trained(*SMALL, f"output_root={folder}", "model.architecture.hidden_dropout_prob=0.1", "epochs=3")


@pytest.fixture(scope="module")
def soft_run(dense_run, tmp_path_factory):
    return trained(
        *SOFT, "prune.target_flops=0.5", f"restore={dense_run}", f"output_root={tmp_path_factory.mktemp('s')}"
    )


def alive(directory, budget=None):
    """A run's model, and the tokens alive in it on its validation split, (S, L+1)."""
    model = LTPForSequenceClassification.from_pretrained(directory / "model", **({"budget": budget} if budget else {}))
    splits = load_splits(task_of(TaskSettings(name="demo")), max_validation_samples=200)
    data = GLUEDataModule(splits, demo_tokenizer(), batch_size=8)
    data.setup("validate")
    lengths = [model(**batch).token_lengths for batch in data.val_dataloader()[0]]
    return model, torch.cat(lengths)


def counted(directory, budget=None):
    """Relative FLOPs of a run's model on its validation split, from the tokens alive."""
    return total_relative_flops(alive(directory, budget)[1], 32, 64).item()


# -- where runs end ------------------------------------------------------------------------------------------


def test_a_soft_run_ends_at_its_budget(soft_run):
    results = results_of(soft_run)
    assert results["relative_flops"] == pytest.approx(0.5, abs=0.02)
    assert counted(soft_run) == pytest.approx(results["relative_flops"], abs=1e-6)
    assert results["hyperparameters"]["target_flops"] == 0.5
    assert results["hyperparameters"]["lambda_threshold"] is None
    (held,) = results["budgets"]
    assert (held["budget"], held["relative_flops"]) == (0.5, results["relative_flops"])
    logged = lines_of(soft_run)
    assert {"train/lambda", "train/expected_flops"} <= logged[0].keys()
    assert "val/relative_flops" in logged[-1]
    costs = [line["train/expected_flops"] for line in logged if "train/expected_flops" in line]
    assert sum(costs) / len(costs) == pytest.approx(0.5, abs=0.1)  # held there from the first step on


@pytest.mark.parametrize(
    ("method", "target"),
    [
        *(("prune=threshold", target) for target in (0.3, 0.5, 0.9)),
        *(("prune=manual", target) for target in (0.3, 0.6)),
        ("prune=topk", 0.95),  # three of the four layers keep every token
    ],
)
def test_a_hard_run_is_held_at_its_budget(soft_run, dense_run, method, target):
    parent = soft_run if method == "prune=threshold" else dense_run
    words = [*SMALL, *ROWS, method, "stage=hard", f"prune.target_flops={target}", f"restore={parent}", "lr=1e-3"]
    directory = trained(*words)
    results = results_of(directory)
    assert results["relative_flops"] == pytest.approx(target, abs=0.02)
    assert counted(directory) == pytest.approx(results["relative_flops"], abs=1e-6)
    found = {"prune=manual": "final_token_threshold", "prune=topk": "token_keep_rate"}.get(method)
    if found is not None:
        config = json.loads((directory / "model" / "config.json").read_text())
        assert results["hyperparameters"][found] == config[found]
    if method == "prune=manual":
        theta = results["thresholds"]
        assert theta == pytest.approx([theta[-1] * layer / 4 for layer in (1, 2, 3, 4)], rel=1e-4)
        assert theta[-1] == pytest.approx(config["final_token_threshold"], rel=1e-6)


def ratio_of_thresholds(run, parent):
    held, learned = (torch.tensor(results_of(one)["thresholds"]) for one in (run, parent))
    return held / learned


def test_the_shape_that_was_learned_is_kept(soft_run):
    command = [*SMALL, *ROWS, "stage=hard", f"restore={soft_run}", "lr=1e-3"]
    directory = trained(*command)
    assert directory.is_relative_to(soft_run / "hard")
    assert directory.parts[-2:] == ("lr_0.001", "seed_0")
    ratio = ratio_of_thresholds(directory, soft_run)
    assert ratio.max() - ratio.min() < 1e-4
    directory = trained(*command, "prune.target_flops=0.4")
    assert directory.is_relative_to(soft_run / "hard" / "target_0.4")
    assert directory.parts[-2:] == ("lr_0.001", "seed_0")
    ratio = ratio_of_thresholds(directory, soft_run)
    assert ratio.max() - ratio.min() < 1e-4
    assert ratio[0] - 1 > 1e-3  # turned up, to less than what they were learned for
    assert results_of(directory)["relative_flops"] == pytest.approx(0.4, abs=0.02)


def test_several_budgets_share_one_checkpoint(dense_run):
    words = [*SMALL, *ROWS, "prune=threshold", "budgets=[0.4,0.6,0.8]", "epochs=2", "prune.lr_threshold=1e-3"]
    soft = trained(*words, "stage=soft", f"restore={dense_run}")
    words = [word for word in words if "lr_threshold" not in word and "budgets" not in word]
    directory = trained(*words, "stage=hard", f"restore={soft}")
    for run in (soft, directory):
        results = results_of(run)
        assert [held["budget"] for held in results["budgets"]] == [0.4, 0.6, 0.8]
        for held in results["budgets"]:
            assert held["relative_flops"] == pytest.approx(held["budget"], abs=0.02)
            assert counted(run, held["budget"]) == pytest.approx(held["relative_flops"], abs=1e-6)
        assert results["relative_flops"] == results["budgets"][-1]["relative_flops"]
        assert counted(run) == pytest.approx(results["relative_flops"], abs=1e-6)
        assert len({tuple(held["thresholds"]) for held in results["budgets"]}) == 3
    # the soft training is one at the lowest budget, whose shape the others take over
    lowest, *others = (torch.tensor(held["thresholds"]) for held in results_of(soft)["budgets"])
    for ratio in (lowest / other for other in others):
        assert ratio.max() - ratio.min() < 1e-4
        assert ratio[0] > 1.01
    last = [line for line in lines_of(soft) if "val/accuracy" in line][-1]
    each = [last[f"val/budget_{budget}/accuracy"] for budget in (0.4, 0.6, 0.8)]
    assert last["val/accuracy"] == pytest.approx(sum(each) / 3)


def test_networks_that_the_dense_parent_taught_are_held_at_several_budgets(dense_run):
    soft = trained(*TAUGHT, "budgets=[0.5,0.8]", f"restore={dense_run}")
    directory = trained(*SMALL, *ROWS, "prune=adapler", "stage=hard", f"restore={soft}", "lr=1e-3")
    for held in results_of(directory)["budgets"]:
        assert held["relative_flops"] == pytest.approx(held["budget"], abs=0.02)
        model, lengths = alive(directory, held["budget"])
        assert model.cost.total_relative_flops(lengths) == pytest.approx(held["relative_flops"], abs=1e-6)
    # the hard stage starts from what the soft one has learned, and does not change it
    before, after = (
        {name: value for name, value in load_file(run / "model" / "model.safetensors").items() if "predictors" in name}
        for run in (soft, directory)
    )
    assert len(before) == 4 * 4
    assert all(torch.equal(before[name], after[name]) for name in before)


# -- targets that cannot be met ------------------------------------------------------------------------------


def test_a_target_below_one_token_everywhere(dense_run):
    finished = ltp_train([*SOFT, "prune.target_flops=0.05", f"restore={dense_run}"])
    assert finished.code == 2
    assert "prune.target_flops=0.05 cannot be reached: keeping only the classification token" in finished.err
    lowest = float(finished.err.split("costs ")[1].split()[0])
    assert 0.05 < lowest < 0.3
    assert not Path("outputs").exists()
    # and what the message names can be reached
    directory = trained(*SOFT, f"prune.target_flops={lowest + 0.02:.3f}", f"restore={dense_run}")
    assert results_of(directory)["relative_flops"] == pytest.approx(lowest + 0.02, abs=0.02)


def test_a_target_that_top_k_cannot_meet(dense_run):
    """Its first layers keep every token."""
    finished = ltp_train(
        [*SMALL, *ROWS, "prune=topk", "prune.first_layer=4", "prune.target_flops=0.3", f"restore={dense_run}"]
    )
    assert finished.code != 0
    assert "the budget 0.3 cannot be held: a cost of 0.3 cannot be reached: the lowest is 0.9" in finished.err
    assert "Traceback" not in finished.err


# -- kills and processes -------------------------------------------------------------------------------------


#: A method with networks of its own, which the dense parent teaches.
TAUGHT = (*(word for word in SOFT if "threshold" not in word), "prune=adapler", "prune.lr_predictor=5e-3")


#: A method that samples.
SAMPLED = (*(word for word in SOFT if "threshold" not in word), "prune=tr_bert", "prune.policy_samples=2")


@pytest.mark.parametrize(
    ("soft", "budget"),
    [
        (SOFT, "prune.target_flops=0.5"),
        (SOFT, "budgets=[0.4,0.7]"),
        (TAUGHT, "budgets=[0.4,0.7]"),
        (SAMPLED, "prune.target_flops=0.7"),
    ],
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(dense_run, monkeypatch, soft, budget):
    words = [*soft, budget, f"restore={dense_run}", "save_step=8", "trainer.accumulate_grad_batches=2"]
    wanted = trained(*words, "output_root=undisturbed")
    interrupted(words, 13, monkeypatch, saves=False)  # as a kill: what was done since step 8 is lost
    interrupted(words, 17, monkeypatch)
    trained(*words)
    assert_the_same(run_directory(), wanted)
    # the multiplier was no constant that a resume could not lose
    lambdas = [line["train/lambda"] for line in lines_of(wanted) if "train/lambda" in line]
    assert len({round(value, 6) for value in lambdas}) > 10


def test_two_processes_learn_what_one_does(dense_run):
    no_dropout = [f"model.architecture.{name}_dropout_prob=0" for name in ("hidden", "attention_probs")]
    dense = trained(*SMALL, *no_dropout, "epochs=3", "trainer.num_threads=1")
    words = [*SOFT, "prune.target_flops=0.5", f"restore={dense}", "trainer.num_threads=1"]
    trained_by_two(*words, "output_root=two")
    one, two = trained(*words, "output_root=one"), run_directory("two")
    first, second = results_of(one), results_of(two)
    assert (first["devices"], second["devices"]) == (1, 2)
    assert second["relative_flops"] == pytest.approx(0.5, abs=0.02)
    assert second["thresholds"] == pytest.approx(first["thresholds"], rel=2e-2)
    lambdas = [[line["train/lambda"] for line in lines_of(run) if "train/lambda" in line] for run in (one, two)]
    assert lambdas[1] == pytest.approx(lambdas[0], abs=2e-3)
    assert max(map(abs, lambdas[0])) > 0.01


# -- distillation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["logits", "hidden"])
def test_a_student_learns_from_its_dense_parent(dense_run, mode):
    common = [*SOFT, "prune.target_flops=0.5", f"restore={dense_run}", "lr=1e-3", "epochs=4"]
    plain = trained(*common)
    taught = trained(*common, f"distill={mode}", "distill.weight=1")
    hyperparameters = results_of(taught)["hyperparameters"]
    assert (hyperparameters["distill_mode"], hyperparameters["distill_weight"]) == (mode, 1)
    teacher = LTPForSequenceClassification.from_pretrained(dense_run)
    splits = load_splits(task_of(TaskSettings(name="demo")), max_validation_samples=200)
    data = GLUEDataModule(splits, demo_tokenizer(), batch_size=8)
    data.setup("validate")
    away = []
    for run in (plain, taught):
        student = LTPForSequenceClassification.from_pretrained(run)
        with torch.no_grad():
            difference = [student(**b).logits - teacher(**b).logits for b in data.val_dataloader()[0]]
        away.append(torch.cat(difference).abs().mean().item())
    assert away[1] < away[0]
    # nothing of the teacher is in what is saved
    assert (
        load_file(plain / "model" / "model.safetensors").keys()
        == load_file(taught / "model" / "model.safetensors").keys()
    )
    state = torch.load(taught / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert not [name for name in state if "teacher" in name]


def test_the_teacher_is_found_behind_the_soft_run(dense_run):
    common = [*SMALL, *ROWS, f"output_root={dense_run.parents[4]}", "distill=logits"]
    soft = trained(*common, "prune=threshold", "stage=soft", "prune.target_flops=0.5")
    hard = trained(*common, "stage=hard", f"restore={soft}")
    assert hard.is_relative_to(soft / "hard" / "distill_logits_0.5_temperature_2")
    shutil.rmtree(soft)

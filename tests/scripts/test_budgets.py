"""``make budgets``: which commands compare budgets with fixed lambdas, and what the table says of them."""

import importlib.util
import sys
from pathlib import Path

import pytest
from helpers import SMALL

SCRIPT = Path(__file__).parents[2] / "scripts" / "budgets.py"


@pytest.fixture
def budgets(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = importlib.util.spec_from_file_location("budgets", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "budgets", module)  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def results(metric, cost):
    return {"metric": {"name": "accuracy", "value": metric}, "relative_flops": cost}


def test_overrides_go_where_they_have_a_meaning(budgets):
    commands = budgets.build_commands(
        "mrpc", ["seed=3,4", "lr=1e-5", "prune.lr_threshold=2e-4", "launcher=parallel", "hydra.launcher.n_jobs=2"]
    )
    common = ["prune=threshold", "stage=hard", "task=mrpc", "lr=1e-5"]
    fixed = [*common, "prune.lr_threshold=2e-4"]
    assert commands.sweep() == [
        *("-m", *fixed, "launcher=parallel", "hydra.launcher.n_jobs=2"),
        *("prune.lambda_threshold=0.025,0.1,0.4,1.6", "seed=3,4"),
    ]
    assert commands.fixed("0.4", "3") == [*fixed, "prune.lambda_threshold=0.4", "seed=3"]
    assert commands.budgeted(0.31847, "3") == [*common, "prune.target_flops=0.318", "seed=3"]


def test_a_row_by_hand(budgets):
    pairs = [(results(0.80, 0.30), results(0.81, 0.31)), (results(0.82, 0.32), results(0.80, 0.33))]
    # differences of 1 and −2 points: mean −0.5, standard deviation 3/√2, standard error 1.5
    assert budgets.row(pairs) == ["0.310", "81.00", "0.320", "80.50", "-0.50 ± 1.50", "2"]
    assert budgets.row(pairs[:1]) == ["0.300", "80.00", "0.310", "81.00", "+1.00", "1"]


def test_a_run_that_failed_is_in_no_row_and_the_others_are(budgets, monkeypatch, capsys):
    found = {"seed=0": results(0.8, 0.4), "seed=1": None, "seed=2": results(0.7, 0.5)}
    ran = []

    def finished_results(words):
        return results(0.9, 0.4) if any("target_flops" in word for word in words) else found[words[-1]]

    def run(*command):
        ran.append(command[3:])
        return 1 if "seed=2" in command else 0

    monkeypatch.setattr(budgets, "finished_results", finished_results)
    monkeypatch.setattr(budgets, "run", run)
    assert budgets.main("demo", ["prune.lambda_threshold=0.1"]) == 1
    sweep, *others = ran
    assert sweep[-2:] == ("prune.lambda_threshold=0.1", "seed=0,1,2")
    assert [words[-2:] for words in others] == [
        ("prune.target_flops=0.400", "seed=0"),
        ("prune.target_flops=0.500", "seed=2"),
    ]
    line = next(line for line in capsys.readouterr().out.splitlines() if "0.1 " in line)
    assert line.replace("│", " ").split() == ["0.1", "0.400", "80.00", "0.400", "90.00", "+10.00", "1"]


@pytest.mark.parametrize(("code", "end"), [(2, 2), (130, 130)])
def test_it_stops_where_the_sweep_cannot_start_or_is_interrupted(budgets, monkeypatch, code, end):
    ran = []
    monkeypatch.setattr(budgets, "run", lambda *command: ran.append(command) or code)
    assert budgets.main("demo", []) == end
    assert len(ran) == 1


@pytest.mark.slow
def test_it_trains_and_compares(budgets, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    overrides = [*SMALL, "prune.lambda_threshold=0.1", "seed=5"]
    assert budgets.main("demo", overrides) == 0
    fixed = budgets.finished_results(budgets.build_commands("demo", overrides).fixed("0.1", "5"))
    words = budgets.build_commands("demo", overrides).budgeted(fixed["relative_flops"], "5")
    budgeted = budgets.finished_results(words)
    assert fixed["hyperparameters"]["lambda_threshold"] == 0.1
    assert budgeted["hyperparameters"]["target_flops"] == pytest.approx(fixed["relative_flops"], abs=5e-4)
    assert fixed["seed"] == budgeted["seed"] == 5
    shown = capfd.readouterr().out
    for cell in budgets.row([(fixed, budgeted)]):
        assert cell in shown

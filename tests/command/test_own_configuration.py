"""Configuration files in another folder: found, obeyed, and passed on to the processes that a command starts."""

import json
from pathlib import Path

import pytest
import yaml
from helpers import SMALL, ltp_train

EXPERIMENT = """
# @package _global_
defaults:
  - override /task: demo
  - override /prune: topk

epochs: 2
lr: 3e-4
prune:
  token_keep_rate: 0.1
"""


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """A current directory with ``my-conf``."""
    monkeypatch.chdir(tmp_path)
    Path("my-conf/experiment").mkdir(parents=True)
    Path("my-conf/experiment/short.yaml").write_text(EXPERIMENT)
    Path("my-conf/mine.yaml").write_text("defaults:\n  - train\n  - _self_\n\nseed: 5\n")
    return tmp_path


def shown(command):
    finished = ltp_train(f"{command} --cfg job")
    assert finished.code == 0, finished.err
    return yaml.safe_load(finished.out)


@pytest.mark.parametrize("folder", ["--config-dir my-conf", "hydra.searchpath=[file://{root}/my-conf]"])
def test_what_an_experiment_sets_wins_over_the_defaults_and_the_command_line_over_it(root, folder):
    folder = folder.format(root=root)
    settings = shown(f"{folder} experiment=short")
    assert (settings["epochs"], settings["lr"], settings["prune"]["token_keep_rate"]) == (2.0, 3e-4, 0.1)
    assert shown(f"{folder} experiment=short epochs=3")["epochs"] == 3.0


INTERPOLATED = """
# @package _global_
seed: ${oc.env:LTP_TEST_SEED}
lr: ${finetune.lr}
finetune:
  lr: 2e-4
task:
  max_length: ${batch_size}
batch_size: 24
output_root: runs-${seed}
prune:
  final_token_threshold: ${distill.weight}
"""


@pytest.mark.parametrize("mode", ["", "-m "])
def test_values_may_refer_to_others(monkeypatch, mode):
    monkeypatch.setenv("LTP_TEST_SEED", "7")
    monkeypatch.setenv("LTP_TEST_LR", "3e-4")
    Path("my-conf/experiment/refers.yaml").write_text(INTERPOLATED)
    settings = shown("--config-dir my-conf experiment=refers prune=manual warmup_ratio='${distill.weight}'")
    assert (settings["seed"], settings["lr"], settings["task"]["max_length"]) == (7, 2e-4, 24)
    assert (settings["output_root"], settings["warmup_ratio"]) == ("runs-7", 0.5)
    assert settings["prune"]["final_token_threshold"] == 0.5
    command = "--config-dir my-conf experiment=refers prune=manual prune.final_token_threshold=0.02"
    small = [word for word in SMALL if not word.startswith("batch_size")]
    finished = ltp_train([*f"{mode}{command}".split(), "lr=${oc.env:LTP_TEST_LR}", *small])
    assert finished.code == 0, finished.err
    stored = [json.loads(path.read_text()) for path in Path("runs-7").rglob("results.json")]
    assert {(run["stage"], run["seed"], run["hyperparameters"]["lr"]) for run in stored} == {
        *(("finetune", 7, 2e-4), ("hard", 7, 3e-4)),
    }


def test_a_root_configuration_of_ones_own():
    settings = shown("--config-dir my-conf --config-name mine")
    assert (settings["seed"], settings["task"]["name"]) == (5, "demo")


def test_a_misspelled_experiment_names_those_in_the_folder():
    finished = ltp_train("--config-dir my-conf experiment=shrt")
    assert finished.code == 2
    assert finished.err == ("error: experiment=shrt: no such option. Did you mean short? Options: short, sst2-10k\n")


@pytest.mark.slow
def test_the_jobs_of_a_sweep_and_a_missing_parent_read_the_same_files():
    Path("my-conf/recipe").mkdir()
    Path("my-conf/recipe/mine.yaml").write_text("defaults:\n  - demo\n\nstages:\n  finetune:\n    lr: 2e-3\n")
    small = [word for word in SMALL if not word.startswith("epochs")]
    command = ["--config-dir", "my-conf", "-m", "experiment=short", "recipe=mine", "seed=0", *small]
    finished = ltp_train(command)
    assert finished.code == 0, finished.err
    stored = {path.parent: json.loads(path.read_text()) for path in Path("outputs").rglob("results.json")}
    found = {(run["stage"], run["hyperparameters"]["lr"], run["hyperparameters"]["epochs"]) for run in stored.values()}
    assert found == {("finetune", 2e-3, 3.0), ("hard", 3e-4, 2.0)}

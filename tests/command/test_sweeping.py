"""The jobs of a sweep, and those that would be one run."""

import pytest
from helpers import ltp_train
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import open_dict

from ltp import train
from ltp.command import cli, sweeping
from ltp.command.sweeping import jobs_of_grid
from ltp.errors import RunError
from ltp.sweeps.record import SweepRecord

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty current directory, and no sweep."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweeping.signal, "signal", lambda *args: None)  # pytest's own stay
    yield tmp_path
    SweepRecord.forget()


@pytest.fixture
def runs(root, monkeypatch):
    """The command lines that a sweep starts."""
    started = []

    def start_run(overrides, *args, **kwargs):
        started.append(overrides)
        raise RunError("started")

    monkeypatch.setattr(train, "start_run", start_run)
    return started


# -- counting ------------------------------------------------------------------------------------------------


def sweeper(*overrides):
    with initialize_config_dir(config_dir=cli.config_dir(), version_base="1.3"):
        cfg = compose("train", overrides=list(overrides), return_hydra_config=True)
    with open_dict(cfg):
        return cfg.hydra.sweeper


@pytest.mark.parametrize(
    ("command", "jobs"),
    [
        ("lr=1e-5,2e-5 seed=range(3) task=mrpc", 6),
        ("lr=1e-5", 1),
        ("sweep=ltp task=mrpc", 75),
        ("sweep=ltp task=mrpc,rte lr=1e-5", 50),
        ("sweep=topk prune.token_keep_rate=0.1,0.2", 6),
    ],
)
def test_number_of_jobs(command, jobs):
    words = command.split()
    plain = [word for word in words if "," not in word and "range" not in word]
    assert len(jobs_of_grid(sweeper(*plain), words)) == jobs


def test_sweepers_that_choose_as_they_go_have_no_grid():
    assert jobs_of_grid({"_target_": "hydra_plugins.optuna.Sweeper", "n_trials": 20}, ["lr=1e-5,2e-5"]) is None
    assert jobs_of_grid({"_target_": BASIC}, ["lr=interval(1e-5,2e-5)"]) is None


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("seed=range(1,4)", ["seed=1", "seed=2", "seed=3"]),
        ("lr=choice(1e-5,2e-5)", ["lr=1e-05", "lr=2e-05"]),
        ("distill=glob(*,exclude=none)", ["distill=hidden", "distill=logits", "distill=ranking"]),
        ("lr=shuffle(1e-5,2e-5)", ["lr=1e-05", "lr=2e-05"]),
    ],
)
def test_hydra_s_ways_to_sweep(words, values):
    with initialize_config_dir(config_dir=cli.config_dir(), version_base="1.3"):
        jobs = jobs_of_grid({"_target_": BASIC}, [words], GlobalHydra.instance().config_loader())
    assert sorted(word for job in jobs for word in job) == values


# -- jobs that are one run -----------------------------------------------------------------------------------


def test_any_key_can_be_swept(runs):
    finished = ltp_train("-m stage=finetune batch_size=16,32 epochs=1,2 weight_decay=0,0.1 seed=range(2)")
    assert "16 of 16 jobs of the sweep failed" in finished.err  # each was started, and no two were one run
    assert len(runs) == 16


@pytest.mark.parametrize(
    "words",
    ["trainer.devices=1,2", "lr=1e-3,0.001", "task=custom task.train_file=a.csv,b.csv task.validation_file=c.csv"],
)
def test_jobs_that_are_one_run_are_found_before_the_first(runs, words):
    finished = ltp_train(f"-m stage=finetune seed=0,1 {words}")
    assert finished.code == 2
    assert runs == []
    lines = finished.err.splitlines()
    assert lines[0].startswith("error: 2 jobs of the sweep are one run, outputs/")
    swept = next(word for word in words.split() if "," in word)
    key, values = swept.split("=")
    for line, value in zip(lines[1:3], values.split(","), strict=True):
        assert line.startswith("  stage=finetune seed=0 ")
        assert f"{key}={value}" in line.replace("0.001", "1e-3" if value == "1e-3" else "0.001")
    assert lines[3].startswith("What they differ in does not tell runs apart.")


def test_a_job_that_cannot_be_planned_leaves_the_others_alone(runs):
    finished = ltp_train("-m prune=topk prune.token_keep_rate=0.2,7 lr=2e-3")
    assert len(runs) == 1
    assert "    prune.token_keep_rate=7 is out of range" in finished.err

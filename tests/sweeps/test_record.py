"""Sweeps: a process a job, failures that stop nothing, progress, and what is left when one is stopped."""

import os
import re
import time
from pathlib import Path

import pytest
from helpers import ltp_train, write_json

from ltp import train
from ltp.command import sweeping
from ltp.errors import RunError, UserError, format_number
from ltp.sweeps.record import DONE, FAILED, SKIPPED, Job, SweepRecord


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty current directory, and no sweep."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweeping.signal, "signal", lambda *args: None)  # pytest's own stay
    yield tmp_path
    SweepRecord.forget()


@pytest.fixture
def runs(root, monkeypatch):
    """The command lines that a sweep starts; instead of training, each writes its results."""
    started = []

    def start_run(overrides, gpus=None, *, as_rank=False):
        started.append(overrides)
        chosen = dict(word.split("=") for word in overrides)
        if chosen["lr"] == "0.001":
            raise RunError("the loss is nan at step 3")
        rate = format_number(float(chosen["prune.token_keep_rate"]))
        folder = Path(chosen.get("output_root", "outputs")) / "tiny/demo/topk" / f"rate_{rate}"
        results = {"metric": {"name": "accuracy", "value": 0.9}}
        write_json(folder / f"lr_{format_number(float(chosen['lr']))}/seed_0/results.json", results)

    monkeypatch.setattr(train, "start_run", start_run)
    return started


def test_a_job_that_fails_stops_no_other(runs):
    command = "-m prune=topk prune.token_keep_rate=0.4,0.2 lr=1e-3,2e-3"
    finished = ltp_train(command)
    assert len(runs) == 4
    assert finished.code == 1
    assert finished.err.endswith(
        "error: 2 of 4 jobs of the sweep failed:\n"
        "  prune=topk prune.token_keep_rate=0.4 lr=0.001\n"
        "    outputs/tiny/demo/topk/rate_0.4/lr_0.001/seed_0\n"
        "    the loss is nan at step 3\n"
        "  prune=topk prune.token_keep_rate=0.2 lr=0.001\n"
        "    outputs/tiny/demo/topk/rate_0.2/lr_0.001/seed_0\n"
        "    the loss is nan at step 3\n"
        "The same command again runs what is missing.\n"
    )
    assert re.findall("sweep: .*(?= jobs)", finished.err) == [f"sweep: {done} of 4" for done in (0, 1, 1, 2)]


def test_the_same_command_again_runs_what_is_missing(runs):
    command = "-m prune=topk prune.token_keep_rate=0.4,0.2 lr=1e-3,2e-3"
    ltp_train(command)
    runs.clear()
    finished = ltp_train(command)
    assert runs == [["prune=topk", f"prune.token_keep_rate={rate}", "lr=0.001"] for rate in (0.4, 0.2)]
    assert "sweep: 2 of 4 jobs done (2 of them before), 2 failed\n" in finished.err


def test_bad_input_of_one_job_stops_no_other(runs):
    finished = ltp_train("-m prune=topk prune.token_keep_rate=3,0.2 lr=2e-3")
    assert len(runs) == 1
    assert finished.code == 2
    assert "error: 1 of 2 jobs of the sweep failed:\n  prune=topk prune.token_keep_rate=3 lr=0.002\n" in finished.err
    assert "    prune.token_keep_rate=3 is out of range" in finished.err


def test_values_for_sweepers_that_optimise(runs):
    values = []
    ltp_train(
        "-m prune=topk prune.token_keep_rate=0.4 lr=1e-3,2e-3", lambda cfg: values.append(train.main(cfg)) or values[-1]
    )
    assert values == [None, 0.9]


def test_a_mistake_before_the_first_job_is_no_job_s(runs):
    finished = ltp_train("-m prune=topk prune.token_keeprate=0.4,0.2")
    assert finished.code == 2
    assert finished.err.splitlines()[-1].startswith("error: unknown key prune.token_keeprate")
    assert runs == []


# -- the record ----------------------------------------------------------------------------------------------


def test_progress_and_the_time_that_is_left(root, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    record = SweepRecord.start(root / "sweeps", 9)
    assert record.progress() == "sweep: 0 of 9 jobs done, 9 left"
    record.add(Job("lr=1", SKIPPED))
    assert record.progress() == "sweep: 1 of 9 jobs done (1 of them before), 8 left"
    now = 1600.0
    record.add(Job("lr=2", DONE))
    record.add(Job("lr=3", FAILED, message="no"))
    # 10 minutes for the two that worked, and 6 are left
    assert record.progress() == "sweep: 2 of 9 jobs done (1 of them before), 1 failed, 6 left, about 30 min"
    assert SweepRecord.start(root / "others", None).progress() == "sweep: 0 jobs done"


def test_every_process_finds_the_record(root):
    record = SweepRecord.start(root / "sweeps", 2)
    assert record.is_sweep_process
    if (pid := os.fork()) == 0:
        found = SweepRecord.current()
        found.add(Job("lr=2", FAILED, "outputs/x", "no disk", 1))
        os._exit(0 if not found.is_sweep_process else 1)
    assert os.waitpid(pid, 0)[1] == 0
    with pytest.raises(RunError, match=r"1 of 1 jobs of the sweep failed:\n  lr=2\n    outputs/x\n    no disk"):
        record.check()


def test_bad_input_everywhere_is_bad_input(root):
    record = SweepRecord.start(root / "sweeps", 1)
    record.add(Job("lr=2", FAILED, None, "lr=2 is out of range", 2))
    with pytest.raises(UserError):
        record.check()
    record.add(Job("lr=3", FAILED, None, "no disk", 1))
    with pytest.raises(RunError):
        record.check()


def test_the_record_is_beside_the_runs(runs):
    ltp_train("-m prune=topk prune.token_keep_rate=0.4 lr=2e-3 output_root=there")
    records = list(Path("there/.multirun").glob("*.jsonl"))
    assert len(records) == 1

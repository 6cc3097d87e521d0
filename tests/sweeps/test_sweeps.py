"""Sweeps as users start them: real processes that fail, are killed, or race for the same run."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from helpers import SMALL, directory_of, ltp_train
from interrupting import Forked, Started, trained, with_faults
from patience import wait_until

pytestmark = pytest.mark.slow

DDP = ("trainer.devices=2", "trainer.strategy=ddp")
PARENT = [word for word in SMALL if not word.startswith(("batch_size", "epochs"))]
DENSE = str(directory_of([*PARENT, "stage=finetune"]))


def topk(rate, *words):
    """The directory of a job."""
    return str(directory_of([*SMALL, *words, "prune=topk", f"prune.token_keep_rate={rate}"]))


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty current directory, and pytest's own handler afterwards."""
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def dense_outputs(tmp_path_factory):
    """``outputs/`` with the dense run that the jobs start from."""
    folder = tmp_path_factory.mktemp("dense") / "outputs"
    trained(*PARENT, "stage=finetune", f"output_root={folder}")
    return folder


@pytest.fixture
def dense(dense_outputs, root):
    """A copy of it, where the jobs look for it."""
    shutil.copytree(dense_outputs, root / "outputs")


def results(tmp_path, directory):
    return json.loads((tmp_path / directory / "results.json").read_text())


def processes_in(folder):
    """Commands of the processes whose current directory is a folder."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/cwd") == str(folder):
                found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended meanwhile
            continue
    return [command for command in found if "-m ltp.train" in command]


def test_a_job_that_fails_on_one_rank_leaves_the_others_alone(dense, root, monkeypatch):
    sweep = (*SMALL, *DDP, "-m", "prune=topk", "prune.token_keep_rate=0.2,0.4,0.6")
    with monkeypatch.context() as patch:
        for name, value in with_faults(root / "faults", BREAK="prune.token_keep_rate=0.4").items():
            patch.setenv(name, value)
        finished = ltp_train(sweep)
    assert finished.code == 1
    assert "error: 1 of 3 jobs of the sweep failed:" in finished.err
    assert f"    {topk(0.4)}\n    RuntimeError: rank 1 broke\n" in finished.err
    assert "sweep: 2 of 3 jobs done, 1 failed\n" in finished.err
    assert not (root / topk(0.4) / "results.json").exists()
    wait_until(lambda: processes_in(root) == [], 400, what="a process was left behind")  # a rank may still be leaving
    for rate in (0.2, 0.6):
        assert results(root, topk(rate))["devices"] == 2
        assert results(root, topk(rate))["hyperparameters"]["token_keep_rate"] == rate
    before = results(root, topk(0.2))["run_id"]

    finished = ltp_train(sweep)
    assert finished.code == 0, finished.err
    assert "sweep: 3 of 3 jobs done (2 of them before)\n" in finished.err
    assert results(root, topk(0.4))["devices"] == 2
    assert results(root, topk(0.2))["run_id"] == before


def test_a_sweep_that_is_stopped_leaves_no_process_and_goes_on(dense, root):
    """Killed, then terminated where it went on."""
    sweep = (*SMALL, "epochs=3", "save_step=2", "-m", "prune=topk", "prune.token_keep_rate=0.2,0.4")
    slow = with_faults(root / "faults", SLOW=0.5)
    job = topk(0.2, "epochs=3", "save_step=2")
    checkpoint = root / job / "checkpoints" / "last.ckpt"

    def saved():
        return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0

    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143)):
        before = saved()
        started = Started(sweep, **slow)
        wait_until(lambda before=before: saved() > before, 600)
        started.process.send_signal(number)
        assert started.code() == code, started.told()
        wait_until(lambda: processes_in(root) == [], 400, what="a process was left behind")
        assert not (root / job / "results.json").exists()
        assert (f"resuming {job} from step " in started.told()) == (before > 0)

    started = Started(sweep)
    assert started.code() == 0, started.told()
    assert f"resuming {job} from step " in started.told()
    assert "sweep: 2 of 2 jobs done\n" in started.told()


def test_two_jobs_race_for_a_missing_parent(root):
    slow = with_faults(root / "faults", SLOW=0.5)
    both = [Forked([*SMALL, "prune=topk", f"prune.token_keep_rate={rate}"], **slow) for rate in (0.2, 0.4)]
    assert [one.code() for one in both] == [0, 0], [one.told() for one in both]
    told = [one.told() for one in both]
    first = [f"training {DENSE}\n" in text for text in told]
    assert sorted(first) == [False, True]
    waiting = told[first.index(False)]
    assert f"waiting for {DENSE}, which is being written by process " in waiting
    assert f"another process has trained it meanwhile: {DENSE}\n" in waiting
    parent = results(root, DENSE)["run_id"]
    assert {results(root, topk(rate))["parent_run_id"] for rate in (0.2, 0.4)} == {parent}


def test_the_same_command_twice_at_once_is_one_run(root):
    run = directory_of([*SMALL, "stage=finetune"])
    both = [Forked([*SMALL, "stage=finetune"], step_seconds=0.5) for _ in range(2)]
    assert [one.code() for one in both] == [0, 0], [one.told() for one in both]
    assert sorted(f"training {run}\n" in one.told() for one in both) == [False, True]
    steps = [json.loads(line)["step"] for line in (root / run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)

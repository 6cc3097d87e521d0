"""GPUs dealt out to jobs that run at once: told apart by their lock files, so that none is needed here."""

import logging
import signal
import subprocess
import sys

import pytest

from ltp.runs.settings import TrainerSettings
from ltp.sweeps import gpus as devices
from ltp.sweeps.gpus import gpus_wanted, reserve_gpus, visible_gpus

HOLD = """
import sys, time
from pathlib import Path
from ltp.sweeps.gpus import reserve_gpus
with reserve_gpus(int(sys.argv[1]), Path("locks")) as gpus:
    print(gpus, flush=True)
    time.sleep(3600)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of lock files, and three GPUs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,GPU-1a/0")
    monkeypatch.setattr(devices, "_POLL_SECONDS", 0.05)
    return tmp_path / "locks"


@pytest.mark.parametrize(
    ("accelerator", "wanted", "number"),
    [
        ("auto", 1, 1),
        ("gpu", 4, 4),
        ("cuda", 2, 2),
        ("cpu", 4, 0),
        ("mps", 1, 0),
        ("gpu", -1, 0),
        ("gpu", "auto", 0),
        ("gpu", "0,1", 0),
        ("gpu", [0, 1], 0),
    ],
)
def test_what_a_job_wants(accelerator, wanted, number):
    assert gpus_wanted(TrainerSettings(accelerator=accelerator, devices=wanted)) == number


@pytest.mark.parametrize(
    ("variable", "ids"),
    [("0,1", ["0", "1"]), (" 3 , GPU-1a ", ["3", "GPU-1a"]), ("", []), ("-1", [])],
)
def test_what_a_process_may_use(monkeypatch, variable, ids):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus() == ids


def test_without_the_variable_a_process_may_use_all(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert visible_gpus() == ["0", "1"]


@pytest.mark.parametrize(("wanted", "variable"), [(0, "0,1"), (1, ""), (3, "0,1")])
def test_nothing_to_deal(tmp_path, monkeypatch, wanted, variable):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    with reserve_gpus(wanted, tmp_path / "locks") as gpus:
        assert gpus is None
    assert not (tmp_path / "locks").exists()


def test_jobs_get_different_ones_and_give_them_back(folder):
    with reserve_gpus(1, folder) as first, reserve_gpus(2, folder) as second:
        assert (first, second) == ("2", "5,GPU-1a/0")
    with reserve_gpus(3, folder) as all_:
        assert all_ == "2,5,GPU-1a/0"


def test_they_are_given_back_after_an_error(folder):
    with pytest.raises(ValueError, match="no"), reserve_gpus(3, folder):
        raise ValueError("no")
    with reserve_gpus(3, folder) as all_:
        assert all_ == "2,5,GPU-1a/0"


def test_who_waits_takes_none_and_says_so_once(folder, monkeypatch, caplog):
    polls = []

    def poll(seconds):
        polls.append(seconds)
        if len(polls) == 3:
            first.__exit__(None, None, None)
        with reserve_gpus(1, folder) as small:  # one of three is free, and the job that wants two does not keep it
            assert small in ("GPU-1a/0", "2")

    first = reserve_gpus(2, folder)
    first.__enter__()
    monkeypatch.setattr(devices.time, "sleep", poll)
    with caplog.at_level(logging.INFO, "ltp"), reserve_gpus(2, folder) as gpus:
        assert gpus == "2,5"
    assert len(polls) == 3
    assert caplog.messages == ["waiting for free GPUs: 2 wanted"]


@pytest.mark.slow
def test_between_processes_and_after_one_was_killed(folder):
    holders = []
    for _ in range(2):
        holders.append(subprocess.Popen([sys.executable, "-c", HOLD, "1"], stdout=subprocess.PIPE, text=True))
    try:
        assert {holder.stdout.readline().strip() for holder in holders} == {"2", "5"}
        with reserve_gpus(1, folder) as third:
            assert third == "GPU-1a/0"
        holders[0].send_signal(signal.SIGKILL)
        holders[0].wait()
        with reserve_gpus(2, folder) as two:
            assert two.split(",")[1] == "GPU-1a/0"
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()
            holder.stdout.close()

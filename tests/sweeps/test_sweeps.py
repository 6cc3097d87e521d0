"""Sweeps as users start them: real processes that fail, are killed, or race for the same run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import SMALL

pytestmark = pytest.mark.slow

COMMAND = (sys.executable, "-m", "ltp.train")
DDP = ("trainer.devices=2", "trainer.strategy=ddp")
TOPK = "outputs/tiny/demo/topk/rate_{}/lr_0.0002/seed_0"
DENSE = "outputs/tiny/demo/finetune/lr_0.001/seed_0"

#: Found by every Python process on its path: breaks a rank, or makes steps slow, where the test asks for it.
FAULTS = """
import os, sys
if "ltp.train" in sys.orig_argv and "hydra.mode=RUN" in sys.orig_argv:
    import time
    import ltp.training.module
    step = ltp.training.module.LTPModule.training_step
    def training_step(self, batch, batch_idx):
        if os.environ.get("BREAK", "never") in sys.orig_argv and self.global_rank == 1 and self.global_step == 2:
            raise RuntimeError("rank 1 broke")
        time.sleep(float(os.environ.get("SLOW", 0)))
        return step(self, batch, batch_idx)
    ltp.training.module.LTPModule.training_step = training_step
"""


@pytest.fixture
def start(tmp_path):
    """``start(words, **environment)``: ``python -m ltp.train`` in an empty folder."""
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "sitecustomize.py").write_text(FAULTS)
    started = []

    def start(*words, **environment):
        paths = [str(tmp_path / "faults"), *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(
            [*COMMAND, *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stderr.close()


def ended(process, seconds=240):
    """Its exit code and what it said."""
    shown_settings = process.communicate(timeout=seconds)[1]
    return process.returncode, shown_settings


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
    return [command for command in found if "ltp.train" in command]


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.2)


def test_a_job_that_fails_on_one_rank_leaves_the_others_alone(start, tmp_path):
    assert ended(start(*SMALL, "stage=finetune"))[0] == 0
    sweep = (*SMALL, *DDP, "-m", "prune=topk", "prune.token_keep_rate=0.2,0.4,0.6")
    code, shown_settings = ended(start(*sweep, BREAK="prune.token_keep_rate=0.4"))
    assert code == 1
    assert "error: 1 of 3 jobs of the sweep failed:" in shown_settings
    assert f"    {TOPK.format(0.4)}\n    RuntimeError: rank 1 broke\n" in shown_settings
    assert "sweep: 2 of 3 jobs done, 1 failed\n" in shown_settings
    assert not (tmp_path / TOPK.format(0.4) / "results.json").exists()
    assert processes_in(tmp_path) == []
    for rate in (0.2, 0.6):
        assert results(tmp_path, TOPK.format(rate))["devices"] == 2
        assert results(tmp_path, TOPK.format(rate))["hyperparameters"]["token_keep_rate"] == rate
    before = results(tmp_path, TOPK.format(0.2))["run_id"]

    code, shown_settings = ended(start(*sweep))
    assert code == 0
    assert "sweep: 3 of 3 jobs done (2 of them before)\n" in shown_settings
    assert results(tmp_path, TOPK.format(0.4))["devices"] == 2
    assert results(tmp_path, TOPK.format(0.2))["run_id"] == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_sweep_that_is_stopped_leaves_no_process_and_goes_on(start, tmp_path, number):
    assert ended(start(*SMALL, "stage=finetune"))[0] == 0
    sweep = (*SMALL, "epochs=3", "save_step=2", "-m", "prune=topk", "prune.token_keep_rate=0.2,0.4")
    process = start(*sweep, SLOW="0.5")
    checkpoint = tmp_path / TOPK.format(0.2) / "checkpoints" / "last.ckpt"
    wait_until(checkpoint.exists)
    process.send_signal(number)
    assert ended(process)[0] == (143 if number == signal.SIGTERM else -9)
    wait_until(lambda: processes_in(tmp_path) == [], seconds=40)
    assert not (tmp_path / TOPK.format(0.2) / "results.json").exists()

    code, shown_settings = ended(start(*sweep))
    assert code == 0
    assert f"resuming {TOPK.format(0.2)} from step " in shown_settings
    assert "sweep: 2 of 2 jobs done\n" in shown_settings


def test_two_jobs_race_for_a_missing_parent(start, tmp_path):
    both = [start(*SMALL, "prune=topk", f"prune.token_keep_rate={rate}", SLOW="0.5") for rate in (0.2, 0.4)]
    shown_settings = [ended(process) for process in both]
    assert [code for code, _ in shown_settings] == [0, 0]
    trained = [f"training {DENSE}\n" in text for _, text in shown_settings]
    assert sorted(trained) == [False, True]
    waiting = shown_settings[trained.index(False)][1]
    assert f"waiting for {DENSE}, which is being written by process " in waiting
    assert f"another process has trained it meanwhile: {DENSE}\n" in waiting
    parent = results(tmp_path, DENSE)["run_id"]
    assert {results(tmp_path, TOPK.format(rate))["parent_run_id"] for rate in (0.2, 0.4)} == {parent}


def test_the_same_command_twice_at_once_is_one_run(start, tmp_path):
    both = [start(*SMALL, "stage=finetune", SLOW="0.5") for _ in range(2)]
    shown_settings = [ended(process) for process in both]
    assert [code for code, _ in shown_settings] == [0, 0]
    assert sorted(f"training {DENSE}\n" in text for _, text in shown_settings) == [False, True]
    steps = [json.loads(line)["step"] for line in (tmp_path / DENSE / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)

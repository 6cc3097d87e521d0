"""The jobs of a sweep elsewhere than one after the other: at once on this machine, and on a cluster."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from helpers import SMALL, composed, ltp_train, settings_of
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins

from ltp.sweeps import processes
from ltp.sweeps.record import SweepRecord


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty current directory; no sweep, and pytest's own handlers afterwards."""
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)
    SweepRecord.forget()


def launcher_of(*overrides):
    """Hydra's node of the launcher that a command line chooses."""
    composed(*overrides)
    return HydraConfig.get().launcher


# -- what is chosen ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "name", "target"),
    [
        ("parallel", "joblib", "JoblibLauncher"),
        ("slurm", "submitit_slurm", "SlurmLauncher"),
        ("slurm_local", "submitit_local", "LocalLauncher"),
    ],
)
def test_an_option_is_a_launcher_of_hydra_s(option, name, target):
    assert launcher_of(f"launcher={option}")["_target_"].endswith(f".{target}")
    assert HydraConfig.get().runtime.choices["hydra/launcher"] == name


def test_without_the_option_jobs_run_one_after_the_other():
    assert launcher_of()["_target_"].endswith(".BasicLauncher")


@pytest.mark.parametrize("option", ["parallel", "slurm", "slurm_local"])
def test_jobs_that_share_a_terminal_or_a_log_draw_no_bars(option):
    assert settings_of(f"launcher={option}").trainer.enable_progress_bar is False
    assert settings_of(f"launcher={option} trainer.enable_progress_bar=true").trainer.enable_progress_bar


def test_what_people_set():
    assert launcher_of("launcher=parallel").n_jobs == 2
    assert launcher_of("launcher=parallel", "hydra.launcher.n_jobs=4").n_jobs == 4
    node = launcher_of(
        *("launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=60"),
        *("hydra.launcher.max_num_timeout=3", "hydra.launcher.gpus_per_node=4"),
    )
    assert (node.partition, node.timeout_min, node.max_num_timeout, node.gpus_per_node) == ("gpu", 60, 3, 4)


def test_a_launcher_goes_with_any_sweep():
    composed("sweep=topk", "launcher=parallel", "task=mrpc")
    hydra = HydraConfig.get()
    assert (hydra.launcher.n_jobs, hydra.sweeper.params["lr"]) == (2, "5e-6,1e-5,2e-5")


# -- a machine without the packages or the cluster -----------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "plugin", "extra"),
    [
        ("launcher=parallel", "launcher/joblib", "parallel"),
        ("launcher=slurm", "launcher/submitit_slurm", "slurm"),
        ("launcher=slurm_local", "launcher/submitit_local", "slurm"),
        ("sweep=optuna", "sweeper/optuna", "optuna"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, option, plugin, extra):
    Plugins.instance()  # which registers what is installed
    group, name = plugin.split("/")
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"][group], f"{name}.yaml", raising=False)
    finished = ltp_train(["-m", option, "lr=1e-3"])
    assert (finished.code, finished.err) == (
        2,
        f"error: {option} needs its package: pip install 'learned-token-pruning[{extra}]'\n",
    )


def test_a_machine_without_a_cluster(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    finished = ltp_train("-m launcher=slurm lr=1e-3")
    assert finished.code == 1
    assert finished.err.endswith('error: launcher=slurm: Could not detect "srun", are you indeed on a slurm cluster?\n')


# -- a cluster that is none ----------------------------------------------------------------------------------

REFUSE = """
cp "$1" "$CLUSTER/script"
echo "sbatch: error: invalid partition specified: $PARTITION" >&2
exit 1
"""
#: Runs the script here: an allocation of one node.
ACCEPT = """
cp "$1" "$CLUSTER/script"
export SLURM_JOB_ID=4242 SLURM_JOB_NAME=ltp SLURM_JOB_NUM_NODES=1 SLURM_NNODES=1 SLURM_JOB_NODELIST=localhost
export SLURM_NTASKS=$TASKS SLURM_NTASKS_PER_NODE=$TASKS SLURM_NODEID=0
bash "$1" >"$CLUSTER/log" 2>&1 &
echo "Submitted batch job 4242"
"""
SRUN = """
while [[ $1 == --* ]]; do case $1 in --output | --error) shift 2 ;; *) shift ;; esac; done
for ((i = 0; i < SLURM_NTASKS; i++)); do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & done
wait
"""


@pytest.fixture
def cluster(root, monkeypatch):
    """``cluster(sbatch)``: SLURM's commands on the path, with such an ``sbatch``; gives the folder of what it got."""
    folder = root / "cluster"
    folder.mkdir()
    monkeypatch.setenv("CLUSTER", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def install(sbatch):
        for name, script in {"sbatch": sbatch, "srun": SRUN, "sacct": ""}.items():
            (folder / name).write_text(f"#!/bin/bash{script}")
            (folder / name).chmod(0o755)
        return folder

    return install


def flags(script):
    """The options of a batch script."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script, flags=re.MULTILINE))


def test_the_batch_script_and_a_cluster_that_refuses_it(cluster, monkeypatch):
    monkeypatch.setenv("PARTITION", "gpuu")
    folder = cluster(REFUSE)
    finished = ltp_train(
        "-m launcher=slurm lr=1e-3,2e-3 hydra.launcher.partition=gpuu hydra.launcher.timeout_min=240 "
        "trainer=ddp trainer.num_nodes=2 trainer.devices=4 "
        "hydra.launcher.nodes=2 hydra.launcher.tasks_per_node=4 hydra.launcher.gpus_per_node=4"
    )
    assert finished.code == 1
    assert finished.err.endswith("error: launcher=slurm: sbatch: error: invalid partition specified: gpuu\n")
    script = (folder / "script").read_text()
    seen = flags(script)
    assert {key: seen[key] for key in ("array", "job-name", "partition", "time", "signal", "open-mode")} == {
        "array": "0-1%2",
        "job-name": "ltp",
        "partition": "gpuu",
        "time": "240",
        "signal": "USR2@120",
        "open-mode": "append",
    }
    assert (seen["nodes"], seen["ntasks-per-node"], seen["gpus-per-node"]) == ("2", "4", "4")
    assert Path(seen["output"]).is_relative_to(Path("outputs/.multirun/.submitit").resolve())
    assert f"{sys.executable} -u -m submitit.core._submit" in script.splitlines()[-1]


@pytest.mark.parametrize(("tasks", "as_rank", "kept"), [("1", True, False), ("2", True, True), ("2", False, False)])
def test_a_run_s_process_is_a_rank_only_where_its_job_has_several(root, monkeypatch, tasks, as_rank, kept):
    (root / "child.py").write_text("import os\nopen('seen', 'w').write(' '.join(os.environ))")
    monkeypatch.setattr(processes, "TRAIN_MODULE", "child")
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setenv("SLURM_NTASKS", tasks)
    monkeypatch.setenv("SLURM_JOB_ID", "4242")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    processes.start_run([], as_rank=as_rank)
    seen = (root / "seen").read_text().split()
    assert ("SLURM_NTASKS" in seen) == kept
    assert "SLURM_JOB_ID" in seen
    assert "SUBMITIT_EXECUTOR" not in seen


@pytest.mark.slow
def test_two_tasks_are_the_ranks_of_a_run_whose_parent_one_of_them_trains_first(cluster, monkeypatch):
    monkeypatch.setenv("TASKS", "2")
    folder = cluster(ACCEPT)
    two = ("hydra.launcher.tasks_per_node=2", "trainer.devices=2", "trainer.strategy=ddp")
    finished = ltp_train(["-m", "launcher=slurm", "prune=topk", *SMALL, *two])
    log = (folder / "log").read_text()
    assert finished.code == 0, log
    assert flags((folder / "script").read_text())["ntasks-per-node"] == "2"
    runs = [json.loads(path.read_text()) for path in Path("outputs").rglob("results.json")]
    assert sorted((run["method"], run["devices"]) for run in runs) == [("dense", 2), ("topk", 2)]
    assert log.count("sweep: 1 of 1 jobs done") == 1  # told once, not by each task


# -- at once on this machine ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_jobs_at_once():
    finished = ltp_train(["-m", "launcher=parallel", "lr=1e-3,2e-3,2", *SMALL])
    assert finished.code == 2
    assert "error: 1 of 3 jobs of the sweep failed:\n  launcher=parallel lr=2 " in finished.err
    assert "lr=2 is out of range" in finished.err
    results = [json.loads(path.read_text()) for path in Path("outputs").rglob("results.json")]
    assert sorted(result["hyperparameters"]["lr"] for result in results) == [1e-3, 2e-3]

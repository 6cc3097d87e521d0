"""Run directories on disk: what starting a run again does, and what a run leaves behind."""

import json
import os
from pathlib import Path

import pytest
from helpers import finished_run, plan_of

from ltp.errors import UserError
from ltp.runs.checkpoints import is_finished
from ltp.runs.directory import (
    metrics_size,
    open_directory,
    remove_run_files,
    truncate_metrics,
    write_results,
)
from ltp.runs.identity import check_identity
from ltp.runs.results import read_results

DENSE = Path("outputs/bert-base/mrpc/finetune/lr_3e-05/seed_0")


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(command):
    """Start a run as far as its directory."""
    run = plan_of(command)
    check_identity(run)
    open_directory(run)
    return run


def refusal(command):
    with pytest.raises(UserError) as caught:
        check_identity(plan_of(command))
    return str(caught.value)


# -- started again -------------------------------------------------------------------------------------------


def test_the_same_configuration_starts_and_goes_on():
    run = start("task=mrpc lr=1e-5")
    assert sorted(path.name for path in run.directory.iterdir()) == ["config.yaml"]
    (run.directory / "checkpoints").mkdir()
    last = run.directory / "checkpoints" / "last.ckpt"
    last.touch()
    assert start("task=mrpc lr=1e-5").directory == run.directory
    assert last.exists()


def test_what_a_kill_left_half_written_is_removed():
    run = start("task=mrpc")
    (run.directory / "checkpoints").mkdir()
    for name in (".results.json.17.partial", "checkpoints/.last.ckpt.17.partial"):
        (run.directory / name).touch()
    (run.directory / "notes.partial").touch()
    start("task=mrpc")
    assert sorted(path.name for path in run.directory.rglob("*")) == ["checkpoints", "config.yaml", "notes.partial"]


# -- overwrite -----------------------------------------------------------------------------------------------


def test_overwrite_starts_afresh():
    custom = "task=custom task.train_file=a.csv task.validation_file=b.csv"
    run = start(custom)
    (run.directory / "checkpoints").mkdir()
    (run.directory / "checkpoints" / "last.ckpt").touch()
    (run.directory / "metrics.jsonl").touch()
    write_results(run.directory, {})
    start(f"{custom} task.label_column=y overwrite=true")
    assert sorted(path.name for path in run.directory.iterdir()) == ["config.yaml"]
    check_identity(plan_of(f"{custom} task.label_column=y"))  # and what follows need not overwrite again


def test_clearing_removes_what_the_run_wrote_and_nothing_else():
    finished_run(DENSE)
    (DENSE / "config.yaml").touch()
    (DENSE / "checkpoints").mkdir()
    (DENSE / "metrics.jsonl").touch()
    (DENSE / "notes.txt").touch()
    finished_run(DENSE / "hard" / "lr_2e-05")
    remove_run_files(DENSE)
    assert sorted(path.name for path in DENSE.iterdir()) == ["hard", "notes.txt"]
    assert is_finished(DENSE / "hard" / "lr_2e-05")
    remove_run_files(DENSE)


def test_results_are_removed_first(monkeypatch):
    finished_run(DENSE)
    monkeypatch.setattr("ltp.runs.directory.shutil.rmtree", lambda path: (_ for _ in ()).throw(OSError("stopped")))
    with pytest.raises(OSError, match="stopped"):
        remove_run_files(DENSE)
    assert not is_finished(DENSE)
    assert (DENSE / "model").is_dir()


# -- the log -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "kept"),
    [
        (18, "one\ntwo\nthree\n"),  # as long as the file: only the half line goes
        (None, "one\ntwo\nthree\n"),
        (8, "one\ntwo\n"),
        (6, "one\n"),  # a power cut lost some of what the checkpoint knew of
        (0, None),
    ],
)
def test_the_log_is_cut_after_whole_lines(tmp_path, size, kept):
    path = tmp_path / "metrics.jsonl"
    path.write_text("one\ntwo\nthree\nfour")
    assert metrics_size(tmp_path) == 18
    truncate_metrics(tmp_path, size)
    assert (path.read_text() if path.exists() else None) == kept
    truncate_metrics(tmp_path / "none", size)
    assert metrics_size(tmp_path / "none") == 0


# -- results -------------------------------------------------------------------------------------------------


def test_results_get_an_id_of_their_own(tmp_path):
    ids = set()
    for _ in range(2):
        write_results(tmp_path, {"metric": {"name": "é", "value": 0.5}})
        results = read_results(tmp_path)
        ids.add(results.pop("run_id"))
        assert results == {"metric": {"name": "é", "value": 0.5}}
    assert len(ids) == 2
    assert is_finished(tmp_path)


def test_results_end_the_need_for_other_checkpoints(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in ("best.ckpt", "last.ckpt", "last.ckpt.damaged", "previous.ckpt"):
        (tmp_path / "checkpoints" / name).touch()
    write_results(tmp_path, {})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["last.ckpt", "last.ckpt.damaged"]


def test_results_come_after_the_model_is_on_the_disk(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").touch()
    flushed, flush = [], os.fsync

    def watched(descriptor):
        flushed.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")).name, is_finished(tmp_path)))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write_results(tmp_path, {})
    assert flushed[0] == ("model.safetensors", False)
    assert flushed[-1] == (tmp_path.name, True)


def test_results_are_whole_or_absent(tmp_path, monkeypatch):
    with pytest.raises(TypeError):
        write_results(tmp_path, {"fine": 1, "not": object()})
    assert list(tmp_path.iterdir()) == []

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_results(tmp_path, {"fine": 1})
    assert list(tmp_path.iterdir()) == []


def test_results_replace_older_ones_at_once(tmp_path, monkeypatch):
    write_results(tmp_path, {"round": 1})
    seen = []
    replace = os.replace

    def watched(source, target):
        seen.append((json.loads(Path(source).read_text())["round"], read_results(tmp_path)["round"]))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    write_results(tmp_path, {"round": 2})
    assert seen == [(2, 1)]  # the new file was whole while the old one still stood
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]

"""Runs that are killed, stopped or find their files damaged: they end as if nothing had been.

Marked slow: some start processes of their own, the others train for a second or two.
"""

import io
import json
import os
import random
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import SMALL, ltp_train, plan_of
from interrupting import (
    PowerCutError,
    Started,
    assert_the_same,
    exit_code,
    interrupted,
    killed_in_a_step,
    killed_while_saving,
    lines_of,
    results_of,
    run_directory,
    trained,
    trained_by_two,
    with_faults,
)
from patience import wait_until
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from safetensors.torch import load_file

from ltp.data.demo import demo_rows, demo_tokenizer
from ltp.errors import RunError
from ltp.runs.chain import planned_steps
from ltp.training import run as training
from ltp.training.loggers import MetricsFile
from ltp.training.module import LTPModule
from ltp.training.resuming import RunCheckpointIO, SameCheckpointCheck, SavedCheckpoint, find_checkpoint

pytestmark = pytest.mark.slow

#: Two epochs of six optimiser steps, each of two accumulated batches; the sixth is smaller.
SOFT = (
    *SMALL,
    *("prune=threshold", "stage=soft", "save_step=4", "epochs=2", "seed=3", "prune.lr_threshold=1e-3"),
    *("weight_decay=0.1", "warmup_ratio=0.2", "model.architecture.hidden_dropout_prob=0.1"),
    *("trainer.accumulate_grad_batches=2", "task.max_train_samples=90"),
)
STEPS = 12


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def dense_run(tmp_path_factory):
    """A small dense run with dropout, to start from."""
    folder = tmp_path_factory.mktemp("dense")
    return trained(*SMALL, f"output_root={folder}", "model.architecture.hidden_dropout_prob=0.1")


@pytest.fixture(scope="module")
def soft(dense_run):
    """The command of the soft run that is disturbed here."""
    return (*SOFT, f"restore={dense_run}")


@pytest.fixture(scope="module")
def undisturbed(soft, tmp_path_factory):
    return trained(*soft, f"output_root={tmp_path_factory.mktemp('undisturbed')}")


def saved_step(name="last.ckpt", directory=None):
    path = (directory or run_directory()) / "checkpoints" / name
    return torch.load(path, weights_only=True)["global_step"] if path.exists() else None


# -- kill -9 -------------------------------------------------------------------------------------------------


def test_a_run_that_is_killed_five_times(soft, undisturbed):
    steps = sorted(random.Random(0).sample(range(STEPS), 5))
    for step in steps:
        assert exit_code(killed_in_a_step, soft, step) == -signal.SIGKILL
    assert not (run_directory() / "results.json").exists()
    finished = ltp_train(soft)
    assert finished.code == 0, finished.err
    assert f"resuming {run_directory()} from step {steps[-1] // 4 * 4}" in finished.err
    assert_the_same(run_directory(), undisturbed)


@pytest.mark.parametrize(("renamed", "left"), [(False, "last.ckpt"), (True, "previous.ckpt")])
def test_a_run_that_is_killed_while_it_saves(soft, undisturbed, renamed, left):
    assert exit_code(killed_while_saving, soft, 8, renamed) == -signal.SIGKILL
    names = {path.name.rstrip("0123456789") for path in (run_directory() / "checkpoints").iterdir()}
    partial = next(name for name in names if name.startswith(".last.ckpt.") and name.endswith(".partial"))
    assert names - {partial} == {left, "best.ckpt"}
    finished = ltp_train(soft)
    assert finished.code == 0, finished.err
    assert "resuming" in finished.err and "from step 4" in finished.err
    assert "damaged" not in finished.err
    assert_the_same(run_directory(), undisturbed)


# -- damaged checkpoints -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped_at_nine(soft, tmp_path_factory):
    """A run with checkpoints of steps 4 and 8, and log lines beyond."""
    folder = tmp_path_factory.mktemp("stopped")
    interrupted([*soft, f"output_root={folder}"], 10, pytest.MonkeyPatch(), saves=False)
    return run_directory(folder)


@pytest.fixture
def stopped(stopped_at_nine, root):
    """A copy of it, where its command looks for it."""
    output_root = next(parent for parent in stopped_at_nine.parents if parent.name == "tiny").parent
    shutil.copytree(output_root, "outputs")
    return run_directory()


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def flip(path):
    """Change a byte of a weight: torch would load it without a word."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    torch.load(path, weights_only=True)


@pytest.mark.parametrize("damage", [truncate, empty, flip])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(stopped, soft, undisturbed, damage):
    assert (saved_step(), saved_step("previous.ckpt")) == (8, 4)
    last = stopped / "checkpoints" / "last.ckpt"
    damage(last)
    content = last.read_bytes()
    finished = ltp_train(soft)
    assert finished.code == 0, finished.err
    lines = [line[11:] for line in finished.err.splitlines()]
    assert f"{last} is damaged: kept as last.ckpt.damaged, going on from previous.ckpt (step 4)" in lines
    assert f"resuming {stopped} from step 4" in lines
    assert last.with_name("last.ckpt.damaged").read_bytes() == content
    assert_the_same(stopped, undisturbed)


def test_where_all_checkpoints_are_damaged_the_run_starts_from_the_beginning(stopped, soft, undisturbed):
    for name in ("last.ckpt", "previous.ckpt"):
        truncate(stopped / "checkpoints" / name)
    finished = ltp_train(soft)
    assert finished.code == 0, finished.err
    for name in ("last.ckpt", "previous.ckpt"):
        assert f"{name} is damaged: kept as {name}.damaged, starting from the beginning" in finished.err
    assert f"training {stopped}" in finished.err
    assert_the_same(stopped, undisturbed)


def loaded(content):
    """What torch reads from a checkpoint, as bytes."""
    again = io.BytesIO()
    torch.save(torch.load(io.BytesIO(content), weights_only=True), again)
    return again.getvalue()


def test_every_damage_that_matters_is_found(stopped):
    path = stopped / "checkpoints" / "last.ckpt"
    content = path.read_bytes()
    generator = random.Random(1)
    found = 0
    for number in range(60):
        damaged = bytearray(content)
        # half of them in the last part, where the names of the records stand
        place = generator.randrange(len(content)) if number % 2 else -generator.randrange(1, 20_000)
        damaged[place] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        if find_checkpoint(stopped, set_aside=False).path == path:  # a byte that nobody reads
            assert loaded(damaged) == loaded(content)
        else:
            found += 1
    assert found > 35


def test_processes_that_look_at_any_time_find_the_same(stopped):
    truncate(stopped / "checkpoints" / "last.ckpt")
    before = find_checkpoint(stopped, set_aside=False)
    main = find_checkpoint(stopped, set_aside=True)
    after = find_checkpoint(stopped, set_aside=False)
    assert before == main == after == SavedCheckpoint(stopped / "checkpoints" / "previous.ckpt", 4, before.metrics_size)
    assert before.metrics_size > 0


def test_a_file_that_cannot_be_opened_is_not_a_damaged_one(stopped, monkeypatch):
    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(PermissionError):
        find_checkpoint(stopped, set_aside=True)
    assert (stopped / "checkpoints" / "last.ckpt").is_file()


def test_an_overwritten_run_is_resumed_by_no_process(stopped, soft, monkeypatch):
    run = plan_of([*soft, "overwrite=true"])
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert training.start_directory(run) is None
    assert (stopped / "checkpoints" / "last.ckpt").is_file()  # the main process removes it
    assert training.start_directory(plan_of(soft)).step == 8


def test_processes_that_would_resume_from_different_steps_stop():
    main = SimpleNamespace(global_rank=1, strategy=SimpleNamespace(broadcast=lambda step: 8))
    SameCheckpointCheck(SavedCheckpoint(Path("last.ckpt"), 8, 0)).setup(main, None, "fit")
    for saved, step in ((SavedCheckpoint(Path("previous.ckpt"), 4, 0), 4), (None, 0)):
        with pytest.raises(RunError) as caught:
            SameCheckpointCheck(saved).setup(main, None, "fit")
        assert str(caught.value) == (
            f"process 1 would resume from step {step}, the main process from step 8: the folder of checkpoints looks "
            "different there. Start the command again."
        )


def test_a_half_written_line_is_dropped(stopped, soft, undisturbed):
    with open(stopped / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "train/lo')
    trained(*soft)
    assert_the_same(stopped, undisturbed)


def test_the_log_of_an_earlier_version_s_checkpoint_is_kept(stopped):
    path = stopped / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["metrics_size"]
    torch.save(checkpoint, path)
    assert find_checkpoint(stopped, set_aside=False) == SavedCheckpoint(path, 8, None)


# -- the checkpoints of a run --------------------------------------------------------------------------------


def test_the_one_before_is_of_an_earlier_step(root):
    files = RunCheckpointIO(root)
    folder = root / "checkpoints"
    for step, size in ((3, 0), (5, 10), (5, 20)):
        if size:
            (root / "metrics.jsonl").write_text("x" * (size - 1) + "\n")
        files.save_checkpoint({"global_step": step}, folder / "last.ckpt")
    assert find_checkpoint(root, set_aside=False) == SavedCheckpoint(folder / "last.ckpt", 5, 20)
    assert torch.load(folder / "previous.ckpt") == {"global_step": 3, "metrics_size": 0}
    files.save_checkpoint({"global_step": 6}, folder / "best.ckpt")
    files.save_checkpoint({"global_step": 7}, folder / "best.ckpt")
    assert saved_step("best.ckpt", root) == 7
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt", "previous.ckpt"]


def test_a_full_disk_costs_no_checkpoint(root, monkeypatch):
    files = RunCheckpointIO(root)
    for step in (1, 2):
        files.save_checkpoint({"global_step": step}, root / "checkpoints" / "last.ckpt")

    def full_disk(checkpoint, file):
        file.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        files.save_checkpoint({"global_step": 3}, root / "checkpoints" / "last.ckpt")
    assert (saved_step("last.ckpt", root), saved_step("previous.ckpt", root)) == (2, 1)
    assert len(list((root / "checkpoints").iterdir())) == 2


class Scripted(torch.nn.Module):
    """A metric whose values are given."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def update(self, predictions, labels):
        pass

    def compute(self):
        return {"accuracy": torch.tensor(self.values.pop(0))}

    def reset(self):
        pass


@pytest.mark.parametrize("damaged", [False, True])
def test_the_best_weights_survive_a_move(monkeypatch, damaged):
    scores = [0.5, 0.9, 0.6, 0.7, 0.8]  # after steps 2, 4 and, resumed, 6; the last weights; those kept
    monkeypatch.setattr("ltp.data.tasks.base.Task.build_metrics", lambda task: Scripted(scores))
    words = [*SMALL, "save_step=2", "load_best=true", "lr=1e-2"]
    interrupted(words, 5, monkeypatch)
    best = torch.load(run_directory() / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    shutil.move("outputs", "moved")
    if damaged:
        flip(run_directory("moved") / "checkpoints" / "best.ckpt")
    finished = ltp_train([*words, "output_root=moved"])
    assert finished.code == 0, finished.err
    assert ("best.ckpt is damaged: the last weights are kept instead of the best" in finished.err) == damaged
    kept = load_file(run_directory("moved") / "model" / "model.safetensors")
    same = [torch.equal(weight, best[f"model.{name}"]) for name, weight in kept.items()]
    assert all(same) == (not damaged)
    assert scores == ([0.8] if damaged else [])


# -- signals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hook", "step", "number", "code", "saved"),
    [
        ("on_train_batch_start", 0, signal.SIGTERM, 143, None),  # before the first step nothing is worth saving
        ("on_train_batch_start", 5, signal.SIGTERM, 143, 5),  # before the first of two accumulated batches
        ("optimizer_step", 5, signal.SIGTERM, 143, 6),  # in an update, which is finished first
        ("optimizer_step", 6, signal.SIGINT, 130, 7),
        ("validation_step", 8, signal.SIGTERM, 143, 8),  # in an evaluation, which is finished first
        ("optimizer_step", 11, signal.SIGTERM, 143, 12),  # in the last step, whose evaluation follows
    ],
)
def test_a_signal_waits_for_a_state_that_can_be_resumed(
    soft, undisturbed, monkeypatch, hook, step, number, code, saved
):
    words = [*soft, "trainer.eval_batch_size=16"]
    assert interrupted(words, step, monkeypatch, hook=hook, cause=number) == code
    assert saved_step() == saved
    assert not (run_directory() / "results.json").exists()
    trained(*words)
    assert_the_same(run_directory(), undisturbed)


@pytest.mark.parametrize("again", [True, False])
def test_an_update_that_is_cut_short_is_not_saved(soft, undisturbed, monkeypatch, again):
    update = LTPModule.optimizer_step

    def disturbed(self, *arguments, **more):
        update(self, *arguments, **more)
        if self.global_step == 6:
            if not again:
                raise PowerCutError
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(LTPModule, "optimizer_step", disturbed)
        if again:
            assert ltp_train(soft).code == 130
        else:
            with pytest.raises(PowerCutError):
                ltp_train(soft)
    assert saved_step() == 4
    trained(*soft)
    assert_the_same(run_directory(), undisturbed)


def test_slurm_s_requeue_saves_the_run_s_own_checkpoint(soft, undisturbed, monkeypatch, root):
    """As Lightning does it: at SIGUSR1 it saves, and has the job queued again; then SLURM ends the process."""
    scontrol = root / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {root}/requeued\n')
    scontrol.chmod(0o755)
    with monkeypatch.context() as job:
        job.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
        variables = {"JOB_ID": 77, "JOB_NAME": "run", "NTASKS": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0}
        for name, value in variables.items():
            job.setenv(f"SLURM_{name}", str(value))
        with monkeypatch.context() as patch:
            update = LTPModule.optimizer_step

            def disturbed(self, *arguments, **more):
                if self.global_step == 5:
                    signal.raise_signal(signal.SIGUSR1)
                if self.global_step == 6:  # training went on, and this step is lost
                    assert saved_step() == 6
                    raise PowerCutError
                update(self, *arguments, **more)

            patch.setattr(LTPModule, "optimizer_step", disturbed)
            patch.setattr(ModelCheckpoint, "on_exception", lambda *_: None)
            with pytest.raises(PowerCutError):
                ltp_train(soft)
        assert (root / "requeued").read_text() == "requeue 77\n"
        assert (saved_step(), saved_step("previous.ckpt")) == (6, 4)
        assert not list(root.rglob("hpc_ckpt*"))
        finished = ltp_train(soft)
        assert f"resuming {run_directory()} from step 6" in finished.err
    assert_the_same(run_directory(), undisturbed)


# -- several processes ---------------------------------------------------------------------------------------


#: Six epochs of six steps: the 97th row, alone in a batch, is dropped where two processes would share it.
TWO = (
    *SMALL,
    *("prune=threshold", "stage=soft", "save_step=4", "epochs=6", "seed=3", "prune.lr_threshold=1e-3"),
    *("model.architecture.hidden_dropout_prob=0.1", "task.max_train_samples=97", "trainer.num_threads=1"),
    *("trainer.devices=2", "trainer.strategy=ddp"),
)
TWO_STEPS = 36


def wait_for_step(started, step, output_root="outputs"):
    """Wait until a running process has logged a step."""

    def reached():
        assert started.process.poll() is None, started.told()
        for path in Path(output_root).rglob("metrics.jsonl"):
            # the run may have been resumed: its last line counts, whole or not
            lines = path.read_text().rstrip("\n").split("\n")
            if lines[-1].startswith('{"step": ') and int(lines[-1].split()[1].rstrip(",")) >= step:
                return True
        return False

    wait_until(reached, 600, poll=0.005, what=f"step {step} was not reached")


def wait_for_session(started):
    """Wait until all its processes are gone."""

    def gone():
        try:
            os.killpg(started.process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(gone, what="a process was left behind")


def test_two_processes_killed_stopped_and_damaged(dense_run, root):
    words = [*TWO, f"restore={dense_run}"]
    trained_by_two(*words, "output_root=whole")
    wanted = run_directory("whole")
    results = results_of(wanted)
    assert (results["devices"], results["train_steps"]) == (2, TWO_STEPS)
    # the schedule ends with the training, though one process alone would have had a step more an epoch
    rates = [line["train/lr"] for line in lines_of(wanted) if "train/lr" in line]
    peak = results["hyperparameters"]["lr"]
    assert rates == pytest.approx([peak * (TWO_STEPS - step) / TWO_STEPS for step in range(TWO_STEPS)], rel=1e-4)

    # a step waits long enough for this process to have its turn before the last one
    slow = with_faults(root / "faults", SLOW=0.1)
    killed = Started(words, **slow)
    wait_for_step(killed, 6)
    os.killpg(killed.process.pid, signal.SIGKILL)
    assert killed.code() == -signal.SIGKILL
    first = saved_step()
    lost = lines_of(run_directory())[-1]["step"]
    assert 4 <= first <= lost + 1 < TWO_STEPS - 2

    stopped = Started(words, **slow)
    wait_for_step(stopped, lost + 2)
    stopped.process.send_signal(signal.SIGTERM)  # the main process only
    assert stopped.code() == 143, stopped.told()
    assert f"from step {first}" in stopped.told()
    wait_for_session(stopped)
    directory = run_directory()
    second = saved_step()
    assert lost + 2 < second < TWO_STEPS
    logged = [line["step"] for line in lines_of(directory) if "train/loss" in line]
    assert logged == list(range(second))  # it stopped at the step that it saved

    # both at once, as torchrun and srun start them: each finds the damage by itself
    flip(directory / "checkpoints" / "last.ckpt")
    before = saved_step("previous.ckpt")
    told = trained_by_two(*words)
    assert f"last.ckpt is damaged: kept as last.ckpt.damaged, going on from previous.ckpt (step {before})" in told[0]
    assert "damaged" not in told[1]
    assert_the_same(directory, wanted)


def test_two_processes_learn_what_one_does(root):
    """On a regression, whose metrics show every difference."""
    for split, count in (("train", 80), ("validation", 47)):  # of 47 the processes have different numbers
        rows = [row["sentence"] for row in demo_rows(split, rows=2 * count)]
        pairs = zip(rows[::2], rows[1::2], strict=True)
        lines = [
            json.dumps({"sentence1": one, "sentence2": two, "label": index * 37 % 100 / 20}) + "\n"
            for index, (one, two) in enumerate(pairs)
        ]
        (root / "data" / "stsb").mkdir(parents=True, exist_ok=True)
        (root / "data" / "stsb" / f"{split}.jsonl").write_text("".join(lines))
    common = [*SMALL, "task=stsb", "model=tiny", "data_dir=data", "trainer.num_threads=1", "trainer.eval_batch_size=8"]
    no_dropout = [f"model.architecture.{name}_dropout_prob=0" for name in ("hidden", "attention_probs")]
    spread = "+model.architecture.initializer_range=0.2"  # predictions so alike that rounding decides show nothing
    dense = trained(*common, *no_dropout, spread, "epochs=4")
    words = [
        *(*common, "prune=threshold", "stage=soft", f"restore={dense}", "epochs=4", "save_step=10", "lr=1e-3"),
        *("prune.final_token_threshold=0.01", "prune.lr_threshold=1e-4"),
    ]
    trained_by_two(*words, "output_root=two")
    one, two = trained(*words, "output_root=one"), run_directory("two")
    results = [results_of(directory) for directory in (one, two)]
    assert [result["train_steps"] for result in results] == [20, 20]
    assert [result["devices"] for result in results] == [1, 2]
    assert results[1]["metrics"] == pytest.approx(results[0]["metrics"], abs=1e-6)
    assert results[1]["thresholds"] == pytest.approx(results[0]["thresholds"], abs=1e-6)
    assert results[1]["tokens_per_layer"] == pytest.approx(results[0]["tokens_per_layer"], abs=1e-6)
    # and both learned something
    assert results[0]["metrics"]["pearson"] != pytest.approx(results_of(dense)["metrics"]["pearson"], abs=1e-3)
    assert results[0]["relative_flops"] < 1
    moved = [abs(end - 0.01 * (layer + 1) / 4) for layer, end in enumerate(results[0]["thresholds"])]
    assert min(moved) > 1e-5
    before, one, two = (load_file(place / "model" / "model.safetensors") for place in (dense, one, two))
    for name, weight in one.items():
        if name.endswith("key.bias"):  # its gradient is 0 but for rounding, which Adam makes steps of
            continue
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-5)
        assert name.startswith("pruner.") or not torch.allclose(before[name], weight, rtol=0, atol=1e-4), name


@pytest.mark.parametrize(
    ("rows", "epochs", "processes", "accumulate", "steps"),
    [
        (97, 2, 1, 1, 14),  # six batches of 16, and one row
        (97, 2, 2, 1, 12),  # which two processes cannot share
        (97, 2, 1, 2, 12),  # nor two batches
        (99, 2, 2, 2, 12),
        (100, 2, 2, 2, 14),
        (97, 1.5, 2, 1, 9),
        (97, 1.5, 1, 1, 11),
    ],
)
def test_steps_are_counted_with_the_processes(monkeypatch, rows, epochs, processes, accumulate, steps):
    run = plan_of([*SMALL, f"epochs={epochs}", f"trainer.accumulate_grad_batches={accumulate}"])
    monkeypatch.setattr("pytorch_lightning.Trainer.world_size", processes)
    splits = SimpleNamespace(task=run.task, train=range(rows), validation={"validation": range(9)})
    datamodule = training.build_datamodule(run, splits, demo_tokenizer())
    trainer = training.build_trainer(run, datamodule)
    assert trainer.max_steps == planned_steps(run.settings, datamodule.steps_per_epoch) == steps
    assert isinstance(trainer.logger, MetricsFile)
    assert trainer.default_root_dir == str(run.directory)

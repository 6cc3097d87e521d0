"""Lightning's keys and callbacks, as Lightning means them."""

import json
import signal
from pathlib import Path

import pytest
import torch
from helpers import SMALL, ltp_train, plan_of
from pytorch_lightning.callbacks import Callback
from safetensors.torch import load_file

from ltp.runs.chain import limited
from ltp.runs.settings import TrainerSettings
from ltp.training.module import LTPModule


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trained(*words):
    """Train in this process: the run's directory and its results."""
    finished = ltp_train([*SMALL, *words])
    assert finished.code == 0, finished.err
    directory = Path(finished.out.split("run directory: ")[1].strip())
    return directory, json.loads((directory / "results.json").read_text())


@pytest.mark.slow
def test_max_steps_of_0_trains_nothing():
    directory, results = trained("trainer.max_steps=0")
    assert results["train_steps"] == 0
    assert results["metric"]["value"] is not None
    assert "train/loss" not in (directory / "metrics.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "steps"),
    [
        ("trainer.limit_train_batches=2", 4),
        ("trainer.limit_train_batches=0.5", 6),
        ("trainer.limit_train_batches=99", 12),
    ],
)
def test_a_part_of_each_epoch(word, steps):
    _, results = trained(word, "epochs=2")
    assert results["train_steps"] == steps  # of 6 in an epoch


@pytest.mark.parametrize(
    ("steps", "accumulate", "limit", "left"),
    [(6, 1, 1.0, 6), (6, 1, 0.5, 3), (6, 2, 3, 2), (6, 2, 0.5, 3), (6, 1, 100, 6), (5, 1, 0.5, 2)],
)
def test_steps_that_are_left_of_an_epoch(steps, accumulate, limit, left):
    settings = TrainerSettings(accumulate_grad_batches=accumulate, limit_train_batches=limit)
    assert limited(steps, settings) == left


@pytest.mark.slow
def test_a_run_with_part_of_its_epochs_resumes_bit_for_bit(monkeypatch):
    words = ["trainer.limit_train_batches=4", "epochs=3", "save_step=2"]
    undisturbed, _ = trained(*words, "output_root=one")
    with monkeypatch.context() as patch:
        start = LTPModule.on_train_batch_start

        def interrupted(self, batch, batch_idx):
            if self.global_step == 6:
                signal.raise_signal(signal.SIGTERM)
            start(self, batch, batch_idx)

        patch.setattr(LTPModule, "on_train_batch_start", interrupted)
        assert ltp_train([*SMALL, *words, "output_root=two"]).code == 143
    resumed, results = trained(*words, "output_root=two")
    assert results["train_steps"] == 12
    one, two = (load_file(directory / "model" / "model.safetensors") for directory in (undisturbed, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_fast_dev_run_writes_nothing(root):
    finished = ltp_train([*SMALL, "trainer.fast_dev_run=true"])
    assert finished.code == 0, finished.err
    assert "fast_dev_run: a batch of training and of validation went through; nothing is written" in finished.err
    assert not list(root.rglob("*.json*"))
    assert not list(root.rglob("*.ckpt"))
    finished = ltp_train([*SMALL, "trainer.fast_dev_run=true", "prune=topk"])
    assert finished.code == 2
    assert "trainer.fast_dev_run tries this run alone, and its parent outputs/" in finished.err


class Recorder(Callback):
    """A user's own callback."""

    seen = 0

    def __init__(self, limit):
        self.limit = limit

    def on_train_batch_end(self, *arguments):
        type(self).seen += 1


@pytest.mark.slow
def test_callbacks_of_ones_own_and_early_stopping():
    own = [f"+callbacks.mine._target_={__name__}.Recorder", "+callbacks.mine.limit=3"]
    words = ["callbacks=[early_stopping]", "callbacks.early_stopping.patience=1", "lr=1e-9", "epochs=8", "save_step=2"]
    directory, results = trained(*words, *own)
    assert Recorder.seen == results["train_steps"] < 48  # nothing improves
    assert any(part.startswith("callbacks_early_stopping_mine-") for part in directory.parts)
    again, _ = trained(*words, *own)
    assert again == directory
    assert plan_of([*SMALL, *words, *own, "callbacks.mine.limit=4"]).directory != directory


def test_callbacks_are_those_of_the_run_alone():
    run = plan_of("prune=topk callbacks=[early_stopping] trainer.max_time=00:01:00:00")
    assert run.missing.settings.callbacks == {}
    assert run.missing.settings.trainer.max_time is None
    assert run.settings.callbacks["early_stopping"]["monitor"] == "{metric}"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "trainer.accelerator=tpu",
            "trainer.accelerator=tpu is out of range: it must be one of auto, cpu, gpu, cuda",
        ),
        ("trainer.num_threads=100000", "trainer.num_threads=100000 is out of range: it must be in [1, 1024]"),
        ("trainer.max_time=1h", "trainer.max_time=1h is out of range: it must be days:hours:minutes:seconds"),
        ("trainer.limit_train_batches=1.5", "trainer.limit_train_batches=1.5 is out of range: it must be a share"),
        ("trainer.limit_train_batches=0", "trainer.limit_train_batches=0 is out of range: it must be a share"),
        ("trainer.gradient_clip_algorithm=x", "trainer.gradient_clip_algorithm=x is out of range: it must be norm or"),
        ("trainer.max_steps=-2", "trainer.max_steps=-2 is out of range: it must be -1 (no limit) or more"),
        ("recipe.stages.finetune.lr=7", "lr=7 is out of range: it must be above 0 and below 1"),
        ("epochs=1e300", "epochs=1e+300 is out of range: it must be above 0 and at most 1e6"),
        ("+callbacks.mine.x=1", "callbacks.mine names no class: give callbacks.mine._target_=package.Class"),
        ("+callbacks.mine._target_=no.such.Class", "callbacks=mine cannot start: "),
    ],
)
def test_values_that_mean_nothing(root, word, message):
    finished = ltp_train([*SMALL, word])
    assert finished.code == 2, finished.err
    assert finished.err.splitlines()[-1].startswith(f"error: {message}")
    assert not (root / "outputs").exists()


@pytest.mark.slow
def test_sigusr1_saves_and_the_training_goes_on(monkeypatch):
    words = ["epochs=2", "save_step=5"]
    undisturbed, _ = trained(*words, "output_root=one")
    saved = []
    start = LTPModule.on_train_batch_start

    def disturbed(self, batch, batch_idx):
        last = Path(self.trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        if self.global_step in (2, 7):
            signal.raise_signal(signal.SIGUSR1)
        if self.global_step in (3, 8):
            saved.append(torch.load(last, weights_only=True)["global_step"])
        start(self, batch, batch_idx)

    monkeypatch.setattr(LTPModule, "on_train_batch_start", disturbed)
    directory, results = trained(*words, "output_root=two")
    assert saved == [3, 8]  # at the start of the batch that follows
    assert results["train_steps"] == 12
    one, two = (load_file(place / "model" / "model.safetensors") for place in (undisturbed, directory))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_weights_have_the_permissions_of_their_neighbours():
    directory, _ = trained()
    modes = {path.stat().st_mode for path in (directory / "model").iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.architecture.hidden_size=1000000000", "model.architecture: "),
        ("model.architecture.num_hidden_layers=1000000", "model.architecture: "),
        ("model.architecture.num_attention_heads=0", "model.architecture: "),
    ],
)
def test_absurd_architectures(root, word, message):
    finished = ltp_train([*SMALL, word])
    assert finished.code == 2, finished.err
    assert finished.err.splitlines()[-1].startswith(f"error: {message}")
    assert not (root / "outputs").exists()


@pytest.mark.slow
def test_gradient_checkpointing_gives_the_same_weights():
    words = ("prune=threshold", "stage=soft", "soft.epochs=1")
    directory, _ = trained(*words)
    weights = load_file(directory / "model" / "model.safetensors")
    again, _ = trained(*words, "model.gradient_checkpointing=true", "output_root=others")
    assert again.relative_to("others") == directory.relative_to("outputs")  # it is no other run
    for name, value in load_file(again / "model" / "model.safetensors").items():
        assert torch.equal(value, weights[name]), name

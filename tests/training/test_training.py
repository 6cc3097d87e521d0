"""Runs from start to end on the demo corpus, cut down: what they leave behind, and how they go on.

Marked slow: some start processes of their own, the others train for a second or two.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from helpers import (
    SMALL,
    Finished,
    dense_layer_flops,
    directory_of,
    layer_flops,
    ltp_train,
    no_hub,
    plan_of,
    write_json,
)
from interrupting import trained_by_two
from patience import limit
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    pipeline,
)

from ltp.data.demo import demo_rows, demo_tokenizer
from ltp.errors import UserError
from ltp.model.classifier import LTPForSequenceClassification
from ltp.pruning.methods.absolute_threshold import threshold_schedule
from ltp.reporting.collect import collect
from ltp.runs.layout import checkpoint_folder
from ltp.runs.locks import LOCK_FILE
from ltp.training import building
from ltp.training.loggers import MetricsFile, build_loggers
from ltp.training.module import LTPModule

pytestmark = pytest.mark.slow

TRAIN_ROWS, VALIDATION_ROWS, LAYERS = 1024, 101, 4


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def process(folder, *arguments):
    """``python -m ltp.train`` in a process of its own, in a folder."""
    command = [sys.executable, "-m", "ltp.train", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # more get into each other's way on a small model
    finished = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=limit(600))
    return Finished(finished.returncode, finished.stdout, finished.stderr)


def trained(command):
    """Train in this process: the run's directory."""
    finished = ltp_train([*SMALL, *command.split()] if isinstance(command, str) else [*SMALL, *command])
    assert finished.code == 0, finished.err
    return Path(finished.out.split("run directory: ")[1].strip())


def results_of(directory):
    return json.loads((directory / "results.json").read_text(encoding="utf-8"))


def weights_of(directory):
    return load_file(directory / "model" / "model.safetensors")


def logged(directory, key):
    """The values of one key of ``metrics.jsonl`` by step."""
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line[key]) for line in lines if key in line]


def evaluated(directory, rows, texts=("sentence",), batch_size=16):
    """A plain loop over ``model/``: logits, (rows, labels), and tokens alive, (rows, L+1)."""
    model = AutoModelForSequenceClassification.from_pretrained(directory / "model")
    tokenizer = AutoTokenizer.from_pretrained(directory / "model")
    logits, lengths = [], []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        columns = [[row[column] for row in batch] for column in texts]
        with torch.no_grad():
            output = model(**tokenizer(*columns, padding=True, return_tensors="pt"))
        logits.append(output.logits)
        lengths.append(output.token_lengths)
    return torch.cat(logits), torch.cat(lengths)


# -- the chain: dense, soft, hard, from one command ----------------------------------------------------------


COMMON = (
    *SMALL,
    f"task.max_train_samples={TRAIN_ROWS}",
    f"task.max_validation_samples={VALIDATION_ROWS}",
    "recipe.stages.finetune.lr=2e-3",  # enough to learn something in three epochs
    "recipe.stages.finetune.batch_size=16",
    "batch_size=32",
)
CHAIN = (*COMMON, "prune=threshold", "stage=hard", "prune.final_token_threshold=0.009", "lr=5e-4")
DENSE, SOFT, HARD = (run.directory for run in plan_of(CHAIN).chain)
STAGES = {"dense": DENSE, "soft": SOFT, "hard": HARD}


@pytest.fixture(scope="module")
def chain_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    return folder, process(folder, *CHAIN)


@pytest.fixture
def chain(chain_process, monkeypatch):
    """The folder in which the chain was trained, as current directory."""
    folder, finished = chain_process
    assert finished.code == 0, finished.err
    monkeypatch.chdir(folder)
    return folder


def test_missing_parents_are_trained_first_and_the_log_says_so(chain_process):
    folder, finished = chain_process
    assert finished.code == 0, finished.err
    lines = [line[11:] for line in finished.err.splitlines() if "parent missing" in line or "training outputs" in line]
    assert lines == [
        f"parent missing, training it first: {SOFT}",
        f"parent missing, training it first: {DENSE}",
        f"training {DENSE}",
        f"training {SOFT}",
        f"training {HARD}",
    ]
    assert finished.out.rstrip().endswith(f"run directory: {HARD}")
    assert [path.name for path in folder.iterdir()] == ["outputs"]
    found = {path.parent.relative_to(folder) for path in folder.rglob("results.json")}
    assert found == {DENSE, SOFT, HARD}
    plan = finished.err.split("plan:\n")[1].splitlines()[:6]
    assert plan[::2] == [
        "  finetune  to train: lr 0.002, 3 epochs, 192 steps of 16 examples",
        "  soft      to train: lr 0.0001, 1 epochs, 16 steps of 64 examples",
        "  hard      to train: lr 0.0005, 1 epochs, 32 steps of 32 examples",
    ]
    assert plan[1::2] == [f"            {directory}" for directory in (DENSE, SOFT, HARD)]
    steps = [results_of(folder / directory)["train_steps"] for directory in (DENSE, SOFT, HARD)]
    assert steps == [192, 16, 32]


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_directory_holds_what_the_design_says(chain, stage):
    names = {path.name for path in STAGES[stage].iterdir()} - {"hard"}
    assert names == {"config.yaml", "checkpoints", "metrics.jsonl", "model", "results.json", LOCK_FILE}
    assert [path.name for path in (STAGES[stage] / "checkpoints").iterdir()] == ["last.ckpt"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        path.name for path in (STAGES[stage] / "model").iterdir()
    }
    stored = yaml.safe_load((STAGES[stage] / "config.yaml").read_text(encoding="utf-8"))
    assert stored["task"]["max_train_samples"] == TRAIN_ROWS


@pytest.mark.parametrize("stage", STAGES)
def test_the_stable_keys_of_results(chain, stage):
    results = results_of(STAGES[stage])
    numbers = {key: results[key] for key in ("relative_flops", "gflops", "dense_gflops", "duration_seconds")}
    assert all(isinstance(value, float) and value > 0 for value in numbers.values())
    assert (results["task"], results["model"], results["seed"]) == ("demo", "tiny", 0)
    assert results["metric"] == {"name": "accuracy", "value": results["metrics"]["accuracy"]}
    assert len(results["tokens_per_layer"]) == LAYERS + 1
    assert results["tokens_per_layer"] == sorted(results["tokens_per_layer"], reverse=True)
    assert results["relative_flops"] == pytest.approx(results["gflops"] / results["dense_gflops"])
    assert isinstance(results["device"], str)
    stored = yaml.safe_load((STAGES[stage] / "config.yaml").read_text(encoding="utf-8"))
    assert stored.pop("command").startswith("python -m ltp.train ")
    assert stored.pop("working_directory")
    assert results["config"] == stored
    assert results["git"] is None or set(results["git"]) == {"commit", "dirty"}
    assert set(results["versions"]) == {
        *("python", "ltp", "torch", "pytorch-lightning", "transformers", "datasets", "torchmetrics"),
        *("hydra-core", "omegaconf", "numpy"),
    }
    assert None not in results["versions"].values()
    stages = {
        "dense": ("none", "finetune", "dense", None, None),
        "soft": ("absolute_threshold", "soft", "learned", str(DENSE), LAYERS),
        "hard": ("absolute_threshold", "hard", "learned", str(SOFT), LAYERS),
    }
    mode, name, method, parent, thresholds = stages[stage]
    assert (results["prune_mode"], results["stage"], results["method"]) == (mode, name, method)
    assert results["parent"] == parent
    assert results["parent_run_id"] == (results_of(Path(parent))["run_id"] if parent else None)
    assert results["thresholds"] is None if thresholds is None else len(results["thresholds"]) == thresholds
    hyper = results["hyperparameters"]
    assert (hyper["lr"], hyper["batch_size"], hyper.get("temperature"), hyper.get("lambda_threshold")) == {
        "dense": (2e-3, 16, None, None),
        "soft": (1e-4, 64, 1e-3, 0.05),
        "hard": (5e-4, 32, 1e-3, 0.05),
    }[stage]
    json.dumps(results, allow_nan=False)


def test_soft_learns_thresholds_and_hard_keeps_them(chain):
    start = [0.009 * layer / LAYERS for layer in range(1, LAYERS + 1)]
    soft, hard = results_of(SOFT)["thresholds"], results_of(HARD)["thresholds"]
    assert all(abs(learned - began) > 1e-5 for learned, began in zip(soft, start, strict=True))
    assert hard == soft
    weights = {stage: weights_of(directory) for stage, directory in STAGES.items()}
    assert "pruner.thresholds" not in weights["dense"]
    assert weights["hard"]["pruner.thresholds"].dtype == torch.float32
    assert weights["hard"]["pruner.thresholds"].tolist() == hard
    moved = [
        not torch.equal(weights["hard"][name], weights["soft"][name])
        for name in weights["hard"]
        if name != "pruner.thresholds"
    ]
    assert all(moved)


@pytest.mark.parametrize("stage", STAGES)
def test_results_are_those_of_the_saved_model(chain, stage):
    results = results_of(STAGES[stage])
    rows = demo_rows("validation", rows=VALIDATION_ROWS)
    logits, lengths = evaluated(STAGES[stage], rows)
    assert set(logits.argmax(dim=1).tolist()) == {0, 1}
    right = logits.argmax(dim=1) == torch.tensor([row["label"] for row in rows])
    assert results["metric"]["value"] == pytest.approx(right.double().mean().item(), abs=1e-6)
    cost, dense = layer_flops(lengths, 32, 64), dense_layer_flops(lengths[:, 0], LAYERS, 32, 64)
    assert results["relative_flops"] == pytest.approx((cost.sum() / dense.sum()).item(), rel=1e-9)
    assert results["gflops_per_layer"] == pytest.approx((cost.mean(dim=0) / 1e9).tolist(), rel=1e-9)
    assert results["tokens_per_layer"] == pytest.approx(lengths.double().mean(dim=0).tolist(), rel=1e-9)
    assert (results["relative_flops"] == 1.0) == (stage == "dense")


def test_the_saved_model_works_in_a_pipeline(chain):
    rows = demo_rows("validation", rows=VALIDATION_ROWS)
    classify = pipeline("text-classification", model=str(HARD / "model"))
    answers = [answer["label"] for answer in classify([row["sentence"] for row in rows], batch_size=7)]
    right = sum(answer == ("negative", "positive")[row["label"]] for answer, row in zip(answers, rows, strict=True))
    assert results_of(HARD)["metric"]["value"] == pytest.approx(right / len(rows), abs=1e-6)


def test_the_tokenizer_is_saved(chain):
    sentence = "the film was not boring , a masterpiece"
    tokenizer = AutoTokenizer.from_pretrained(HARD / "model")
    assert tokenizer(sentence)["input_ids"] == demo_tokenizer()(sentence)["input_ids"]


def test_metrics_are_logged_by_step(chain):
    steps = TRAIN_ROWS // 32
    assert [step for step, _ in logged(HARD, "train/loss")] == list(range(steps))
    assert all(np.isfinite(value) for _, value in logged(HARD, "train/loss"))
    rates = [rate for _, rate in logged(HARD, "train/lr")]
    assert rates == pytest.approx([5e-4 * (steps - step) / steps for step in range(steps)])
    for key in ("val/accuracy", "val/relative_flops", "val/kept_fraction/layer_03", "val/threshold/layer_01"):
        assert logged(HARD, key)
    kept = dict(logged(HARD, "val/kept_fraction/layer_03"))[steps]
    tokens = results_of(HARD)["tokens_per_layer"]
    assert kept == pytest.approx(tokens[3] / tokens[0], rel=1e-6)
    assert logged(SOFT, "train/kept_fraction")
    assert not logged(HARD, "train/kept_fraction")


def test_the_terminal_shows_the_results(chain, chain_process):
    _, finished = chain_process
    tables = finished.out.split("run directory: ")
    assert len(tables) == 4  # three runs, and nothing after the last one's directory
    for table, directory in zip(tables, (DENSE, SOFT, HARD), strict=False):
        results = results_of(directory)
        assert re.search(rf"accuracy +│ {results['metric']['value']:.4f} ", table)
        assert re.search(rf"relative FLOPs +│ {results['relative_flops']:.3f} ", table)
        assert " → ".join(f"{count:.1f}" for count in results["tokens_per_layer"]) in table


def test_a_finished_run_is_skipped(chain):
    before = {path: path.stat().st_mtime_ns for path in chain.rglob("*") if path.is_file()}
    finished = ltp_train(CHAIN)
    assert finished.code == 0
    assert f"finished already, skipped: {HARD} (overwrite=true starts it afresh)" in finished.err
    assert finished.out.rstrip().endswith(f"run directory: {HARD}")
    assert {path: path.stat().st_mtime_ns for path in chain.rglob("*") if path.is_file()} == before


def test_a_finished_run_that_is_another_by_its_recipe_is_refused(chain):
    config = HARD / "config.yaml"
    written = config.read_text()
    try:
        config.write_text(written.replace("weight_decay: 0.0\n", "weight_decay: 0.5\n"))
        finished = ltp_train(CHAIN)
    finally:
        config.write_text(written)
    assert finished.code == 2
    assert finished.err == (
        f"error: {HARD} holds a finished run with another configuration:\n"
        "  weight_decay: 0.5 there, 0.0 now\n"
        "Start it afresh with overwrite=true, or keep both with another output_root=…\n"
    )


def test_the_plan_of_a_finished_chain(chain):
    finished = ltp_train([*CHAIN, "plan=only"])
    assert (finished.code, finished.err) == (0, "")
    assert [line.split(":")[0] for line in finished.out.splitlines()[1::2]] == [
        *("  finetune  finished", "  soft      finished", "  hard      finished"),
    ]
    other = ltp_train([*CHAIN, "plan=only", "soft.epochs=2", "seed=0"])
    assert [line.split(":")[0] for line in other.out.splitlines()[1::2]] == [
        *("  finetune  finished", "  soft      to train", "  hard      to train"),
    ]


def test_two_baselines(chain):
    rates = ("0.6", "-0.4")
    for rate in rates:
        finished = ltp_train([*COMMON, "prune=topk", f"prune.token_keep_rate={rate}", "lr=1e-4"])
        assert finished.code == 0, finished.err
    runs = [
        results_of(path.parent)
        for rate in rates
        for path in Path(f"outputs/tiny/demo/topk/rate_{rate}").rglob("results.json")
    ]
    assert [run["hyperparameters"]["token_keep_rate"] for run in runs] == [0.6, -0.4]
    assert all(run["parent"] == str(DENSE) and run["thresholds"] is None for run in runs)
    lengths = [len(demo_tokenizer()(row["sentence"])["input_ids"]) for row in demo_rows("validation", rows=101)]
    for rate, run in zip((0.6, 0.0), runs, strict=True):  # three layers are dense, the fourth keeps this share
        kept = [max(1, round(rate * length)) for length in lengths]
        assert run["tokens_per_layer"] == pytest.approx([np.mean(lengths)] * 4 + [np.mean(kept)])


def test_two_processes_give_what_one_gives(chain):
    command = [*COMMON, "prune=threshold", "stage=soft", "prune.lr_threshold=1e-3"]
    trained_by_two(*command, "output_root=two", f"restore={DENSE}")
    one = ltp_train([*command, "output_root=one", f"restore={DENSE}"])
    assert one.code == 0, one.err
    two, one = (chain / directory_of([*command, f"output_root={root}", f"restore={DENSE}"]) for root in ("two", "one"))
    results = {name: results_of(directory) for name, directory in (("one", one), ("two", two))}
    assert (results["one"]["devices"], results["two"]["devices"]) == (1, 2)
    assert results["two"]["train_steps"] == results["one"]["train_steps"] == TRAIN_ROWS // 32
    assert results["two"]["metrics"] == pytest.approx(results["one"]["metrics"], abs=1e-6)
    assert results["two"]["tokens_per_layer"] == pytest.approx(results["one"]["tokens_per_layer"], rel=1e-3)
    assert results["two"]["relative_flops"] == pytest.approx(results["one"]["relative_flops"], rel=1e-3)
    assert results["two"]["thresholds"] == pytest.approx(results["one"]["thresholds"], rel=1e-3)
    for name, weight in weights_of(one).items():
        torch.testing.assert_close(weights_of(two)[name], weight, rtol=1e-3, atol=1e-4)


# -- which weights are kept ----------------------------------------------------------------------------------


class Scripted(torch.nn.Module):
    """A metric whose values are given."""

    def __init__(self, values):
        super().__init__()
        self.values = iter(values)

    def update(self, predictions, labels):
        pass

    def compute(self):
        return {"accuracy": torch.tensor(next(self.values))}

    def reset(self):
        pass


@pytest.mark.parametrize(
    ("load_best", "scores", "kept"),
    [
        ("true", [0.5, 0.9, 0.7, 0.6, 0.6, 0.9], 1),  # after each of four steps, the last ones again, those kept
        ("true", [0.5, 0.7, 0.7, 0.6, 0.6, 0.7], 1),
        ("false", [0.5, 0.9, 0.7, 0.6, 0.6], 3),
    ],
)
def test_load_best(monkeypatch, load_best, scores, kept):
    monkeypatch.setattr("ltp.data.tasks.base.Task.build_metrics", lambda task: Scripted(scores))
    states = []

    def watched(self, end=LTPModule.on_validation_epoch_end):
        states.append({name: weight.clone() for name, weight in self.model.state_dict().items()})
        end(self)

    monkeypatch.setattr(LTPModule, "on_validation_epoch_end", watched)
    directory = trained(f"task.max_train_samples=64 save_step=1 load_best={load_best} lr=1e-2")
    assert len(states) == len(scores)
    saved = weights_of(directory)
    same = [all(torch.equal(state[name], saved[name]) for name in saved) for state in states[:4]]
    assert same == [index == kept for index in range(4)]
    assert results_of(directory)["metric"]["value"] == pytest.approx(scores[kept])
    assert not (directory / "checkpoints" / "best.ckpt").exists()


@pytest.mark.parametrize(
    ("words", "steps", "evaluations"),
    [
        ("epochs=0.5", 3, []),
        ("epochs=1.5 save_step=4", 9, [4, 8]),
        ("epochs=2 save_step=100", 12, [6, 12]),  # more than an epoch: every epoch
        ("epochs=2 save_step=4 trainer.accumulate_grad_batches=2", 12, [4, 8, 12]),
        ("epochs=3 trainer.max_steps=7", 7, [6]),
    ],
)
def test_how_long_and_how_often(words, steps, evaluations):
    directory = trained(words)
    assert results_of(directory)["train_steps"] == steps
    assert len(logged(directory, "train/loss")) >= steps
    # Lightning numbers the validation of an epoch's end by its last step; the results' own comes last
    found = [step for step, _ in logged(directory, "val/accuracy")]
    assert len(found) == len(evaluations) + 1
    assert found[-1] == steps
    assert all(abs(at - step) <= 1 for at, step in zip(found, evaluations, strict=False))


# -- interrupted and failing runs ----------------------------------------------------------------------------


SOFT_RUN = (
    "prune=threshold stage=soft save_step=4 epochs=2 seed=3 prune.lr_threshold=1e-3 weight_decay=0.1 "
    "warmup_ratio=0.2 model.architecture.hidden_dropout_prob=0.1 trainer.accumulate_grad_batches=2 "
    "task.max_train_samples=90"
)


@pytest.fixture(scope="module")
def dense_run(tmp_path_factory):
    """A small dense run with dropout, to start from."""
    folder = tmp_path_factory.mktemp("dense")
    words = f"output_root={folder} model.architecture.hidden_dropout_prob=0.1"
    return trained(words)


@pytest.fixture(scope="module")
def undisturbed(dense_run, tmp_path_factory):
    return trained(f"{SOFT_RUN} restore={dense_run} output_root={tmp_path_factory.mktemp('undisturbed')}")


class PowerCutError(Exception):
    """Something that nobody expects."""


@pytest.mark.parametrize(
    ("error", "step", "saved"),
    [
        (PowerCutError, 3, True),  # in the first epoch, before the first evaluation
        (PowerCutError, 9, False),  # as if the process were killed: only the last evaluation's checkpoint is there
        (KeyboardInterrupt, 6, True),
        (signal.SIGTERM, 6, True),
    ],
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(monkeypatch, dense_run, undisturbed, error, step, saved):
    command = [*SMALL, *SOFT_RUN.split(), f"restore={dense_run}", "output_root=outputs"]
    with monkeypatch.context() as patch:
        start = LTPModule.on_train_batch_start

        def interrupted(self, batch, batch_idx):
            if self.global_step == step and batch_idx % 2 == 1:  # between two accumulated batches
                if error is signal.SIGTERM:
                    signal.raise_signal(error)
                else:
                    raise error
            start(self, batch, batch_idx)

        patch.setattr(LTPModule, "on_train_batch_start", interrupted)
        if not saved:
            patch.setattr(ModelCheckpoint, "on_exception", lambda *_: None)
        if error is PowerCutError:
            with pytest.raises(error):
                ltp_train(command)
        else:
            assert ltp_train(command).code == {KeyboardInterrupt: 130, signal.SIGTERM: 143}[error]
    (directory,) = (path.parent for path in Path("outputs").rglob("config.yaml"))
    assert (directory / "checkpoints" / "last.ckpt").is_file()
    assert not (directory / "results.json").exists()

    finished = ltp_train(command)
    assert finished.code == 0, finished.err
    assert f"resuming {directory}" in finished.err
    for name, weight in weights_of(undisturbed).items():
        assert torch.equal(weights_of(directory)[name], weight), name
    again, once = results_of(directory), results_of(undisturbed)
    for key in ("metrics", "relative_flops", "thresholds", "tokens_per_layer", "train_steps"):
        assert again[key] == once[key]


def test_a_loss_that_is_not_finite(monkeypatch):
    objective = LTPForSequenceClassification.objective
    steps = []

    def broken(self, *arguments):
        steps.extend([1] * self.training)
        return objective(self, *arguments) * (float("nan") if sum(steps) == 5 else 1)

    command = [*SMALL, "save_step=2"]
    monkeypatch.setattr(LTPForSequenceClassification, "objective", broken)
    finished = ltp_train(command)
    assert finished.code == 1
    assert finished.err.splitlines()[-1] == (
        "error: the loss is nan at step 4: training stopped before this step's update, and the last checkpoint holds "
        "finite weights. Lower lr, or the weight of the method's penalty, or use trainer.precision=32-true."
    )
    directory = directory_of(command)
    assert not (directory / "results.json").exists()
    assert not (directory / "model").exists()
    last = torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    assert all(torch.isfinite(weight).all() for weight in last["state_dict"].values() if weight.is_floating_point())
    monkeypatch.setattr(LTPForSequenceClassification, "objective", objective)
    finished = ltp_train(command)
    assert (finished.code, results_of(directory)["train_steps"]) == (0, 6)


def test_overwrite_trains_afresh():
    directory = trained("")
    first = results_of(directory)
    assert trained("overwrite=true") == directory
    second = results_of(directory)
    assert second["run_id"] != first["run_id"]
    assert second["metrics"] == first["metrics"]
    assert len(logged(directory, "train/loss")) == 6  # not appended to the first run's


# -- precision, loggers, progress ----------------------------------------------------------------------------


def test_thresholds_keep_training_in_bfloat16(dense_run):
    command = f"prune=threshold stage=soft trainer.precision=bf16-mixed prune.lr_threshold=1e-3 restore={dense_run}"
    directory = trained(command)
    results = results_of(directory)
    start = [0.005 * layer / LAYERS for layer in range(1, LAYERS + 1)]
    moved = [abs(learned - began) for learned, began in zip(results["thresholds"], start, strict=True)]
    assert min(moved) > 1e-4
    # finer than bfloat16's eight bits could hold
    assert torch.tensor(results["thresholds"]).bfloat16().tolist() != pytest.approx(results["thresholds"], rel=1e-6)
    assert {weight.dtype for weight in weights_of(directory).values()} == {torch.float32}
    assert results["hyperparameters"]["precision"] == "bf16-mixed"


def test_tensorboard_and_the_progress_bar(capfd):
    pytest.importorskip("tensorboard")
    directory = trained("logger=[tensorboard] trainer.enable_progress_bar=true task.max_train_samples=32")
    assert list((directory / "tensorboard").glob("events.out.tfevents.*"))
    assert logged(directory, "train/loss")  # the metrics file is always there


def logger_without_its_package():
    raise ModuleNotFoundError("No module named 'wandb'")


def test_loggers_that_cannot_start(root):
    with pytest.raises(UserError) as caught:
        build_loggers({"wandb": {"_target_": f"{__name__}.logger_without_its_package"}}, root, root)
    assert str(caught.value) == "logger=wandb needs its package: pip install 'learned-token-pruning[wandb]'"
    with pytest.raises(UserError, match=r"^logger=tensorboard cannot start: .*unexpected keyword argument 'colour'"):
        build_loggers(
            {"tensorboard": {"_target_": "ltp.training.loggers.MetricsFile", "colour": 1, "directory": "x"}}, root, root
        )


def test_loggers_learn_where_the_run_is_and_a_name_and_an_id_of_it(root):
    chosen = {
        "mine": {
            "_target_": "types.SimpleNamespace",
            "a": "{run_dir}",
            "b": "{run_name}",
            "c": "x",
            "d": 1,
            "e": "{run_id}",
        }
    }
    metrics, mine = build_loggers(chosen, root / "tiny" / "run", root)
    assert isinstance(metrics, MetricsFile)
    assert (mine.a, mine.b, mine.c, mine.d) == (str(root / "tiny" / "run"), "tiny/run", "x", 1)
    again, other = (build_loggers(chosen, root / name, root)[1] for name in ("tiny/run", "tiny/other"))
    assert mine.e == again.e != other.e


class Recorder(MetricsFile):
    """A logger that keeps the hyper-parameters it is told."""

    told: ClassVar[list] = []
    logged: ClassVar[list] = []

    def __init__(self, directory):
        super().__init__(Path(directory))

    def log_hyperparams(self, params, *args, **kwargs):
        self.told.append(params)

    def log_metrics(self, metrics, step=None):
        self.logged.append((step, metrics))


@pytest.mark.slow
def test_loggers_are_told_the_resolved_settings(root):
    words = [f"+logger.mine._target_={__name__}.Recorder", "+logger.mine.directory='{run_dir}'"]
    finished = ltp_train([*SMALL, "lr=3e-4", *words])
    assert finished.code == 0, finished.err
    step, final = Recorder.logged[-1]
    results = results_of(directory_of([*SMALL, "lr=3e-4"]))
    assert step == results["train_steps"]
    assert final["final/accuracy"] == results["metrics"]["accuracy"]
    assert final["final/relative_flops"] == results["relative_flops"]
    (told,) = Recorder.told
    assert (told["lr"], told["batch_size"], told["task.name"], told["method"]) == (3e-4, 16, "demo", "dense")


# -- other tasks, other models -------------------------------------------------------------------------------


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def pairs(split, rows, label):
    """Demo sentences in pairs, of which ``label`` makes a label from the two sentiments."""
    sentences = demo_rows(split, rows=2 * rows)
    return [
        {"premise": one["sentence"], "hypothesis": two["sentence"], "label": label(index, one["label"], two["label"])}
        for index, (one, two) in enumerate(zip(sentences[::2], sentences[1::2], strict=True))
    ]


def test_mnli_has_two_validation_sets():
    names = ("entailment", "neutral", "contradiction")

    def label(index, one, two):
        return names[index % 3]

    write_rows(Path("data/mnli/train.jsonl"), pairs("train", 60, label))
    matched = write_rows(Path("data/mnli/validation_matched.jsonl"), pairs("validation", 41, label))
    mismatched = write_rows(Path("data/mnli/validation_mismatched.jsonl"), pairs("validation", 23, label))
    directory = trained("task=mnli model=tiny data_dir=data lr=5e-3 epochs=2")
    results = results_of(directory)
    assert set(results["metrics"]) == {"accuracy", "accuracy_mismatched"}
    assert results["metric"]["name"] == "accuracy"
    lengths = None
    for key, rows in (("accuracy", matched), ("accuracy_mismatched", mismatched)):
        logits, tokens = evaluated(directory, rows, ("premise", "hypothesis"))
        lengths = tokens if lengths is None else lengths
        right = [names[row] == wanted["label"] for row, wanted in zip(logits.argmax(dim=1), rows, strict=True)]
        assert results["metrics"][key] == pytest.approx(np.mean(right), abs=1e-6)
    assert results["tokens_per_layer"][0] == pytest.approx(lengths[:, 0].double().mean().item())  # of the main split
    config = json.loads((directory / "model" / "config.json").read_text())
    assert config["id2label"] == dict(zip("012", names, strict=True))


def correlation(one, two):
    return np.corrcoef(one, two)[0, 1]


def ranks(values):
    return np.argsort(np.argsort(values))


def test_stsb_is_a_regression():
    def label(index, one, two):
        return round((index * 37 % 100) / 20, 2)  # 100 different values in [0, 5)

    for split, rows in (("train", 64), ("validation", 47)):
        renamed = [
            {"sentence1": row["premise"], "sentence2": row["hypothesis"], "label": row["label"]}
            for row in pairs(split, rows, label)
        ]
        rows = write_rows(Path(f"data/stsb/{split}.jsonl"), renamed)
    directory = trained("task=stsb model=tiny data_dir=data lr=5e-3 epochs=2")
    results = results_of(directory)
    logits, _ = evaluated(directory, rows, ("sentence1", "sentence2"))
    assert logits.shape == (47, 1)
    predicted, wanted = logits[:, 0].double().numpy(), np.array([row["label"] for row in rows])
    assert results["metric"] == {"name": "pearson", "value": results["metrics"]["pearson"]}
    assert results["metrics"]["pearson"] == pytest.approx(correlation(predicted, wanted), abs=1e-4)
    assert results["metrics"]["spearman"] == pytest.approx(correlation(ranks(predicted), ranks(wanted)), abs=1e-4)
    assert json.loads((directory / "model" / "config.json").read_text())["problem_type"] == "regression"


def test_a_metric_that_is_undefined_is_null_with_a_reason(root):
    rows = [{"text": row["sentence"], "label": index % 7} for index, row in enumerate(demo_rows("train", rows=48))]
    write_rows(root / "a.jsonl", rows)
    write_rows(root / "b.jsonl", [row | {"label": 1.0} for row in rows])
    words = "task=custom task.train_file=a.jsonl task.validation_file=b.jsonl task.metric=pearson model=tiny"
    command = [*SMALL, *words.split(), "task.max_train_samples=null"]
    finished = ltp_train(command)
    assert finished.code == 0, finished.err
    reason = "the predictions or the labels are all equal"
    assert f"– ({reason})" in finished.out
    directory = Path(finished.out.split("run directory: ")[1].strip())
    text = (directory / "results.json").read_text()
    results = json.loads(text, parse_constant=pytest.fail)
    assert results["metric"] == {"name": "pearson", "value": None}
    assert results["metrics"] == {"pearson": None, "spearman": None}
    assert results["undefined"] == {"pearson": reason, "spearman": reason}
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    (left_out,) = collect([root / "outputs"]).left_out
    assert (left_out.why, left_out.detail) == ("the metric is undefined", f"pearson: {reason}")
    again = ltp_train(command)
    assert (again.code, "finished already" in again.err) == (0, True)
    (directory / "results.json").write_text(text.replace('"value": null', '"value": NaN'))  # an earlier version's
    assert ltp_train(command).code == 0


def test_a_custom_task_from_csv_files_to_a_pruned_model():
    words = {0: "bad, really", 1: "good", 2: "so so"}
    rows = [{"text": row["sentence"], "label": index % 3} for index, row in enumerate(demo_rows("train", rows=75))]
    for name, part in (("a.csv", rows[:48]), ("b.csv", rows[48:])):
        lines = ["id,review,verdict", *(f'{n},"{row["text"]}","{words[row["label"]]}"' for n, row in enumerate(part))]
        Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    task = [
        *("task=custom", "task.name=reviews", "task.train_file=a.csv", "task.validation_file=b.csv"),
        *("task.text_columns=[review]", "task.label_column=verdict", "task.metric=matthews", "model=tiny"),
    ]
    dense = trained([*task, "lr=5e-3"])
    assert dense.is_relative_to("outputs/tiny/reviews/finetune")
    config = json.loads((dense / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "bad, really", "1": "good", "2": "so so"}
    manual = trained([*task, "prune=manual", f"restore={dense}", "prune.final_token_threshold=0.01"])
    assert manual.is_relative_to("outputs/tiny/reviews/absolute_threshold/rate_0.01/hard")
    results = results_of(manual)
    assert results["thresholds"] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert results["relative_flops"] < 1
    logits, _ = evaluated(manual, [{"sentence": row["text"]} for row in rows[48:]])
    right = (logits.argmax(dim=1) == torch.tensor([row["label"] for row in rows[48:]])).double().mean().item()
    assert results["metrics"]["accuracy"] == pytest.approx(right, abs=1e-6)
    assert results["metric"]["name"] == "matthews"


def test_a_custom_task_with_other_labels_than_the_checkpoint(dense_run):
    for name in ("a.csv", "b.csv"):
        Path(name).write_text("text,label\none,1\ntwo,2\nthree,3\n")
    finished = ltp_train(
        f"task=custom task.train_file=a.csv task.validation_file=b.csv prune=topk restore={dense_run} trainer=cpu"
    )
    assert finished.code == 2
    assert finished.err == (
        f"error: restore={dense_run} has 2 labels, task=custom has 3; "
        "restore a checkpoint that was fine-tuned on custom.\n"
    )
    assert not Path("outputs").exists()


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}


def save_encoder(model_class, directory, **changes):
    """A Hugging Face directory with random weights and the demo's tokenizer."""
    tokenizer = demo_tokenizer()
    torch.manual_seed(0)
    model_class(BertConfig(vocab_size=len(tokenizer), **SIZES, **changes)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def test_a_pretrained_encoder_gets_a_new_head():
    save_encoder(BertModel, "encoder")
    with no_hub():
        directory = trained(["model.name_or_path=encoder", "lr=1e-9"])  # so that it stays what it was
    assert directory.is_relative_to(f"outputs/{checkpoint_folder('encoder')}/demo/finetune")
    before, after = load_file("encoder/model.safetensors"), weights_of(directory)
    for name in ("embeddings.word_embeddings.weight", "encoder.layer.3.output.dense.weight"):
        torch.testing.assert_close(after[f"dense_model.bert.{name}"], before[name], rtol=0, atol=1e-6)
    assert after["dense_model.classifier.weight"].shape == (2, 32)
    assert results_of(directory)["parent"] == "encoder"


def test_a_dense_checkpoint_s_own_pruning_keys():
    labels = {0: "negative", 1: "positive"}
    save_encoder(BertForSequenceClassification, "hf", id2label=labels)
    config = json.loads(Path("hf/config.json").read_text())
    inherited = {"prune_mode": "absolute_threshold", "final_token_threshold": 0.008, "scoring_mode": "mean_norm"}
    write_json(Path("hf/config.json"), config | inherited)
    with no_hub():
        directory = trained(["stage=hard", "restore=hf"])
    results = results_of(directory)
    assert (results["method"], results["parent"]) == ("manual", "hf")
    assert results["thresholds"] == pytest.approx([0.002, 0.004, 0.006, 0.008])
    assert results["hyperparameters"]["scoring_mode"] == "mean_norm"
    saved = json.loads((directory / "model" / "config.json").read_text())
    assert {key: saved[key] for key in inherited} == inherited


def test_manual_thresholds_replace_those_that_a_checkpoint_learned(tmp_path, make_dense):
    dense = make_dense("bert", num_labels=2, max_position_embeddings=128)
    model = LTPForSequenceClassification.from_dense(
        dense, prune_mode="absolute_threshold", final_token_threshold=0.01, masking_mode="soft"
    )
    with torch.no_grad():
        model.thresholds.mul_(3)  # what a soft stage may have learned
    model.save_pretrained(tmp_path / "soft")
    run = plan_of(f"task=demo prune=manual prune.final_token_threshold=0.01 restore={tmp_path / 'soft'}")
    assert run.method == "manual"
    built = building.build_model(run, run.task, demo_tokenizer())
    torch.testing.assert_close(built.thresholds.detach(), torch.tensor(threshold_schedule(0.01, 6)))

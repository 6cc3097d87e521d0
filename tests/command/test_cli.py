"""The command line: what it says of bad input, what it shows, how it ends."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import SMALL, dense_checkpoint, finished_run, ltp_train, no_hub, plan_of, write_json

from ltp.command import cli
from ltp.data import tasks
from ltp.encoders import known_families
from ltp.errors import RunError, TerminatedError, UserError
from ltp.pruning import aliases, all_methods
from ltp.runs.checkpoints import RESULTS_FILE
from ltp.runs.settings import _HUGGING_FACE_KEYS, PRECISIONS, known_keys, unknown_key

TASKS = ", ".join(sorted([*tasks.TASKS, "custom"]))
HUB = "the Hugging Face hub is out of reach (or HF_HUB_OFFLINE is set) and the cache does not hold it."
PAIR = {"sentence1": "a film", "sentence2": "a movie", "label": 1}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runs_in(root):
    """Directories under the output root that look like a run's."""
    names = ("config.yaml", "results.json", "model", "checkpoints", "metrics.jsonl")
    return [path for path in (root / "outputs").rglob("*") if path.name in names]


def check_refused(root, command, message):
    """A command ends with exit code 2 and one message, and leaves nothing behind."""
    with no_hub():
        finished = ltp_train(command)
    assert finished.code == 2
    lines = [line for line in finished.err.splitlines() if not line.endswith("using cached files only.")]
    assert "\n".join(lines) == f"error: {message}"
    assert finished.out == ""
    assert runs_in(root) == []


# -- bad input: names, types, ranges, selections -------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("task=rtee", f"task=rtee: no such option. Did you mean rte? Options: {TASKS}"),
        ("task=SST-2", f"task=SST-2: no such option. Options: {TASKS}"),
        ("task=3", f"task=3: no such option. Options: {TASKS}"),
        ("stage=softt", "stage=softt: no such option. Did you mean soft? Options: auto, finetune, hard, soft"),
        ("stage=null", "stage=null: no such option. Options: auto, finetune, hard, soft"),
        (
            "prune=top-k",
            "prune=top-k: no such option. Did you mean topk or top? "
            "Options: "
            f"{', '.join(sorted([*all_methods(), *aliases()]))}",
        ),
        (
            "prune_mode=threshold",
            "prune_mode=threshold: no such option. Did you mean absolute_threshold? "
            f"Options: {', '.join(sorted([*all_methods(), 'auto']))}",
        ),
        (
            "model=bert",
            "model=bert: no such option. Did you mean bert-base? "
            f"Options: {', '.join(sorted(path.stem for path in (Path(cli.config_dir()) / 'model').glob('*.yaml')))}",
        ),
        ("logger=[tensorboard,comet]", "logger=comet: no such option. Options: mlflow, tensorboard, wandb"),
        ("-m task=demo,foo", f"task=foo: no such option. Options: {TASKS}"),
    ],
)
def test_unknown_options(root, command, message):
    check_refused(root, command, message)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("lrr=1e-5", "unknown key lrr; did you mean lr?"),
        ("temperature=1e-3", "unknown key temperature; did you mean prune.temperature or distill.temperature?"),
        (
            "prune.temprature=1e-3",
            unknown_key("prune.temprature"),
        ),
        (
            "prune.lambda=0.1",
            unknown_key("prune.lambda"),
        ),
        ("trainer.max_epochs=3", "unknown key trainer.max_epochs; did you mean epochs or trainer.max_steps?"),
        ("+prune.foo=1", "unknown key prune.foo; see python -m ltp.train --cfg job for every key"),
        ("+task.lr=1", "unknown key task.lr; did you mean lr?"),
        ("a.b=1", "unknown key a.b; see python -m ltp.train --cfg job for every key"),
    ],
)
def test_unknown_keys(root, word, message):
    check_refused(root, word, message)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("lr=abc", "lr=abc: Value 'abc' of type 'str' could not be converted to Float"),
        ("seed=1.5", "seed=1.5: Value '1.5' of type 'float' could not be converted to Integer"),
        ("load_best=maybe", "load_best=maybe: Value 'maybe' is not a valid bool (type str)"),
        ("batch_size=", "batch_size=: Value '' of type 'str' could not be converted to Integer"),
        ("recipe.stages.soft.lr=x", "recipe.stages.soft.lr=x: Value 'x' of type 'str' could not be converted to Float"),
        (
            "lr=1e-5,2e-5",
            "lr=1e-5,2e-5: several values make a sweep, which needs -m; a list is written lr=[1e-5,2e-5]",
        ),
        ("lr", "lr: cannot be read as key=value; quote a value that holds special characters"),
        (
            "trainer.devices=[0",
            "trainer.devices=[0: cannot be read as key=value; quote a value that holds special characters",
        ),
        ("lr=2", "lr=2 is out of range: it must be above 0 and below 1"),
        (
            "prune=threshold prune.temperature=0",
            "prune.temperature=0 is out of range: it must be in (0, 1]; published: 1e-5 to 2e-3",
        ),
        (
            "prune=topk prune.token_keep_rate=1.5",
            "prune.token_keep_rate=1.5 is out of range: it must be in [-10, 1]; published: −0.4 to 0.4",
        ),
        (
            "prune=threshold prune.final_token_threshold=1",
            "prune.final_token_threshold=1 is out of range: it must be in [0, 1); published: 0.004–0.016",
        ),
        ("prune.mode=tokp", "prune.mode=tokp: there is no such method; did you mean top or topk?"),
    ],
)
def test_wrong_types_and_ranges(root, word, message):
    if word.startswith("-m"):
        finished = ltp_train(word)
        assert (finished.code, finished.err.splitlines()[-1]) == (2, f"error: {message}")
        assert runs_in(root) == []
    else:
        check_refused(root, word, message)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "stage=soft prune=topk",
            "stage=soft with prune=topk: top-k has nothing to learn. Use stage=hard, or prune=threshold.",
        ),
        (
            "stage=soft prune_mode=topk",
            "stage=soft with prune=topk: top-k has nothing to learn. Use stage=hard, or prune=threshold.",
        ),
        (
            "prune=topk prune_mode=absolute_threshold",
            "prune=topk and prune_mode=absolute_threshold contradict each other: give one of them",
        ),
        (
            "prune_mode=topk prune=manual",
            "prune=manual and prune_mode=topk contradict each other: give one of them",
        ),
        (
            "prune=threshold prune_mode=none",
            "prune=threshold and prune_mode=none contradict each other: give one of them",
        ),
        (
            "stage=finetune prune=topk",
            "stage=finetune trains the dense model, prune_mode=topk prunes it: leave one of them out "
            "(stage=soft learns thresholds, stage=hard trains with fixed ones).",
        ),
    ],
)
def test_contradictory_selections(root, command, message):
    check_refused(root, command, message)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "trainer.precision=16-mixed",
            "trainer.precision=16-mixed needs a CUDA GPU; use bf16-mixed or 32-true here",
        ),
        ("trainer=gpu", "trainer.accelerator=gpu: no GPU found; use trainer=cpu"),
        ("trainer.devices=0", "trainer: `Trainer(devices=0)` value is not a valid input using cpu accelerator."),
        ("trainer.devices=all", "trainer: `devices` selected with `CPUAccelerator` should be an int > 0."),
        (
            "batch_size=7 trainer.devices=2 trainer.strategy=ddp",
            "batch_size=7 is the batch of an optimiser step and must be a multiple of trainer.devices (2) x "
            "trainer.accumulate_grad_batches (1) = 2; 6 or 8 would work.",
        ),
        (
            "batch_size=4 trainer.accumulate_grad_batches=4 task.max_train_samples=3",
            "The training split has 3 rows, too few for trainer.devices (1) x trainer.accumulate_grad_batches (4) = 4.",
        ),
        ("task.max_length=1000", "task.max_length=1000: the model reads at most 512 tokens"),
        (
            "model.architecture.hidden_size=33",
            "model.architecture: The hidden size (33) is not a multiple of the number of attention heads (4)",
        ),
        (
            "model.architecture.model_type=gpt2",
            "model.architecture.model_type=gpt2, and model.name_or_path is null: an encoder from scratch is one of "
            f"{', '.join(known_families())}; a pretrained one is named by model.name_or_path",
        ),
    ],
)
def test_what_fits_neither_the_machine_nor_the_model(root, monkeypatch, word, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    check_refused(
        root, ["task.max_validation_samples=8", *word.split(), *(["trainer=cpu"] * ("gpu" not in word))], message
    )


def test_an_output_root_that_cannot_be_written(root):
    (root / "file").touch()
    check_refused(
        root,
        "output_root=file/outputs task.max_train_samples=64",
        "output_root=file/outputs: cannot write "
        "file/outputs/tiny/demo/finetune/max_train_samples_64/lr_0.001/seed_0: Not a directory",
    )


# -- bad input: checkpoints ----------------------------------------------------------------------------------


def test_checkpoints_that_cannot_be_restored(root):
    finished_run(root / "unfinished")
    (root / "unfinished" / RESULTS_FILE).rename(root / "unfinished" / "config.yaml")
    dense_checkpoint(root / "masked-lm", architectures=["BertForMaskedLM"])
    dense_checkpoint(root / "three", id2label={"0": "a", "1": "b", "2": "c"})
    dense_checkpoint(root / "large", num_hidden_layers=24)
    for words, message in (
        (
            "restore=./nowhere",
            "restore=./nowhere: no such directory. Give a run directory, a Hugging Face directory or a hub id.",
        ),
        (
            "restore=unfinished",
            "restore=unfinished is an unfinished run: it has no results.json. "
            "Start its command again to finish it, or name another checkpoint.",
        ),
        (
            "restore=masked-lm",
            "restore=masked-lm is not a classifier: config.json names BertForMaskedLM. "
            "Fine-tune it first: stage=finetune model.name_or_path=masked-lm",
        ),
        (
            "restore=three",
            "restore=three has 3 labels, task=mrpc has 2; restore a checkpoint that was fine-tuned on mrpc.",
        ),
        (
            "restore=large model=bert-base",
            "restore=large has num_hidden_layers 24, model=bert-base has 12: another architecture. "
            "Leave model= out to take the checkpoint's, or restore one that fits.",
        ),
        (
            "restore=some/classifier",
            f"Cannot load restore=some/classifier: {HUB} "
            "Give a run directory or a Hugging Face directory that exists, or connect to the hub.",
        ),
    ):
        check_refused(root, f"task=mrpc prune=topk {words}", message)


# -- bad input: data -----------------------------------------------------------------------------------------


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize(
    ("train_rows", "validation_rows", "message"),
    [
        (None, [PAIR], "data_dir=data: no train.{parquet,jsonl,csv,tsv} in data/mrpc."),
        ([PAIR], None, "data_dir=data: no validation.{parquet,jsonl,csv,tsv} or dev.tsv in data/mrpc."),
        ([PAIR], [], "data/mrpc/validation.jsonl: no rows; give a split with at least one example."),
        (
            [PAIR, PAIR | {"label": "maybe"}],
            [PAIR],
            "data/mrpc/train.jsonl: row 2 has label 'maybe' in column 'label'; "
            "labels of task mrpc: not_equivalent (0), equivalent (1).",
        ),
        (
            [PAIR],
            [PAIR, PAIR, PAIR | {"label": 2}],
            "data/mrpc/validation.jsonl: row 3 has label '2' in column 'label'; "
            "labels of task mrpc: not_equivalent (0), equivalent (1).",
        ),
        (
            [{"sentence1": "a", "text": "b", "label": 0}],
            [PAIR],
            "data/mrpc/train.jsonl: row 1: no column 'sentence2'; found: sentence1, text, label. "
            "Use the hub's column names.",
        ),
    ],
)
def test_data_that_cannot_be_used(root, train_rows, validation_rows, message):
    (root / "data" / "mrpc").mkdir(parents=True)
    for split, rows in (("train", train_rows), ("validation", validation_rows)):
        if rows is not None:
            write_rows(root / "data" / "mrpc" / f"{split}.jsonl", rows)
    # found before anything is trained, be it the run itself or the parent that it needs
    check_refused(root, f"task=mrpc data_dir=data {'prune=topk' if train_rows else 'stage=finetune'}", message)


def test_data_directories_that_cannot_be_used(root):
    (root / "empty").mkdir()
    check_refused(root, "task=mrpc data_dir=nowhere", "data_dir=nowhere: no such directory.")
    check_refused(root, "task=mrpc data_dir=empty", "data_dir=empty: holds no folder mrpc or MRPC.")
    check_refused(root, "task=demo data_dir=empty", "data_dir=empty: task=demo is generated; leave data_dir out.")


def test_a_custom_task_without_its_files(root):
    formats = "(.parquet, .jsonl, .csv, .tsv)"
    for words, key in (("", "train_file"), ("task.train_file=a.csv", "validation_file")):
        check_refused(
            root,
            f"task=custom {words}",
            f"task.{key} is missing: task=custom needs task.train_file and task.validation_file {formats}.",
        )
    (root / "a.csv").write_text("text,label\ngood,1\nbad,0\n")
    check_refused(root, "task=custom task.train_file=a.csv task.validation_file=b.csv", "b.csv: no such file.")


# -- bad input: the hub --------------------------------------------------------------------------------------


def test_a_dataset_without_the_hub(root):
    message = (
        f"Cannot load the dataset nyu-mll/glue (rte): {HUB} "
        "Connect, or give a folder with data_dir=DIR, or try task=demo, which needs neither."
    )
    for method in ("stage=finetune", "prune=threshold stage=soft"):
        check_refused(root, f"task=rte {method}", message)


def test_a_model_without_the_hub(root):
    for split in ("train", "validation"):
        write_rows(root / "data" / "mrpc" / f"{split}.jsonl", [PAIR, PAIR | {"label": 0}])
    check_refused(
        root,
        "task=mrpc data_dir=data model.name_or_path=nobody/nothing prune=topk",
        f"Cannot load model.name_or_path=nobody/nothing: {HUB} Give a local directory with model.name_or_path=DIR or "
        "restore=DIR, take task=demo model=tiny, or connect to the hub.",
    )


# -- what a command shows ------------------------------------------------------------------------------------


def test_cfg_job_shows_the_whole_run_and_starts_nothing(root):
    for command in (
        "--cfg job task=rte prune=threshold stage=hard lr=1e-5",
        "task=rte prune=threshold stage=hard lr=1e-5 --cfg job",
        "task=rte -c job prune=threshold stage=hard lr=1e-5",
    ):
        shown = ltp_train(command)
        assert (shown.code, shown.err) == (0, "")
        soft = "outputs/bert-base/rte/absolute_threshold/rate_0.01/temperature_0.001/lambda_0.15/lr_2e-05/seed_0"
        assert shown.out.splitlines()[:2] == [
            f"# run directory: {soft}/hard/lr_1e-05",
            f"# parent: {soft} (missing: trained first)",
        ]
        content = yaml.safe_load(shown.out)
        assert (content["lr"], content["batch_size"], content["epochs"]) == (1e-5, 64, 10)
        assert (content["stage"], content["prune"]["mode"]) == ("hard", "absolute_threshold")
        assert [key for key, value in content.items() if value is None] == [
            "budgets",
            "data_dir",
            "plan",
            "flops_budget",
        ]
        # of the pruning keys those stay null that have no meaning here
        empty = {key for key, value in content["prune"].items() if value is None}
        assert empty == {"lr_threshold", "target_flops", "sliding_layers"}
    assert list(root.iterdir()) == []


def test_cfg_job_of_a_sweep_shows_one_run(root):
    shown = ltp_train("--cfg job sweep=topk task=mrpc")
    assert shown.code == 0
    assert yaml.safe_load(shown.out)["prune"]["token_keep_rate"] == 0.2
    assert list(root.iterdir()) == []


def test_cfg_job_tells_mistakes_too(root):
    check_refused(root, "--cfg job lr=2", "lr=2 is out of range: it must be above 0 and below 1")
    check_refused(root, "lrr=2 --cfg job", "unknown key lrr; did you mean lr?")


def test_help_names_groups_options_and_keys():
    shown = ltp_train("--help")
    assert shown.code == 0
    assert f"\ntask: {TASKS}\n" in shown.out
    for group in ("model", "prune", "prune_mode", "stage", "trainer", "logger", "sweep", "experiment", "recipe"):
        assert re.search(rf"^{group}: \w", shown.out, flags=re.MULTILINE)
    for key in (
        *("lr", "batch_size", "epochs", "weight_decay", "save_step", "load_best", "seed", "restore", "data_dir"),
        *("output_root", "overwrite", "prune.final_token_threshold", "prune.temperature", "prune.lambda_threshold"),
        *("prune.token_keep_rate", "model.name_or_path", "task.max_length", "trainer.devices"),
    ):
        assert re.search(rf"(^|[ ,]){re.escape(key)}[ ,]", shown.out, flags=re.MULTILINE), key


def test_the_commands_in_the_help_compose():
    commands = re.findall(r"^ +python -m ltp\.train(.*?)(?: {3,}.*)?$", ltp_train("--help").out, flags=re.MULTILINE)
    assert len(commands) == 9
    for command in commands:
        words = [word for word in command.split() if word not in ("-m", "--cfg", "job")]
        plan_of([word.split(",")[0] for word in words])


# -- how a command ends --------------------------------------------------------------------------------------


def test_exit_codes():
    def ending(error):
        def job(cfg):
            raise error

        return ltp_train("", job)

    assert ltp_train("", lambda cfg: 0.9).code == 0
    failed = ending(RunError("the loss is [nan]"))
    assert (failed.code, failed.err) == (1, "error: the loss is [nan]\n")
    assert ending(UserError("no")).code == 2
    assert ending(KeyboardInterrupt()).code == 130
    assert ending(TerminatedError()).code == 143
    for fault in (ValueError("a bug"), AssertionError("a bug")):  # of ours: with its traceback
        with pytest.raises(type(fault), match="a bug"):
            ending(fault)


def test_flags_come_first_whatever_their_place():
    seen = []

    def job(cfg):
        seen.append(sys.argv[1:])

    for command in ("lr=1e-3 seed=1 --multirun", "--multirun lr=1e-3 seed=1", "lr=1e-3 --multirun seed=1"):
        assert ltp_train(command, job).code == 0
    assert seen == [["--multirun", "lr=1e-3", "seed=1"]] * 3


def test_where_the_configuration_is(root, monkeypatch):
    assert os.path.isfile(os.path.join(cli.config_dir(), "train.yaml"))
    (root / "train.yaml").touch()
    monkeypatch.setenv("LTP_CONF", str(root))
    assert cli.config_dir() == str(root.resolve())
    monkeypatch.setenv("LTP_CONF", str(root / "nowhere"))
    assert cli.config_dir() != str(root / "nowhere")


@pytest.mark.slow
def test_a_mistake_in_a_process_of_its_own(root):
    finished = subprocess.run(
        [sys.executable, "-m", "ltp.train", "prune=topk", "stage=soft", *SMALL, "--multirun"],
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    message = "stage=soft with prune=topk: top-k has nothing to learn. Use stage=hard, or prune=threshold."
    assert f"\n    {message}\n" in finished.stderr
    assert runs_in(root) == []


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("learning_rate=1e-5", "unknown key learning_rate; Hugging Face's learning_rate is lr here"),
        ("num_train_epochs=3", "unknown key num_train_epochs; Hugging Face's num_train_epochs is epochs here"),
        ("+task.max_length=64", "+task.max_length: the key exists already; leave out the plus: task.max_length=…"),
    ],
)
def test_names_that_users_bring_are_answered_with_ours(root, word, message):
    check_refused(root, word, message)


def test_the_keys_that_stand_for_hugging_faces_exist():
    known = {*known_keys(), *(f"trainer.precision={precision}" for precision in PRECISIONS)}
    assert set(_HUGGING_FACE_KEYS.values()) <= known
    assert not set(_HUGGING_FACE_KEYS) & known


def test_code_of_a_checkpoint_is_never_run(root):
    """Nor asked about: a prompt could be answered by ``yes |``."""
    config = {"model_type": "theirs", "auto_map": {"AutoConfig": "code.TheirConfig", "AutoTokenizer": ["code.T", None]}}
    write_json(root / "theirs" / "config.json", config)
    write_json(root / "theirs" / "tokenizer_config.json", {"tokenizer_class": "T", "auto_map": config["auto_map"]})
    (root / "theirs" / "code.py").write_text("raise SystemExit('it ran')")
    finished = ltp_train("model.name_or_path=theirs task=demo prune=none")
    assert finished.code == 2
    assert "theirs: it brings Python code of its own, which ltp never runs." in finished.err


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir", "hydra.output_subdir"])
def test_keys_of_hydra_without_effect_are_refused(root, key):
    message = f"{key} has no effect: ltp names the run directories. Move all of them with output_root=…"
    check_refused(root, f"{key}=elsewhere", message)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["ltp", "ltp.train --help", "ltp.train --cfg job"])
def test_a_reader_that_leaves_is_no_traceback(root, module):
    """As in ``python -m ltp | head -1``: here nobody reads at all."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", *module.split()]
    finished = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=root)
    os.close(write)
    assert (finished.returncode, finished.stderr) == (141, "")


@pytest.mark.slow
def test_start_up_needs_no_pytorch(root):
    """Else help and mistakes take seconds: each command's help, a plan and a mistake, in one process."""
    code = """
import contextlib, io, sys
from ltp import bench, calibrate, evaluate, export, predict, report, serve, train

for command in (bench, calibrate, evaluate, export, predict, report, serve, train):
    for words in (["--help"], ["--cfg", "job", "restore=nowhere/at/all", "text=a", "to=x"], ["xyz=1"]):
        sys.argv = [command.__name__, *words]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            with contextlib.suppress(SystemExit):
                command.COMMAND()
sys.argv = ["ltp.train", "--cfg", "job", "prune=threshold", "stage=hard", "task=rte"]
assert train.COMMAND() == 0
heavy = {"torch", "transformers", "pytorch_lightning", "datasets", "pyarrow", "numpy", "matplotlib", "torchmetrics"}
sys.exit(f"imported: {heavy & sys.modules.keys()}" if heavy & sys.modules.keys() else 0)
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert finished.returncode == 0, finished.stderr


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        shutil.Error([("a", "b", str(FULL))]),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 3099264 vs 3099156"),
        RuntimeError("wraps another"),
    ],
)
def test_a_full_disk_is_one_message(error):
    if "wraps" in str(error):
        error.__cause__ = FULL

    def job(_):
        raise error

    finished = ltp_train("lr=1e-3", job=job)
    assert finished.code == 1
    assert finished.err.endswith(
        "error: the disk is full. What was written before is whole: free some space, and give the same command again.\n"
    )

"""What a run is: stored, compared when it is started again, and when it would be a parent."""

from pathlib import Path

import pytest
import yaml
from helpers import dense_checkpoint, finished_run, plan_of

from ltp.errors import UserError
from ltp.runs.directory import open_directory, remove_run_files, write_results
from ltp.runs.identity import check_identity, stored_config
from ltp.runs.started import STARTED_BY

DENSE = Path("outputs/bert-base/mrpc/finetune/lr_3e-05/seed_0")
CUSTOM = "task=custom task.train_file=a.csv task.validation_file=b.csv"
END = "Start it afresh with overwrite=true, or keep both with another output_root=…"


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


def finish(run, **changes):
    """Let a run that was started have results."""
    finished_run(run.directory, **changes)
    return run


def test_the_stored_configuration_is_plain_yaml_with_every_null_filled():
    run = start("task=mrpc prune=threshold stage=soft seed=3")
    stored = yaml.safe_load((run.directory / "config.yaml").read_text(encoding="utf-8"))
    started = {key: stored.pop(key) for key in STARTED_BY}
    assert started == {"command": None, "working_directory": str(Path.cwd())}  # no command started this one
    assert stored == stored_config(run)
    assert (stored["lr"], stored["batch_size"], stored["epochs"], stored["seed"]) == (2e-5, 64, 10, 3)
    assert stored["prune"]["temperature"] == 1e-3
    assert stored["method"] == "learned"
    assert stored["parent"]["name"] == "outputs/bert-base/mrpc/finetune/lr_3e-05/seed_3"
    assert stored["parent"]["run_id"] is None
    assert (stored["parent"]["config"]["stage"], stored["parent"]["config"]["seed"]) == ("finetune", 3)


@pytest.mark.parametrize(
    ("word", "difference"),
    [
        ("'task.text_columns=[a,b]'", "  task.text_columns: ['text'] there, ['a', 'b'] now"),
        ("task.label_column=y", "  task.label_column: label there, y now"),
        ("task.train_file=c.csv", "  task.train_file: a.csv there, c.csv now"),  # neither is there to be compared
    ],
)
def test_another_task_of_the_same_name_is_refused_and_the_difference_shown(word, difference):
    directory = start(CUSTOM).directory
    assert refusal(f"{CUSTOM} {word}") == (
        f"{directory} holds an unfinished run with another configuration:\n{difference}\n{END}"
    )
    write_results(directory, {})
    assert refusal(f"{CUSTOM} {word}") == (
        f"{directory} holds a finished run with another configuration:\n{difference}\n{END}"
    )


def test_a_recipe_that_was_changed_meanwhile_is_a_difference(root):
    """The path names what deviates from the recipe, and the recipe may be of another version."""
    run = start("task=mrpc")
    stored = yaml.safe_load((run.directory / "config.yaml").read_text())
    (run.directory / "config.yaml").write_text(yaml.safe_dump(stored | {"epochs": 3.0}))
    assert "\n  epochs: 3.0 there, 5.0 now\n" in refusal("task=mrpc")


def test_data_are_compared_by_content_not_by_path(root):
    for name, text in (("a.csv", "text,label\nx,0\n"), ("b.csv", "text,label\ny,1\n")):
        (root / name).write_text(text)
    run = start(CUSTOM)
    (root / "copy").mkdir()
    for name in ("a.csv", "b.csv"):
        (root / "copy" / name).write_bytes((root / name).read_bytes())
    moved = "task=custom task.train_file=copy/a.csv task.validation_file=copy/b.csv"
    check_identity(plan_of(moved))
    (root / "a.csv").write_text("text,label\nx,1\n")  # as long as before
    before, after = run.data["train"], plan_of(CUSTOM).data["train"]
    assert before != after
    assert f"\n  data.train: {before} there, {after} now\n" in refusal(CUSTOM)
    check_identity(plan_of(moved))


def test_glue_files_are_compared_by_content(root):
    folder = root / "glue" / "MRPC"
    folder.mkdir(parents=True)
    (folder / "train.tsv").write_text("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\ta\tb\n")
    (folder / "dev.tsv").write_text("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\ta\tb\n")
    start("task=mrpc data_dir=glue")
    (folder / "README").write_text("nothing that is read")
    check_identity(plan_of("task=mrpc data_dir=glue"))
    (folder / "dev.tsv").write_text("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\ta\tb\n")
    assert "  data.validation: " in refusal("task=mrpc data_dir=glue")


def test_checkpoints_of_one_name_have_runs_of_their_own(root):
    for folder, weights in (("a", b"one"), ("b", b"two"), ("c", b"one")):
        dense_checkpoint(root / folder / "checkpoint-500")
        (root / folder / "checkpoint-500" / "model.safetensors").write_bytes(weights)
        (root / folder / "checkpoint-500" / "optimizer.pt").write_bytes(folder.encode())
    for key in ("restore", "stage=finetune model.name_or_path", "model=bert-base restore"):
        runs = [plan_of(f"task=mrpc prune_mode=auto {key}={folder}/checkpoint-500") for folder in "abc"]
        assert runs[0].directory != runs[1].directory, key
        assert runs[0].directory == runs[2].directory, key  # a copy is the same checkpoint
        assert runs[0].checkpoint == runs[2].checkpoint != runs[1].checkpoint


def test_a_checkpoint_that_changed_in_its_place_is_a_difference(root):
    checkpoint = dense_checkpoint(root / "hf")
    command = "task=mrpc prune=topk model.name=mine model.name_or_path=hf restore=hf"
    (checkpoint / "model.safetensors").write_bytes(b"one")
    run = start(command.replace(" restore=hf", "").replace("prune=topk", "stage=finetune"))
    (checkpoint / "model.safetensors").write_bytes(b"two")
    assert f"\n  checkpoint: {run.checkpoint} there, " in refusal(
        "task=mrpc stage=finetune model.name=mine model.name_or_path=hf"
    )


# -- parents -------------------------------------------------------------------------------------------------


def test_a_parent_is_taken_only_if_it_is_the_run_that_would_be_trained_now(root):
    for name in ("a.csv", "b.csv"):
        (root / name).write_text("text,label\nx,0\n")
    dense = finish(start(f"{CUSTOM} stage=finetune"), id2label={"0": "0", "1": "1"})
    assert plan_of(f"{CUSTOM} prune=topk").missing is None
    (root / "a.csv").write_text("text,label\nx,1\n")
    with pytest.raises(UserError) as caught:
        plan_of(f"{CUSTOM} prune=topk")
    text = str(caught.value)
    assert text.startswith(f"{dense.directory} holds a finished run with another configuration:\n  data.train: ")
    assert text.endswith(
        f"It is the parent of this run. Take it as it is with restore={dense.directory}, or make room for another: "
        "delete it, or give another output_root=…"
    )
    assert plan_of(f"{CUSTOM} prune=topk restore={dense.directory}").missing is None


def test_a_short_run_does_not_become_the_parent_of_real_ones():
    finish(start("task=mrpc stage=finetune epochs=0.1 task.max_train_samples=64"))
    assert plan_of("task=mrpc prune=topk").missing is not None
    assert plan_of("task=mrpc prune=topk task.max_train_samples=64").missing is not None
    assert plan_of("task=mrpc prune=topk task.max_train_samples=64 finetune.epochs=0.1").missing is None
    for word in ("task.max_length=64", "trainer.precision=bf16-mixed", "finetune.batch_size=8"):
        assert plan_of(f"task=mrpc prune=topk task.max_train_samples=64 finetune.epochs=0.1 {word}").missing is not None


def test_the_identity_of_a_run_includes_its_parent_s(root):
    for name in ("a.csv", "b.csv"):
        (root / name).write_text("text,label\nx,0\n")
    start(f"{CUSTOM} prune=topk")  # its parent is not there
    stored = yaml.safe_load((plan_of(f"{CUSTOM} prune=topk").directory / "config.yaml").read_text())
    assert stored["parent"]["config"]["epochs"] == 5
    assert stored["parent"]["config"]["data"] == stored["data"]
    stored["parent"]["config"]["epochs"] = 1.0
    (plan_of(f"{CUSTOM} prune=topk").directory / "config.yaml").write_text(yaml.safe_dump(stored))
    assert "\n  parent.config.epochs: 1.0 there, 5.0 now\n" in refusal(f"{CUSTOM} prune=topk")


@pytest.mark.parametrize(
    "words",
    [
        "trainer=cpu trainer.devices=2 trainer.strategy=ddp trainer.num_nodes=2",
        "trainer.num_workers=3 trainer.enable_progress_bar=false trainer.log_every_n_steps=1",
        "trainer.detect_anomaly=true trainer.eval_batch_size=8",
        "logger=[tensorboard]",
        "recipe.stages.soft.lr=1e-3",
        "lr=3e-5 batch_size=32",
    ],
)
def test_what_decides_nothing_may_differ(words):
    start("task=mrpc")
    check_identity(plan_of(f"task=mrpc {words}"))


def test_a_tree_under_another_path_is_the_same_tree(root):
    finished_run(DENSE)
    start("task=mrpc prune=topk")
    check_identity(plan_of(f"task=mrpc prune=topk output_root={root}/outputs"))
    check_identity(plan_of(f"task=mrpc prune=topk restore={DENSE}"))
    (root / "outputs").rename(root / "moved")
    check_identity(plan_of("task=mrpc prune=topk output_root=moved"))


def test_another_parent_gives_another_run(root):
    finished_run(DENSE, run_id="first")
    finished_run(root / "other", run_id="second")
    auto, other = plan_of("task=mrpc prune=topk"), plan_of("task=mrpc prune=topk restore=other")
    assert str(other.directory) == str(auto.directory).replace("/lr_", "/restore_second/lr_")


def test_the_child_of_a_parent_that_was_trained_anew_is_refused():
    finished_run(DENSE, run_id="first")
    run = start("task=mrpc prune=topk")
    check_identity(plan_of("task=mrpc prune=topk"))
    finished_run(DENSE, run_id="second")
    assert refusal("task=mrpc prune=topk") == (
        f"{run.directory} holds an unfinished run with another configuration:\n"
        "  parent.run_id: first there, second now\n"
        f"{END}"
    )


def test_a_child_stands_on_its_own_when_its_parent_is_deleted():
    finished_run(DENSE)
    start("task=mrpc prune=topk")
    remove_run_files(DENSE)
    check_identity(plan_of("task=mrpc prune=topk"))


@pytest.mark.parametrize("content", ["", "{", "- a\n", "task: [\n"])
def test_a_damaged_configuration_is_no_licence_to_resume_anything(content):
    run = start("task=mrpc")
    (run.directory / "config.yaml").write_text(content)
    message = f"{run.directory / 'config.yaml'} is damaged: it cannot be compared with this configuration."
    assert refusal("task=mrpc").startswith(message)
    check_identity(plan_of("task=mrpc overwrite=true"))


def test_a_run_of_an_earlier_version_is_the_same_run():
    """Its configuration lacks what was stored later: what both have is compared."""
    finished_run(DENSE)
    run = start("task=mrpc prune=topk")
    path = run.directory / "config.yaml"
    stored = yaml.safe_load(path.read_text())
    for key in ("data", "checkpoint", "teacher_run_id", "finetune", "soft", "hard", "callbacks", "plan"):
        del stored[key]
    del stored["parent"]["config"], stored["trainer"]["limit_train_batches"]
    path.write_text(yaml.safe_dump(stored))
    check_identity(plan_of("task=mrpc prune=topk"))
    path.write_text(yaml.safe_dump(stored | {"weight_decay": 0.3}))
    assert "\n  weight_decay: 0.3 there, 0.0 now\n" in refusal("task=mrpc prune=topk")

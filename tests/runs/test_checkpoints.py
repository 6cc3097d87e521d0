"""What ``restore=`` may name, and what it says of it, without loading weights."""

import json

import pytest
from helpers import MRPC_LABELS, dense_checkpoint, finished_run, no_hub, write_json

from ltp.errors import UserError
from ltp.runs.checkpoints import inspect_checkpoint


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def message(source):
    with pytest.raises(UserError) as caught:
        inspect_checkpoint(source)
    return str(caught.value)


# -- what is found -------------------------------------------------------------------------------------------


def test_a_run_directory(root):
    finished_run(root / "run", model="tiny", run_id="abc", prune_mode="absolute_threshold", lambda_threshold=0.1)
    checkpoint = inspect_checkpoint("run")
    assert (checkpoint.path, str(checkpoint.run_dir), checkpoint.name) == ("run/model", "run", "tiny")
    assert checkpoint.results["run_id"] == "abc"
    assert checkpoint.is_ltp
    assert checkpoint.holds_learned("absolute_threshold")
    assert not checkpoint.holds_learned("ltmp")
    assert checkpoint.num_labels == 2
    assert checkpoint.dense_config["hidden_size"] == 768
    assert checkpoint.pruning == {
        "prune_mode": "absolute_threshold",
        "scoring_mode": "mean",
        "score_length": 128,
        "final_token_threshold": 0.01,
        "masking_mode": "hard",
        "threshold_temperature": 1e-3,
        "lambda_threshold": 0.1,
    }


def test_a_run_s_model_directory_is_the_run(root):
    finished_run(root / "run")
    assert str(inspect_checkpoint("run/model").run_dir) == "run"
    assert inspect_checkpoint("run/model").path == "run/model"


def test_a_copied_model_directory_is_no_run(root):
    finished_run(root / "run", prune_mode="topk")
    (root / "run" / "model").rename(root / "deployed")
    checkpoint = inspect_checkpoint("deployed")
    assert (checkpoint.run_dir, checkpoint.results, checkpoint.name) == (None, None, "deployed")
    assert checkpoint.pruning["prune_mode"] == "topk"
    assert not checkpoint.holds_learned("absolute_threshold")


def test_a_dense_hugging_face_directory(root):
    dense_checkpoint(root / "hf")
    checkpoint = inspect_checkpoint("hf/")
    assert (checkpoint.path, checkpoint.name, checkpoint.num_labels) == ("hf", "hf", 2)
    assert not checkpoint.is_ltp
    assert not checkpoint.holds_learned("absolute_threshold")
    assert checkpoint.pruning == {}


def test_pruning_keys_of_a_dense_checkpoint(root):
    dense_checkpoint(root / "hf", prune_mode="topk", token_keep_rate=-0.2, scoring_mode=None, temperature=7)
    assert inspect_checkpoint("hf").pruning == {"prune_mode": "topk", "token_keep_rate": -0.2}


def test_thresholds_are_held_only_by_checkpoints_of_ltp(root):
    dense_checkpoint(root / "hf", prune_mode="absolute_threshold")
    assert not inspect_checkpoint("hf").holds_learned("absolute_threshold")


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, 3),
        ({"id2label": None, "num_labels": 5}, 5),
        ({"id2label": None}, 2),  # Hugging Face leaves its default out
    ],
)
def test_the_number_of_labels(root, changes, labels):
    dense_checkpoint(root / "hf", **changes)
    assert inspect_checkpoint("hf").num_labels == labels


def test_the_home_directory(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root))
    dense_checkpoint(root / "hf")
    assert inspect_checkpoint("~/hf").path == str(root / "hf")


def test_a_hub_id_in_the_cache(root, monkeypatch):
    file = write_json(root / "cache" / "config.json", {"model_type": "bert", "id2label": MRPC_LABELS})
    asked = []
    monkeypatch.setattr("transformers.utils.cached_file", lambda *words: asked.append(words) or str(file))
    file.write_text(json.dumps({"model_type": "bert", "architectures": ["BertForSequenceClassification"]}))
    with no_hub():
        checkpoint = inspect_checkpoint("textattack/bert-base-uncased-MRPC")
    assert asked == [("textattack/bert-base-uncased-MRPC", "config.json")]
    assert checkpoint.path == "textattack/bert-base-uncased-MRPC"
    assert (checkpoint.name, checkpoint.run_dir) == ("bert-base-uncased-MRPC", None)


# -- what is not ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["/nowhere/at/all", "./nowhere", "../x", "~/nowhere", "outputs/bert/mrpc/finetune"])
def test_a_directory_that_does_not_exist(source):
    assert message(source) == (
        f"restore={source}: no such directory. Give a run directory, a Hugging Face directory or a hub id."
    )


def test_a_file_instead_of_a_directory(root):
    (root / "model.safetensors").touch()
    assert message("model.safetensors") == (
        "restore=model.safetensors: no such directory. Give a run directory, a Hugging Face directory or a hub id."
    )


def test_a_directory_of_something_else(root):
    (root / "folder").mkdir()
    assert message("folder") == (
        "restore=folder is neither a run directory (results.json and model/) nor a Hugging Face directory "
        "(config.json); check the path."
    )


def test_an_unfinished_run(root):
    finished_run(root / "run")
    (root / "run" / "config.yaml").touch()
    (root / "run" / "results.json").unlink()
    for source in ("run", "run/model"):
        assert message(source) == (
            f"restore={source} is an unfinished run: it has no results.json. "
            "Start its command again to finish it, or name another checkpoint."
        )


def test_a_run_without_its_model(root):
    write_json(root / "run" / "results.json", {"model": "tiny", "seed": 0, "run_id": "abc"})
    assert message("run") == (
        "restore=run is neither a run directory (results.json and model/) nor a Hugging Face directory "
        "(config.json); check the path."
    )


@pytest.mark.parametrize(
    ("architectures", "named"), [(["BertForMaskedLM"], "BertForMaskedLM"), ([], "none"), (None, "none")]
)
def test_an_encoder_that_is_no_classifier(root, architectures, named):
    dense_checkpoint(root / "hf", architectures=architectures)
    assert message("hf") == (
        f"restore=hf is not a classifier: config.json names {named}. "
        "Fine-tune it first: stage=finetune model.name_or_path=hf"
    )


def test_an_architecture_without_an_adapter(root):
    dense_checkpoint(root / "hf", model_type="gpt2", architectures=["GPT2ForSequenceClassification"])
    assert message("hf").startswith("restore=hf: model_type is 'gpt2'; ltp prunes albert, bert, ")


@pytest.mark.parametrize("text", ["{", "[]", '"bert"', "", "\x00"])
def test_a_config_that_cannot_be_read(root, text):
    (root / "hf").mkdir()
    (root / "hf" / "config.json").write_text(text)
    said = message("hf")
    assert said.startswith("restore=hf: hf/config.json is damaged: not ")
    assert said.endswith("Download or save the checkpoint again.")


def test_the_hub_out_of_reach():
    with no_hub():
        assert message("textattack/bert-base-uncased-MRPC") == (
            "Cannot load restore=textattack/bert-base-uncased-MRPC: the Hugging Face hub is out of reach (or "
            "HF_HUB_OFFLINE is set) and the cache does not hold it. Give a run directory or a Hugging Face directory "
            "that exists, or connect to the hub."
        )


def test_a_path_that_begins_with_a_folder_here_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    with pytest.raises(UserError, match=r"^restore=outputs/missing: no such directory\."):
        inspect_checkpoint("outputs/missing")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"task": "mrpc"}', "null"])
def test_damaged_results_are_said_to_be_damaged(tmp_path, content):
    run = finished_run(tmp_path / "run")
    (run / "results.json").write_text(content)
    with pytest.raises(UserError, match=r"results\.json is damaged: .* Delete it, and start the run's command again"):
        inspect_checkpoint(str(run))

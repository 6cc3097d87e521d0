"""What the tests keep is what Hydra and the demo corpus give without it."""

import memos
import pytest
from helpers import composed
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from ltp.data import demo, sources
from ltp.data.tasks import TASKS


@pytest.fixture
def without(monkeypatch):
    """``without()``: from now on, everything is computed anew."""

    def undo():
        for owner, name in memos.KEPT:
            monkeypatch.setattr(owner, name, getattr(owner, name).__wrapped__)
        monkeypatch.delattr(ConfigStore, "__deepcopy__")

    return undo


def everything(*overrides):
    """A composition, Hydra's own node with it: text, types and flags of every node."""
    cfg = composed(*overrides)
    nodes = []

    def walk(node, path):
        metadata = node._metadata
        nodes.append((path, type(node), metadata.ref_type, metadata.object_type, metadata.optional, metadata.flags))
        if OmegaConf.is_config(node) and not (node._is_none() or node._is_missing() or node._is_interpolation()):
            for key in node if OmegaConf.is_dict(node) else range(len(node)):
                walk(node._get_node(key), f"{path}.{key}")

    for part in (cfg, HydraConfig.instance().cfg):
        walk(part, "")
    return OmegaConf.to_yaml(cfg), OmegaConf.to_yaml(HydraConfig.instance().cfg), nodes


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("task=rte", "prune=manual", "lr=1e-3"),
        ("sweep=ltp", "task=mrpc", "launcher=parallel"),
        ("model=roberta-base", "+model.architecture.layer_norm_eps=1e-6", "logger=[tensorboard,wandb]"),
        ("experiment=sst2-10k", "stage=soft", "distill=logits"),
    ],
)
def test_a_composition_is_the_same_without_them(without, overrides):
    first, again = everything(*overrides), everything(*overrides)
    without()
    assert first == again == everything(*overrides)


def test_a_composition_is_nobody_else_s():
    composed("task=rte").model.architecture["hidden_size"] = 7
    assert composed("task=rte").model.architecture["hidden_size"] == 768


def test_a_written_folder_is_read_each_time(tmp_path):
    source = memos.FileSource("test", f"file://{tmp_path}")
    for value in (1, 2):
        (tmp_path / "some.yaml").write_text(f"key: {value}")
        assert source.load_config("some").config.key == value


def test_rows_are_the_same_and_nobody_else_s():
    rows = sources._generated(TASKS["demo"], "validation").to_pylist()
    assert rows == demo.demo_rows("validation")
    rows[0]["label"] = None
    assert sources._generated(TASKS["demo"], "validation").to_pylist() == demo.demo_rows("validation")

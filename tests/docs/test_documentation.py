"""Every command of the README is one that works: it composes, and its make targets exist."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from helpers import SMALL
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch.utils.data import DataLoader, default_collate

from ltp import LTPForSequenceClassification, bench
from ltp.command import cli
from ltp.command.overrides import quote_text
from ltp.pruning.threshold import threshold_schedule
from ltp.runs.settings import check_ranges, typed

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL))
LINES = [line.strip() for line in BLOCKS.splitlines() if line.strip() and not line.startswith("#")]
TRAIN = [line for line in LINES if line.startswith("python -m ltp.train")]


def test_every_line_of_a_block_is_a_known_kind_of_command():
    assert TRAIN
    names = ("train", "calibrate", "report", "evaluate", "predict", "export", "bench")
    commands = [f"python -m ltp.{name}" for name in names]
    assert [line for line in LINES if not line.startswith((*commands, "make "))] == []


@pytest.mark.parametrize("line", TRAIN)
def test_training_commands_compose(line):
    words = shlex.split(line, comments=True)[3:]
    overrides = [word for word in words if not word.startswith("-") and word != "job"]
    is_sweep = "-m" in words
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=cli.config_dir(), version_base="1.3"):
        # one job of a sweep: the first of the comma-separated values
        single = [re.sub(r"=([^\[\],]+),.*", r"=\1", override) for override in overrides] if is_sweep else overrides
        check_ranges(typed(compose("train", overrides=single)))


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("python -m ltp.bench")])
def test_benchmark_commands_compose(line):
    words = shlex.split(line, comments=True)[3:]
    overrides = [word for word in words if not word.startswith("restore=")]  # the run is not here
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=cli.config_dir(), version_base="1.3"):
        bench.resolve(bench.COMMAND.settings(compose("bench", overrides=overrides)))


@pytest.mark.parametrize("line", [line for line in LINES if re.search(r"ltp\.(evaluate|predict|calibrate) ", line)])
def test_commands_on_runs_compose(line):
    name, *words = shlex.split(line, comments=True)[2:]
    importlib.import_module(name)  # registers its schema
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=cli.config_dir(), version_base="1.3"):
        compose(name.removeprefix("ltp."), overrides=[quote_text(word) for word in words])


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("make ")])
def test_make_targets_exist(line):
    target = line.split()[1]
    assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_every_official_flag_and_key_is_mapped():
    flags = "--arch --task --restore --lr --temperature --lambda --weight_decay --bs --masking_mode --epoch --save_step"
    flags += " --no_load"
    keys = '"prune_mode" "final_token_threshold" "scoring_mode" "token_keep_rate"'
    rows = [line for line in README.splitlines() if line.startswith("| `")]
    for name in [*flags.split(), *keys.split()]:
        assert any(row.split("|")[1].strip().startswith((f"`{name}", f"`{name}")) for row in rows), name


def test_paths_that_the_readme_names_exist():
    for path in re.findall(r"`((?:ltp|scripts|conf)/[\w./]*)`", README):
        assert (ROOT / path).exists(), path


@pytest.mark.slow
def test_the_method_of_the_readme_is_one_file_and_a_name(tmp_path):
    """In a copy of the package: trained by the command line, executed packed, and counted."""
    for folder in ("ltp", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    source = next(block for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "(Pruner)" in block)
    (tmp_path / "ltp/pruning/random.py").write_text(source)
    init = tmp_path / "ltp/pruning/__init__.py"
    lines = init.read_text().replace("(NoPruning, ThresholdPruner", "(NoPruning, RandomPruner, ThresholdPruner")
    init.write_text(lines.replace("from ltp", "from ltp.pruning.random import RandomPruner\nfrom ltp", 1))
    finished = subprocess.run(
        [sys.executable, "-m", "ltp.train", *SMALL, "prune=random", "prune.token_keep_rate=0"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    run = tmp_path / "outputs/tiny/demo/random/rate_0/lr_0.0002/seed_0"
    results = json.loads((run / "results.json").read_text())
    assert (results["method"], results["prune_mode"]) == ("random", "random")
    assert results["tokens_per_layer"][-1] == 1  # rate 0 keeps the classification token
    assert results["relative_flops"] < 0.95


@pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's and the Trainer's about a training this small
def test_the_library_s_examples_train(make_dense, tmp_path, monkeypatch):
    """The three loops of the README, one after the other, on one small model."""
    monkeypatch.chdir(tmp_path)
    make_dense("bert", num_labels=2, vocab_size=5000).save_pretrained(tmp_path / "dense")
    monkeypatch.setattr(
        transformers.AutoModelForSequenceClassification,
        "from_pretrained",
        lambda name, load=transformers.BertForSequenceClassification.from_pretrained: load(tmp_path / "dense"),
    )
    ids = torch.randint(5, 100, (8, 12))
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row[0] % 2} for row in ids]
    names = {"dataset": rows, "collate": default_collate, "loader": DataLoader(rows, batch_size=4)}
    after_library = README[README.index("## As a library") :]
    blocks = re.findall(r"```python\n(.*?)```", after_library, flags=re.DOTALL)
    before = None
    for block in (block for block in blocks if "(Pruner)" not in block):
        exec(block, names)
        weights = names["model"].dense.classifier.weight.detach().clone()
        assert before is None or not torch.equal(weights, before), f"nothing was learned by {block}"
        before = weights
    assert names["output"].token_lengths.shape == (1, 7)
    assert not torch.equal(names["model"].thresholds, threshold_schedule(0.01, 6))  # the first loop learned them
    loaded = LTPForSequenceClassification.from_pretrained("pruned")
    assert torch.equal(loaded.thresholds, names["model"].thresholds)

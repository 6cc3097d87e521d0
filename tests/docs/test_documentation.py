"""README and docs: every command works, every name exists, every link leads somewhere, every example runs."""

import ast
import dataclasses
import importlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from predicting import SENTENCES, TOPK, ltp_predict, make_run
from torch.utils.data import DataLoader, default_collate

from ltp import LTPForSequenceClassification, __version__, bench, train
from ltp.command import cli
from ltp.command.overrides import quote_text
from ltp.comparison.request import LeaderboardSettings
from ltp.data import tasks
from ltp.data.demo import demo_rows, demo_tokenizer
from ltp.leaderboard import arguments_of_trainings
from ltp.pruning.methods.absolute_threshold import threshold_schedule
from ltp.runs.settings import check_ranges, register_options

ROOT = Path(__file__).parents[2]
TEXTS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
README = TEXTS["README.md"]


def blocks(language, text):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


ALL_LINES = [
    (page, line)
    for page, text in TEXTS.items()
    for block in blocks("bash", text)
    for line in map(str.strip, block.splitlines())
    if line and not line.startswith("#")
]


def lines(start):
    """The commands that start so, each once, as a test's parameters."""
    found = dict.fromkeys(line for _, line in ALL_LINES if re.match(start, line))
    assert found, start
    return pytest.mark.parametrize("line", found)


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """Where commands are composed: beside the folder of one's own that the page describes."""
    monkeypatch.chdir(tmp_path)
    own = re.search(r"`(my-conf/[\w/]+\.yaml)`:\n\n```yaml\n(.*?)```", TEXTS["docs/your-data.md"], flags=re.DOTALL)
    path, content = own.groups()
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(content)
    GlobalHydra.instance().clear()
    strangers = types.ModuleType("emotions")  # the task of the page on extending
    exec(next(block for block in blocks("python", TEXTS["docs/extending.md"]) if "EMOTIONS" in block), vars(strangers))
    tasks.adopt(strangers)
    register_options()
    with initialize_config_dir(config_dir=cli.config_dir(), version_base="1.3"):
        yield
    del tasks.TASKS["emotions"], ConfigStore.instance().repo["task"]["emotions.yaml"]


def test_the_readme_is_a_front_page():
    assert len(README.splitlines()) <= 150


def test_every_line_of_a_block_is_a_known_kind_of_command():
    names = ("train", "calibrate", "report", "list", "evaluate", "predict", "serve", "export", "bench", "leaderboard")
    commands = [f"python -m ltp.{name}" for name in names]
    scripts = [f"python scripts/{path.name}" for path in (ROOT / "scripts").glob("*.py")]
    known = (*commands, *scripts, "make ", "pip ")
    assert [(page, line) for page, line in ALL_LINES if not line.startswith(known)] == []


@lines(r"python -m ltp\.train")
def test_training_commands_compose(line, conf):
    words = shlex.split(line, comments=True)[3:]
    if "sweep=optuna" in words:
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    if "--config-dir" in words:
        place = words.index("--config-dir")
        words[place : place + 2] = [f"hydra.searchpath=[file://{Path(words[place + 1]).resolve()}]"]
    overrides = [word for word in words if not word.startswith(("-", "plugins=")) and word != "job"]
    if "-m" in words:  # one job of a sweep: the first of the comma-separated values
        overrides = [re.sub(r"=([^\[\],]+),.*", r"=\1", override) for override in overrides]
    check_ranges(train.COMMAND.settings(compose("train", overrides=overrides)))


@lines(r"python -m ltp\.leaderboard")
def test_leaderboard_commands_are_accepted(line, conf):
    words = arguments_of_trainings(shlex.split(line, comments=True)[3:])
    own = [word for word in words if not word.startswith("train=")]
    train_words = shlex.split(line, comments=True)[3:]
    assert {word.partition("=")[0] for word in own} <= {item.name for item in dataclasses.fields(LeaderboardSettings)}
    overrides = [word for word in train_words if word not in own]
    check_ranges(train.COMMAND.settings(compose("train", overrides=overrides)))


def test_an_experiment_of_one_s_own_is_found(conf):
    cfg = compose("train", overrides=[f"hydra.searchpath=[file://{Path('my-conf').resolve()}]", "experiment=short"])
    settings = train.COMMAND.settings(cfg)
    found = (settings.task.name, settings.prune.mode, settings.prune.token_keep_rate, settings.epochs)
    assert found == ("demo", "topk", 0.1, 2)


@lines(r"python -m ltp\.bench")
def test_benchmark_commands_compose(line, conf):
    words = shlex.split(line, comments=True)[3:]
    overrides = [word for word in words if not word.startswith("restore=")]  # the run is not here
    bench.resolve(bench.COMMAND.settings(compose("bench", overrides=overrides)))


@lines(r"python -m ltp\.(evaluate|predict|serve|calibrate|export|report|list)")
def test_commands_on_runs_compose(line, conf):
    name, *words = shlex.split(line, comments=True)[2:]
    command = importlib.import_module(name).COMMAND  # importing it registers its schema
    words = command.prepare(words) if name in ("ltp.report", "ltp.list") else [quote_text(word) for word in words]
    command.settings(compose(command.name, overrides=words))


@lines("make ")
def test_make_targets_exist(line):
    target = line.split()[1]
    assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)


@lines("pip ")
def test_pip_finds_what_it_is_given(line):
    words = shlex.split(line, comments=True)
    if "-c" in words:
        assert (ROOT / words[words.index("-c") + 1]).is_file()
    named = re.sub(r"\[.*\]$", "", words[-1])
    assert named in (".", "learned-token-pruning", f"dist/learned_token_pruning-{__version__}-py3-none-any.whl")


def test_every_extra_that_is_named_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for page, text in TEXTS.items():
        assert "ltp[" not in text, page
        for extra in re.findall(r"(?:learned-token-pruning|'\.)\[(\w+)\]", text):
            assert extra in extras, (page, extra)
    for row in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", TEXTS["docs/getting-started.md"], flags=re.MULTILINE):
        assert set(re.findall(r"\w+", row)) <= extras.keys()


def test_every_official_flag_and_key_is_mapped():
    flags = "--arch --task --restore --lr --temperature --lambda --weight_decay --bs --masking_mode --epoch --save_step"
    flags += " --no_load"
    keys = '"prune_mode" "final_token_threshold" "scoring_mode" "token_keep_rate"'
    rows = [line for line in TEXTS["docs/official-code.md"].splitlines() if line.startswith("| `")]
    for name in [*flags.split(), *keys.split()]:
        assert any(row.split("|")[1].strip().startswith((f"`{name}", f"`{name}")) for row in rows), name


@pytest.mark.parametrize("page", TEXTS)
def test_paths_that_a_page_names_exist(page):
    for path in re.findall(r"`((?:ltp|scripts|conf|docs|tests)/[\w./-]*)`", TEXTS[page]):
        assert (ROOT / path).exists(), path


def slug(heading):
    """The anchor of a heading, as the site and GitHub make it."""
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


@pytest.mark.parametrize("page", TEXTS)
def test_links_of_a_page_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", TEXTS[page], flags=re.DOTALL)
    for link in re.findall(r"\]\(\s*([^)\s]+)\s*\)", text):
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.is_file(), link
        headings = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), flags=re.MULTILINE) if anchor else []
        assert not anchor or anchor in map(slug, headings), link


def test_the_site_shows_every_page_once():
    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        return [page for inner in (entry.values() if isinstance(entry, dict) else entry) for page in pages(inner)]

    nav = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(f"docs/{page}" for page in nav) == sorted(TEXTS.keys() - {"README.md"})


@pytest.mark.parametrize("page", [page for page, text in TEXTS.items() if blocks("python", text)])
def test_python_blocks_are_python(page):
    for block in blocks("python", TEXTS[page]):
        ast.parse(block)


@pytest.mark.slow
def test_the_site_builds_and_fetches_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("zensical")
    for folder in ("docs", "ltp", "scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    built = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--clean"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert built.returncode == 0, built.stdout
    assert "warning" not in built.stdout.lower()
    for page in (tmp_path / "site").glob("*.html"):
        html = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"?(\S+)|<link[^>]*\shref=\"?(\S+)", html)
        assert not [pair for pair in fetched if re.match(r"(https?:)?//", "".join(pair))], page.name
        assert not re.search(r":(func|class|meth|mod|data|attr|exc):", html), page.name


def test_the_example_for_clusters_labels_as_predict_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", **TOPK)
    (tmp_path / "run" / "model").rename("DIR")  # an export is the same, with the code for workers without ltp
    pd.DataFrame({"id": range(len(SENTENCES)), "sentence": SENTENCES}).to_csv("rows.csv", index=False)
    assert ltp_predict("restore=DIR input=rows.csv columns=[sentence] output=out.csv max_length=128").code == 0
    names = {}
    exec(next(block for block in blocks("python", TEXTS["docs/evaluate-and-predict.md"])), names)
    found = pd.concat(names["label"](pd.read_csv("rows.csv", chunksize=5)))
    wanted = pd.read_csv("out.csv").drop(columns="row")
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's and the Trainer's about a training this small
def test_the_library_s_examples_train(make_dense, tmp_path, monkeypatch):
    """The three loops of the page, one after the other, on one small model, and what was saved."""
    monkeypatch.chdir(tmp_path)
    make_dense("bert", num_labels=2, vocab_size=5000).save_pretrained(tmp_path / "dense")
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    monkeypatch.setattr(
        transformers.AutoModelForSequenceClassification,
        "from_pretrained",
        lambda name: load(tmp_path / "dense" if "/" in name else name),  # the hub's is not here
    )
    ids = torch.randint(5, 100, (8, 12))
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row[0] % 2} for row in ids]
    names = {"dataset": rows, "collate": default_collate, "loader": DataLoader(rows, batch_size=4)}
    load_encoder = transformers.AutoModel.from_pretrained
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", lambda name: load_encoder(tmp_path / "dense"))
    pruning, encoding, calibrating, *training, loading = blocks("python", TEXTS["docs/library.md"])
    names |= {"tokenizer": demo_tokenizer(), "texts": [row["sentence"] for row in demo_rows("train", rows=40)]}
    exec(pruning, names)
    assert names["output"].token_lengths.shape == (1, 7)
    exec(encoding, names)
    assert names["states"].shape[:2] == (1, 4)
    exec(calibrating, names)
    assert names["model"].config.calibration["agreement"] >= 0.98
    before = names["model"].dense.classifier.weight.detach().clone()
    for block in training:
        exec(block, names)
        weights = names["model"].dense.classifier.weight.detach().clone()
        assert not torch.equal(weights, before), f"nothing was learned by {block}"
        before = weights
    assert not torch.equal(
        names["model"].thresholds, torch.tensor(threshold_schedule(0.01, 6))
    )  # the first loop learned them
    trained = names["model"]
    exec(loading, names)
    for loaded in (names["model"], LTPForSequenceClassification.from_pretrained("pruned")):
        assert isinstance(loaded, LTPForSequenceClassification)
        assert torch.equal(loaded.thresholds, trained.thresholds)

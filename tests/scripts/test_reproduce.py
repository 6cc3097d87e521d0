"""``make reproduce``: which commands make the paper's protocol, and how overrides change them."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ltp_train

SCRIPT = Path(__file__).parents[2] / "scripts" / "reproduce.py"


@pytest.fixture(scope="module")
def reproduce():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("reproduce", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def commands(reproduce, tmp_path, monkeypatch):
    """``commands(codes)``: the commands that are run, which end with these exit codes."""
    seen = []

    def start(codes=()):
        codes = iter(codes)
        monkeypatch.setattr(reproduce, "runs_folder", lambda dense: Path("outputs/bert-base/mrpc"))
        monkeypatch.setattr(reproduce, "run", lambda *command: seen.append(command[1:]) or next(codes, 0))
        return seen

    return start


def test_the_protocol(reproduce):
    assert [words for words, _ in reproduce.protocol_steps("mrpc", [])] == [
        ["stage=finetune", "task=mrpc"],
        ["sweep=ltp", "task=mrpc"],
        ["sweep=manual", "task=mrpc"],
        ["sweep=topk", "task=mrpc"],
    ]


def test_overrides_go_where_they_have_a_meaning(reproduce):
    overrides = ["seed=0,1", "lr=1e-5", "prune.temperature=1e-3", "prune.token_keep_rate=0.2", "prune.score_length=64"]
    assert [words[2:] for words, _ in reproduce.protocol_steps("mrpc", overrides)] == [
        ["seed=0,1"],
        ["seed=0,1", "prune.score_length=64", "lr=1e-5", "prune.temperature=1e-3"],
        ["seed=0,1", "prune.score_length=64", "lr=1e-5"],
        ["seed=0,1", "prune.score_length=64", "lr=1e-5", "prune.token_keep_rate=0.2"],
    ]


def test_an_override_replaces_the_grid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = []
    finished = ltp_train(
        "-m sweep=ltp task=demo prune.temperature=1e-3 prune.lambda_threshold=0.1,0.2 lr=1e-3",
        lambda cfg: ran.append((cfg.prune.temperature, cfg.prune.lambda_threshold, cfg.lr)),
    )
    assert finished.code == 0
    assert ran == [(1e-3, 0.1, 1e-3), (1e-3, 0.2, 1e-3)]


def test_a_dry_run_shows_the_commands_and_runs_nothing(reproduce, commands, capsys):
    seen = commands()
    assert reproduce.main("mrpc", ["seed=0,1", "lr=1e-5"], True) == 0
    assert seen == []
    assert capsys.readouterr().out.splitlines() == [
        "1.   2 jobs  python -m ltp.train -m stage=finetune task=mrpc seed=0,1",
        "2.  50 jobs  python -m ltp.train -m sweep=ltp task=mrpc seed=0,1 lr=1e-5",
        "3.  14 jobs  python -m ltp.train -m sweep=manual task=mrpc seed=0,1 lr=1e-5",
        "4.  10 jobs  python -m ltp.train -m sweep=topk task=mrpc seed=0,1 lr=1e-5",
        "5. the table  python -m ltp.report outputs/bert-base/mrpc",
    ]


@pytest.mark.parametrize(
    ("codes", "number", "code"),
    [
        ([], 5, 0),
        ([0, 1], 5, 1),  # jobs of one grid failed: the others and the table still come
        ([0, 0, 2, 1], 5, 2),
        ([1], 1, 1),  # nothing can start from a dense run that failed
        ([2], 1, 2),
        ([0, 130], 2, 130),  # Ctrl-C
        ([0, 0, -9], 3, -9),
    ],
)
def test_where_it_stops(reproduce, commands, codes, number, code):
    seen = commands(codes)
    assert reproduce.main("mrpc", [], False) == code
    assert len(seen) == number
    if number == 5:
        assert seen[-1][:2] == ("-m", "ltp.report")
        assert Path(seen[-1][2]).name == "mrpc"


def test_overrides_that_ltp_train_rejects(reproduce, commands, monkeypatch):
    seen = commands()
    monkeypatch.setattr(reproduce, "runs_folder", lambda dense: None)  # it has said why
    assert reproduce.main("mrpcc", [], False) == 2
    assert seen == []


@pytest.mark.slow
def test_the_script(tmp_path):
    command = [sys.executable, SCRIPT, "demo", "output_root=elsewhere", "seed=0,1", "--dry-run"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.endswith("ltp.report elsewhere/tiny/demo\n")
    assert list(tmp_path.iterdir()) == []

"""Which code made a result."""

import subprocess

import pytest

from ltp.runs import provenance
from ltp.runs.provenance import git_state, versions


@pytest.fixture
def repository(tmp_path):
    """A repository of one commit, with ``code.py``."""

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "code.py").write_text("1\n")
    git("init")
    git("add", "code.py")
    git("commit", "--message=first")
    return tmp_path


def test_a_commit(repository):
    state = git_state(repository / "code.py")
    assert len(state["commit"]) == 40
    assert state["dirty"] is False


def test_a_changed_file_makes_it_dirty_and_a_new_one_does_not(repository):
    (repository / "notes.txt").write_text("new\n")
    assert git_state(repository / "code.py")["dirty"] is False
    (repository / "code.py").write_text("2\n")
    assert git_state(repository / "code.py")["dirty"] is True


def test_code_that_git_does_not_know(repository, tmp_path_factory):
    (repository / "venv").mkdir()
    (repository / "venv" / "code.py").write_text("1\n")  # an environment within somebody's repository
    assert git_state(repository / "venv" / "code.py") is None
    assert git_state(repository / "nowhere" / "code.py") is None
    outside = tmp_path_factory.mktemp("outside") / "code.py"
    outside.touch()
    assert git_state(outside) is None


def test_a_machine_without_git(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_state(repository / "code.py") is None


def test_versions():
    found = versions()
    assert {"python", "ltp", "torch", "pytorch-lightning", "torchmetrics", "hydra-core", "omegaconf"} <= found.keys()
    assert all(found.values())
    assert provenance.GIT_STATE is None or set(provenance.GIT_STATE) == {"commit", "dirty"}

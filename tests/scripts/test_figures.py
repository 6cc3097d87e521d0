"""``make figures``: the pictures of README and docs."""

import importlib.util
from pathlib import Path

import pytest
from helpers import SMALL, ltp_train

SCRIPT = Path(__file__).parents[2] / "scripts" / "figures.py"


@pytest.mark.slow
def test_pictures_of_a_learned_run(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("figures", SCRIPT)
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    assert figures.main(tmp_path, tmp_path) == 2
    assert "make demo" in capsys.readouterr().err
    assert ltp_train([*SMALL, "prune=threshold", f"output_root={tmp_path}"]).code == 0
    assert figures.main(tmp_path, tmp_path) == 0
    picture = (tmp_path / "demo.svg").read_text()
    assert "layer&#160;4" in picture and "@font-face" not in picture
    assert (tmp_path / "demo_tiny_tradeoff.png").read_bytes().startswith(b"\x89PNG")

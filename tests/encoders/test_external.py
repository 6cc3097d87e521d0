"""An encoder family from outside the package: the one of the docs."""

import json
import re
from pathlib import Path

import pytest
from helpers import SMALL, install_stranger, run_in

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
SOURCE = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "ErnieFamily" in block)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "ernie.py").write_text(SOURCE)
    return tmp_path


def entry_point(folder, value="ernie:ErnieFamily"):
    install_stranger(folder, f"[ltp.encoders]\nernie = {value}\n")


@pytest.mark.slow
def test_a_stranger_s_family_is_trained_pruned_deployed_and_exported(folder):
    words = [*SMALL, "model.architecture.model_type=ernie", "prune=topk", "prune.target_flops=0.7"]
    done = run_in(folder, "-m", "ltp.train", "plugins=[ernie]", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = [path for path in folder.rglob("results.json") if "topk" in str(path)]
    run_dir = results.parent
    assert json.loads((run_dir / "model/config.json").read_text())["dense_config"]["model_type"] == "ernie"

    entry_point(folder)  # from now on without plugins
    evaluated = run_in(folder, "-m", "ltp.evaluate", f"restore={run_dir}", "execution=deployed", "output=-")
    assert evaluated.returncode == 0, evaluated.stderr
    (report,) = json.loads(evaluated.stdout)["results"]
    assert report["metric"]["value"] == pytest.approx(json.loads(results.read_text())["metric"]["value"])
    exported = run_in(folder, "-m", "ltp.export", f"restore={run_dir}", "to=hub", "format=huggingface")
    assert exported.returncode == 0, exported.stderr
    code = (
        "import sys; sys.modules['ltp'] = sys.modules['ernie'] = None\n"  # neither is installed there
        "import torch; from transformers import AutoModelForSequenceClassification as Auto\n"
        "model = Auto.from_pretrained('hub', trust_remote_code=True)\n"
        "print(type(model.dense).__name__, model(torch.tensor([[2, 5, 6, 7, 3]])).token_lengths.shape)"
    )
    loaded = run_in(folder, "-c", code, HF_MODULES_CACHE=str(folder / "modules"))
    assert loaded.stdout.strip() == "ErnieForSequenceClassification torch.Size([1, 5])", loaded.stderr


def test_an_entry_point_that_cannot_be_imported(folder):
    entry_point(folder, "not_there:Family")
    done = run_in(
        folder,
        "-c",
        "from ltp.encoders import encoder_family, known_families as k; print('ernie' in k()); encoder_family('ernie')",
    )
    assert done.stdout == "True\n"
    assert (
        "the entry point ernie of ltp.encoders, not_there:Family, cannot be imported: ModuleNotFoundError"
        in done.stderr
    )


def test_an_unknown_family_in_a_command(folder):
    (folder / "gpt").mkdir()
    (folder / "gpt/config.json").write_text(json.dumps({"model_type": "gpt2"}))
    done = run_in(folder, "-m", "ltp.train", "task=demo", "model.name_or_path=gpt")
    assert done.returncode == 2
    assert "model.name_or_path=gpt: model_type is 'gpt2'; ltp prunes albert, bert," in done.stderr
    assert "Traceback" not in done.stderr

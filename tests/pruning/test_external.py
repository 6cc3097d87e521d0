"""A method from outside the package: the one of the docs, used by every command, and modules that cannot be used."""

import json
import re
from pathlib import Path

import pytest
from helpers import SMALL, install_stranger, run_in

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
SOURCE = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "(Method)" in block)


def command(folder, name, *words):
    done = run_in(folder, "-m", f"ltp.{name}", "plugins=[largest_norm]", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "largest_norm.py").write_text(SOURCE)
    return tmp_path


def test_a_stranger_s_method_is_short():
    assert len([line for line in SOURCE.splitlines() if line.strip()]) < 40


@pytest.mark.slow
def test_every_command_uses_a_stranger_s_method(folder):
    command(folder, "train", *SMALL, "-m", "sweep=largest_norm", "lr=2e-4")
    command(folder, "train", *SMALL, "prune=largest_norm", "prune.target_flops=0.5")
    runs = {path.parent.relative_to(folder): json.loads(path.read_text()) for path in folder.rglob("results.json")}
    by_share = {
        str(path).split("largest_norm/")[-1].split("/")[0]: path for path in runs if "largest_norm" in str(path)
    }
    assert by_share.keys() == {"share_0.7", "share_0.9", "target_0.5"}
    costs = {share: runs[path]["relative_flops"] for share, path in by_share.items()}
    assert costs["share_0.7"] < costs["share_0.9"]
    assert costs["target_0.5"] == pytest.approx(0.5, abs=0.03)
    chosen = runs[by_share["target_0.5"]]
    assert (chosen["method"], chosen["prune_mode"]) == ("largest_norm", "largest_norm")
    assert 0 < chosen["hyperparameters"]["norm_share"] < 1
    config = json.loads((folder / by_share["share_0.7"] / "model/config.json").read_text())
    assert (config["prune_mode"], config["norm_share"]) == ("largest_norm", 0.7)

    restore = f"restore={by_share['share_0.7']}"
    deployed = command(folder, "evaluate", restore, "execution=deployed", "output=-")
    report = json.loads(deployed.stdout)["results"][0]
    assert report["relative_flops"] == pytest.approx(costs["share_0.7"])
    assert report["metric"]["value"] == pytest.approx(runs[by_share["share_0.7"]]["metric"]["value"])
    command(folder, "calibrate", restore, "target_flops=0.6")
    table = command(folder, "report", "outputs/tiny/demo").stdout
    assert "largest norm" in table

    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    command(folder, "export", restore, "to=graph", "format=onnx")
    assert (folder / "graph/model.onnx").is_file()
    command(folder, "export", restore, "to=hub", "format=huggingface")
    assert "largest norm" in (folder / "hub/README.md").read_text()
    code = (
        "import sys; sys.modules['ltp'] = sys.modules['largest_norm'] = None\n"  # neither is installed there
        "import torch; from transformers import AutoModelForSequenceClassification as Auto\n"
        "model = Auto.from_pretrained('hub', trust_remote_code=True)\n"
        "print(model(torch.tensor([[2, 5, 6, 7, 8, 9, 3]])).token_lengths.tolist())"
    )
    loaded = run_in(folder, "-c", code, HF_MODULES_CACHE=str(folder / "modules"))
    assert loaded.stdout.strip() == "[[7, 5, 4, 3, 3]]", loaded.stderr  # ⌈0.7 · n⌉ in each layer


def test_an_entry_point_brings_a_method(folder):
    install_stranger(folder, "[ltp.methods]\nnorms = largest_norm\n")
    done = run_in(folder, "-c", "from ltp.pruning import all_methods; print('largest_norm' in all_methods())")
    assert done.stdout == "True\n", done.stderr
    (folder / "largest_norm.py").write_text("import not_there")
    done = run_in(folder, "-m", "ltp.train")
    assert done.returncode == 2
    assert done.stderr == (
        "error: the entry point norms of ltp.methods: largest_norm cannot be imported: ModuleNotFoundError: No module "
        "named 'not_there'\n"
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "cannot be imported: ModuleNotFoundError: No module named 'largest_norm'"),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("x = 1", "registers no method: a method is a subclass of ltp.pruning.Method with a name"),
        (SOURCE.replace("@dataclass\n", ""), "is no dataclass: decorate it with @dataclass"),
        (SOURCE.replace("def survivors", "def survives"), "has no survivors(tokens, weights), the hard rule"),
        (SOURCE.replace("    name =", "    learns = True\n    name ="), "has no gate(tokens, weights), the soft rule"),
        (SOURCE.replace("norm_share: float", "token_keep_rate: str"), "declares token_keep_rate as <class 'str'>"),
        (
            re.sub(r"setting\(\n.*?\n    \)", "0.8", SOURCE, flags=re.DOTALL),
            "declares norm_share without setting(default, help)",
        ),
    ],
)
def test_a_module_that_cannot_be_used(folder, source, message):
    path = folder / "largest_norm.py"
    path.unlink() if source is None else path.write_text(source)
    done = run_in(folder, "-m", "ltp.train", "plugins=[largest_norm]", "prune=largest_norm", "--cfg", "job")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: plugins=[largest_norm]: ")
    assert "Traceback" not in done.stderr


def test_a_checkpoint_of_a_method_that_is_not_installed(folder):
    config = {"model_type": "ltp", "prune_mode": "largest_norm", "dense_config": {"model_type": "bert"}}
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text(json.dumps(config))
    done = run_in(folder, "-m", "ltp.evaluate", "restore=model")
    assert done.returncode == 2
    assert "prunes by largest_norm, which is not installed" in done.stderr
    assert "plugins=[MODULE]" in done.stderr

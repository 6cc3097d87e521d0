"""Damaged files of a run: one message of each command, no traceback, and no success where something is missing."""

import importlib
import pickle
import shutil

import pytest
import torch
from helpers import SMALL, in_process, ltp_train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning"),
]

RUN = ("prune=manual", "prune.final_token_threshold=0.02")
DEEP = b"[" * 100_000
LTP = b'{"model_type": "ltp", "dense_config": {"model_type": "bert"}, '


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(path):
    path.unlink()


def foreign(path):
    torch.save({"state_dict": {"a": torch.zeros(2)}}, path)


def pickled(path):
    path.unlink()
    path.with_name("pytorch_model.bin").write_bytes(pickle.dumps({"x": print}))


#: What is done to a file, and the commands that must then fail; the others may take the damage or not notice it.
MODEL_COMMANDS = ("evaluate", "predict", "calibrate", "bench", "export", "child")
DAMAGES = [
    *(("results.json", content, MODEL_COMMANDS) for content in (b"", b"[]", DEEP)),
    ("results.json", b'{"model": "tiny"}', ("export", "again")),
    ("results.json", b'{"model": 3}', MODEL_COMMANDS),
    *(("config.yaml", content, ("again",)) for content in (b"", b"task: {", b"a: &a [*a]")),
    ("config.yaml", b"task: 3", ("evaluate", "calibrate")),
    ("config.yaml", b"!!python/object/apply:os.system ['x']", ("again",)),
    *(("model/config.json", content, MODEL_COMMANDS) for content in (b"[]", b'{"model_type": "l', DEEP)),
    ("model/config.json", b'{"model_type": "ltp"}', MODEL_COMMANDS),
    ("model/config.json", b'{"model_type": "ltp", "dense_config": 3}', MODEL_COMMANDS),
    ("model/config.json", LTP + b'"prune_mode": "topk", "token_keep_rate": "x"}', MODEL_COMMANDS),
    ("model/config.json", LTP + b'"id2label": {"x": "y"}}', MODEL_COMMANDS),
    ("model/config.json", LTP + b'"budgets": "x"}', MODEL_COMMANDS),
    *(("model/model.safetensors", damage, MODEL_COMMANDS) for damage in (b"", truncate, remove, pickled)),
    *(("model/tokenizer.json", damage, MODEL_COMMANDS) for damage in (b"[]", b'{"version":', remove, b"{}")),
    *(("model/tokenizer_config.json", content, MODEL_COMMANDS) for content in (b"[]", b"{")),
    *(("checkpoints/last.ckpt", damage, ()) for damage in (b"", truncate, foreign)),
    ("metrics.jsonl", b"\xff\xff", ()),
    ("predictions.parquet", b"PAR1x", ()),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    assert (finished := ltp_train([*SMALL, *RUN, f"output_root={root}"])).code == 0, finished.err
    return root


def commands(root, run, here):
    """A command of each kind on the run."""
    bench = "bench.sequences=2 bench.rounds=1 bench.batch_size=[2] bench.engines=[hf_sdpa,packed_pruned]"
    small = [*SMALL, f"output_root={root}"]
    return {
        "evaluate": f"restore={run} device=cpu",
        "predict": f"restore={run} text=good device=cpu",
        "calibrate": f"restore={run} target_flops=0.6 examples=16 to={here}/new device=cpu",
        "bench": f"restore={run} bench.output={here}/bench.json {bench}",
        "export": f"restore={run} to={here}/exported",
        "report": f"{root} to={here}/report figures=false",
        "list": str(root),
        "again": [*small, *RUN],
        "child": [*SMALL, "prune=topk", f"restore={run}", f"output_root={here}/children"],
    }


@pytest.mark.parametrize(("file", "damage", "failing"), DAMAGES)
def test_a_damage_is_one_message(trained, tmp_path, file, damage, failing):
    root = tmp_path / "runs"
    shutil.copytree(trained, root)
    run = next(path.parent for path in root.rglob("results.json") if "absolute_threshold" in str(path))
    resumed = file.startswith("checkpoints/")
    if resumed:
        (run / "results.json").unlink()
    if callable(damage):
        damage(run / file)
    else:
        (run / file).write_bytes(damage)
    for name, command in commands(root, run, tmp_path).items():
        if resumed and name in MODEL_COMMANDS:
            continue
        module = {"again": "train", "child": "train"}.get(name, name)
        finished = in_process(f"ltp.{module}", command, importlib.import_module(f"ltp.{module}").COMMAND, COLUMNS="200")
        assert finished.code in ((1, 2) if name in failing else (0, 1, 2)), (name, finished.err)
        if finished.code:
            assert "error: " in finished.err, name
            assert "Traceback" not in finished.err, name

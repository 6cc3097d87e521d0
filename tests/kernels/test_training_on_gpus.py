"""Training on GPUs, as a user starts it."""

import json
import math
import subprocess
import sys

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
SHORT = [
    "task=demo",
    "prune=threshold",
    "stage=soft",
    "finetune.epochs=1",
    "soft.epochs=1",
    "task.max_train_samples=1500",
]


def train(folder, *overrides):
    command = [sys.executable, "-m", "ltp.train", *SHORT, *overrides, f"output_root={folder}"]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("options", [["trainer.precision=bf16-mixed"], ["trainer.precision=16-mixed"], ["trainer=ddp"]])
def test_thresholds_are_learned(tmp_path, options):
    process = train(tmp_path, *([] if "trainer=ddp" in options else ["trainer=gpu"]), *options)
    assert process.returncode == 0, process.stderr[-2000:]
    found = [path for path in tmp_path.rglob("results.json") if "soft" in str(path)]
    assert len(found) == 1
    text = found[0].read_text()
    assert torch.cuda.get_device_name() in text
    thresholds = json.loads(text)["thresholds"]
    assert all(math.isfinite(value) for value in thresholds)

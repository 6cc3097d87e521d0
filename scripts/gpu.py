"""What runs on this machine's GPU, in one report: the tests marked ``gpu``, then ``ltp.bench``. Needs no network.

    python scripts/gpu.py [FOLDER]

Without a GPU the same commands run on the CPU with small shapes, so that the script itself is known to work.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import torch

ENGINES = "[hf_sdpa,packed_dense,packed_pruned,deployed_dense,deployed_pruned]"
#: Options of each benchmark on a GPU, and of the one on a CPU.
ON_GPU = (
    "bench.lengths=128 bench.batch_size=[1,8,64,256] bench.sequences=256",
    "bench.lengths=32 bench.batch_size=[64] bench.sequences=256",
    "bench.lengths=512 bench.batch_size=[64] bench.sequences=128",
    "bench.lengths=mrpc bench.batch_size=[64] bench.sequences=512",
    "bench.lengths=mrpc bench.order=sorted bench.batch_size=[64] bench.sequences=512 bench.train=true",
)
ON_CPU = ("bench.shape=tiny bench.lengths=32 bench.batch_size=[8] bench.sequences=16 bench.rounds=1 bench.train=true",)


def main(folder: Path) -> int:
    """Run the tests and the benchmarks, and write ``report.md``; return the number of commands that failed."""
    on_gpu = torch.cuda.is_available()
    folder.mkdir(parents=True, exist_ok=True)
    dtype = "bfloat16" if on_gpu else "float32"
    shared = f"bench.dtype=[{dtype}] bench.engines={ENGINES} bench.device=auto"
    commands = {"tests": "-m pytest -m gpu -q -p no:cacheprovider"}
    for number, options in enumerate(ON_GPU if on_gpu else ON_CPU):
        commands[f"bench{number}"] = f"-m ltp.bench {options} {shared} bench.output={folder}/bench{number}.json"
    device = torch.cuda.get_device_name() if on_gpu else "no GPU: on the CPU, small shapes"
    lines = ["# On a GPU", "", f"{device}; PyTorch {torch.__version__}, CUDA {torch.version.cuda}", ""]
    failed = 0
    for name, command in commands.items():
        start = time.perf_counter()
        process = subprocess.run([sys.executable, *command.split()], capture_output=True, text=True)
        (folder / f"{name}.log").write_text(process.stdout + process.stderr)
        is_good = process.returncode == 0 or (name == "tests" and process.returncode == 5 and not on_gpu)
        failed += not is_good
        outcome = "done" if is_good else f"FAILED, exit code {process.returncode}"
        print(f"{name}: {outcome} in {time.perf_counter() - start:.0f} s", flush=True)
        lines += [f"## `python {command}`", "", f"{outcome}, {time.perf_counter() - start:.0f} s", ""]
        report = folder / f"{name}.json"
        if not is_good or not report.is_file():
            lines += ["```", *(process.stdout + process.stderr).splitlines()[-15:], "```", ""]
            continue
        lines += table(json.loads(report.read_text()))
    (folder / "report.md").write_text("\n".join(lines) + "\n")
    print(folder / "report.md")
    return failed


def table(report: dict) -> list[str]:
    """The rows of a benchmark as a Markdown table."""
    lines = [f"{report['model']['name']}, {report['lengths']}, relative FLOPs {report['relative_flops']:.3f}", ""]
    lines += ["| engine | type | batch | ms a sequence | speed-up | efficiency |", "|---|---|---|---|---|---|"]
    for row in report["results"]:
        speedup, efficiency = row.get("speedup"), row.get("efficiency")
        cells = [row.get("title") or row["engine"], row["dtype"], row["batch_size"]]
        cells.append(f"{row['milliseconds_per_sequence']['median']:.4f}")
        cells.append("" if not speedup else f"{speedup['median']:.2f} ({speedup['min']:.2f}–{speedup['max']:.2f})")
        cells.append("" if efficiency is None else f"{efficiency:.2f}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return [*lines, ""]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/gpu")))

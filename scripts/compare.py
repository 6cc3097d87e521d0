"""One table of every finished run under a folder: ``python scripts/compare.py outputs/tiny/demo [picture.svg]``.

With a second argument the same is drawn as a picture, with one sentence layer by layer under the cheapest
learned run: pruned tokens are dimmed from the layer at which they leave.
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

import ltp  # noqa: F401  (registers the model with the Auto classes)
from ltp.summary import comparison
from ltp.synthetic import demo_rows


def finished_runs(folder: Path) -> dict[tuple[str, str], list[tuple[Path, dict[str, Any]]]]:
    """Run directories and results under a folder, by (task, model)."""
    runs = defaultdict(list)
    for path in sorted(folder.rglob("results.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        runs[results["task"], results["model"]].append((path.parent, results))
    return dict(runs)


def layer_by_layer(run: Path, sentence: str) -> Text:
    """A sentence once a layer, its pruned tokens dimmed."""
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    model = AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    inputs = tokenizer(sentence, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    words = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    text = Text()
    for layer, hidden in enumerate(output.hidden_states):
        alive = hidden[0].ne(0).any(dim=-1)  # the states of pruned tokens are 0
        text.append(f"{'input' if layer == 0 else f'layer {layer}':8}", style="bold")
        for word, is_alive in zip(words, alive.tolist(), strict=True):
            text.append(f" {word}", style="" if is_alive else "bright_black strike")
        text.append("\n")
    label = model.config.id2label[int(output.logits.argmax())]
    return text.append(f"label    {label}", style="bold")


def main(folder: Path, picture: Path | None) -> int:
    """Print the tables; draw them too where a picture is asked for."""
    runs = finished_runs(folder)
    if not runs:
        print(f"error: no finished run (results.json) under {folder}", file=sys.stderr)
        return 2
    console = Console(record=picture is not None, width=100 if picture else None)
    for group in runs.values():
        console.print(comparison(results for _, results in group))
    if picture is not None:
        learned = [run for group in runs.values() for run in group if run[1]["method"] == "learned"]
        if learned:
            directory, _ = min(learned, key=lambda run: (run[1]["stage"] != "hard", run[1]["relative_flops"]))
            sentences = [row["sentence"] for row in demo_rows("validation")]
            console.print(layer_by_layer(directory, next(text for text in sentences if 11 <= len(text.split()) <= 14)))
        svg = console.export_svg(title="make demo")
        # fonts of the reader's machine, nothing fetched from elsewhere
        picture.write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL), encoding="utf-8")
    return 0


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else None))

"""The README's pictures, from the demo's runs: ``python scripts/figures.py outputs/tiny/demo FOLDER``.

The report's table, with one sentence layer by layer under the cheapest learned run (pruned tokens are dimmed from the
layer at which they leave), and the report's figures.
"""

import re
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

import ltp  # noqa: F401  (registers the model with the Auto classes)
from ltp.reporting import collect, compare, comparison, draw
from ltp.synthetic import demo_rows


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


def main(folder: Path, to: Path) -> int:
    """Draw the pictures into a folder."""
    runs = collect([folder]).runs
    learned = [run for run in runs if run.results["method"] == "learned"]
    if not learned:
        print(f"error: no finished run of learned thresholds under {folder}; make demo makes some", file=sys.stderr)
        return 2
    console = Console(record=True, width=112)
    groups = compare(runs)
    for group in groups:
        console.print(comparison(group))
    cheapest = min(learned, key=lambda run: (run.results["stage"] != "hard", run.results["relative_flops"]))
    sentences = [row["sentence"] for row in demo_rows("validation")]
    console.print(layer_by_layer(cheapest.directory, next(text for text in sentences if 11 <= len(text.split()) <= 14)))
    svg = console.export_svg(title="make demo")
    # fonts of the reader's machine, nothing fetched from elsewhere
    (to / "demo.svg").write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL), encoding="utf-8")
    for group in groups:
        for name, content in draw(group)[0].items():
            if name.endswith(("_tradeoff.png", "_tokens.png")):
                (to / name).write_bytes(content)
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))

"""Draw the pictures of README and docs from the demo's runs: ``python scripts/figures.py outputs/tiny/demo FOLDER``.

``demo.svg`` has the report's table and one sentence layer by layer under the learned run of lowest cost (tokens are
dimmed from the layer that prunes them). The PNG files are the report's figures.
"""

import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ltp.data.demo import demo_rows
from ltp.evaluation.prediction import predict
from ltp.model.tracing import format_layers
from ltp.reporting.collect import collect
from ltp.reporting.figures import draw
from ltp.reporting.rows import compare
from ltp.reporting.table import comparison
from ltp.runs.checkpoints import inspect_checkpoint
from ltp.runs.loading import load_model, load_tokenizer, max_input_tokens, silence_libraries


def sentence_layer_by_layer(run: Path, sentence: str) -> Text:
    """Format a sentence once per layer, with pruned tokens dimmed, and its predicted label."""
    silence_libraries()
    checkpoint = inspect_checkpoint(str(run))
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    (prediction,) = predict(
        model,
        tokenizer,
        [(sentence,)],
        max_length=max_input_tokens(model, tokenizer),
        batch_size=1,
        trace=True,
        advance=lambda count: None,
    )
    return format_layers(prediction.traces).append(f"label    {prediction.columns['label']}", style="bold")


def main(folder: Path, to: Path) -> int:
    """Write the pictures to a folder.

    Args:
        folder: runs of the demo.
        to: an existing folder for the pictures.

    Returns:
        0, or 2 if there is no finished run of learned thresholds.
    """
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
    sentence = next(text for text in sentences if 11 <= len(text.split()) <= 14)
    console.print(sentence_layer_by_layer(cheapest.directory, sentence))
    svg = console.export_svg(title="make demo")
    # remove web fonts: the picture must load no external resources
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

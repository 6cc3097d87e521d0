"""GLUE's submission files: one for each test split, to be zipped and uploaded to gluebenchmark.com."""

from collections.abc import Sequence

from ltp.data.files import CLASSIC_FOLDERS
from ltp.data.tasks import Task, TextTask
from ltp.evaluation.prediction import Prediction


def submission_name(task: Task, split: str) -> str:
    """Return the name of a submission file: ``RTE.tsv``, ``MNLI-mm.tsv``.

    Args:
        task: a task of GLUE.
        split: one of its test splits.
    """
    matched = {"test_matched": "-m", "test_mismatched": "-mm"}.get(split, "")
    return f"{CLASSIC_FOLDERS[task.name]}{matched}.tsv"


def submission(task: Task, labels: Sequence[str], predictions: Sequence[Prediction]) -> str:
    """Write the content of a submission file.

    Args:
        task: a task of GLUE.
        labels: the model's own names of the task's labels, in the task's order.
        predictions: those of the whole test split, in its order.
    """
    assert isinstance(task, TextTask)  # those of GLUE
    lines = ["index\tprediction"]
    for index, prediction in enumerate(predictions):
        if "score" in prediction.columns:
            low, high = task.label_range or (0.0, 5.0)
            value = f"{min(max(prediction.columns['score'], low), high):.3f}"
        else:
            number = labels.index(prediction.columns["label"])
            value = str(number) if task.numbers_in_submissions or task.labels is None else task.labels[number]
        lines.append(f"{index}\t{value}")
    return "\n".join(lines) + "\n"

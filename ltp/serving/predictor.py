"""A run in the form that serves: its model, deployed for a CPU or packed on a GPU, and its tokenizer."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ltp.data.sequences import Batch
from ltp.errors import UserError
from ltp.evaluation.prediction import Prediction, predict
from ltp.evaluation.samples import own_sequences
from ltp.evaluation.scoring import Engine
from ltp.model.pretrained import LTPPreTrainedModel
from ltp.runs.checkpoints import Checkpoint
from ltp.runs.loading import check_length, load_model, load_tokenizer, max_input_tokens, select_device

#: Texts of the run's validation split on which forms are compared.
EXAMPLES = 200


@dataclass(frozen=True)
class Served:
    """What is served; it is sent to the processes that compute.

    Attributes:
        checkpoint: the checkpoint.
        budget: relative FLOPs of its thresholds; None: its current ones.
        dtype: ``float32`` or ``bfloat16``; on a CPU also ``int8`` and ``auto``, see
            :class:`~ltp.deploy.fastest.FastestModel`.
        device: ``auto``, ``cpu`` or ``cuda``.
        max_length: truncation length in tokens; None: the most that the model reads.
        batch_size: texts per forward pass.
        pairs: whether it may read pairs of texts.
        null_threshold: by how much no answer must be ahead of the best span; None: there is always an answer.
    """

    checkpoint: Checkpoint
    budget: float | None
    dtype: str
    device: str
    max_length: int | None
    batch_size: int
    pairs: bool
    null_threshold: float | None = None


class Predictor:
    """Predicts texts. No padding is computed.

    Args:
        served: what to load.

    Attributes:
        forms: with ``dtype="auto"``, the form that was chosen for each size of batches.

    Raises:
        UserError: model, tokenizer, dtype and device do not fit together.
    """

    def __init__(self, served: Served) -> None:
        device = select_device(served.device)
        self.model: LTPPreTrainedModel = load_model(served.checkpoint, served.budget)
        self._tokenizer = load_tokenizer(served.checkpoint, pairs=served.pairs)
        if served.max_length is not None:
            check_length("max_length", served.max_length, self.model, self._tokenizer)
        self.max_length = served.max_length or max_input_tokens(self.model, self._tokenizer)
        self._batch_size, self._null_threshold = served.batch_size, served.null_threshold
        if device.type == "cuda" and served.dtype in ("int8", "auto"):
            raise UserError(f"dtype={served.dtype} goes with device=cpu; on a GPU use float32 or bfloat16")
        execution = "deployed" if device.type == "cpu" else "packed"
        choice: dict[str, Any] = {}
        if served.dtype == "auto":
            choice = {"batch_sizes": sorted({1, served.batch_size}), "examples": self._examples(served)}
        try:
            self._engine = Engine.create(self.model, execution, served.dtype, device, **choice)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"dtype={served.dtype}: {error}") from error
        self.forms = {size: str(form) for size, form in getattr(self._engine.forward, "forms", {}).items()}

    def _examples(self, served: Served) -> list[Batch]:
        """Return batches such as the model will see."""
        return own_sequences(served.checkpoint, self.model, EXAMPLES).batches(self.model, served.batch_size)

    def __call__(self, texts: Sequence[tuple[str, ...]], *, trace: bool = False) -> list[Prediction]:
        """Predict texts; see :func:`ltp.evaluation.prediction.predict`.

        Args:
            texts: of one or two texts each, also mixed.
            trace: record each token's path; this runs the masked form.
        """
        predictions: dict[int, Prediction] = {}
        for count in {len(row) for row in texts}:
            rows = [number for number, row in enumerate(texts) if len(row) == count]
            of_rows = predict(
                *(self.model, self._tokenizer, [texts[row] for row in rows]),
                max_length=self.max_length,
                batch_size=self._batch_size,
                trace=trace,
                advance=lambda count: None,
                null_threshold=self._null_threshold,
                forward=self._engine,
            )
            predictions.update(zip(rows, of_rows, strict=True))
        return [predictions[row] for row in range(len(texts))]


def as_record(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as in a response: what :mod:`ltp.predict` writes, the cost, a note, and the traces if any."""
    record = {**prediction.columns, "relative_flops": prediction.cost}
    if prediction.note:
        record["note"] = prediction.note
    if prediction.traces:
        record["shown"] = prediction.shown
        marks = prediction.marks or [""] * len(prediction.traces)
        tokens = zip(prediction.traces, marks, strict=True)
        record["tokens"] = [asdict(trace) | {"mark": mark} for trace, mark in tokens]
    return record

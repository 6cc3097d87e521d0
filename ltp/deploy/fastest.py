"""The fastest form of a model on this machine: which forms there are, a short measurement of them, and the choice."""

import json
import logging
import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltp.data.sequences import Batch, make_batches
from ltp.deploy.agreement import compare_results
from ltp.deploy.formats import GRAPHS
from ltp.deploy.graph import write_onnx
from ltp.deploy.linears import has_bfloat16_instructions
from ltp.deploy.machine import cpu_name
from ltp.deploy.model import DeployedModel, random_examples
from ltp.deploy.onnx import Infer
from ltp.deploy.requirements import missing_packages
from ltp.deploy.timing import interleaved
from ltp.errors import RunError

log = logging.getLogger("ltp")

#: File beside the model that remembers the choice.
FILE = "deployment.json"
#: Sizes of batches that are measured.
BATCH_SIZES = (1, 32)
#: Least share of the examples' answers that a form must have as float32 does.
LEAST_ANSWERS = 0.98
_ROUNDS = 5
_TIMED = 64  # sequences in a round, at most


@dataclass(frozen=True)
class Form:
    """A form in which a model can serve on a CPU.

    Attributes:
        runtime: ``pytorch``, or a key of :data:`~ltp.deploy.formats.GRAPHS`.
        dtype: ``float32``, ``bfloat16`` or ``int8``.
    """

    runtime: str
    dtype: str

    def __str__(self) -> str:
        titles = {"pytorch": "PyTorch", "onnx": "ONNX Runtime", "openvino": "OpenVINO"}
        return f"{titles[self.runtime]} {self.dtype}"


#: All forms, the exact ones first.
FORMS = tuple(
    Form(runtime, dtype)
    for dtype in ("float32", "bfloat16", "int8")
    for runtime in ("pytorch", *GRAPHS)
    if dtype != "bfloat16" or runtime == "pytorch"
)


@dataclass(frozen=True)
class Trial:
    """What was found of a form.

    Attributes:
        form: the form.
        answers: share of the examples' answers that are those of float32; None if it was not run, or has no answers.
        milliseconds: a sequence, by batch size; empty if it was not timed.
        reason: why it was not timed; empty if it was.
    """

    form: Form
    answers: float | None
    milliseconds: dict[int, float]
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"{self.form}: {self.reason}"
        times = ", ".join(f"{value:.3g} ms at batch size {size}" for size, value in self.milliseconds.items())
        return f"{self.form}: {times} (a sequence)"


class FastestModel:
    """A pruned model in the forms that are the fastest on this CPU, one for each size of batches.

    Call it like the model. The choice is written to ``deployment.json`` in the model's directory. On the same CPU, with
    the same number of threads, for the same weights and thresholds, it is read from there.

    Args:
        model: the pruned model, on the CPU; see :class:`~ltp.deploy.model.DeployedModel`.
        examples: batches of inputs such as the model will see; random tokens if none are given. Forms are timed on
            them, their answers are compared on them, and int8 takes its ranges from them.
        batch_sizes: sizes of batches to choose for.
        least_answers: least share of the examples' answers that must be those of float32.

    Attributes:
        forms: the chosen form by batch size; a call takes that of the nearest size.
        trials: what was measured; empty if the choice was remembered.
    """

    def __init__(
        self,
        model: Any,
        examples: Sequence[Mapping[str, Tensor]] | None = None,
        *,
        batch_sizes: Sequence[int] = BATCH_SIZES,
        least_answers: float = LEAST_ANSWERS,
    ) -> None:
        self._class = type(model)
        self._examples = [_whole(batch) for batch in examples or random_examples(model)]
        self._model = model
        self._traced: Path | None = None
        self.trials: list[Trial] = []
        with tempfile.TemporaryDirectory() as folder:
            self._folder = Path(folder)
            remembered = _Memory.of(model, batch_sizes, least_answers)
            self.forms = remembered.read()
            built: dict[Form, Infer] = {}
            if self.forms is None:
                built = self._measure(batch_sizes, least_answers)
                self.forms = self._choose(batch_sizes)
                remembered.write(self.forms, self.trials)
            chosen = dict.fromkeys(self.forms.values())
            self._infer = {form: built[form] if form in built else self._build(form) for form in chosen}
        for size, form in self.forms.items():
            log.info("deployed for batches of %d: %s", size, form)
        del self._model, self._examples, self._traced, self._folder

    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Any:
        """Compute the results of a batch; see :meth:`ltp.deploy.model.DeployedModel.__call__`."""
        assert self.forms is not None
        count = len(input_ids)
        size = min(self.forms, key=lambda size: abs(math.log(size / max(1, count))))
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        *results, lengths = self._infer[self.forms[size]](
            _whole({name: value for name, value in batch.items() if value is not None})
        )
        named = dict(zip(self._class.output_class.results, results, strict=True))
        return self._class.output_class(token_lengths=lengths, **named)

    def _build(self, form: Form) -> Infer:
        if form.runtime == "pytorch":
            return DeployedModel(self._model, dtype=form.dtype, examples=self._examples).results
        if self._traced is None:
            log.info("tracing %d layers as a graph, some seconds each", self._model.config.num_hidden_layers)
            self._traced = self._folder / "traced.onnx"
            write_onnx(self._model, self._traced)
        runtime = GRAPHS[form.runtime].runtime
        target = self._folder / f"{form.dtype}_{GRAPHS[form.runtime].file}"
        runtime.convert(self._traced, target, form.dtype, self._examples)
        return runtime.load(target)

    def _measure(self, batch_sizes: Sequence[int], least_answers: float) -> dict[Form, Infer]:
        """Build the forms that there are, and time those that answer as the model does."""
        built: dict[Form, Infer] = {}
        answers: dict[Form, float | None] = {}
        for form in FORMS:
            if reason := _unavailable(form):
                self.trials.append(Trial(form, None, {}, reason))
                continue
            try:
                infer = self._build(form)
                found = compare_results(self._model, infer, self._examples, dtype=form.dtype)
            except (RunError, ValueError, RuntimeError) as error:
                self.trials.append(Trial(form, None, {}, str(error).splitlines()[0]))
                continue
            if found.answers is not None and found.answers < least_answers:
                reason = f"{found.answers:.1%} of its answers are those of float32, less than {least_answers:.1%}"
                self.trials.append(Trial(form, found.answers, {}, reason))
                continue
            built[form], answers[form] = infer, found.answers
        times: dict[Form, dict[int, float]] = {form: {} for form in built}
        for size in batch_sizes:
            batches = _of_size(self._examples, size)
            count = sum(len(batch["input_ids"]) for batch in batches)
            passes = {form: _pass(infer, batches) for form, infer in built.items()}
            for warm_up in passes.values():
                warm_up()
            for form, seconds in interleaved(passes, _ROUNDS).items():
                times[form][size] = 1000 * statistics.median(seconds) / count
        self.trials += [Trial(form, answers[form], times[form]) for form in built]
        for trial in self.trials:
            log.info("%s", trial)
        return built

    def _choose(self, batch_sizes: Sequence[int]) -> dict[int, Form]:
        timed = [trial for trial in self.trials if trial.milliseconds]
        if not timed:
            raise RuntimeError("no form of this model works here: " + "; ".join(map(str, self.trials)))
        return {size: min(timed, key=lambda trial: trial.milliseconds[size]).form for size in batch_sizes}


def _unavailable(form: Form) -> str:
    """Return why a form cannot be built here, or is not worth building; empty if it can."""
    if form.runtime == "pytorch":
        return "" if form.dtype != "bfloat16" or has_bfloat16_instructions() else "the CPU has no instructions for it"
    missing = missing_packages(GRAPHS[form.runtime].extra)
    return f"{', '.join(missing)} not installed" if missing else ""


def _whole(batch: Mapping[str, Tensor]) -> Batch:
    """Return the inputs that every form takes."""
    ids = batch["input_ids"]
    default = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    return {"input_ids": ids, **{name: batch.get(name, value) for name, value in default.items()}}


def _of_size(examples: Sequence[Batch], size: int) -> list[Batch]:
    """Return the examples in batches of a size, in an order that mixes their lengths."""
    rows = [
        (ids[mask.bool()].tolist(), types[mask.bool()].tolist())
        for batch in examples
        for ids, mask, types in zip(*(batch[name] for name in _NAMES), strict=True)
    ]
    step = max(1, len(rows) // max(size, _TIMED))
    rows = rows[::step][: max(size, _TIMED)]
    while len(rows) < size:
        rows += rows
    return make_batches([ids for ids, _ in rows], size, token_types=[types for _, types in rows])


_NAMES = ("input_ids", "attention_mask", "token_type_ids")


def _pass(infer: Infer, batches: Sequence[Batch]) -> Callable[[], None]:
    def run() -> None:
        for batch in batches:
            infer(batch)

    return run


@dataclass(frozen=True)
class _Memory:
    """The choice beside a model; ``path`` is None for a model without a directory."""

    path: Path | None
    key: dict[str, Any]

    @classmethod
    def of(cls, model: Any, batch_sizes: Sequence[int], least_answers: float) -> "_Memory":
        folder = Path(str(model.config._name_or_path))
        weights = folder / "model.safetensors"
        is_known = weights.is_file() and (folder / "config.json").is_file()
        thresholds = None if model.thresholds is None else [round(value, 9) for value in model.thresholds.tolist()]
        key = {
            "cpu": cpu_name(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "weights": [weights.stat().st_size, weights.stat().st_mtime_ns] if is_known else None,
            "pruning": {**model.config.pruning, "thresholds": thresholds},
            "batch_sizes": list(batch_sizes),
            "least_answers": least_answers,
            "available": [str(form) for form in FORMS if not _unavailable(form)],
        }
        return cls(folder / FILE if is_known else None, json.loads(json.dumps(key)))

    def read(self) -> dict[int, Form] | None:
        """Return the chosen forms by batch size, if they were chosen here for this model."""
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8")) if self.path is not None else {}
            if stored.get("key") == self.key:
                return {int(size): Form(*form) for size, form in stored["forms"].items()}
        except (OSError, ValueError, TypeError, AttributeError, KeyError):
            pass  # it is measured again
        return None

    def write(self, forms: Mapping[int, Form], trials: Sequence[Trial]) -> None:
        """Write the choice; not where the directory is read-only."""
        if self.path is None:
            return
        stored = {
            "forms": {size: [form.runtime, form.dtype] for size, form in forms.items()},
            "trials": [str(trial) for trial in trials],
            "key": self.key,
        }
        try:
            self.path.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            log.info("%s: not remembered (%s)", self.path, error.strerror)

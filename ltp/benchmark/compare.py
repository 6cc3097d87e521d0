"""The benchmark: build the engines, check their logits, time them in interleaved rounds, and report."""

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltp.benchmark.checks import check_logits
from ltp.benchmark.engines import DEFAULT_ENGINES, ENGINES, Infer, UnavailableError
from ltp.benchmark.models import Models, without_pruning
from ltp.benchmark.products import bare_products
from ltp.benchmark.report import (
    DEFINITIONS,
    Check,
    Facts,
    Key,
    Limit,
    inference_rows,
    limit_of,
    training_rows,
)
from ltp.benchmark.training import TRAINING, TRAINING_TYPES, training_passes
from ltp.data.sequences import Batch
from ltp.deploy.timing import CLOCKS, Pass, Spread, interleaved, peak_memory, ratio
from ltp.model.pretrained import LTPPreTrainedModel
from ltp.runs.provenance import hardware, versions

Tick = Callable[[str], None]  # called with a description after each pass


@dataclass(frozen=True)
class Plan:
    """The settings of a benchmark.

    Attributes:
        engines: names of :data:`ENGINES`.
        dtypes: of :data:`~ltp.benchmark.engines.DTYPES`; each engine is timed in those that it supports.
        batch_sizes: sequences per batch.
        rounds: how often each engine is timed.
        baseline: the engine that speed-ups are computed against.
        train: whether to time hard-stage training steps too, masked and packed.
        clock: ``wall``, or ``processor`` (process time, for one thread on a busy machine).
    """

    engines: Sequence[str] = DEFAULT_ENGINES
    dtypes: Sequence[str] = ("float32",)
    batch_sizes: Sequence[int] = (1, 32)
    rounds: int = 5
    baseline: str = "hf_sdpa"
    train: bool = False
    clock: str = "wall"


def run_benchmark(
    model: LTPPreTrainedModel,
    batches: Callable[[int], Sequence[Batch]],
    plan: Plan,
    progress: Callable[[int, int, str], None] = lambda done, total, description: None,
    score: Callable[[Tensor], float | None] = lambda logits: None,
) -> dict[str, Any]:
    """Compare the engines on the same sequences.

    Args:
        model: the pruned classifier, float32, in evaluation mode on its device. It is not changed.
        batches: maps a batch size to all sequences in batches of that size, always in the same order.
        plan: the settings of the benchmark.
        progress: called with the number of passes done, the total, and a description of the last one.
        score: computes the task's metric from the logits of all sequences, (S, num_labels) float32.

    Returns:
        The report in plain containers: ``hardware``, ``versions``, ``plan``, ``definitions``, ``sequences``,
        ``tokens`` (per sequence: mean, min, max), ``relative_flops``, ``tokens_per_layer``, ``left_out`` (engine,
        type and reason) and ``results`` (one dict per engine, type and batch size).

    Raises:
        WrongResultsError: an engine's logits or gradients differ from the reference's.
    """
    with tempfile.TemporaryDirectory() as folder:
        models = Models(model, Path(folder))
        built, left_out = _build(models, plan)
    limits = sorted({limit for key in built if (limit := limit_of(key)) is not None})
    training = [dtype for dtype in plan.dtypes if dtype in TRAINING_TYPES] if plan.train and models.prunes else []
    steps = (1 + plan.rounds) * (len(built) + len(training) * len(TRAINING)) + plan.rounds * len(limits)
    done, total = 0, steps * len(plan.batch_sizes)

    def tick(description: str) -> None:
        nonlocal done
        done += 1
        progress(done, total, description)

    progress(0, total, "the reference")
    reference = _reference(models, batches(max(plan.batch_sizes)))
    facts = Facts(len(reference.lengths), reference.relative_flops, plan.baseline)
    results: list[dict[str, Any]] = []
    for size in plan.batch_sizes:
        sized_batches = batches(size)
        results += _time_inference(built, limits, sized_batches, size, reference, facts, plan, tick, score)
        for dtype in training:
            results += _time_training(models, dtype, sized_batches, size, facts, plan, tick)
    tokens = reference.lengths[:, 0].double()
    return {
        "hardware": hardware(models.device),
        "versions": versions(),
        "plan": asdict(plan),
        "definitions": DEFINITIONS,
        "sequences": facts.sequences,
        "tokens": {"mean": float(tokens.mean()), "min": int(tokens.min()), "max": int(tokens.max())},
        "relative_flops": reference.relative_flops,
        "tokens_per_layer": reference.lengths.double().mean(dim=0).tolist(),
        "left_out": left_out,
        "results": results,
    }


def measured_speedup(
    model: LTPPreTrainedModel,
    dense: LTPPreTrainedModel | None,
    batches: Iterable[Batch],
    *,
    rounds: int = 5,
) -> dict[str, Any]:
    """Measure the speed-up of a pruned classifier over a dense one, both with packed execution.

    Uses the current number of threads and the models' device and type. Restores the models' mode and execution.

    Args:
        model: the pruned classifier.
        dense: the classifier to compare with; None uses the same weights without pruning.
        batches: a few hundred sequences; entries that are not model inputs (labels) are ignored.
        rounds: how often each model is timed; each round runs both.

    Returns:
        Plain containers: ``speedup`` (median, min, max), ``relative_flops``, ``efficiency``,
        ``milliseconds_per_sequence`` and ``dense_milliseconds_per_sequence`` (medians), ``sequences``,
        ``batch_size``, ``rounds``, ``threads`` and ``device``.
    """
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = [{name: batch[name].to(model.device) for name in names if name in batch} for batch in batches]
    baseline = dense if dense is not None else without_pruning(model)
    with _packed_evaluation(model), _packed_evaluation(baseline), torch.inference_mode():
        lengths = torch.cat([model(**batch).token_lengths.cpu() for batch in inputs])  # also the warm-up
        passes = {"dense": _pass(lambda batch: baseline(**batch).logits, inputs)}
        passes["pruned"] = _pass(lambda batch: model(**batch).logits, inputs)
        passes["dense"]()
        seconds = interleaved(passes, rounds, synchronise=_synchroniser(model.device))
    speedup = ratio(seconds["dense"], seconds["pruned"])
    relative_flops = model.cost.total_relative_flops(lengths)
    return {
        "speedup": speedup.as_dict(),
        "relative_flops": relative_flops,
        "efficiency": speedup.median * relative_flops,
        "milliseconds_per_sequence": 1000 * Spread.from_values(seconds["pruned"]).median / len(lengths),
        "dense_milliseconds_per_sequence": 1000 * Spread.from_values(seconds["dense"]).median / len(lengths),
        "sequences": len(lengths),
        "batch_size": max(len(batch["input_ids"]) for batch in inputs),
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "device": hardware(model.device)["device"],
    }


@contextlib.contextmanager
def _packed_evaluation(model: LTPPreTrainedModel) -> Iterator[None]:
    """Set evaluation mode and packed execution; restore the previous ones on exit."""
    training, execution = model.training, model.execution
    model.eval()
    model.execution = "packed"
    try:
        yield
    finally:
        model.train(training)
        model.execution = execution


@dataclass(frozen=True)
class _Reference:
    """The reference outputs of all sequences, in order.

    Attributes:
        config: the model's configuration.
        dense_logits, pruned_logits: (S, num_labels) float32.
        lengths: tokens alive before each layer and after the last, (S, L+1) int64.
        relative_flops: of the pruned model over all sequences.
    """

    config: Any
    dense_logits: Tensor
    pruned_logits: Tensor
    lengths: Tensor
    relative_flops: float


@torch.inference_mode()
def _reference(models: Models, batches: Sequence[Batch]) -> _Reference:
    """Compute the references: Hugging Face with eager attention (dense), and masked execution (pruned)."""
    eager = models.hugging_face("float32", "eager")
    masked = models.ltp("float32", pruned=True, execution="masked")
    dense_logits = torch.cat([eager(**batch).logits.cpu() for batch in batches])
    outputs = [masked(**batch) for batch in batches]
    pruned_logits = torch.cat([output.logits.cpu() for output in outputs])
    lengths = torch.cat([output.token_lengths.cpu() for output in outputs])
    config = models.pruned.config
    relative_flops = models.pruned.cost.total_relative_flops(lengths)
    return _Reference(config, dense_logits, pruned_logits, lengths, relative_flops)


def _build(models: Models, plan: Plan) -> tuple[dict[Key, Infer], list[dict[str, str]]]:
    """Build the engines that can run here, in the order of :data:`ENGINES`; list the others with the reason."""
    built: dict[Key, Infer] = {}
    left_out = []
    for name, engine in ENGINES.items():
        for dtype in (dtype for dtype in plan.dtypes if name in plan.engines and dtype in engine.dtypes):
            try:
                if engine.pruned and not models.prunes:
                    raise UnavailableError("this model does not prune; bench.relative_flops=0.5 gives it thresholds")
                built[Key(name, dtype)] = engine.build(models, dtype)
            except UnavailableError as error:
                left_out.append({"engine": name, "dtype": dtype, "why": str(error)})
    return built, left_out


@torch.inference_mode()
def _time_inference(
    built: dict[Key, Infer],
    limits: Sequence[Limit],
    batches: Sequence[Batch],
    size: int,
    reference: _Reference,
    facts: Facts,
    plan: Plan,
    tick: Tick,
    score: Callable[[Tensor], float | None],
) -> list[dict[str, Any]]:
    """Check the engines, time them together with their limits, and return the report's rows."""
    device = batches[0]["input_ids"].device
    passes: dict[Key | Limit, Pass] = {}
    checks: dict[Key, Check] = {}
    for key, infer in built.items():
        checks[key] = _check(key, infer, batches, reference, score)
        passes[key] = _pass(infer, batches)
        tick(f"batch {size} · {key}: checked")
    for limit in limits:
        lengths = reference.lengths if limit.pruned else reference.lengths[:, :1].expand_as(reference.lengths)
        passes[limit] = bare_products(reference.config, lengths.split(size), limit.dtype, limit.backend, device)
        passes[limit]()
    seconds = interleaved(
        passes,
        plan.rounds,
        clock=CLOCKS[plan.clock],
        synchronise=_synchroniser(device),
        after=lambda key: tick(f"batch {size} · {key}"),
    )
    return inference_rows(seconds, checks, size, facts)


def _check(
    key: Key,
    infer: Infer,
    batches: Sequence[Batch],
    reference: _Reference,
    score: Callable[[Tensor], float | None],
) -> Check:
    """Run one warm-up pass: check the logits, score them and measure the peak memory."""
    logits: list[Tensor] = []
    pruned = ENGINES[key.engine].pruned
    memory = peak_memory(lambda: logits.extend(infer(batch) for batch in batches), batches[0]["input_ids"].device)
    difference = check_logits(
        ENGINES[key.engine].title,
        key.dtype,
        logits,
        reference.pruned_logits if pruned else reference.dense_logits,
        "the masked form" if pruned else "Hugging Face eager",
    )
    return Check(difference, memory, score(torch.cat([part.float().cpu() for part in logits])))


def _time_training(
    models: Models, dtype: str, batches: Sequence[Batch], size: int, facts: Facts, plan: Plan, tick: Tick
) -> list[dict[str, Any]]:
    """Time training steps, masked and packed, and return the report's rows."""
    passes: dict[Key, Pass] = {}
    for name, steps in training_passes(models, batches, dtype).items():
        passes[Key(name, dtype)] = steps
        steps()
        tick(f"batch {size} · {TRAINING[name]}, {dtype}: warm")
    seconds = interleaved(
        passes,
        plan.rounds,
        clock=CLOCKS[plan.clock],
        synchronise=_synchroniser(models.device),
        after=lambda key: tick(f"batch {size} · {TRAINING[key.engine]}, {key.dtype}"),
    )
    return training_rows(seconds, size, facts)


def _pass(infer: Infer, batches: Sequence[Batch]) -> Pass:
    """A function that runs the engine on all batches once."""

    def run() -> None:
        for batch in batches:
            infer(batch)

    return run


def _synchroniser(device: torch.device) -> Callable[[], None]:
    """A function that waits for the device."""
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)

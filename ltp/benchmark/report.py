"""What the rounds say: the report's rows, the numbers' definitions and the machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ltp.benchmark import products
from ltp.benchmark.engines import ALLOWED, ENGINES
from ltp.benchmark.timing import Spread, ratio
from ltp.benchmark.training import TRAINING
from ltp.pruning import flops

DEFINITIONS = {
    "milliseconds_per_sequence": "time (plan.clock) of a pass ÷ sequences; median, min and max of rounds",
    "sequences_per_second": "1000 ÷ the median of milliseconds_per_sequence",
    "speedup": "seconds of `over` ÷ seconds of the engine, in the same round; median, min and max of rounds. Over the "
    "baseline in the same type (int8: float32); training steps over the masked ones",
    "relative_flops": flops.DEFINITION,
    "flops_ratio": "dense FLOPs ÷ the engine's: 1 ÷ relative_flops where it prunes, 1 where not",
    "efficiency": "speed-up over the same engine without pruning ÷ flops_ratio: the share of the FLOPs saved that is "
    "saved in time too",
    "limit": "seconds of the bare matrix products ÷ seconds of the engine, in the same round: " + products.DEFINITION,
    "peak_memory_mb": "MiB that a pass needs beyond what stands before it (weights); CPU: growth of the resident set",
    "logits_difference": "float32: largest difference from the reference, in units of its largest logit or 1; other "
    "types: root mean square of the differences ÷ that of the reference. Reference: Hugging Face eager, "
    "and the masked form where tokens are pruned, in float32",
    "allowed_logits_difference": ", ".join(f"{dtype} {allowed:g}" for dtype, allowed in ALLOWED.items()),
}


Seconds = Sequence[float]  #: of one engine, one a round


@dataclass(frozen=True, order=True)
class Key:
    """What is timed: an engine in a type."""

    engine: str
    dtype: str

    def __str__(self) -> str:
        return f"{ENGINES[self.engine].title}, {self.dtype}"


@dataclass(frozen=True, order=True)
class Limit:
    """What is timed beside the engines: the bare matrix products, pruned or dense."""

    backend: str
    dtype: str
    pruned: bool

    @property
    def title(self) -> str:
        """For people."""
        return f"bare products, {self.backend}, {'pruned' if self.pruned else 'dense'}"

    def __str__(self) -> str:
        return f"{self.title}, {self.dtype}"


@dataclass(frozen=True)
class Check:
    """What the pass before the rounds found: the difference from the reference, and the peak memory in MiB."""

    logits_difference: float
    peak_memory: float | None


@dataclass(frozen=True)
class Facts:
    """What all rows of a report share.

    Attributes:
        sequences: how many a pass goes through.
        relative_flops: of the pruned model on them.
        baseline: the engine that speed-ups are over.
    """

    sequences: int
    relative_flops: float
    baseline: str


def limit_of(key: Key) -> Limit | None:
    """The limit of an engine, where there is one."""
    engine = ENGINES[key.engine]
    return Limit(engine.backend, key.dtype, engine.pruned) if engine.backend else None


def inference_rows(
    seconds: Mapping[Key | Limit, Seconds], checks: Mapping[Key, Check], batch_size: int, facts: Facts
) -> list[dict[str, Any]]:
    """The report's rows for one batch size: first the engines, then their limits.

    Args:
        seconds: of a pass, one a round, of all that was timed together.
        checks: of each engine.
        batch_size: for the rows.
        facts: see :class:`Facts`.
    """
    rows = []
    for key in checks:
        engine = ENGINES[key.engine]
        flops_ratio = 1 / facts.relative_flops if engine.pruned else 1.0
        row = _row("inference", key.engine, engine.title, key.dtype, batch_size, engine.pruned, seconds[key], facts)
        over = next(
            (base for base in (Key(facts.baseline, key.dtype), Key(facts.baseline, "float32")) if base in seconds), None
        )
        row["speedup"] = _speedup(over, seconds, seconds[key])
        row["flops_ratio"] = flops_ratio
        dense = seconds.get(Key(engine.dense, key.dtype)) if engine.dense else None
        row["efficiency"] = ratio(dense, seconds[key]).median / flops_ratio if dense else None
        limit = limit_of(key)
        products_alone = seconds.get(limit) if limit else None
        row["limit"] = ratio(products_alone, seconds[key]).median if products_alone else None
        row["peak_memory_mb"] = checks[key].peak_memory
        row["logits_difference"] = checks[key].logits_difference
        rows.append(row)
    for limit in (key for key in seconds if isinstance(key, Limit)):
        name = f"products_{limit.backend}_{'pruned' if limit.pruned else 'dense'}"
        row = _row("products", name, limit.title, limit.dtype, batch_size, limit.pruned, seconds[limit], facts)
        rows.append({**row, **dict.fromkeys(_DERIVED)})
    return rows


def training_rows(seconds: Mapping[Key, Seconds], batch_size: int, facts: Facts) -> list[dict[str, Any]]:
    """The report's rows of training steps: masked, and packed over masked."""
    rows = []
    for key, values in seconds.items():
        row = _row("training", key.engine, TRAINING[key.engine], key.dtype, batch_size, True, values, facts)
        over = Key("train_masked", key.dtype)
        rows.append({**row, **dict.fromkeys(_DERIVED), "speedup": _speedup(over, seconds, values)})
    return rows


#: Keys of a row that only an engine's inference has; None elsewhere.
_DERIVED = ("speedup", "flops_ratio", "efficiency", "limit", "peak_memory_mb", "logits_difference")


def _row(
    kind: str, name: str, title: str, dtype: str, batch_size: int, pruned: bool, seconds: Seconds, facts: Facts
) -> dict[str, Any]:
    per_sequence = Spread.of([1000 * value / facts.sequences for value in seconds])
    return {
        "kind": kind,
        "engine": name,
        "title": title,
        "dtype": dtype,
        "batch_size": batch_size,
        "pruned": pruned,
        "milliseconds_per_sequence": per_sequence.as_dict(),
        "sequences_per_second": 1000 / per_sequence.median,
    }


def _speedup(over: Key | None, seconds: Mapping[Any, Seconds], own: Seconds) -> dict[str, Any] | None:
    if over is None:
        return None
    return {"over": f"{over.engine} {over.dtype}", **ratio(seconds[over], own).as_dict()}

"""The rows of the benchmark's report, computed from the measured seconds, and the definitions of their numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ltp.benchmark import products
from ltp.benchmark.engines import ALLOWED, ENGINES
from ltp.benchmark.training import TRAINING
from ltp.deploy.timing import Spread, ratio
from ltp.pruning import flops

DEFINITIONS = {
    "milliseconds_per_sequence": "time (by plan.clock) of a pass ÷ sequences; median, min and max of the rounds",
    "sequences_per_second": "1000 ÷ the median of milliseconds_per_sequence",
    "speedup": "seconds of `over` ÷ seconds of the engine, in the same round; median, min and max of the rounds. "
    "`over` is the baseline in the same type (int8: in float32); for training steps, the masked ones",
    "relative_flops": flops.DEFINITION,
    "flops_ratio": "dense FLOPs ÷ the engine's FLOPs: 1 ÷ relative_flops if it prunes, otherwise 1",
    "efficiency": "speed-up over the same engine without pruning ÷ flops_ratio: 1 where time falls as FLOPs do",
    "limit": "seconds of the bare matrix products ÷ seconds of the engine, in the same round: " + products.DEFINITION,
    "peak_memory_mb": "MiB that a pass needs beyond what is allocated before it (weights); CPU: growth of the "
    "resident set",
    "score": "the task's main metric (`metric`) on these sequences; null without labels",
    "logits_difference": "float32: largest difference from the reference ÷ its largest logit or 1, if that is larger; "
    "other types: root mean square of the differences ÷ that of the reference. Reference, in float32: Hugging Face "
    "eager, or masked execution for engines that prune",
    "allowed_logits_difference": ", ".join(f"{dtype} {allowed:g}" for dtype, allowed in ALLOWED.items()),
}


Seconds = Sequence[float]  #: of one engine, one value per round


@dataclass(frozen=True, order=True)
class Key:
    """An engine in a type, which is timed."""

    engine: str
    dtype: str

    def __str__(self) -> str:
        return f"{ENGINES[self.engine].title}, {self.dtype}"


@dataclass(frozen=True, order=True)
class Limit:
    """The bare matrix products, pruned or dense, which are timed together with the engines."""

    backend: str
    dtype: str
    pruned: bool

    @property
    def title(self) -> str:
        """Its name in tables."""
        return f"bare products, {self.backend}, {'pruned' if self.pruned else 'dense'}"

    def __str__(self) -> str:
        return f"{self.title}, {self.dtype}"


@dataclass(frozen=True)
class Check:
    """Result of the warm-up pass: the difference from the reference, the peak memory in MiB, and the task's metric."""

    logits_difference: float
    peak_memory: float | None
    score: float | None = None


@dataclass(frozen=True)
class Facts:
    """Values that all rows of a report share.

    Attributes:
        sequences: the number of sequences in a pass.
        relative_flops: of the pruned model on these sequences.
        baseline: the engine that speed-ups are computed against.
    """

    sequences: int
    relative_flops: float
    baseline: str


def limit_of(key: Key) -> Limit | None:
    """The limit of an engine, or None if it has none."""
    engine = ENGINES[key.engine]
    return Limit(engine.backend, key.dtype, engine.pruned) if engine.backend else None


def inference_rows(
    seconds: Mapping[Key | Limit, Seconds], checks: Mapping[Key, Check], batch_size: int, facts: Facts
) -> list[dict[str, Any]]:
    """The report's rows for one batch size: first the engines, then their limits.

    Args:
        seconds: seconds per pass in each round, of all engines and limits.
        checks: the result of each engine's warm-up pass.
        batch_size: the batch size of the rows.
        facts: values that all rows share.
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
        products_seconds = seconds.get(limit) if limit else None
        row["limit"] = ratio(products_seconds, seconds[key]).median if products_seconds else None
        row["peak_memory_mb"] = checks[key].peak_memory
        row["score"] = checks[key].score
        row["logits_difference"] = checks[key].logits_difference
        rows.append(row)
    for limit in (key for key in seconds if isinstance(key, Limit)):
        name = f"products_{limit.backend}_{'pruned' if limit.pruned else 'dense'}"
        row = _row("products", name, limit.title, limit.dtype, batch_size, limit.pruned, seconds[limit], facts)
        rows.append({**row, **dict.fromkeys(_DERIVED)})
    return rows


def training_rows(seconds: Mapping[Key, Seconds], batch_size: int, facts: Facts) -> list[dict[str, Any]]:
    """The report's rows of training steps; speed-ups are over the masked steps."""
    rows = []
    for key, values in seconds.items():
        row = _row("training", key.engine, TRAINING[key.engine], key.dtype, batch_size, True, values, facts)
        over = Key("train_masked", key.dtype)
        rows.append({**row, **dict.fromkeys(_DERIVED), "speedup": _speedup(over, seconds, values)})
    return rows


#: Keys that are None in rows of other kinds than inference.
_DERIVED = ("speedup", "flops_ratio", "efficiency", "limit", "peak_memory_mb", "score", "logits_difference")


def _row(
    kind: str, name: str, title: str, dtype: str, batch_size: int, pruned: bool, seconds: Seconds, facts: Facts
) -> dict[str, Any]:
    per_sequence = Spread.from_values([1000 * value / facts.sequences for value in seconds])
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


def _speedup(over: Key | None, seconds: Mapping[Any, Seconds], measured: Seconds) -> dict[str, Any] | None:
    if over is None:
        return None
    return {"over": f"{over.engine} {over.dtype}", **ratio(seconds[over], measured).as_dict()}

"""Interleaved rounds and what they say: seconds of each engine, their medians and spread, and memory."""

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

Name = TypeVar("Name")
Pass = Callable[[], Any]  #: one engine going through all batches once

#: What a round is timed with. Processor time leaves out what other processes took; it adds up threads.
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass(frozen=True)
class Spread:
    """A median and how far single rounds were from it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Median, smallest and largest of some values, at least one."""
        return cls(statistics.median(values), min(values), max(values))

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"median": self.median, "min": self.low, "max": self.high}


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Ratios of two engines' seconds, round by round: what slows a whole round down cancels."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])


def interleaved(
    passes: Mapping[Name, Pass],
    rounds: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    synchronise: Callable[[], None] = lambda: None,
    after: Callable[[Name], None] = lambda name: None,
) -> dict[Name, list[float]]:
    """Time every engine once a round, so that all of them meet the same moods of the machine.

    Args:
        passes: what is timed, by name; warmed up already.
        rounds: how often each is timed. Every other round goes backwards, so that no one always follows the same.
        clock: seconds.
        synchronise: waits for the device, before and after what is timed.
        after: called with the name after each pass.

    Returns:
        Seconds by name, one a round.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in passes}
    for number in range(rounds):
        names = list(passes) if number % 2 == 0 else list(passes)[::-1]
        for name in names:
            synchronise()
            started = clock()
            passes[name]()
            synchronise()
            seconds[name].append(clock() - started)
            after(name)
    return seconds


def peak_memory(run: Pass, device: torch.device) -> float | None:
    """Memory that a pass needs beyond what stands before it (the weights), in MiB.

    On a GPU the allocator's count; on Linux the growth of the process's resident set, whose peak is reset first
    (memory that the allocator holds ready is given back before, where the C library can). None elsewhere.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        resident = _resident("VmRSS")
        run()
        return max(_resident("VmHWM") - resident, 0.0)
    except (OSError, AttributeError, KeyError):
        run()
        return None


def _resident(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields[key].split()[0]) / 1024

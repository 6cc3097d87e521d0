"""Interleaved timing rounds, medians and spreads of their seconds, and peak memory."""

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

Name = TypeVar("Name")
Pass = Callable[[], Any]  #: runs one engine on all batches once

#: Clocks by name. Processor time excludes other processes, and adds up all threads of this one.
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest value of the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def from_values(cls, values: Sequence[float]) -> "Spread":
        """Median, smallest and largest of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def as_dict(self) -> dict[str, float]:
        """The spread as JSON writes it."""
        return {"median": self.median, "min": self.low, "max": self.high}


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Ratios of two engines' seconds, round by round, so that what slows down a whole round cancels."""
    return Spread.from_values([a / b for a, b in zip(numerators, denominators, strict=True)])


def interleaved(
    passes: Mapping[Name, Pass],
    rounds: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    synchronise: Callable[[], None] = lambda: None,
    after: Callable[[Name], None] = lambda name: None,
) -> dict[Name, list[float]]:
    """Time every engine once per round, so that changes of the machine's load affect all of them alike.

    Args:
        passes: the passes to time, by name; already warmed up.
        rounds: how often each is timed. Every other round runs in reverse order, so that an engine does not always
            follow the same one.
        clock: returns the time in seconds.
        synchronise: waits for the device; called before and after each timed pass.
        after: called with the name after each pass.

    Returns:
        Seconds by name, one value per round.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in passes}
    for index in range(rounds):
        names = list(passes) if index % 2 == 0 else list(passes)[::-1]
        for name in names:
            synchronise()
            start = clock()
            passes[name]()
            synchronise()
            seconds[name].append(clock() - start)
            after(name)
    return seconds


def peak_memory(run: Pass, device: torch.device) -> float | None:
    """Memory that a pass needs beyond what is allocated before it (the weights), in MiB.

    On a GPU, the allocator's peak. On a CPU under Linux, the growth of the process's resident set: free memory is
    first returned to the system (``malloc_trim``, if the C library has it) and the peak is reset. None elsewhere.
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
    """A field of ``/proc/self/status`` in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields[key].split()[0]) / 1024

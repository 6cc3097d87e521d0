"""What is known of a sweep while it runs: how many jobs are done, which ones failed, how long the rest may take.

Jobs may run in several processes and on several machines, so a file holds it: one JSON object a line.
"""

import json
import logging
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from ltp.errors import RunError, TerminatedError, UserError

log = logging.getLogger("ltp")

#: Where the jobs of a sweep, whatever process they run in, find its record.
_RECORD = "LTP_SWEEP"
DONE, SKIPPED, FAILED = "done", "skipped", "failed"


@dataclass(frozen=True)
class Job:
    """How a job of a sweep ended.

    Attributes:
        overrides: its command line.
        status: ``done``, ``skipped`` (finished before) or ``failed``.
        directory: its run directory; None where the command line is wrong.
        message: of a failure.
        exit_code: of a failure: 2 for bad input.
    """

    overrides: str
    status: str
    directory: str | None = None
    message: str | None = None
    exit_code: int = 0


class SweepRecord:
    """A sweep's file.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def start(cls, folder: Path, total: int | None) -> "SweepRecord":
        """Begin a record that the processes started from here on find with :meth:`current`.

        Args:
            folder: where the file goes.
            total: jobs of the sweep; None where they are not known beforehand.
        """
        folder.mkdir(parents=True, exist_ok=True)
        record = cls(folder / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}_{os.getpid()}.jsonl")
        record._append({"total": total, "started": time.time(), "process": os.getpid()})
        os.environ[_RECORD] = str(record.path)
        return record

    @classmethod
    def current(cls) -> "SweepRecord | None":
        """The record of the sweep that this process belongs to."""
        return cls(Path(os.environ[_RECORD])) if _RECORD in os.environ else None

    @staticmethod
    def forget() -> None:
        """Begin a command: a record found from now on is its own."""
        os.environ.pop(_RECORD, None)

    @property
    def is_sweep_process(self) -> bool:
        """Whether this process is the one that started the sweep, rather than a launcher's worker."""
        return self._read()[0]["process"] == os.getpid()

    def add(self, job: Job) -> None:
        """Note a job's end, and tell how far the sweep is."""
        self._append(asdict(job))
        if job.status == FAILED:
            log.error("job failed: %s\n  %s", job.overrides, job.message)
        log.info(self.progress())

    def progress(self) -> str:
        """``sweep: 3 of 12 jobs done, 1 failed, 8 left, about 14 min``."""
        head, jobs = self._read()
        counts = Counter(job.status for job in jobs)
        total = head["total"]
        left = None if total is None else max(0, total - len(jobs))
        parts = [f"{counts[DONE] + counts[SKIPPED]}{'' if total is None else f' of {total}'} jobs done"]
        if counts[SKIPPED]:
            parts[0] += f" ({counts[SKIPPED]} of them before)"
        if counts[FAILED]:
            parts.append(f"{counts[FAILED]} failed")
        if left:
            parts.append(f"{left} left")
            if worked := counts[DONE] + counts[FAILED]:  # those that were skipped took no time
                parts.append(f"about {_duration((time.time() - head['started']) / worked * left)}")
        return f"sweep: {', '.join(parts)}"

    def check(self) -> None:
        """Check that no job failed.

        Raises:
            RunError: some did: the list, each with its run directory and message (UserError where each is bad input).
        """
        jobs = self._read()[1]
        failed = [job for job in jobs if job.status == FAILED]
        if not failed:
            return
        lines = [f"{len(failed)} of {len(jobs)} jobs of the sweep failed:"]
        for job in failed:
            lines += [f"  {job.overrides}"]
            lines += [f"    {line}" for line in (job.directory, *(job.message or "").splitlines()) if line]
        lines += ["The same command again runs what is missing."]
        bad_input = all(job.exit_code == UserError.exit_code for job in failed)
        raise (UserError if bad_input else RunError)("\n".join(lines))

    def _append(self, line: dict[str, Any]) -> None:
        with FileLock(self.path.with_name(".lock")), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _read(self) -> tuple[dict[str, Any], list[Job]]:
        with FileLock(self.path.with_name(".lock")):
            head, *jobs = map(json.loads, self.path.read_text(encoding="utf-8").splitlines())
        return head, [Job(**job) for job in jobs]


class SweepCallback(Callback):
    """What comes before a sweep's first job. Named in ``conf/train.yaml``."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Begin the record, and let SIGTERM end the sweep as Ctrl-C does: launchers then end their workers."""

        def end(number: int, frame: Any) -> None:
            raise TerminatedError

        signal.signal(signal.SIGTERM, end)
        total = number_of_jobs(config.hydra.sweeper, config.hydra.overrides.task)
        SweepRecord.start(Path(config.hydra.sweep.dir), total)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Tell how it ended, where the jobs told it elsewhere."""
        record = SweepRecord.current()
        if record is not None and not str(config.hydra.launcher._target_).endswith("BasicLauncher"):
            log.info(record.progress())


def number_of_jobs(sweeper: Mapping[str, Any], overrides: Sequence[str]) -> int | None:
    """How many jobs a sweep has.

    Args:
        sweeper: Hydra's node ``hydra.sweeper``.
        overrides: the command line.

    Returns:
        Trials of a sweeper that chooses them, the size of the grid for Hydra's own, None for others.
    """
    if sweeper.get("n_trials") is not None:
        return int(sweeper["n_trials"])
    if not str(sweeper["_target_"]).endswith("BasicSweeper"):
        return None
    lines = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    choices = {  # of two for one key the later counts: the command line's, over the sweep option's
        override.get_key_element(): len(list(override.sweep_iterator())) if override.is_sweep_override() else 1
        for override in OverridesParser.create().parse_overrides([*lines, *overrides])
    }
    return math.prod(choices.values())


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{max(1, round(seconds))} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"

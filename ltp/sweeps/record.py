"""Progress of a sweep: completed and failed jobs, and the estimated remaining time.

Jobs may run in several processes and on several machines, so the record is a file: one JSON object per line.
"""

import json
import logging
import os
import time
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from ltp.errors import RunError, UserError

log = logging.getLogger("ltp")

#: Environment variable with the path of the record, for the jobs of a sweep in other processes.
_RECORD = "LTP_SWEEP"
DONE, SKIPPED, FAILED = "done", "skipped", "failed"


@dataclass(frozen=True)
class Job:
    """Outcome of a job of a sweep.

    Attributes:
        overrides: command line of the job.
        status: ``done``, ``skipped`` (already finished) or ``failed``.
        directory: its run directory; None if the command line is invalid.
        message: error message of a failed job.
        exit_code: exit code of a failed job; 2 for bad input.
    """

    overrides: str
    status: str
    directory: str | None = None
    message: str | None = None
    exit_code: int = 0


class SweepRecord:
    """Record of a sweep in a file.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def start(cls, folder: Path, total: int | None) -> "SweepRecord":
        """Create a record; this process, and those it starts later, find it with :meth:`current`.

        Args:
            folder: folder of the file.
            total: number of jobs of the sweep; None if unknown in advance.
        """
        folder.mkdir(parents=True, exist_ok=True)
        record = cls(folder / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}_{os.getpid()}.jsonl")
        record._append({"total": total, "started": time.time(), "process": os.getpid()})
        os.environ[_RECORD] = str(record.path)
        return record

    @classmethod
    def current(cls) -> "SweepRecord | None":
        """Return the record of the sweep that this process belongs to; None outside a sweep."""
        return cls(Path(os.environ[_RECORD])) if _RECORD in os.environ else None

    @staticmethod
    def forget() -> None:
        """Forget the current record, so that a new command does not use that of an earlier one."""
        os.environ.pop(_RECORD, None)

    @property
    def is_sweep_process(self) -> bool:
        """Whether this process started the sweep, rather than being a launcher's worker."""
        return self._read()[0]["process"] == os.getpid()

    def add(self, job: Job) -> None:
        """Record a job's outcome, and log the progress."""
        self._append(asdict(job))
        if job.status == FAILED:
            log.error("job failed: %s\n  %s", job.overrides, job.message)
        log.info(self.progress())

    def progress(self) -> str:
        """Return the progress: ``sweep: 3 of 12 jobs done, 1 failed, 8 left, about 14 min``."""
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
            if executed := counts[DONE] + counts[FAILED]:  # skipped jobs took no time
                parts.append(f"about {_format_duration((time.time() - head['started']) / executed * left)}")
        return f"sweep: {', '.join(parts)}"

    def check(self) -> None:
        """Check that no job failed.

        Raises:
            RunError: jobs failed; lists each with run directory and message. UserError if all have bad input.
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


def _format_duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{max(1, round(seconds))} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"

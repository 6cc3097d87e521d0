"""Load on a server of ``ltp.serve``: requests a second, latencies, what was refused, and the server's memory.

    python scripts/load.py [--port 8000] [--connections 32] [--seconds 20] [--texts 1] [--pid PID]

Each connection sends its next request when the last one is answered. The texts are the demo's; ``--texts`` joins some
to a longer one. ``--pid`` is the server's main process, whose memory is read with that of its children.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import time
from collections import Counter
from pathlib import Path

from ltp.data.demo import demo_rows


async def send(port: int, bodies: "itertools.cycle[bytes]", until: float, answers: list[tuple[str, float]]) -> None:
    """Send requests over one connection, one after the other; append the status and the seconds of each answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < until:
        body = next(bodies)
        start = time.perf_counter()
        writer.write(b"POST /predict HTTP/1.1\r\nHost: load\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
            await reader.readexactly(int(headers["content-length"]))
        except (asyncio.IncompleteReadError, ConnectionError):
            answers.append(("lost", 0.0))
            return
        status = head.split()[1]
        answers.append((status, time.perf_counter() - start))
        if status == "429":  # as a client should, though sooner than the second of Retry-After
            await asyncio.sleep(0.05)
    writer.close()


def memory(pid: int) -> float:
    """Return the memory of a process and its children in MB; what they share counts once."""
    children = [child for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]
    shares = [Path(f"/proc/{one}/smaps_rollup").read_text() for one in [str(pid), *children]]
    return sum(int(line.split()[1]) for text in shares for line in text.splitlines() if line.startswith("Pss:")) / 1024


async def load(port: int, connections: int, seconds: float, texts: int, pid: int | None) -> None:
    """Run the load, and print what came of it."""
    sentences = [row["sentence"] for row in demo_rows("validation")]
    joined = [" ".join(sentences[start : start + texts]) for start in range(0, len(sentences), texts)]
    bodies = itertools.cycle([json.dumps({"text": text}).encode() for text in joined])
    answers: list[tuple[str, float]] = []
    before = memory(pid) if pid else 0.0
    start = time.perf_counter()
    await asyncio.gather(*(send(port, bodies, start + seconds, answers) for _ in range(connections)))
    taken = time.perf_counter() - start
    good = [duration * 1000 for status, duration in answers if status == "200"]
    cuts = statistics.quantiles(good, n=100)
    print(
        f"{connections} connections, {taken:.0f} s: {len(good) / taken:.1f} requests/s, p50 {cuts[49]:.0f} ms, "
        f"p99 {cuts[98]:.0f} ms, {dict(Counter(status for status, _ in answers))}"
        + (f", memory {before:.0f} MB before, {memory(pid):.0f} MB after" if pid else "")
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--texts", type=int, default=1)
    parser.add_argument("--pid", type=int)
    options = parser.parse_args()
    asyncio.run(load(options.port, options.connections, options.seconds, options.texts, options.pid))

"""Metrics in Prometheus' text format.

The processes of a server share them by files in ``PROMETHEUS_MULTIPROC_DIR``, which is set before this is imported.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

REQUESTS = Counter("ltp_requests", "Answered requests, by HTTP status.", ["status"])
REQUEST_SECONDS = Histogram("ltp_request_seconds", "Seconds from a request to its answer.", buckets=_SECONDS)
REQUESTS_IN_FLIGHT = Gauge("ltp_requests_in_flight", "Requests without an answer yet.", multiprocess_mode="livesum")
BATCH_TEXTS = Histogram("ltp_batch_texts", "Texts computed together.", buckets=[2**power for power in range(11)])
BATCH_SECONDS = Histogram("ltp_batch_seconds", "Seconds to compute a batch.", buckets=_SECONDS)
RELATIVE_FLOPS = Histogram(
    "ltp_relative_flops",
    "FLOPs of a text relative to those of the dense model.",
    buckets=[tenth / 10 for tenth in range(1, 11)],
)
TRUNCATED = Counter("ltp_truncated_texts", "Texts of which only the beginning was read.")


def exposition() -> bytes:
    """Return the metrics of all processes of the server."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return generate_latest(registry)

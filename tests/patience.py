"""Time limits that grow with the machine's load: a test fails for what it tests, not for what else runs beside it."""

import os
import time


def slowness():
    """How many times slower than a quiet machine this one may be: at least 1.

    ``LTP_TEST_PATIENCE=10`` says so for a slow one; work that waits for its turn counts by itself.
    """
    return float(os.environ.get("LTP_TEST_PATIENCE", 1)) * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def limit(seconds):
    """A time limit, given for a quiet machine with room for a tenfold slower one, as it is here and now."""
    return seconds * slowness()


def wait_until(condition, seconds=120, *, poll=0.05, what="in vain"):
    """Wait until a condition holds; the limit follows the load while it waits."""
    began = time.monotonic()
    while not (held := condition()):
        assert time.monotonic() - began < limit(seconds), what
        time.sleep(poll)
    return held

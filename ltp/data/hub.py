"""Detect an unreachable Hugging Face hub early, and fall back to cached files or a clear error.

By default, the hub's clients retry for about 23 seconds for every file before they fail.
"""

from __future__ import annotations

import functools
import logging
import os
import pickle
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ltp.errors import UserError

PROBE_SECONDS = 3.0

log = logging.getLogger(__name__)


def go_offline() -> None:
    """Make huggingface_hub, transformers and datasets use cached files only, whether imported yet or not."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # inherited by processes started later: ranks and jobs of this run
    flags = (  # these modules read the environment at import
        ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
        ("datasets.config", "HF_HUB_OFFLINE"),
        ("datasets.config", "HF_DATASETS_OFFLINE"),
    )
    for module, flag in flags:
        if module in sys.modules:
            setattr(sys.modules[module], flag, True)


@functools.cache
def hub_in_reach() -> bool:
    """Return whether the hub responds; checked once per process. If it does not, the process goes offline.

    The request uses the hub's own client, so HF_ENDPOINT, HF_HUB_OFFLINE and the proxy variables apply.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():
        go_offline()
        return False
    responses: list[bool] = []
    # a thread, because a DNS lookup can exceed every timeout of the client
    probe = threading.Thread(target=lambda: responses.append(_hub_responds()), daemon=True)
    probe.start()
    probe.join(PROBE_SECONDS)
    if responses == [True]:
        return True
    log.warning("The Hugging Face hub is out of reach: using cached files only.")
    go_offline()
    return False


@contextmanager
def loading_from_hub(resource: str, remedy: str, *, source: str | Path | None = None) -> Iterator[None]:
    """Context manager for a load that may need the hub: checks reachability, and converts failures to UserError.

    Args:
        resource: The resource being loaded, for the message: "the model bert-base-uncased".
        remedy: Remedy in full sentences: "Connect, or give model.name_or_path=DIR.".
        source: The argument of the loader. If it is a local directory, the hub is not contacted.

    Raises:
        UserError: The load failed: the hub is out of reach and the resource is not cached, the hub has no such
            resource, or its files are invalid.
    """
    local = source is not None and Path(source).is_dir()
    in_reach = local or hub_in_reach()
    try:
        yield
    except UserError:
        raise
    except _loading_errors() as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"Cannot load {resource}: it brings Python code of its own, which ltp never runs. {remedy}"
            ) from error
        if in_reach or not isinstance(error, OSError | ValueError):
            reason = " ".join(str(error).split()).rstrip(".")
            if not isinstance(error, OSError | ValueError | RuntimeError):
                reason = f"its files are damaged ({type(error).__name__}: {reason})"
            raise UserError(f"Cannot load {resource}: {reason}. {remedy}") from error
        raise UserError(
            f"Cannot load {resource}: the Hugging Face hub is out of reach (or HF_HUB_OFFLINE is set)"
            f" and the cache does not hold it. {remedy}"
        ) from error


def _loading_errors() -> tuple[type[Exception], ...]:
    """Return the base classes of what the hub's clients raise, and of what damaged files cause."""
    from safetensors import SafetensorError

    of_weights = (RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError)
    return (OSError, ValueError, *of_weights, KeyError, TypeError, AttributeError, IndexError, RecursionError)


def _hub_responds() -> bool:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        status: int = get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS).status_code
    except Exception:  # any failure means that the hub is out of reach
        return False
    return status < 500  # gateways return 502 to 504 for a host that they cannot reach

"""What happens when the Hugging Face hub is out of reach: a quick look, then cached files or a clear error.

Left alone, the hub's clients try again for some 23 seconds for every name before they give up.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ltp.errors import UserError

PROBE_SECONDS = 3.0

log = logging.getLogger(__name__)


def go_offline() -> None:
    """Make huggingface_hub, transformers and datasets use cached files only, imported already or not."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # also for processes started later: the ranks and jobs of this run
    flags = {"huggingface_hub.constants": ("HF_HUB_OFFLINE",), "datasets.config": ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")}
    for module_name, names in flags.items():
        module = sys.modules.get(module_name)
        for name in names:
            if module is not None:
                setattr(module, name, True)


@functools.cache
def hub_in_reach() -> bool:
    """Whether the hub answers; asked once per process. If it does not, the process goes offline.

    HF_ENDPOINT, HF_HUB_OFFLINE and the proxy variables are honoured: the hub's own client asks.
    """
    if _is_offline():
        go_offline()
        return False
    answered = threading.Event()

    def probe() -> None:
        if _answers():
            answered.set()
        finished.set()

    # A thread, because looking a host's name up can take longer than any timeout of the client.
    finished = threading.Event()
    threading.Thread(target=probe, daemon=True).start()
    finished.wait(PROBE_SECONDS)
    if not answered.is_set():
        log.warning("The Hugging Face hub is out of reach: using cached files only.")
        go_offline()
    return answered.is_set()


@contextmanager
def loading_from_hub(what: str, remedy: str) -> Iterator[None]:
    """Wrap a load that may need the hub: probes first, and turns a failure into one clear message.

    Args:
        what: What is loaded, for the message: "the model bert-base-uncased".
        remedy: What to do instead, as whole sentences: "Give a directory with model.name_or_path=DIR.".

    Raises:
        UserError: The load failed, because the hub is out of reach and `what` not in the cache, or because
            the hub has nothing of that name.
    """
    in_reach = hub_in_reach()
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as error:  # the clients raise subclasses of these, DatasetNotFoundError too
        if in_reach:
            reason = " ".join(str(error).split())
            raise UserError(f"Cannot load {what}: {reason} {remedy}") from error
        raise UserError(
            f"Cannot load {what}: the Hugging Face hub is out of reach and the cache does not hold it. "
            f"Connect to the network, or: {remedy}"
        ) from error


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _answers() -> bool:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        status: int = get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS).status_code
    except Exception:  # whatever it is, the hub did not answer
        return False
    return status < 500  # a gateway answers 502 to 504 on behalf of a host that it cannot reach

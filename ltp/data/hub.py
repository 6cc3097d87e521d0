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
from pathlib import Path

from ltp.errors import UserError

PROBE_SECONDS = 3.0

log = logging.getLogger(__name__)


def go_offline() -> None:
    """Make huggingface_hub, transformers and datasets use cached files only, imported already or not."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # also for processes started later: the ranks and jobs of this run
    flags = (  # as read from the environment when these modules were imported
        ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
        ("datasets.config", "HF_HUB_OFFLINE"),
        ("datasets.config", "HF_DATASETS_OFFLINE"),
    )
    for module, flag in flags:
        if module in sys.modules:
            setattr(sys.modules[module], flag, True)


@functools.cache
def hub_in_reach() -> bool:
    """Whether the hub answers; asked once per process. If it does not, the process goes offline.

    HF_ENDPOINT, HF_HUB_OFFLINE and the proxy variables are honoured: the hub's own client asks.
    """
    if _is_offline():
        go_offline()
        return False
    answers: list[bool] = []
    # A thread, because looking a host's name up can take longer than any timeout of the client.
    probe = threading.Thread(target=lambda: answers.append(_answers()), daemon=True)
    probe.start()
    probe.join(PROBE_SECONDS)
    if answers == [True]:
        return True
    log.warning("The Hugging Face hub is out of reach: using cached files only.")
    go_offline()
    return False


@contextmanager
def loading_from_hub(what: str, remedy: str, *, source: str | Path | None = None) -> Iterator[None]:
    """Wrap a load that may need the hub: probes first, and turns a failure into one clear message.

    Args:
        what: What is loaded, for the message: "the model bert-base-uncased".
        remedy: What to do instead, in sentences: "Connect, or give model.name_or_path=DIR.".
        source: What is passed to the loader. Where it is a local directory, the hub is left alone.

    Raises:
        UserError: The load failed: the hub is out of reach and the cache does not hold it, or has nothing
            of that name, or the files are not what they should be.
    """
    local = source is not None and Path(source).is_dir()
    in_reach = local or hub_in_reach()
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as error:  # what the clients raise derives from these
        if in_reach:
            reason = " ".join(str(error).split()).rstrip(".")
            raise UserError(f"Cannot load {what}: {reason}. {remedy}") from error
        raise UserError(
            f"Cannot load {what}: the Hugging Face hub is out of reach (or HF_HUB_OFFLINE is set)"
            f" and the cache does not hold it. {remedy}"
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

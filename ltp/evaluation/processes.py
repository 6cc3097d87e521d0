"""Processes that share a prediction, on devices and nodes: started, placed and connected by Lightning."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from lightning_fabric.utilities.exceptions import MisconfigurationException

from ltp.errors import UserError, format_value


def build_fabric(device: str, devices: Any, num_nodes: int) -> Fabric:
    """Build what starts the processes, and gives each its device; a single one needs no start.

    Args:
        device: ``cpu`` or ``cuda``.
        devices: of a node, as Lightning's Trainer takes them.
        num_nodes: number of nodes.

    Raises:
        UserError: there are no such devices.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric.strategies.launchers").setLevel(logging.INFO)  # that a process has ended
    warnings.filterwarnings("ignore", message=".*srun. command is available.*")
    # gloo, on GPUs too: the processes share nothing but the work, once at the beginning
    strategy: Any = "auto" if devices == num_nodes == 1 else DDPStrategy(process_group_backend="gloo")
    with _reporting_errors(f"trainer.devices={format_value(devices)} on device={device}"):
        return Fabric(accelerator=device, devices=devices, num_nodes=num_nodes, strategy=strategy)


def launch(fabric: Fabric, shared: Any) -> Any:
    """Start the other processes, and return in each of them what the first one gives.

    Raises:
        UserError: a launcher such as torchrun or SLURM started another number of processes.
    """
    with _reporting_errors("trainer.devices and trainer.num_nodes"):
        fabric.launch()
    return fabric.broadcast(shared)


@contextlib.contextmanager
def _reporting_errors(keys: str) -> Iterator[None]:
    try:
        yield
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise UserError(f"{keys}: {' '.join(str(error).split())}") from error

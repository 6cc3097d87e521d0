"""PyTorch for the methods' files, imported when it is first used.

The command line reads the settings of every method for its schema. It starts in a second because that needs no PyTorch.
A method from outside the package may import PyTorch as usual.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
else:

    class _LazyModule:
        """Stands for a module, and imports it when an attribute is read."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            return getattr(importlib.import_module(self._name), attribute)

    torch = _LazyModule("torch")

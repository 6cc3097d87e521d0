"""Token pruning for transformer encoders: train, compare and deploy token-pruned models.

The public names are imported on first use, because PyTorch and transformers take seconds to import.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ltp.model import MODEL_CLASSES
from ltp.model.registration import register_auto_classes

if TYPE_CHECKING:
    from ltp.calibration.texts import calibrate
    from ltp.execution.output import LTPOutput
    from ltp.model.bare import LTPModel
    from ltp.model.classifier import LTPForSequenceClassification
    from ltp.model.configuration import LTPConfig
    from ltp.model.prune import prune
    from ltp.model.question_answering import LTPForQuestionAnswering
    from ltp.model.token_classifier import LTPForTokenClassification

__version__ = "0.1.0"
__all__ = [
    "LTPConfig",
    "LTPForQuestionAnswering",
    "LTPForSequenceClassification",
    "LTPForTokenClassification",
    "LTPModel",
    "LTPOutput",
    "__version__",
    "calibrate",
    "prune",
]

_MODULES = {
    "LTPConfig": "ltp.model.configuration",
    "LTPOutput": "ltp.execution.output",
    "prune": "ltp.model.prune",
    **{name: f"ltp.model.{module}" for name, (module, _) in MODEL_CLASSES.items()},
}


def __getattr__(name: str) -> Any:
    if name == "calibrate":  # the command's module, which can be called: importing it takes this name anyway
        return importlib.import_module("ltp.calibrate")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_auto_classes()

"""The formats of exported graphs. Imports none of their packages."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:  # torch takes seconds to import; mistakes are reported before that
    from ltp.data.sequences import Batch
    from ltp.deploy.onnx import Infer


class Runtime(Protocol):
    """What the module of a format defines."""

    def convert(self, traced: Path, target: Path, dtype: str, examples: Sequence["Batch"]) -> None:
        """Write an ONNX graph in the format, in float32 or int8; see :func:`ltp.deploy.openvino.convert`."""

    def load(self, path: Path) -> "Infer":
        """Load a graph on the CPU as a function of a batch, with PyTorch's current number of threads."""


@dataclass(frozen=True)
class GraphFormat:
    """A format of exported graphs.

    Attributes:
        title: its name in messages.
        file: name of the file, where Hugging Face's optimum looks for it.
        extra: the extra that installs its packages, a key of :data:`ltp.deploy.requirements.PACKAGES`.
        module: what writes and loads it, a :class:`Runtime`.
    """

    title: str
    file: str
    extra: str
    module: str

    @property
    def runtime(self) -> Runtime:
        """The module; its packages must be installed."""
        return cast(Runtime, importlib.import_module(self.module))


#: The formats by their name in ``format=``.
GRAPHS = {
    "onnx": GraphFormat("ONNX", "model.onnx", "onnx", "ltp.deploy.onnx"),
    "openvino": GraphFormat("OpenVINO", "openvino_model.xml", "openvino", "ltp.deploy.openvino"),
}
#: Largest error of the logits in int8: root mean square of the differences over that of the model's.
MOST_ERROR = 0.3
#: The types of graphs.
DTYPES = ("float32", "int8")

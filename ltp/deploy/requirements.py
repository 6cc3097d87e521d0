"""Packages that some forms of deployment need. Imports none of them."""

from importlib.util import find_spec


def missing_onnx_packages() -> list[str]:
    """Packages that exporting and running an ONNX graph need and that are not installed."""
    return [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]

"""Packages that some forms of deployment need. Imports none of them."""

import importlib.util


def missing_onnx_packages() -> list[str]:
    """Packages that exporting and running an ONNX graph need and that are not installed."""
    return [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]

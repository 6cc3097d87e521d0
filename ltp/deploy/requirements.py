"""Packages that some forms of deployment need. Imports none of them."""

import importlib.util

#: The packages of each form, which the extra of its name installs.
PACKAGES = {
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "openvino": ("onnx", "onnxscript", "openvino", "nncf"),
}


def missing_packages(extra: str) -> list[str]:
    """Return the packages of an extra of :data:`PACKAGES` that are not installed."""
    return [name for name in PACKAGES[extra] if importlib.util.find_spec(name) is None]

"""The source of the model as flat files, which ``trust_remote_code`` loads without ltp.

transformers copies the file that ``auto_map`` in ``config.json`` names, and the files in the same folder that it
imports relatively; it does not support packages. Therefore ``ltp/pruning/method.py`` is written as
``ltp_pruning_method.py``, with relative imports. This avoids a second implementation.
"""

import ast
import importlib
import inspect

import ltp.model
from ltp import LTPConfig, __version__
from ltp.encoders.base import EncoderFamily
from ltp.model import MODEL_CLASSES
from ltp.pruning.method import Method


def flat_name(module: str) -> str:
    """Return the flat name of a module of ltp: ``ltp_pruning_method`` for ``ltp.pruning.method``."""
    return module.replace(".", "_")


def flat_sources(model_class: str, method: type[Method], family: type[EncoderFamily]) -> dict[str, str]:
    """Return the source of the model as flat files.

    Args:
        model_class: name of its class; the other files are the modules that it imports.
        method: the class of its method, whose file goes with it.
        family: the class of its encoder family, whose file goes with it.

    Returns:
        File contents by file name.
    """
    sources: dict[str, str] = {}
    own = (method, family)
    waiting = [_module(model_class), *(part.__module__ for part in own)]
    while waiting:
        module = waiting.pop()
        name = f"{flat_name(module)}.py"
        if name not in sources:
            source = inspect.getsource(importlib.import_module(module))
            waiting += [imported for _, imported in _ltp_imports(source)]
            sources[name] = f"# {module} of ltp {__version__}. SPDX-License-Identifier: Apache-2.0\n{_flatten(source)}"
    for part in own:  # in the first file that is loaded
        registration = f"from .{flat_name(part.__module__)} import {part.__name__}  # noqa: F401 (registers it)\n"
        sources[f"{flat_name(LTPConfig.__module__)}.py"] += f"\n{registration}"
    return sources


def _ltp_imports(source: str) -> list[tuple[int, str]]:
    """Return line number and module of every ``from ltp… import``."""
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom))
    return [(node.lineno, node.module) for node in nodes if node.module and node.module.split(".")[0] == "ltp"]


def _flatten(source: str) -> str:
    lines = source.splitlines(keepends=True)
    for number, module in _ltp_imports(source):
        absolute, relative = f"from {module} import", f"from .{flat_name(module)} import"
        lines[number - 1] = lines[number - 1].replace(absolute, relative)
    return "".join(lines)


def auto_map(model_class: str) -> dict[str, str]:
    """Return ``auto_map`` of ``config.json``: the classes that the Auto classes load from the flat files."""
    return {
        "AutoConfig": f"{flat_name(LTPConfig.__module__)}.LTPConfig",
        MODEL_CLASSES[model_class][1]: f"{flat_name(_module(model_class))}.{model_class}",
    }


def _module(model_class: str) -> str:
    return f"{ltp.model.__name__}.{MODEL_CLASSES[model_class][0]}"

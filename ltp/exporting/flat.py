"""The model's own source as flat files, which ``trust_remote_code`` loads where ltp is not installed.

transformers copies the file that ``auto_map`` in ``config.json`` names, and the files of the same folder that it
imports relatively; packages it does not know. So ``ltp/pruning/base.py`` becomes ``ltp_pruning_base.py``, and its
imports of ltp become relative ones. There is no second implementation to maintain.
"""

import ast
import importlib
import inspect

from ltp import LTPConfig, __version__

#: Where the model is; all else is what this module imports.
ROOT = "ltp.model.classifier"


def flat_name(module: str) -> str:
    """What a module of ltp is called among flat files: ``ltp_pruning_base`` for ``ltp.pruning.base``."""
    return module.replace(".", "_")


def flat_sources() -> dict[str, str]:
    """The model's source, ready to stand beside its weights.

    Returns:
        Texts by the names of the files.
    """
    sources: dict[str, str] = {}
    waiting = [ROOT]
    while waiting:
        module = waiting.pop()
        name = f"{flat_name(module)}.py"
        if name not in sources:
            source = inspect.getsource(importlib.import_module(module))
            waiting += _imported(source)
            sources[name] = f"# {module} of ltp {__version__}. SPDX-License-Identifier: Apache-2.0\n{_flatten(source)}"
    return sources


def _own_imports(source: str) -> list[ast.ImportFrom]:
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom))
    return [node for node in nodes if node.module is not None and node.module.split(".")[0] == "ltp"]


def _imported(source: str) -> list[str]:
    return [node.module for node in _own_imports(source) if node.module is not None]


def _flatten(source: str) -> str:
    lines = source.splitlines(keepends=True)
    for node in _own_imports(source):
        assert node.module is not None
        before, after = f"from {node.module} import", f"from .{flat_name(node.module)} import"
        lines[node.lineno - 1] = lines[node.lineno - 1].replace(before, after)
    return "".join(lines)


def auto_map() -> dict[str, str]:
    """What ``config.json`` says of the flat files."""
    return {
        "AutoConfig": f"{flat_name(LTPConfig.__module__)}.LTPConfig",
        "AutoModelForSequenceClassification": f"{flat_name(ROOT)}.LTPForSequenceClassification",
    }

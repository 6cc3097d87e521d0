"""Registers the pruned models with the Auto classes of transformers, without importing transformers."""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from ltp.model import MODEL_CLASSES, model_class


def register_auto_classes() -> None:
    """Register pruned models with ``AutoConfig`` and the Auto classes of their kinds of output.

    If the modules of the Auto classes are not imported yet, registration happens when they are imported.
    """
    for name, register in _REGISTRATIONS.items():
        if name in sys.modules:
            register()
    if not any(isinstance(finder, _AutoClassFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AutoClassFinder())


def _register_config() -> None:
    from transformers import AutoConfig

    from ltp.model.configuration import LTPConfig

    AutoConfig.register(LTPConfig.model_type, LTPConfig, exist_ok=True)


def _register_models() -> None:
    import transformers

    from ltp.model.configuration import LTPConfig

    for name, (_, auto_class) in MODEL_CLASSES.items():
        getattr(transformers, auto_class).register(LTPConfig, model_class(name), exist_ok=True)


_REGISTRATIONS: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_models,
}


class _AutoClassFinder(MetaPathFinder):
    """Import hook: finds the modules of the Auto classes as Python does, and registers after their import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _REGISTRATIONS:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _REGISTRATIONS[fullname]()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]  # this loader alone is to do more
        return spec

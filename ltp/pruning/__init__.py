"""Token-reduction methods: one file each in ``ltp/pruning/methods/``, and what they share.

This package depends on no model, batch layout or training framework. Layers are numbered 1..L as in the papers.
Masks are boolean, ``True`` for tokens that are alive. Position 0 is the classification token, which is never dropped.

To add a method, write one file; see :mod:`ltp.pruning.method`. A method from outside the package is found by the entry
point ``ltp.methods``, or in a module that is imported before (``plugins=[MODULE]`` on the command line). No file
outside this folder names a method. This package is imported without PyTorch, so that a command can check a method's
settings in milliseconds.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import importlib.metadata
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

from ltp.pruning.method import REGISTERED, UNSET, Method, Variant, setting
from ltp.pruning.ranked import RankedMethod
from ltp.pruning.ranking import keep_highest
from ltp.pruning.scored import ScoredMethod

__all__ = ["Method", "RankedMethod", "ScoredMethod", "Variant", "keep_highest", "setting"]

#: Masking rules of a forward pass. ``hard`` removes tokens. The other two are soft rules for training: every token is
#: kept, and each layer computes a gate m in [0, 1] per token. ``soft``: m multiplies the layer's output (LTP §3.3).
#: ``survival``: w, the product of the gates so far, is the probability that a token is still alive. It weights the
#: token as a key of attention, and as a query in the importance of other tokens. As the temperature goes to 0,
#: ``survival`` converges to ``hard``; ``soft`` does not, because its pruned tokens still attend.
MASKING_MODES = ("hard", "soft", "survival")

#: What a layer with a sliding window decides. ``skip``: nothing. ``scale``: as the others, but attention received is
#: divided by the share of the queries that can see the token, so that scores compare with those of layers without a
#: window.
SLIDING_LAYERS = ("skip", "scale")

#: ``prune_mode`` of the model that keeps every token, and its name in results.
DENSE_MODE, DENSE = "none", "dense"
#: Group of entry points of packages that bring methods: an entry is a module, whose import registers them.
ENTRY_POINTS = "ltp.methods"


class BrokenMethodError(ValueError):
    """A module that should bring a method cannot be used; the message names what is missing."""


@functools.cache
def _load_shipped() -> None:
    if __name__ != "ltp.pruning":  # an exported copy has one method, whose file registers it
        return
    package = importlib.import_module("ltp.pruning.methods")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            _load(entry.value.split(":")[0], f"the entry point {entry.name} of {ENTRY_POINTS}")
        except BrokenMethodError as error:
            _BROKEN.append(error)


#: Errors of entry points: a command stops with the first one, while the library goes on without the method.
_BROKEN: list[BrokenMethodError] = []


def load_modules(names: Iterable[str], others: Iterable[Callable[[ModuleType], bool]] = ()) -> None:
    """Import modules from outside the package, which register methods.

    Args:
        names: the modules.
        others: each says whether a module brings something else than a method, such as an encoder family.

    Raises:
        BrokenMethodError: a module, or that of an entry point, cannot be imported, registers nothing, or its method
            lacks a part.
    """
    _load_shipped()
    for error in _BROKEN:
        raise error
    for name in names:
        _load(name, f"plugins=[{name}]", tuple(others))


def _load(module: str, source: str, others: Sequence[Callable[[ModuleType], bool]] = ()) -> None:
    try:
        imported = importlib.import_module(module)
        brings_other = [brings(imported) for brings in others]
    except Exception as error:
        reason = " ".join(str(error).split())
        raise BrokenMethodError(f"{source}: {module} cannot be imported: {type(error).__name__}: {reason}") from error

    own = [method for method in REGISTERED.values() if is_of(method, imported)]
    if not own and not any(brings_other):
        raise BrokenMethodError(
            f"{source}: {module} registers no method: a method is a subclass of ltp.pruning.Method with a name (an "
            "encoder family one of ltp.encoders.base.EncoderFamily with a model_type; a task an instance of a class of "
            "ltp.data.tasks)"
        )
    for method in own:
        check_contract(method, source)


def is_of(registered: type, module: ModuleType) -> bool:
    """Whether a class is of the same package as a module."""
    return registered.__module__.split(".")[0] == module.__name__.split(".")[0]


def check_contract(method: type[Method], source: str) -> None:
    """Check that a method has every part that others rely on.

    Raises:
        BrokenMethodError: it lacks one; the message names it.
    """
    prefix = f"{source}: the method {method.name} ({method.__name__})"
    if not dataclasses.is_dataclass(method) or "__dataclass_fields__" not in vars(method):
        raise BrokenMethodError(f"{prefix} is no dataclass: decorate it with @dataclass")
    for item in dataclasses.fields(method):
        if "setting" not in item.metadata:
            raise BrokenMethodError(f"{prefix} declares {item.name} without setting(default, help)")
    rule = "merge_targets" if method.merges else "survivors"
    if getattr(method, rule) is getattr(Method, rule):
        raise BrokenMethodError(f"{prefix} has no {rule}(tokens, weights), the hard rule")
    if any(variant.learned for variant in method.variants) and method.gate is Method.gate:
        raise BrokenMethodError(f"{prefix} learns, but has no gate(tokens, weights), the soft rule")
    if "weights" not in inspect.signature(method.scores).parameters:
        raise BrokenMethodError(f"{prefix} has scores without the parameters: scores(tokens, weights)")
    for other in REGISTERED.values():
        types = other.setting_types()
        for name, hint in method.setting_types().items():
            if types.get(name, hint) != hint:
                raise BrokenMethodError(f"{prefix} declares {name} as {hint}; {other.name} has it as {types[name]}")


def all_methods() -> dict[str, type[Method]]:
    """Return the classes of all methods by ``prune_mode``; the dense one first, then in alphabetical order."""
    _load_shipped()
    return dict(sorted(REGISTERED.items(), key=lambda item: (item[0] != DENSE_MODE, item[0])))


def method_class(prune_mode: str) -> type[Method]:
    """Return the class of a method.

    Raises:
        ValueError: there is none of this name; the message has similar names.
    """
    if prune_mode not in REGISTERED:  # a registered one needs no search
        _load_shipped()
    if prune_mode not in REGISTERED:
        raise ValueError(f"prune_mode is {prune_mode!r}; {known_methods(str(prune_mode))}")
    return REGISTERED[prune_mode]


def known_methods(name: str) -> str:
    """Return the part of a message about an unknown method that names similar ones, or all."""
    names = [*all_methods(), *aliases()]
    if name in aliases():
        return f"that is an option of prune=; the method is {aliases()[name]}"
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"it must be one of {', '.join(all_methods())}"


def aliases() -> dict[str, str]:
    """Return the options of ``prune=`` that stand for another ``prune_mode``."""
    return {alias: name for name, method in all_methods().items() for alias in method.aliases}


def variants() -> dict[str, Variant]:
    """Return the variants of all methods by their names in results; the dense one first."""
    named = {variant.name: variant for method in all_methods().values() for variant in method.variants}
    return {DENSE: named.pop(DENSE), **named}


def label_of(variant: str) -> str:
    """Return the name of a variant in tables and figures; itself if it is unknown, as of a method not installed."""
    found = variants().get(variant)
    return variant if found is None else found.label


def is_learned(variant: str) -> bool:
    """Whether a soft stage learns the parameters of a variant."""
    found = variants().get(variant)
    return found is not None and found.learned


def short_names() -> dict[str, str]:
    """Return the names of settings in tables, by field."""
    facts = ((name, fact) for method in all_methods().values() for name, fact in method.settings().items())
    return {name: fact.short or name for name, fact in facts}


def searched_settings(variant: str) -> tuple[str, ...]:
    """Return the settings of a variant that the search for a budget determines."""
    for method in all_methods().values():
        if any(item.name == variant and not (item.learned and method.has_thresholds()) for item in method.variants):
            return tuple(name for name, fact in method.settings().items() if fact.set_by_budget and not fact.learned)
    return ()


def budget_dependent_settings() -> frozenset[str]:
    """Return the settings of all methods that a budget replaces or has other defaults for."""
    facts = ((name, fact) for method in all_methods().values() for name, fact in method.settings().items())
    return frozenset(
        name for name, fact in facts if fact.with_budget is not UNSET or (fact.set_by_budget and not fact.learned)
    )


def setting_keys() -> tuple[str, ...]:
    """Return the keys of ``config.json`` that are settings of any method."""
    return tuple(dict.fromkeys(key for method in all_methods().values() for key in method.config_keys()))


def default_method() -> type[Method]:
    """Return the method of runs that name none."""
    return next(method for method in all_methods().values() if method.is_default)


def option_of(method: type[Method], *, learned: bool | None = None) -> str:
    """Return the option of ``prune=`` that selects a method, or the variant of it that learns or does not."""
    name = "" if learned is None else next((item.name for item in method.variants if item.learned is learned), "")
    return next((alias for alias, variant in method.aliases.items() if variant == name), method.name)


def variant_of(method: type[Method], *, learned: bool) -> str:
    """Return the name of the variant of a method that learns, or of the one that does not."""
    found = method.variant(learned)
    assert found is not None
    return found.name


def untrained() -> dict[str, Any]:
    """Return the pruning with which the calibration of a dense classifier starts."""
    method = default_method()
    return {"prune_mode": method.name, **method.untrained}

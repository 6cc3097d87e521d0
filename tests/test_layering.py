"""Imports point one way. Read from the source files, so that an import inside a function counts too."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted((ROOT / "ltp").rglob("*.py"))}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in FILES.items()}
FRAMEWORKS = {"pytorch_lightning", "lightning", "lightning_fabric", "hydra", "omegaconf"}


def imported_modules(module):
    """Absolute names that a module of ltp imports; a submodule of ltp is named as itself, not as its package."""
    names = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import, which this test does not read"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in FILES else node.module)
    return names


IMPORTS = {module: imported_modules(module) for module in FILES}
OWN_IMPORTS = {module: {name for name in names if name in FILES} for module, names in IMPORTS.items()}


def within(module, packages):
    return any(module == package or module.startswith(package + ".") for package in packages)


def modules_of(package):
    members = [module for module in FILES if within(module, [package])]
    assert members, f"{package} is gone: this test needs its new name"
    return members


def reachable(module):
    """Modules of ltp that importing a module imports, the module itself included."""
    seen, waiting = set(), [module]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting.extend(OWN_IMPORTS[current])
    return seen


def is_entry_point(module):
    guards = [ast.unparse(node.test) for node in TREES[module].body if isinstance(node, ast.If)]
    return "__name__ == '__main__'" in guards or module.endswith(".__main__")


def test_the_reader_sees_imports():
    assert "ltp.pruning" in OWN_IMPORTS["ltp.modeling"]
    assert "transformers" in IMPORTS["ltp.modeling"]
    assert {"ltp.masked", "ltp.attention", "ltp.pruning.threshold"} <= reachable("ltp")
    assert is_entry_point("ltp.train")
    assert not is_entry_point("ltp.modeling")


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("ltp.pruning", ()),
        ("ltp.flops", ()),
        ("ltp.metrics", ()),
        ("ltp.values", ()),
        ("ltp.tasks", ("ltp.metrics", "ltp.values")),
    ],
)
def test_the_ground_floor_imports_nothing_of_ltp_but_errors(package, allowed):
    for module in modules_of(package):
        others = {name for name in IMPORTS[module] if within(name, ["ltp"])}
        assert not {name for name in others if not within(name, [package, "ltp.errors", *allowed])}, module


def test_the_model_is_usable_without_the_framework():
    for package in (
        "ltp",
        "ltp.pruning",
        "ltp.flops",
        "ltp.attention",
        "ltp.backbones",
        "ltp.masked",
        "ltp.deploy",
        "ltp.modeling",
        "ltp.tracing",
        "ltp.page",
        "ltp.exporting",
    ):
        for module in modules_of(package) if package != "ltp" else ["ltp"]:
            for needed in reachable(module):
                frameworks = {name for name in IMPORTS[needed] if name.split(".")[0] in FRAMEWORKS}
                assert not frameworks, f"{module} needs {needed}, which imports {frameworks}"


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("ltp.configuration", ["ltp.backbones", "ltp.pruning"]),
        ("ltp.packing", []),
        ("ltp.attention", ["ltp.packing", "ltp.pruning"]),
        ("ltp.backbones", ["ltp.pruning"]),
        ("ltp.masked", ["ltp.attention", "ltp.backbones", "ltp.encoder", "ltp.pruning"]),
        ("ltp.packed", ["ltp.attention", "ltp.backbones", "ltp.encoder", "ltp.packing", "ltp.pruning"]),
        ("ltp.tracing", ["ltp.modeling", "ltp.pruning"]),
        ("ltp.page", ["ltp.tracing"]),
        ("ltp.deploy", ["ltp.attention", "ltp.backbones", "ltp.output", "ltp.pruning"]),
        (
            "ltp.modeling",
            [
                *("ltp.masked", "ltp.packed", "ltp.packing", "ltp.deploy"),
                *("ltp.backbones", "ltp.configuration", "ltp.output", "ltp.pruning"),
            ],
        ),
    ],
)
def test_the_model_is_built_from_below(package, allowed):
    for module in modules_of(package):
        assert not {name for name in OWN_IMPORTS[module] if not within(name, [package, *allowed])}, module


def test_only_backbones_know_hugging_faces_internals():
    for module in FILES:
        internals = {name for name in IMPORTS[module] if within(name, ["transformers.models"])}
        assert within(module, ["ltp.backbones"]) or not internals, module


def test_nothing_imports_an_entry_point():
    entry_points = {module for module in FILES if is_entry_point(module)}
    assert entry_points
    for module, names in OWN_IMPORTS.items():
        assert not names & entry_points, f"{module} imports {names & entry_points}"


def test_no_import_cycles():
    for module in FILES:
        again = {name for name in OWN_IMPORTS[module] if module in reachable(name)}
        assert not again, f"{module} imports {again}, which imports it back"

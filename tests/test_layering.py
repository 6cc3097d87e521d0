"""Imports point one way, for folders as wholes and for modules.

Read from the source files, so that an import inside a function counts too.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: The rooms of ltp from the ground up: each depends only on those before it. The commands stand on top.
ROOMS = (
    *(
        "errors",
        "pruning",
        "data",
        "encoders",
        "kernels",
        "execution",
        "deploy",
        "model",
        "runs",
        "benchmark",
        "evaluation",
    ),
    *("calibration", "sweeps", "serving", "training", "exporting", "reporting", "comparison", "command"),
)
COMMANDS = ("train", "evaluate", "predict", "serve", "calibrate", "export", "bench", "report", "list", "leaderboard")


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


def room_of(module):
    return module.split(".")[1] if module != "ltp" else None


def is_entry_point(module):
    guards = [ast.unparse(node.test) for node in TREES[module].body if isinstance(node, ast.If)]
    return "__name__ == '__main__'" in guards or module.endswith(".__main__")


def test_the_reader_sees_imports():
    assert "ltp.pruning" in OWN_IMPORTS["ltp.model.pretrained"]
    assert "transformers" in IMPORTS["ltp.model.pretrained"]
    assert {"ltp.execution.masked", "ltp.execution.attention", "ltp.pruning.pruner"} <= reachable("ltp")
    assert is_entry_point("ltp.train")
    assert not is_entry_point("ltp.model.classifier")


def test_the_list_of_rooms_is_whole():
    assert {room_of(module) for module in FILES} == {*ROOMS, *COMMANDS, "__main__", None}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_depends_only_on_rooms_below_it(room):
    allowed = [f"ltp.{below}" for below in ROOMS[: ROOMS.index(room) + 1]]
    for module in modules_of(f"ltp.{room}"):
        above = {name for name in OWN_IMPORTS[module] if name != "ltp" and not within(name, allowed)}
        assert not above, f"{module} imports {above}, which is above {room}"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_thin_and_depends_on_no_other(command):
    assert is_entry_point(f"ltp.{command}")
    assert not {name for name in OWN_IMPORTS[f"ltp.{command}"] if within(name, [f"ltp.{one}" for one in COMMANDS])}


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("ltp.pruning", []),
        ("ltp.data.metrics", []),
        (
            "ltp.data.tasks",
            [f"ltp.data.{part}" for part in ("beir", "columns", "conll", "demo", "metrics", "tables", "tokenising")],
        ),
        ("ltp.encoders", ["ltp.pruning.tokens"]),
        ("ltp.execution", ["ltp.encoders", "ltp.kernels", "ltp.pruning"]),
        ("ltp.deploy", ["ltp.data.sequences", "ltp.encoders", "ltp.execution", "ltp.kernels", "ltp.pruning"]),
        ("ltp.model", ["ltp.deploy", "ltp.encoders", "ltp.execution", "ltp.kernels", "ltp.pruning"]),
        ("ltp.reporting", ["ltp.runs.checkpoints", "ltp.runs.summary", "ltp"]),
    ],
)
def test_a_room_leaves_out_what_it_does_not_need(package, allowed):
    for module in modules_of(package):
        others = {name for name in OWN_IMPORTS[module] if name not in ("ltp", "ltp.data")}  # names and suffixes
        assert not {name for name in others if not within(name, [package, "ltp.errors", *allowed])}, module


@pytest.mark.parametrize(
    "package",
    [
        *("ltp.pruning", "ltp.encoders", "ltp.kernels", "ltp.execution", "ltp.deploy", "ltp.model", "ltp.benchmark"),
        *("ltp.evaluation.page", "ltp.exporting", "ltp.reporting"),
    ],
)
def test_the_model_is_usable_without_the_framework(package):
    for module in [*modules_of(package), "ltp"]:
        for needed in reachable(module):
            frameworks = {name for name in IMPORTS[needed] if name.split(".")[0] in FRAMEWORKS}
            assert not frameworks, f"{module} needs {needed}, which imports {frameworks}"


def test_only_encoder_families_know_hugging_faces_internals():
    for module in FILES:
        internals = {name for name in IMPORTS[module] if within(name, ["transformers.models"])}
        assert within(module, ["ltp.encoders"]) or not internals, module


def test_nothing_imports_an_entry_point():
    entry_points = {module for module in FILES if is_entry_point(module)}
    assert entry_points
    for module, names in OWN_IMPORTS.items():
        assert not names & entry_points, f"{module} imports {names & entry_points}"


def test_no_import_cycles():
    for module in FILES:
        again = {name for name in OWN_IMPORTS[module] if module in reachable(name)}
        assert not again, f"{module} imports {again}, which imports it back"

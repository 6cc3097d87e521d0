"""The command line: a command under Hydra, where ``conf/`` is, and how errors are reported."""

import dataclasses
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from ltp import __version__
from ltp.errors import LTPError, RunError, TerminatedError, UserError, install_hint, unknown_option
from ltp.pruning import RATE_MODES
from ltp.runs.settings import typed_as, unknown_key
from ltp.sweeps.processes import exit_with_parent, has_parent_process, report_to_parent
from ltp.sweeps.record import SweepRecord

# Hydra copies its store of schemas for each group that --help lists, which takes a second. What it loads from the store
# is copied in any case.
ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]

#: Hydra's plugins by their names there: the option that chooses each, and the extra that installs it.
_PLUGINS = {
    "joblib": ("launcher=parallel", "parallel"),
    "submitit_slurm": ("launcher=slurm", "slurm"),
    "submitit_local": ("launcher=slurm_local", "slurm"),
    "optuna": ("sweep=optuna", "optuna"),
}


def config_dir() -> str:
    """The folder of configurations: ``$LTP_CONF``, the repository's ``conf/``, or the installed copy."""
    package = Path(__file__).resolve().parents[1]
    places = [package.parent / "conf", package / "conf"]
    if "LTP_CONF" in os.environ:
        places.insert(0, Path(os.environ["LTP_CONF"]))
    for place in places:
        if (place / "train.yaml").is_file():
            return str(place.resolve())
    raise UserError(
        f"no configuration found in {', '.join(map(str, places))}; set LTP_CONF to the folder of train.yaml"
    )


@dataclass(frozen=True)
class Command:
    """One of ltp's commands, ``python -m ltp.<name>``: calling it reads the command line and returns the exit code.

    Attributes:
        name: also that of its root configuration, ``conf/<name>.yaml``.
        schema: the dataclass of its settings.
        run: what it does with them.
        fill: what ``--cfg job`` does instead: the settings with their nulls filled, which are then printed.
        hints: messages for keys that it does not have, but that users try.
        prepare: makes what the user typed what Hydra reads.
    """

    name: str
    schema: type
    run: Callable[[Any], Any]
    fill: Callable[[Any], Any]
    hints: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Sequence[str]], list[str]] = list

    def __post_init__(self) -> None:
        ConfigStore.instance().store(name=f"{self.name}_schema", node=self.schema)

    def __call__(self) -> int:
        sys.argv[1:] = self.prepare(sys.argv[1:])
        return run_command(self.name, self._run, self._show, self.unknown_key)

    def unknown_key(self, key: str) -> str:
        """The message for a key that the command does not have."""
        return self.hints.get(key) or unknown_key(key, self.schema, f"ltp.{self.name}")

    def settings(self, cfg: DictConfig) -> Any:
        """A composed configuration as an object of the schema.

        Raises:
            UserError: a key does not exist, or has no value.
        """
        return typed_as(self.schema, cfg, self.unknown_key)

    def _run(self, cfg: DictConfig) -> Any:
        return self.run(self.settings(cfg))

    def _show(self, cfg: DictConfig) -> None:
        filled = dataclasses.asdict(self.fill(self.settings(cfg)))
        print(yaml.safe_dump(filled, sort_keys=False, allow_unicode=True), end="")


def run_command(
    config_name: str,
    job: Callable[[DictConfig], Any],
    show: Callable[[DictConfig], None],
    unknown: Callable[[str], str] = unknown_key,
) -> int:
    """Run a job under Hydra and report its errors in one line each.

    Args:
        config_name: the root configuration in ``conf/``.
        job: what the command does.
        show: what ``--cfg job`` does instead.
        unknown: the message for a key that the command does not have.

    Returns:
        The exit code: 0, 1 for failures while running, 2 for bad input, 130 and 143 after SIGINT and SIGTERM, 141 where
        nobody reads the output any more (``… | head``).
    """
    if "--version" in sys.argv[1:]:
        print(f"ltp {__version__}")
        return 0
    try:
        code = _run_under_hydra(config_name, job, show, unknown)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at its end
        return 141
    return code


def _run_under_hydra(
    config_name: str,
    job: Callable[[DictConfig], Any],
    show: Callable[[DictConfig], None],
    unknown: Callable[[str], str],
) -> int:
    # Lightning starts further ranks with overrides appended to this command line: flags must come first.
    arguments = get_args_parser().parse_intermixed_args()
    overrides = arguments.overrides
    if arguments.cfg == "job" and arguments.package is None:
        job = show
        sys.argv[1:] = [*overrides, "hydra.mode=RUN"]
    else:
        sys.argv[1:] = [word for word in sys.argv[1:] if word not in overrides] + overrides
    # Hydra would print tracebacks and exit with 1; here exceptions arrive below.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    composed = False
    failures: list[LTPError] = []

    def guarded(cfg: DictConfig) -> Any:
        nonlocal composed
        composed = True
        try:
            return job(cfg)
        except LTPError as error:  # Hydra would print its own lines about it
            failures.append(error)
            return None

    if has_parent_process():
        exit_with_parent()
    SweepRecord.forget()
    try:
        hydra.main(version_base="1.3", config_path=config_dir(), config_name=config_name)(guarded)()
        if failures:
            raise failures[0]
        if (record := SweepRecord.current()) is not None:
            record.check()
    except LTPError as error:
        return _fail(error)
    except (HydraException, OmegaConfBaseException) as error:
        return _fail(UserError(explain(error, overrides, unknown)))
    except KeyboardInterrupt:
        return 130
    except TerminatedError:
        return 143
    except Exception as error:
        if isinstance(error, ValueError) and (record := SweepRecord.current()) is not None:
            try:
                record.check()  # where every job failed, Optuna has no best one
            except LTPError as failed:
                return _fail(failed)
        if type(error).__module__.startswith("submitit.") or (isinstance(error, RuntimeError) and "srun" in str(error)):
            return _fail(RunError(f"launcher=slurm: {str(error).strip()}"))
        if isinstance(error, ValueError) and not composed:  # so Hydra rejects some overrides
            return _fail(UserError(explain(error, overrides, unknown)))
        report_to_parent(error)
        raise
    return 0


def _fail(error: LTPError) -> int:
    if report_to_parent(error):
        return error.exit_code
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print("error:", style="bold red", end=" ")
    console.print(str(error), markup=False)
    return error.exit_code


def explain(error: Exception, overrides: list[str], unknown: Callable[[str], str] = unknown_key) -> str:
    """One message for what Hydra or OmegaConf reject: the key, what is wrong, the near matches."""
    text = str(error)
    cause = str(error.__cause__ or error).split("\n")[0]
    if (match := re.search(r"Could not find 'hydra/(?:launcher|sweeper)/(\w+)'", text)) and match[1] in _PLUGINS:
        option, extra = _PLUGINS[match[1]]
        return f"{option} needs its package: {install_hint(extra)}"
    if match := re.search(r"Could not (?:find|load) '([\w-]+)/(.+?)'", text):
        return _no_such_option(*match.groups())
    if "Config group override must be a string" in text:  # task=3, prune=null
        for group, option in (word.split("=", 1) for word in overrides if "=" in word):
            if _options(group) and option not in _options(group):
                return _no_such_option(group, option)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read as key=value; quote a value that holds special characters"
    if match := re.search(r"Ambiguous value for argument '(.+)'", text):
        key, values = match[1].split("=", 1)
        return f"{match[1]}: several values make a sweep, which needs -m; a list is written {key}=[{values}]"
    if match := re.search(r"Could not override '([^']+)'", text):
        key = match[1]
        if "not in" in cause or "No match" in text or "Could not override" in cause:
            return unknown(key)
        value = next((word.split("=", 1)[1] for word in overrides if word.split("=")[0] == key), "?")
        return f"{key}={value}: {cause}"
    if match := re.search(r"Error merging override (\S+)", text):
        return f"{match[1]}: {cause}"
    if match := re.search(r"In '[^']+': (.+)", text):
        return match[1]
    return f"{text.splitlines()[0]} {'' if cause in text else cause}".strip()


def _options(group: str) -> list[str]:
    if not group:
        return []
    files = {path.stem for path in (Path(config_dir()) / group).glob("*.yaml")}
    return sorted(files | set(RATE_MODES if group in ("prune", "prune_mode") else ()))


def _no_such_option(group: str, option: str) -> str:
    return unknown_option(group, option, _options(group))


def is_sweep() -> bool:
    """Whether this job is one of a sweep."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def shares_machine() -> bool:
    """Whether this job is one of several that run at once on this machine."""
    return HydraConfig.get().runtime.choices["hydra/launcher"] in ("joblib", "submitit_local")


def task_overrides() -> list[str]:
    """The overrides of this job, as on a command line."""
    return list(HydraConfig.get().overrides.task)


def command_line(name: str) -> str:
    """This job's command line, as reports repeat it: ``python -m ltp.<name> …``."""
    return " ".join([f"python -m ltp.{name}", *task_overrides()])


def check_selections() -> None:
    """Check that ``prune`` and ``prune_mode``, which select the same thing, agree.

    Raises:
        UserError: they do not. (Where two configs override one group, Hydra silently takes the last.)
    """
    choices = HydraConfig.get().runtime.choices
    alias, mode = choices.get("prune"), choices.get("prune_mode")
    meant = {"threshold": "absolute_threshold", "manual": "absolute_threshold"}.get(str(alias), alias)
    if alias is not None and meant != mode:
        raise UserError(f"prune={alias} and prune_mode={mode} contradict each other: give one of them")

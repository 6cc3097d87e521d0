"""Run commands under Hydra: find ``conf/``, build the settings, report errors in one line and return exit codes."""

import contextlib
import errno
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from ltp import __version__
from ltp.command.output import run_until_broken_pipe
from ltp.data.tasks import adopt, load_entry_points
from ltp.encoders.registry import REGISTERED as FAMILIES
from ltp.errors import LTPError, RunError, TerminatedError, UserError, install_hint, printable, unknown_option
from ltp.pruning import BrokenMethodError, aliases, is_of, load_modules
from ltp.runs.settings import as_plain, register_options, typed_as, unknown_key
from ltp.runs.started import remember_command
from ltp.sweeps.processes import exit_with_parent, has_parent_process, report_to_parent
from ltp.sweeps.record import SweepRecord

# Hydra deep-copies its store of schemas for each group that --help lists, which takes a second. It copies what it loads
# from the store anyway.
ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]

#: Hydra's plugins by their names in Hydra: the option that selects each, and the extra that installs it.
_PLUGINS = {
    "joblib": ("launcher=parallel", "parallel"),
    "submitit_slurm": ("launcher=slurm", "slurm"),
    "submitit_local": ("launcher=slurm_local", "slurm"),
    "optuna": ("sweep=optuna", "optuna"),
}

#: Hydra's flags that decide which configuration files are read.
_CONFIG_FLAGS = ("config-dir", "config-name", "config-path")


def config_dir() -> str:
    """The folder of configurations: ``$LTP_CONF``, the repository's ``conf/``, or the installed copy."""
    package = Path(__file__).resolve().parents[1]
    candidates = [package.parent / "conf", package / "conf"]
    if "LTP_CONF" in os.environ:
        candidates.insert(0, Path(os.environ["LTP_CONF"]))
    for directory in candidates:
        if (directory / "train.yaml").is_file():
            return str(directory.resolve())
    raise UserError(
        f"no configuration found in {', '.join(map(str, candidates))}; set LTP_CONF to the folder of train.yaml"
    )


#: Variable with the modules of ``plugins=``; the processes that a command starts inherit it.
PLUGINS_VARIABLE = "LTP_PLUGINS"


def load_plugins(arguments: Sequence[str]) -> list[str]:
    """Import the modules of ``plugins=[…]``, which bring methods, encoders or tasks, before Hydra reads the schema.

    Returns:
        The arguments without it.

    Raises:
        UserError: a module cannot be used.
    """
    given = [word for word in arguments if word.startswith("plugins=")]
    names = [name for word in given for name in re.split(r"[\[\],\s'\"]+", word.removeprefix("plugins=")) if name]
    names = list(dict.fromkeys([*os.environ.get(PLUGINS_VARIABLE, "").split(), *names]))
    if names:
        os.environ[PLUGINS_VARIABLE] = " ".join(names)
        if "" not in sys.path and os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
    try:
        load_modules(names, others=[adopt, _brings_family])
        load_entry_points()
    except BrokenMethodError as error:
        raise UserError(str(error)) from None
    register_options()
    return [word for word in arguments if word not in given]


def _brings_family(module: ModuleType) -> bool:
    return any(is_of(family, module) for family in FAMILIES.values())


@dataclass(frozen=True)
class Command:
    """A command, ``python -m ltp.<name>``. Calling it parses the command line, runs it and returns the exit code.

    Attributes:
        name: its name, and that of its root configuration ``conf/<name>.yaml``.
        schema: the dataclass of its settings.
        run: the function that runs it on its settings.
        fill: returns the settings with their nulls filled; ``--cfg job`` prints these and does not call ``run``.
        hints: error messages for unknown keys that users are likely to try, by key.
        prepare: converts the arguments as typed to arguments that Hydra can parse.
    """

    name: str
    schema: type
    run: Callable[[Any], Any]
    fill: Callable[[Any], Any]
    hints: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Sequence[str]], list[str]] = list

    def __post_init__(self) -> None:
        self._store_schema()

    def _store_schema(self) -> None:
        ConfigStore.instance().store(name=f"{self.name}_schema", node=self.schema)

    def __call__(self) -> int:
        remember_command(self.name, sys.argv[1:])
        try:
            sys.argv[1:] = self.prepare(load_plugins(sys.argv[1:]))
        except UserError as error:
            return report_error(error)
        self._store_schema()  # with the settings of the methods that plugins have registered
        return run_command(self.name, self._run, self._print_filled, self.unknown_key)

    def unknown_key(self, key: str) -> str:
        """The error message for a key that the command does not have."""
        return self.hints.get(key) or unknown_key(key, self.schema, f"ltp.{self.name}")

    def settings(self, cfg: DictConfig) -> Any:
        """Convert a composed configuration to an instance of the schema.

        Raises:
            UserError: a key does not exist, or has no value.
        """
        return typed_as(self.schema, cfg, self.unknown_key)

    def _run(self, cfg: DictConfig) -> Any:
        check_hydra_overrides()
        return self.run(self.settings(cfg))

    def _print_filled(self, cfg: DictConfig) -> None:
        filled = as_plain(self.fill(self.settings(cfg)))
        print(yaml.safe_dump(filled, sort_keys=False, allow_unicode=True), end="")


def run_command(
    config_name: str,
    job: Callable[[DictConfig], Any],
    show: Callable[[DictConfig], None],
    unknown: Callable[[str], str] = unknown_key,
) -> int:
    """Run a job under Hydra and report its errors, one line each.

    Args:
        config_name: name of the root configuration in ``conf/``.
        job: runs the command on the composed configuration.
        show: is called instead of ``job`` for ``--cfg job``.
        unknown: returns the error message for a key that the command does not have.

    Returns:
        The exit code: 0 for success, 1 for failures while running, 2 for bad input, 130 and 143 after SIGINT and
        SIGTERM, 141 after a broken pipe (``… | head``).
    """
    if "--version" in sys.argv[1:]:
        print(f"ltp {__version__}")
        return 0
    return run_until_broken_pipe(lambda: _run_under_hydra(config_name, job, show, unknown))


def _run_under_hydra(
    config_name: str,
    job: Callable[[DictConfig], Any],
    show: Callable[[DictConfig], None],
    unknown: Callable[[str], str],
) -> int:
    # Lightning starts further ranks with overrides appended to this command line, so flags must come first.
    arguments = get_args_parser().parse_intermixed_args()
    overrides = arguments.overrides
    flags = [word for word in sys.argv[1:] if word not in overrides]
    if arguments.cfg == "job" and arguments.package is None:
        job = show
        flags = [f"--{name}={value}" for name in _CONFIG_FLAGS if (value := getattr(arguments, name.replace("-", "_")))]
        overrides = [*overrides, "hydra.mode=RUN"]
    sys.argv[1:] = [*flags, *overrides]
    # Without it, Hydra prints tracebacks and exits with 1; with it, the exceptions are raised and handled below.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    composed = False
    failures: list[Exception] = []

    def guarded(cfg: DictConfig) -> Any:
        nonlocal composed
        composed = True
        try:
            return job(cfg)
        except (LTPError, BrokenPipeError) as error:  # raised after Hydra returns: Hydra would print lines of its own
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
        return report_error(error)
    except (HydraException, OmegaConfBaseException) as error:
        return report_error(UserError(explain(error, overrides, unknown)))
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return 130
    except TerminatedError:
        return 143
    except Exception as error:
        if (full := _full_disk(error)) is not None:
            return report_error(full)
        if isinstance(error, ValueError) and (record := SweepRecord.current()) is not None:
            try:
                record.check()  # Optuna raises ValueError if every job failed, because there is no best one
            except LTPError as failed:
                return report_error(failed)
        if type(error).__module__.startswith("submitit.") or (isinstance(error, RuntimeError) and "srun" in str(error)):
            return report_error(RunError(f"launcher=slurm: {str(error).strip()}"))
        if isinstance(error, ValueError | AssertionError) and not composed:  # Hydra rejects some overrides this way
            return report_error(UserError(explain(error, overrides, unknown)))
        report_to_parent(error)
        raise
    return 0


def _full_disk(error: BaseException) -> RunError | None:
    """Return the message of an error if a full disk caused it, else None."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        no_space = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        # of shutil and safetensors; PyTorch only tells that its file is shorter than what it wrote
        words = ("No space left on device", "Disk quota exceeded", "fail at inline_container.cc")
        if no_space or any(word in str(cause) for word in words):
            file = f" ({cause.filename})" if isinstance(cause, OSError) and cause.filename else ""
            return RunError(
                f"the disk is full{file}. What was written before is whole: free some space, and give the same command "
                "again."
            )
        cause = cause.__cause__ or cause.__context__
    return None


def report_error(error: LTPError) -> int:
    """Report an error to the parent process if there is one, else on standard error; return the exit code."""
    if report_to_parent(error):
        return error.exit_code
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print("error:", style="bold red", end=" ")
    console.print("\n".join(map(printable, str(error).split("\n"))), markup=False)
    return error.exit_code


def explain(error: Exception, overrides: list[str], unknown: Callable[[str], str] = unknown_key) -> str:
    """One message for an error of Hydra or OmegaConf: names the key, the problem and close matches."""
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
    if match := re.search(r"Could not append to config\. An item is already at '([^']+)'", text):
        return f"+{match[1]}: the key exists already; leave out the plus: {match[1]}=…"
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
    """The options of a config group; empty if there is no such group."""
    if not group:
        return []
    directories = [config_dir(), get_args_parser().parse_intermixed_args().config_dir]
    files = {path.stem for one in directories if one for path in (Path(one) / group).glob("*.yaml")}
    with contextlib.suppress(OSError):  # it has no such group
        files |= {name.removesuffix(".yaml") for name in ConfigStore.instance().list(group)}
    return sorted(files)


def _no_such_option(group: str, option: str) -> str:
    return unknown_option(group, option, _options(group))


def is_sweep() -> bool:
    """Whether this job belongs to a sweep (``-m``)."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def shares_machine() -> bool:
    """Whether the launcher runs several jobs at once on this machine."""
    return HydraConfig.get().runtime.choices["hydra/launcher"] in ("joblib", "submitit_local")


def task_overrides() -> list[str]:
    """The overrides of this job, as typed on the command line."""
    return list(HydraConfig.get().overrides.task)


def config_folders(config: HydraConf) -> list[tuple[str, str]]:
    """The user's own folders of configurations: the provider of each (``command-line`` or Hydra's) and its address."""
    return [
        (source.provider, source.path if source.provider == "command-line" else f"{source.schema}://{source.path}")
        for source in config.runtime.config_sources
        if source.provider == "command-line" or str(source.provider).startswith("hydra.searchpath")
    ]


def config_arguments() -> list[str]:
    """Return the arguments with which a process started by this job reads the same configuration files."""
    config = HydraConfig.get()
    folders = config_folders(config)
    arguments = [f"--config-dir={folder}" for provider, folder in folders if provider == "command-line"]
    if config.job.config_name != "train":
        arguments.append(f"--config-name={config.job.config_name}")
    if search_path := [f"'{folder}'" for provider, folder in folders if provider != "command-line"]:
        arguments.append(f"hydra.searchpath=[{','.join(search_path)}]")
    return arguments


def command_line(name: str) -> str:
    """This job's command line for reports: ``python -m ltp.<name> …``."""
    return " ".join([f"python -m ltp.{name}", *task_overrides()])


#: Keys of Hydra that have no effect here, because ltp names and writes the run directories itself.
_WITHOUT_EFFECT = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir", "hydra.job.chdir")


def check_hydra_overrides() -> None:
    """Check that no key of Hydra's is given that has no effect.

    Raises:
        UserError: one is; the message names the key that has its place.
    """
    if has_parent_process():  # Lightning adds hydra.run.dir to the command lines of the ranks that it starts
        return
    for override in HydraConfig.get().overrides.hydra:
        key = override.split("=", 1)[0].lstrip("+~")
        if key in _WITHOUT_EFFECT:
            raise UserError(f"{key} has no effect: ltp names the run directories. Move all of them with output_root=…")


def check_selections(choices: Mapping[str, Any]) -> None:
    """Check that ``prune`` and ``prune_mode``, two ways to select the pruning method, agree.

    Args:
        choices: the options that a command line selects, by group.

    Raises:
        UserError: they do not. (If two configs override one group, Hydra silently takes the last.)
    """
    alias, mode = choices.get("prune"), choices.get("prune_mode")
    alias_mode = aliases().get(str(alias), alias)
    if alias is not None and alias_mode != mode:
        raise UserError(f"prune={alias} and prune_mode={mode} contradict each other: give one of them")

"""From the command line to runs: plan them, and lead other processes to them."""

import dataclasses
import functools
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import open_dict

from ltp.command import cli
from ltp.command.overrides import as_overrides
from ltp.runs.identity import Run
from ltp.runs.plan import plan_run
from ltp.runs.settings import TrainSettings, as_plain, typed_as, unknown_key


def plan(settings: TrainSettings, hydra: HydraConf | None = None) -> Run:
    """Plan the run of a command line.

    Args:
        settings: its settings.
        hydra: Hydra's own configuration of that command line; None for this job's.

    Raises:
        UserError: the settings are invalid; see :func:`ltp.runs.plan.plan_run`.
    """
    hydra = hydra or HydraConfig.get()
    choices = hydra.runtime.choices
    cli.check_selections(choices)
    keys = {override.lstrip("+~").split("=")[0] for override in hydra.overrides.task}
    published = _published(str(choices["task"]), str(choices["model"]), tuple(cli.config_folders(hydra)))
    if settings.model.name_or_path != published.model.name_or_path:
        # not the option's checkpoint, and so neither its architecture nor its name
        is_named = "model.name" in keys or settings.model.name != published.model.name
        name = settings.model.name if is_named else None
        settings = dataclasses.replace(settings, model=dataclasses.replace(settings.model, name=name, architecture={}))
    return plan_run(
        settings,
        published=published,
        model_is_chosen=bool(keys & {"model", "model.name_or_path"}),
    )


@functools.cache  # the same for every job of a sweep
def _published(task: str, model: str, folders: tuple[tuple[str, str], ...]) -> TrainSettings:
    """Return the settings of a task and a model without any other choice."""
    search_path = create_config_search_path(cli.config_dir())
    for provider, folder in folders:
        search_path.prepend(provider, folder, anchor="schema")  # which Hydra wants last
    loader = ConfigLoaderImpl(search_path)
    cfg = loader.load_configuration("train", [f"task={task}", f"model={model}"], RunMode.RUN)
    with open_dict(cfg):
        del cfg["hydra"]
    return typed_as(TrainSettings, cfg, unknown_key)


def overrides_of(run: Run) -> list[str]:
    """Return the overrides that lead another process to a run: every resolved setting, and the options that it has."""
    choices = HydraConfig.get().runtime.choices
    overrides = [f"{group}={choices[group]}" for group in ("task", "model", "recipe", "trainer")]
    settings: dict[str, Any] = as_plain(run.settings)
    overrides += [f"logger=[{','.join(run.settings.logger)}]", f"stage={settings.pop('stage')}"]
    return overrides + [override for key, value in settings.items() for override in as_overrides(key, value)]

"""What hundreds of tests would compute anew and always alike, computed once a process: Hydra's files, the demo's rows.

A composed configuration is that of the files in ``conf/`` and Hydra's own, merged in the order of the defaults list,
and then of a command line's values. Files are kept by their names, that list by the command line's options and what is
installed, the merge by that list; a command line's values stay Hydra's work. Folders that a test writes are read each
time. And Hydra copies its store of schemas, from which it only ever reads copies, for every list of options in
``--help``: here it does not.
"""

import functools
import pickle
from types import SimpleNamespace

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import Overrides
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from ltp.command import cli
from ltp.data import sources

Plugins.instance()  # which makes the classes of the sources
FileSource, PackageSource = map(SourcesRegistry.instance().resolve, ("file", "pkg"))

#: Where what is kept stands in for what would compute it, which is its ``__wrapped__``.
KEPT = [
    (FileSource, "load_config"),
    (PackageSource, "load_config"),
    (config_loader_impl, "create_defaults_list"),
    (ConfigLoaderImpl, "_compose_config_from_defaults_list"),
    (sources, "_generated"),
]

#: The folders whose files stay as they are, and the name of the one that is in memory.
SHIPPED = {cli.config_dir(), "hydra.conf"}


def install():
    """Keep them in this process."""
    ways = (_file_kept, _file_kept, _list_kept, _merge_kept, _rows_kept)
    for (owner, name), keep in zip(KEPT, ways, strict=True):
        setattr(owner, name, keep(getattr(owner, name)))
    ConfigStore.__deepcopy__ = lambda self, memo: self


def _file_kept(load):
    kept = {}

    @functools.wraps(load)
    def load_config(self, config_path):
        if self.path not in SHIPPED:
            return load(self, config_path)
        key = (self.path, config_path)
        if key not in kept:
            kept[key] = pickle.dumps(load(self, config_path))
        return pickle.loads(kept[key])

    return load_config


def _is_shipped(repo):
    return {source.path for source in repo.get_sources()} <= {*SHIPPED, ""}


def _list_kept(create):
    kept = {}

    @functools.wraps(create)
    def create_defaults_list(repo, config_name, overrides_list, prepend_hydra, skip_missing):
        arguments = (repo, config_name, overrides_list, prepend_hydra, skip_missing)
        if not _is_shipped(repo):
            return create(*arguments)
        values = Overrides(repo=repo, overrides_list=overrides_list).config_overrides
        options = tuple(one.input_line for one in overrides_list if one not in values)
        key = (config_name, prepend_hydra, skip_missing, options, _names(ConfigStore.instance().repo))
        if key not in kept:
            found = create(*arguments)
            kept[key] = pickle.dumps((found.defaults, found.overrides.known_choices))
        defaults, choices = pickle.loads(kept[key])
        overrides = SimpleNamespace(known_choices=choices)
        return SimpleNamespace(defaults=defaults, config_overrides=values, overrides=overrides)

    return create_defaults_list


def _names(tree):
    """What stands in Hydra's store: tests take packages out of it."""
    return tuple((name, _names(node) if isinstance(node, dict) else None) for name, node in sorted(tree.items()))


def _merge_kept(merge):
    kept = {}

    @functools.wraps(merge)
    def compose(self, defaults, repo):
        if not _is_shipped(repo):
            return merge(self, defaults, repo)
        key = tuple((one.config_path, one.parent, one.package, one.is_self, one.primary) for one in defaults)
        if key not in kept:
            kept[key] = pickle.dumps(merge(self, defaults, repo))
        return pickle.loads(kept[key])

    return compose


def _rows_kept(make):
    return functools.wraps(make)(functools.cache(make))

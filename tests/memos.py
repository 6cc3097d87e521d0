"""What hundreds of tests would compute anew and always alike, computed once a process: Hydra's files, the demo's rows.

A composed configuration is that of the files in ``conf/`` and Hydra's own, merged in the order of the defaults list,
and then of a command line's values. The files and the merge are kept, by the folders, names and packages in that list;
everything about a command line stays Hydra's work. Folders that a test writes are read each time. And Hydra copies its
store of schemas, from which it only ever reads copies, for every list of options in ``--help``: here it does not.
"""

import functools
import pickle

from hydra._internal.config_loader_impl import ConfigLoaderImpl
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
    (ConfigLoaderImpl, "_compose_config_from_defaults_list"),
    (sources, "demo_rows"),
]

#: The folders whose files stay as they are, and the name of the one that is in memory.
SHIPPED = {cli.config_dir(), "hydra.conf"}


def install():
    """Keep them in this process."""
    for (owner, name), kept in zip(KEPT, (_file_kept, _file_kept, _merge_kept, _rows_kept), strict=True):
        setattr(owner, name, kept(getattr(owner, name)))
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


def _merge_kept(merge):
    kept = {}

    @functools.wraps(merge)
    def compose(self, defaults, repo):
        if not {source.path for source in repo.get_sources()} <= {*SHIPPED, ""}:
            return merge(self, defaults, repo)
        key = tuple((one.config_path, one.parent, one.package, one.is_self, one.primary) for one in defaults)
        if key not in kept:
            kept[key] = pickle.dumps(merge(self, defaults, repo))
        return pickle.loads(kept[key])

    return compose


def _rows_kept(make):
    kept = functools.cache(make)

    @functools.wraps(make)
    def demo_rows(split, seed=0, rows=None):
        return [dict(row) for row in kept(split, seed, rows)]

    return demo_rows

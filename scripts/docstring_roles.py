"""Sphinx roles in docstrings, for the API reference: ``:func:`~ltp.prune``` is shown as code, or as a link to it.

mkdocs.yml names this file as an extension of griffe, which reads the docstrings.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`(~?)([\w.]+)`")
_PAGE = Path(__file__).parents[1] / "docs" / "api.md"


def in_markdown(owner: griffe.Object, docstring: str, documented: frozenset[str]) -> str:
    """A docstring with its roles as Markdown: a link where the reference documents the name, else code.

    Args:
        owner: whose docstring it is; short names are looked up there.
        docstring: as written.
        documented: full names of what the reference documents, with their members.
    """

    def shown(role: re.Match[str]) -> str:
        short, name = role.groups()
        text = name.rpartition(".")[2] if short else name
        try:
            full = name if name.startswith("ltp.") else owner.resolve(name)
        except griffe.NameResolutionError:
            full = name
        return f"[`{text}`][{full}]" if full in documented else f"`{text}`"

    return _ROLE.sub(shown, docstring)


def objects(parent: griffe.Object) -> Iterator[griffe.Object]:
    """An object and what is defined in it, without what is imported there."""
    yield parent
    for member in parent.members.values():
        if isinstance(member, griffe.Object):
            yield from objects(member)


class DocstringRoles(griffe.Extension):
    """Rewrites the roles of every docstring of the package."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Called once all modules are read."""
        named = set(re.findall(r"^::: (\S+)", _PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE))
        everything = list(objects(pkg))
        documented = frozenset(item.path for item in everything if named & {item.path, item.path.rpartition(".")[0]})
        for item in everything:
            if item.docstring:
                item.docstring.value = in_markdown(item, item.docstring.value, documented)

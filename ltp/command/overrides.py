"""Conversion of settings, free texts and folders to overrides in Hydra's grammar."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser

from ltp.errors import UserError


def as_overrides(key: str, value: Any) -> list[str]:
    """Convert a configuration node to overrides, one per leaf, in Hydra's grammar."""
    if isinstance(value, dict):
        return [override for name, item in value.items() for override in as_overrides(f"{key}.{name}", item)]
    # ++ because dicts of the schema (model.architecture, recipe.stages) may have keys that the option lacks
    return [f"++{key}={_literal(value)}"]


def _literal(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(map(_literal, value)) + "]"
    if isinstance(value, str):
        escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
        return f"'{escaped}'"
    return repr(value)


def quote_text(word: str) -> str:
    """Quote ``text=…`` and ``text_pair=…`` so that Hydra takes any text literally; return other arguments unchanged."""
    key, equals, value = word.partition("=")
    if not equals or key not in ("text", "text_pair"):
        return word
    value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)  # else OmegaConf would interpolate it
    value = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + match[2].replace("'", r"\'"), value)
    return f"{key}='{value}'"


def folders_as_key(arguments: Sequence[str]) -> list[str]:
    """Replace arguments without ``=``, which are folders, by an override: ``folders=['outputs/tiny']``."""
    overrides = get_args_parser().parse_intermixed_args(arguments).overrides
    folders = [word for word in overrides if "=" not in word and not word.startswith("~")]
    if not folders:
        return list(arguments)
    escaped = (word.replace("'", "\\'") for word in folders)
    key = "folders=[" + ",".join(f"'{word}'" for word in escaped) + "]"
    return [*(word for word in arguments if word not in folders), key]


def existing_folders(folders: Any, command: str) -> list[str]:
    """Return the value of the key ``folders``, a str or a list of str, as a list of folders that exist.

    Args:
        folders: the value.
        command: name of the command, for the message.

    Raises:
        UserError: it names no folder, or one that does not exist.
    """
    names = [str(Path(str(name)).expanduser()) for name in (folders if isinstance(folders, list) else [folders])]
    if not names:
        raise UserError("folders=[] names no folder")
    for name in names:
        if not Path(name).is_dir():
            raise UserError(f"{name}: no such folder. Give the folder of the runs: python -m ltp.{command} outputs")
    return names

"""Overrides in Hydra's grammar: made of settings, of free texts and of folders."""

import re
from collections.abc import Sequence
from typing import Any

from hydra._internal.utils import get_args_parser


def as_overrides(key: str, value: Any) -> list[str]:
    """Leaves of a configuration node in Hydra's override grammar."""
    if isinstance(value, dict):
        return [override for name, item in value.items() for override in as_overrides(f"{key}.{name}", item)]
    # ++ because dicts of the schema (model.architecture, recipe.stages) take keys that the option may lack
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
    """A word of the command line such that Hydra takes a text as it stands, whatever it holds."""
    key, equals, value = word.partition("=")
    if not equals or key not in ("text", "text_pair"):
        return word
    value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)  # OmegaConf would look the rest up
    value = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + match[2].replace("'", r"\'"), value)
    return f"{key}='{value}'"


def folders_as_key(arguments: Sequence[str]) -> list[str]:
    """A command line whose words without ``=`` are folders, as Hydra reads it: ``folders=['outputs/tiny']``."""
    overrides = get_args_parser().parse_intermixed_args(arguments).overrides
    folders = [word for word in overrides if "=" not in word and not word.startswith("~")]
    if not folders:
        return list(arguments)
    escaped = (word.replace("'", "\\'") for word in folders)
    key = "folders=[" + ",".join(f"'{word}'" for word in escaped) + "]"
    return [*(word for word in arguments if word not in folders), key]

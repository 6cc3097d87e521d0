"""The body of a request, checked before it is queued: one that cannot be computed would fail its whole batch."""

import json
from dataclasses import dataclass
from typing import Any

from ltp.data.texts import TEXT_COLUMNS
from ltp.errors import suggest

EXAMPLE = '{"text": "…"}'
FIELDS = (*TEXT_COLUMNS, "trace")

#: The texts of a request, one or two a row, and whether the tokens' traces are wanted. Plain values: they are sent from
#: process to process.
Rows = tuple[list[tuple[str, ...]], bool]


class RequestError(Exception):
    """A request that is refused.

    Attributes:
        status: the HTTP status.
        line: names the field, the problem and the remedy.
    """

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status, self.line = status, line


@dataclass(frozen=True)
class Accepted:
    """What a server accepts.

    Attributes:
        names: what the model calls the texts that it reads, such as ``question`` and ``context``.
        needs_pair: whether each row has two texts; where it may have one or two, there are two names and no need.
        max_texts: the most rows of a request.
        max_bytes: the most bytes of a request's body.
    """

    names: tuple[str, ...]
    needs_pair: bool
    max_texts: int
    max_bytes: int


def read_request(body: bytes, accepted: Accepted) -> Rows:
    """Read the body of a request: ``{"text": "…"}``, with ``text_pair``, or with lists of texts in both.

    Raises:
        RequestError: it cannot be read.
    """
    fields = _read_object(body)
    for name in fields:
        if name not in FIELDS:
            raise RequestError(422, f"{name[:40]}: no such field.{suggest(name, FIELDS)} Fields: {', '.join(FIELDS)}")
    if not isinstance(trace := fields.get("trace", False), bool):
        raise RequestError(422, f"trace is {_type_name(trace)}: give true or false")
    texts = [_read_texts(name, fields[name], accepted) for name in TEXT_COLUMNS if fields.get(name) is not None]
    if fields.get("text") is None:
        raise RequestError(422, f"text is missing: send {EXAMPLE}")
    what = f"a pair of texts ({', '.join(accepted.names)})" if accepted.needs_pair else "one text"
    if len(texts) > len(accepted.names):
        raise RequestError(422, f"text_pair: the model reads {what}; leave text_pair out")
    if len(texts) == 1 and accepted.needs_pair:
        raise RequestError(422, f"text_pair is missing: the model reads {what}")
    if len({len(column) for column in texts}) > 1:
        counts = " and ".join(f"{len(column)} in {name}" for name, column in zip(TEXT_COLUMNS, texts, strict=True))
        raise RequestError(422, f"text_pair: there are {counts}; give one for each text")
    return list(zip(*texts, strict=True)), trace


def _read_object(body: bytes) -> dict[str, Any]:
    if not body.strip():
        raise RequestError(400, f"the body is empty: send {EXAMPLE}")
    try:
        fields = json.loads(body.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RequestError(400, f"the body is not UTF-8, from byte {error.start + 1} on: encode it as UTF-8") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise RequestError(400, f"the body is not JSON: {error.msg}, {where}; send {EXAMPLE}") from None
    except (RecursionError, ValueError):  # nested too deeply, or a number of thousands of digits
        raise RequestError(400, f"the body is JSON that cannot be read; send {EXAMPLE}") from None
    if not isinstance(fields, dict):
        raise RequestError(422, f"the body is {_type_name(fields)}: send an object, {EXAMPLE}")
    return fields


def _read_texts(name: str, value: Any, accepted: Accepted) -> list[str]:
    """Return the texts of a field."""
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise RequestError(422, f"{name} is an empty list: give at least one text")
    if len(texts) > accepted.max_texts:
        raise RequestError(413, f"{name} has {len(texts)} texts: send at most {accepted.max_texts} a request")
    for index, text in enumerate(texts):
        place = f"{name}[{index}]" if isinstance(value, list) else name
        if not isinstance(text, str):
            raise RequestError(422, f"{place} is {_type_name(text)}: give a string, or a list of strings")
        if not text.strip():
            raise RequestError(422, f"{place} is blank: give a text")
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise RequestError(
                422, f"{place} holds half of a surrogate pair (\\ud800 to \\udfff): send whole characters"
            )
    return texts


def _type_name(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "true or false", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")

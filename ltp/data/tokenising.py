"""Tokenise texts with truncation, in memory that does not depend on how long the longest text is."""

import itertools
import re
from collections.abc import Sequence
from typing import Any

from ltp.errors import UserError

_CUT_WORDS = 4  # words a token that are read of a text far beyond the limit
_CUT_CHARACTERS = 64  # characters a token from which a text is cut
_PIECE = re.compile(r"\s*\S+(?:\s+\S+){0,9999}")  # a part of a text whose tokens are counted at once


def tokenise(tokenizer: Any, texts: Sequence[Sequence[str]], max_length: int) -> tuple[Any, list[bool]]:
    """Tokenise texts, truncated. Of a text far beyond the limit only the beginning is read: the tokens are the same.

    Truncating a pair of texts takes memory that grows with the product of their lengths (tokenizers builds every
    combination of what is left over).

    Args:
        tokenizer: a fast tokenizer.
        texts: one or two columns of texts.
        max_length: truncation length in tokens, special tokens included.

    Returns:
        The tokenizer's output, and for each row whether the end of a text was not read.
    """
    rows = list(zip(*texts, strict=True))
    cut = [tuple(beginning(text, max_length) for text in row) for row in rows]
    is_cut = [one != whole for one, whole in zip(cut, rows, strict=True)]
    if len(texts) == 2 and any(is_cut) and (max_length - tokenizer.num_special_tokens_to_add(pair=True)) % 2:
        cut = [
            _in_order(tokenizer, one, whole, max_length) if was_cut else one
            for one, whole, was_cut in zip(cut, rows, is_cut, strict=True)
        ]
    encoded = tokenizer(*map(list, zip(*cut, strict=True)), truncation=True, max_length=max_length)
    if any(was_cut and len(ids) < max_length for was_cut, ids in zip(is_cut, encoded["input_ids"], strict=True)):
        # words without tokens
        return tokenizer(*map(list, texts), truncation=True, max_length=max_length), [False] * len(rows)
    return encoded, is_cut


def require_fast(tokenizer: Any, kind: str) -> None:
    """Check that a tokenizer knows the word and the characters of each token.

    Raises:
        UserError: it does not.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"task.kind={kind} needs a fast tokenizer, which knows the word and the characters of each token; "
            f"{type(tokenizer).__name__} is none"
        )


def first_tokens(tokenizer: Any, texts: Sequence[str], most: int) -> list[tuple[str, int]]:
    """Return the beginning of each text that has at most so many tokens, and how many the whole text has.

    Args:
        tokenizer: a fast tokenizer.
        texts: any number of texts.
        most: tokens, special tokens left out.
    """
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    found = []
    for text, offsets in zip(texts, tokenizer(list(texts), **options)["offset_mapping"], strict=True):
        begin, total = text, len(offsets)
        while len(offsets) > most:  # again, because a word that was cut may have more tokens than before
            begin = begin[: offsets[most][0]]
            offsets = tokenizer(begin, **options)["offset_mapping"]
        found.append((begin, total))
    return found


def beginning(text: str, max_length: int) -> str:
    """Return the beginning of a long text, with more than ``max_length`` tokens, cut between two words.

    A shorter text, and one without spaces, is returned as it is.
    """
    if len(text) <= _CUT_CHARACTERS * max_length:
        return text
    end = 0
    for word in itertools.islice(re.finditer(r"\S+", text), _CUT_WORDS * max_length):
        end = word.end()
    return text[:end]


def _in_order(tokenizer: Any, cut: tuple[str, ...], whole: tuple[str, ...], max_length: int) -> tuple[str, ...]:
    """Cut a pair so that the longer text stays the longer one: truncation keeps one token more of it."""
    counts = [_count(tokenizer, text) for text in whole]
    encoded = tokenizer(list(cut), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    found = [len(ids) for ids in encoded["input_ids"]]
    if (found[0] > found[1]) == (counts[0] > counts[1]):
        return cut
    too_long = int(counts[0] > counts[1])  # in its cut form
    offsets = encoded["offset_mapping"][too_long]
    if len(offsets) <= max_length:
        return cut
    text = cut[too_long]
    end = re.compile(r"\s|$").search(text, offsets[max_length][1])
    assert end is not None  # it matches the end
    return tuple(text[: end.start()] if index == too_long else other for index, other in enumerate(cut))


def _count(tokenizer: Any, text: str) -> int:
    """Count the tokens of a text, special tokens left out, in bounded memory."""
    pieces = (piece.group() for piece in _PIECE.finditer(text))
    return sum(len(tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]) for piece in pieces)

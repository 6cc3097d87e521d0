"""Synthetic demo corpus (`task=demo`): short sentences with a sentiment label, generated from a seed.

Most words are neutral. One to three carry sentiment, a preceding negation inverts it, and the label is the sign of
the sum. Most tokens can therefore be pruned, and pruning the others costs accuracy.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TRAIN_ROWS = 8_000
VALIDATION_ROWS = 1_000
TEST_ROWS = 1_000


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


POSITIVE = _words(
    "good great lovely brilliant charming delightful superb wonderful excellent beautiful clever funny"
    " moving perfect fresh warm"
)
NEGATIVE = _words(
    "bad awful boring dull terrible horrible weak ugly stupid clumsy poor tedious annoying messy empty cold"
)
NEGATIONS = _words("not never hardly")

_SUBJECTS = _words("film movie story plot scene script actor director camera music ending dialogue picture cast")
_VERBS = _words("was seemed looked felt remained became")
_ACTION_VERBS = _words("follows shows finds meets leaves watches visits joins calls sees")
_NOUNS = _words(
    "sailor teacher doctor farmer village river house train city garden letter brother sister stranger"
    " window mountain school summer winter morning evening road market island"
)
_ADJECTIVES = _words("old young small tall quiet little local english french wooden first second late early")
_PREPOSITIONS = _words("in near behind beside across through from toward around under")
_CONJUNCTIONS = _words("and while then because when so")
_OPENING_ADVERBS = _words("here today again later meanwhile once perhaps finally")
_ARTICLES = _words("the this that every one")

Row = dict[str, Any]


def demo_rows(split: str, seed: int = 0, rows: int | None = None) -> list[Row]:
    """Generate a split of the demo corpus.

    Args:
        split: "train", "validation" or "test"; the splits share no sentence.
        seed: Seed of the corpus.
        rows: Number of rows, taken from the start of the split. Default: 8,000 (train) or 1,000 (validation,
            test). The training split can be longer, the others cannot.

    Returns:
        Rows `{"sentence": str, "label": 0 or 1}` (1: positive). The first n rows are balanced for every even n.

    Raises:
        ValueError: The split does not exist, or has fewer rows.
    """
    sizes = {"validation": VALIDATION_ROWS, "train": TRAIN_ROWS, "test": TEST_ROWS}
    if split not in sizes:
        raise ValueError(f"split {split!r}: the demo corpus has train, validation and test")
    if rows is None:
        rows = sizes[split]
    if split != "train" and rows > sizes[split]:
        raise ValueError(f"the demo corpus has {sizes[split]} {split} rows, not {rows}")
    # a single stream of distinct sentences: the validation split first, then the training split, then the test split
    first = {"validation": 0, "train": VALIDATION_ROWS, "test": VALIDATION_ROWS + TRAIN_ROWS}[split]
    rng = random.Random(seed)
    seen: dict[str, Row] = {}
    while len(seen) < first + rows:
        label = len(seen) % 2
        sentence = _sentence(rng, label)
        seen.setdefault(sentence, {"sentence": sentence, "label": label})
    return list(seen.values())[first:]


def demo_multilabel_rows(split: str) -> list[Row]:
    """Generate a split with the kinds of words in each sentence, `{"sentence": str, "labels": [str, ...]}`.

    `praise` and `criticism`, words that carry sentiment, `negation`, and `place`, a preposition.
    """
    kinds = {"praise": POSITIVE, "criticism": NEGATIVE, "negation": NEGATIONS, "place": _PREPOSITIONS}
    return [
        {
            "sentence": row["sentence"],
            "labels": [name for name, words in kinds.items() if {*words} & {*row["sentence"].split()}],
        }
        for row in demo_rows(split)
    ]


def demo_token_rows(split: str) -> list[Row]:
    """Generate a split of the corpus with the opinions tagged, `{"tokens": [str, ...], "tags": [str, ...]}`.

    An opinion is a word that carries sentiment, with the negation before it; its type is the sign of the whole.
    """
    rows = []
    for row in demo_rows(split):
        words = row["sentence"].split()
        tags = ["O"] * len(words)
        for first, last, is_positive in _opinions(words):
            kind = "positive" if is_positive else "negative"
            tags[first : last + 1] = [f"B-{kind}", *[f"I-{kind}"] * (last - first)]
        rows.append({"tokens": words, "tags": tags})
    return rows


def demo_ranking_rows(split: str) -> list[Row]:
    """Generate queries with four candidates each, `{"query": str, "passage": str, "relevance": 0 or 1}`.

    A query asks for praise, `good film in the summer`; the relevant ones are the two candidates with a positive label.
    """
    rng = random.Random(len(split))
    candidates = demo_rows(split)  # labels alternate
    rows = []
    for first in range(0, len(candidates), 4):
        own = candidates[first : first + 4]
        rng.shuffle(own)
        place = f"{rng.choice(_PREPOSITIONS)} the {rng.choice(_NOUNS)}"
        query = f"{rng.choice(POSITIVE)} {rng.choice(_SUBJECTS)} {place}"
        rows += [{"query": query, "passage": row["sentence"], "relevance": row["label"]} for row in own]
    return rows


def demo_span_rows(split: str) -> list[Row]:
    """Generate questions after the opinion of something, `{"question": str, "context": str, "answers": {…}}`.

    The question is the subject, `film`, and the answer what is said of it, `not good`.
    """
    rng = random.Random(len(split))
    rows = []
    for row in demo_rows(split):
        words = row["sentence"].split()
        first, last, _ = rng.choice(_opinions(words))
        subject = next(word for word in reversed(words[:first]) if word in _SUBJECTS)
        answer = " ".join(words[first : last + 1])
        start = len(" ".join(words[:first])) + (first > 0)
        answers = {"text": [answer], "answer_start": [start]}
        rows.append({"question": subject, "context": row["sentence"], "answers": answers})
    return rows


def _opinions(words: Sequence[str]) -> list[tuple[int, int, bool]]:
    """Return the opinions of a sentence: first and last word, and whether they are positive."""
    opinions = []
    for place, word in enumerate(words):
        if word in POSITIVE or word in NEGATIVE:
            is_negated = place > 0 and words[place - 1] in NEGATIONS
            opinions.append((place - is_negated, place, (word in POSITIVE) != is_negated))
    return opinions


def demo_vocabulary() -> list[str]:
    """Return all words of the demo corpus in a fixed order."""
    opinions = (POSITIVE, NEGATIVE, NEGATIONS, _SUBJECTS, _VERBS)
    neutral = (_ACTION_VERBS, _NOUNS, _ADJECTIVES, _PREPOSITIONS, _CONJUNCTIONS, _OPENING_ADVERBS, _ARTICLES)
    return list(dict.fromkeys(word for group in opinions + neutral for word in group))


def _sentence(rng: random.Random, label: int) -> str:
    """Generate one to three opinion clauses whose signs sum to the label's sign, mixed with neutral clauses."""
    count = rng.choices((1, 2, 3), weights=(5, 3, 2))[0]
    signs = [1 if label else -1] * count
    if count == 3 and rng.random() < 0.3:
        signs[rng.randrange(3)] *= -1  # a minority: the sum keeps its sign
    clauses = [_opinion_clause(rng, sign) for sign in signs]
    clauses += [_neutral_clause(rng) for _ in range(rng.randint(0 if count > 1 else 1, 4 - count))]
    rng.shuffle(clauses)
    words = clauses[0]
    for clause in clauses[1:]:
        words += [rng.choice(_CONJUNCTIONS), *clause]
    if rng.random() < 0.3:
        words.insert(0, rng.choice(_OPENING_ADVERBS))
    return " ".join(words) + " ."


def _opinion_clause(rng: random.Random, sign: int) -> list[str]:
    negated = rng.random() < 0.25
    word = rng.choice(POSITIVE if (sign > 0) != negated else NEGATIVE)
    negation = [rng.choice(NEGATIONS)] if negated else []
    return [rng.choice(_ARTICLES), rng.choice(_SUBJECTS), rng.choice(_VERBS), *negation, word]


def _neutral_clause(rng: random.Random) -> list[str]:
    words = [rng.choice(_ARTICLES), rng.choice(_ADJECTIVES), rng.choice(_NOUNS), rng.choice(_ACTION_VERBS)]
    words += [rng.choice(_ARTICLES), rng.choice(_NOUNS)]
    if rng.random() < 0.6:
        words += [rng.choice(_PREPOSITIONS), rng.choice(_ARTICLES), rng.choice(_NOUNS)]
    return words


def demo_tokenizer() -> PreTrainedTokenizerFast:
    """Build a WordPiece tokenizer for the demo corpus.

    Each word of the corpus is one token. Other English text is split into characters and never becomes [UNK].
    Special tokens and their ids: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4.
    """
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = string.ascii_lowercase + string.digits + string.punctuation + "“”‘’–—…£€°"
    tokens = [*special, *characters, *(f"##{c}" for c in characters), *demo_vocabulary()]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}

    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=1_000))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=512,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )

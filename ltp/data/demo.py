"""The embedded demo corpus (`task=demo`): short sentences with a sentiment, generated from a seed.

Most words say nothing about the label. One to three carry sentiment, a negation in front of one turns it
round, and the label is the sign of the sum. So there is much to prune and something to lose by pruning.
"""

from __future__ import annotations

import random
import string
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TRAIN_ROWS = 8_000
VALIDATION_ROWS = 1_000


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
_ACTIONS = _words("follows shows finds meets leaves watches visits joins calls sees")
_NOUNS = _words(
    "sailor teacher doctor farmer village river house train city garden letter brother sister stranger"
    " window mountain school summer winter morning evening road market island"
)
_QUALITIES = _words("old young small tall quiet little local english french wooden first second late early")
_PLACES = _words("in near behind beside across through from toward around under")
_JOINTS = _words("and while then because when so")
_OPENINGS = _words("here today again later meanwhile once perhaps finally")
_ARTICLES = _words("the this that every one")

Row = dict[str, Any]


def demo_rows(split: str, seed: int = 0, rows: int | None = None) -> list[Row]:
    """The demo corpus.

    Args:
        split: "train" or "validation"; no sentence is in both.
        seed: Another seed gives another corpus.
        rows: The first so many rows; default: 8,000 and 1,000. More training rows can be had.

    Returns:
        Rows `{"sentence": str, "label": 0 or 1}` (1: positive). Any even number of first rows is balanced.
    """
    if split not in ("train", "validation"):
        raise ValueError(f"split {split!r}: the demo corpus has train and validation")
    if rows is None:
        rows = TRAIN_ROWS if split == "train" else VALIDATION_ROWS
    if split == "validation" and rows > VALIDATION_ROWS:
        raise ValueError(f"the demo corpus has {VALIDATION_ROWS} validation rows, not {rows}")
    # One stream of distinct sentences: first the validation split, then the training split.
    first = VALIDATION_ROWS if split == "train" else 0
    rng = random.Random(seed)
    seen: dict[str, Row] = {}
    while len(seen) < first + rows:
        label = len(seen) % 2
        sentence = _sentence(rng, label)
        seen.setdefault(sentence, {"sentence": sentence, "label": label})
    return list(seen.values())[first:]


def demo_vocabulary() -> list[str]:
    """Every word of the demo corpus, in a fixed order."""
    opinions = (POSITIVE, NEGATIVE, NEGATIONS, _SUBJECTS, _VERBS)
    neutral = (_ACTIONS, _NOUNS, _QUALITIES, _PLACES, _JOINTS, _OPENINGS, _ARTICLES)
    return list(dict.fromkeys(word for group in opinions + neutral for word in group))


def _sentence(rng: random.Random, label: int) -> str:
    """One to three opinions whose sum has the sign that `label` says, among clauses that say nothing."""
    count = rng.choices((1, 2, 3), weights=(5, 3, 2))[0]
    signs = [1 if label else -1] * count
    if count == 3 and rng.random() < 0.3:
        signs[rng.randrange(3)] *= -1  # outvoted: the sum keeps its sign
    clauses = [_opinion(rng, sign) for sign in signs]
    clauses += [_neutral(rng) for _ in range(rng.randint(0 if count > 1 else 1, 4 - count))]
    rng.shuffle(clauses)
    words = clauses[0]
    for clause in clauses[1:]:
        words += [rng.choice(_JOINTS), *clause]
    if rng.random() < 0.3:
        words.insert(0, rng.choice(_OPENINGS))
    return " ".join(words) + " ."


def _opinion(rng: random.Random, sign: int) -> list[str]:
    negated = rng.random() < 0.25
    word = rng.choice(POSITIVE if (sign > 0) != negated else NEGATIVE)
    negation = [rng.choice(NEGATIONS)] if negated else []
    return [rng.choice(_ARTICLES), rng.choice(_SUBJECTS), rng.choice(_VERBS), *negation, word]


def _neutral(rng: random.Random) -> list[str]:
    words = [rng.choice(_ARTICLES), rng.choice(_QUALITIES), rng.choice(_NOUNS), rng.choice(_ACTIONS)]
    words += [rng.choice(_ARTICLES), rng.choice(_NOUNS)]
    if rng.random() < 0.6:
        words += [rng.choice(_PLACES), rng.choice(_ARTICLES), rng.choice(_NOUNS)]
    return words


def demo_tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer for the demo corpus, built in code.

    One token a word for the corpus's words; other English text falls apart into characters, never into [UNK].
    Special tokens as BERT's: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4.
    """
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = string.ascii_lowercase + string.digits + string.punctuation + "“”‘’–—…£€°"
    traces = [*special, *characters, *(f"##{c}" for c in characters), *demo_vocabulary()]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(traces))}

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

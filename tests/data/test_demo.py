"""The demo corpus and its tokenizer."""

import pytest
from transformers import AutoTokenizer, BertConfig

from ltp.data.demo import NEGATIONS, NEGATIVE, POSITIVE, demo_rows, demo_tokenizer, demo_vocabulary


@pytest.fixture(scope="module")
def tokenizer():
    return demo_tokenizer()


def sentiment(sentence):
    """The label's definition, read from the words: the sum of signs, turned round by a negation before."""
    words = sentence.split()
    total = 0
    for before, word in zip(["", *words], words, strict=False):
        sign = (word in POSITIVE) - (word in NEGATIVE)
        total += -sign if before in NEGATIONS else sign
    return total


def test_the_corpus_is_deterministic_and_balanced():
    train, validation = demo_rows("train"), demo_rows("validation")
    assert (len(train), len(validation)) == (8_000, 1_000)
    assert train == demo_rows("train")
    assert sum(row["label"] for row in train) == 4_000
    assert sum(row["label"] for row in validation) == 500
    assert demo_rows("train", seed=1)[:10] != train[:10]
    assert validation[0] == {
        "sentence": "one story looked weak when every script remained clumsy so one director felt stupid .",
        "label": 0,
    }


def test_no_sentence_comes_twice():
    sentences = [row["sentence"] for split in ("train", "validation") for row in demo_rows(split)]
    assert len(set(sentences)) == 9_000


def test_labels_follow_from_the_words():
    for row in demo_rows("train"):
        total = sentiment(row["sentence"])
        assert total != 0
        assert row["label"] == (total > 0)


def test_few_words_carry_the_label():
    rows = [row["sentence"].split() for row in demo_rows("train")]
    carrying = [sum(word in POSITIVE + NEGATIVE + NEGATIONS for word in words) for words in rows]
    assert all(1 <= count <= 6 for count in carrying)
    assert sum(carrying) / sum(map(len, rows)) < 0.15
    assert 15 < sum(map(len, rows)) / len(rows) < 25
    assert max(map(len, rows)) <= 45


def test_first_rows():
    assert demo_rows("train", rows=10) == demo_rows("train")[:10]
    assert demo_rows("validation", rows=10) == demo_rows("validation")[:10]
    assert len(demo_rows("train", rows=8_500)) == 8_500


def test_wrong_arguments():
    with pytest.raises(ValueError, match="split 'dev': the demo corpus has train, validation and test"):
        demo_rows("dev")
    with pytest.raises(ValueError, match="the demo corpus has 1000 validation rows, not 1001"):
        demo_rows("validation", rows=1_001)


def test_special_tokens(tokenizer):
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id) == (0, 2, 3)
    assert tokenizer.model_max_length == 512


def test_pairs_have_token_types(tokenizer):
    encoded = tokenizer("Not good!", "the ENDING")
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == (
        ["[CLS]", "not", "good", "!", "[SEP]", "the", "ending", "[SEP]"]
    )
    assert encoded["token_type_ids"] == [0, 0, 0, 0, 0, 1, 1, 1]
    assert encoded["attention_mask"] == [1] * 8


def test_every_demo_word_is_one_token(tokenizer):
    words = demo_vocabulary()
    assert len(words) == len(set(words))
    assert tokenizer.tokenize(" ".join(words)) == words
    assert {word for row in demo_rows("train") for word in row["sentence"].split()} <= {*words, "."}


def test_other_english_falls_apart_into_characters(tokenizer):
    assert tokenizer.tokenize("Zebra's café, 42%") == (
        ["z", "##e", "##b", "##r", "##a", "'", "s", "c", "##a", "##f", "##e", ",", "4", "##2", "%"]
    )
    text = "“It’s 100% true” – she said: {wow} @ #1 & $5 / `x` ~ a_b^c <d> | e=f+g*h;" + "pneumono" * 30
    assert "[UNK]" not in tokenizer.tokenize(text)


@pytest.mark.parametrize("beside_a_model", [False, True])
def test_round_trip_through_a_directory(tokenizer, tmp_path, beside_a_model):
    tokenizer.save_pretrained(tmp_path)
    if beside_a_model:
        BertConfig().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = ("Not good, café!", "the ending")
    assert dict(loaded(*text)) == dict(tokenizer(*text))
    assert (len(loaded), loaded.pad_token_id, loaded.model_max_length) == (len(tokenizer), 0, 512)
    assert loaded.model_input_names == ["input_ids", "token_type_ids", "attention_mask"]

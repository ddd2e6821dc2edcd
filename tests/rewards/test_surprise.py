"""The lexicon, and the reward of rare but well-spelled words."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentknobs.errors import DataError
from latentknobs.rewards import Lexicon, WordSurprise
from latentknobs.rewards.surprise import UNKNOWN_WORD, creative_spelling

SMALL = Lexicon({"the": 6, "frog": 2, "swam": 1, "deeply": 1})


def test_surprisal_is_minus_log_share():
    assert SMALL.surprisal("frog") == pytest.approx(-math.log(0.2))
    assert SMALL.surprisal("forg") is None


def test_from_text_counts_lower_case_words():
    assert Lexicon.from_text(["The frog.", "the FROG didn't"]).counts == {"the": 2, "frog": 2, "didn't": 1}
    assert Lexicon.from_text("a a b", min_count=2).counts == {"a": 2}


def test_mean_surprisal_of_known_words():
    expected = (-math.log(0.6) - math.log(0.2)) / 2
    assert creative_spelling("The frog.", SMALL) == pytest.approx(expected)


def test_a_wrong_word_costs_twelve():
    assert creative_spelling("The forg.", SMALL) == pytest.approx((-math.log(0.6) + UNKNOWN_WORD) / 2)


def test_a_cut_last_word_costs_nothing():
    assert creative_spelling("The frog sw", SMALL) == creative_spelling("The frog ", SMALL)


def test_repetition_scales_down():
    once = creative_spelling("the frog swam.", SMALL)
    # "the frog swam the frog swam": 4 trigrams, 3 unique.
    assert creative_spelling("the frog swam the frog swam.", SMALL) == pytest.approx(once * 3 / 4)


def test_no_words_is_zero():
    assert creative_spelling("", SMALL) == 0.0
    assert creative_spelling("12 34", SMALL) == 0.0


@given(st.lists(st.sampled_from(["the", "frog", "swam", "deeply"]), min_size=1, max_size=12))
def test_misspelling_any_word_never_pays(sentence):
    for i in range(len(sentence)):
        wrong = [*sentence[:i], "xqz", *sentence[i + 1 :]]
        # Without the repetition factor, which a new wrong word may improve.
        assert _mean(wrong) < _mean(sentence)


def _mean(sentence):
    return sum(SMALL.surprisal(w) if w in SMALL else UNKNOWN_WORD for w in sentence) / len(sentence)


def test_scale_and_offset():
    raw = WordSurprise(SMALL)(["p"], ["the frog."])[0]
    assert WordSurprise(SMALL, scale=0.5, offset=1.0)(["p"], ["the frog."])[0] == pytest.approx((raw - 1) / 2)


def test_saved_lexicon_is_read_back_from_a_path(tmp_path):
    SMALL.save(tmp_path / "lexicon.json")
    assert Lexicon.from_file(tmp_path / "lexicon.json").counts == SMALL.counts
    text = "the deeply frog."
    assert WordSurprise(str(tmp_path / "lexicon.json"))(["p"], [text]) == WordSurprise(SMALL)(["p"], [text])


@pytest.mark.parametrize("content", ["not json", "[1]", "{}", json.dumps({"a": 0}), json.dumps({"a": "x"})])
def test_bad_lexicon_files_are_data_errors(tmp_path, content):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(DataError, match="lexicon"):
        Lexicon.from_file(tmp_path / "bad.json")


def test_missing_lexicon_names_the_path():
    with pytest.raises(DataError, match=r"nowhere\.json"):
        Lexicon.from_file("nowhere.json")


@pytest.mark.parametrize("word", ["the", "played", "plays", "playing", "happily", "apples", "smiled", "friends", "don't"])
def test_packaged_lexicon_knows_ordinary_inflections(word):
    assert word in Lexicon.packaged()


@pytest.mark.parametrize("word", ["teh", "wsa", "frogg", "happpy", "xqz"])
def test_packaged_lexicon_knows_no_misspellings(word):
    assert word not in Lexicon.packaged()

"""How many sentences begin as they must, and how sentences are told apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentknobs.errors import RewardError
from latentknobs.rewards import SentenceConstraint
from latentknobs.rewards.constraint import begins_with, judged_sentences
from latentknobs.rewards.text import complete_words, ends_sentence, split_sentences

STARTED = "Story: So, there was a frog."


def rate(completion: str, prompt: str = STARTED, opener: str = "So") -> float:
    return SentenceConstraint()([prompt], [completion], opener=[opener])[0]


def test_share_of_sentences():
    assert rate(" So, he ran. He fell! So, he cried.") == pytest.approx(2 / 3)


def test_a_longer_word_is_another_word_and_case_is_not():
    assert begins_with("so, he ran", "So")
    assert begins_with('"So!" he said', "So")
    assert not begins_with("Some ran", "So")
    assert begins_with("Once upon a time", "once upon")


def test_continuation_of_the_prompts_sentence_is_not_judged():
    assert judged_sentences("So, Fin loved to", " swim. So, he swam.") == ["So, he swam."]
    assert rate(" swim. So, he swam.", prompt="So, Fin loved to") == 1.0


def test_cut_last_sentence_counts_once_its_first_word_is_finished():
    assert rate(" So, he ran. So") == 1.0
    assert judged_sentences(STARTED, " So, he ran. He") == ["So, he ran."]
    assert judged_sentences(STARTED, " So, he ran. He fel") == ["So, he ran.", "He fel"]


def test_nothing_to_judge_is_zero():
    assert rate("") == 0.0
    assert rate(" S") == 0.0


def test_a_prefix_needs_no_column():
    assert SentenceConstraint(prefix="Then")([STARTED], [" Then he ran."]) == [1.0]


def test_missing_opener_is_an_error_that_names_the_row():
    with pytest.raises(RewardError, match="column 'opener'"):
        SentenceConstraint()(["p"], ["c"])
    with pytest.raises(RewardError, match="row 1"):
        SentenceConstraint()(["p", "p"], ["c", "c"], opener=["So", None])


@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_rate_is_the_share_for_any_mix_of_sentences(obeyed):
    text = " ".join("So, he ran." if keeps else "He ran." for keeps in obeyed)
    assert rate(text) == pytest.approx(sum(obeyed) / len(obeyed))


def test_sentences_end_with_their_quotes():
    assert split_sentences('"Hi!" he said. "Come."  She came') == ['"Hi!', "he said.", '"Come.', "She came"]
    assert ends_sentence('He said "Hi."')
    assert ends_sentence("")
    assert not ends_sentence("He said")


@given(st.text(alphabet="ab.!? \n\"'", max_size=40))
def test_splitting_loses_no_letter(text):
    joined = "".join(split_sentences(text))
    assert [c for c in joined if c.isalpha()] == [c for c in text if c.isalpha()]


def test_a_cut_word_is_no_word():
    assert complete_words("He ran fas") == ["he", "ran"]
    assert complete_words("He didn'") == ["he"]
    assert complete_words("He ran. ") == complete_words("He ran.") == ["he", "ran"]

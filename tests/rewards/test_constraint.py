"""How many sentences begin as they must, and how sentences are told apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentknobs.errors import ConfigError, RewardError
from latentknobs.rewards import SentenceConstraint, TextConstraint, resolve_reward
from latentknobs.rewards.constraint import begins_with, judged_sentences
from latentknobs.rewards.text import complete_words, ends_sentence, split_sentences, text_of

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


def test_missing_opener_is_an_error_that_names_the_prompt():
    with pytest.raises(RewardError, match="fill the column 'opener'"):
        SentenceConstraint()(["p"], ["c"])
    with pytest.raises(RewardError, match="no opener for the prompt 'two'"):
        SentenceConstraint()(["one", "two"], ["c", "c"], opener=["So", None])


def test_a_reply_begins_its_own_sentences():
    asked = [{"role": "user", "content": "Tell me about"}]
    reply = [{"role": "assistant", "content": "So, he ran. He fell."}]
    assert SentenceConstraint("So")([asked], [reply]) == [0.5]


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


def kept(text: str, **settings) -> float:
    return TextConstraint(**settings)(["p"], [text])[0]


@given(st.integers(0, 12), st.integers(0, 6), st.integers(0, 6))
def test_word_counts_are_inclusive_bounds(words, least, more):
    text = " ".join(["word"] * words)
    assert kept(text, min_words=least) == (words >= least)
    assert kept(text, max_words=more) == (words <= more)
    assert kept(text, min_words=least, max_words=least + more) == ((words >= least) + (words <= least + more)) / 2


@pytest.mark.parametrize(
    ("text", "settings", "expected"),
    [
        ("So SORRY.", {"contains": "sorry"}, 1.0),
        ("So sorry.", {"lacks": "SORRY"}, 0.0),
        ("route 66", {"contains": "66"}, 1.0),
        ("<a>\n</a>", {"pattern": "<a>.*</a>"}, 1.0),
        ("x <a></a>", {"pattern": "<a>.*</a>"}, 0.0),
        ('{"a": [1]}', {"is_json": True}, 1.0),
        ('{"a": [1}', {"is_json": True}, 0.0),
        ("[" * 100_000, {"is_json": True}, 0.0),
        ("a b c", {"max_words": 2, "lacks": "d", "contains": "a", "min_words": 1}, 0.75),
    ],
)
def test_the_share_of_constraints_that_are_kept(text, settings, expected):
    assert kept(text, **settings) == expected


def test_constraints_by_name():
    reward = resolve_reward(r"text_constraint:pattern=\d{2,3},is_json=true,max_words=1")
    assert reward(["p"] * 3, ["123", "1234", "ab cd"]) == [1.0, 2 / 3, 0.0]
    assert len(resolve_reward("text_constraint:max_words=1,is_json=false").checks) == 1


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "nothing to check. Give at least one of min_words"),
        ({"min_words": -1}, "min_words=-1, which must be a whole number"),
        ({"max_words": "many"}, "max_words='many'"),
        ({"pattern": "(a"}, r"pattern='\(a', not a regular expression"),
    ],
)
def test_impossible_constraints_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        TextConstraint(**settings)


def test_the_text_of_messages():
    parts = [{"type": "image"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert text_of([{"role": "user", "content": parts}, {"role": "assistant", "content": None}]) == "ab\n"
    assert text_of("plain") == "plain"

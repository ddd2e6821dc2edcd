"""Final answers as mathematics."""

import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentknobs.errors import BrokenRewardError, ConfigError, RewardError
from latentknobs.rewards import MathAnswer, resolve_reward, score_all
from latentknobs.rewards.math_answer import bare_answer

JUDGE = MathAnswer(timeout=2)


def judged(answer, completion, judge=JUDGE):
    return judge(["p"], [completion], answer=[answer])[0]


@pytest.mark.parametrize(
    ("answer", "completion"),
    [
        (72, "9*8=72\n#### 72"),
        ("9*8=72\n#### 72", "So it is 72."),
        ("1,234", "about 1234"),
        (1234, "It costs $1,234."),
        ("1/2", r"Thus \boxed{\frac{1}{2}}."),
        (r"\frac{1}{2}", "The answer is 0.5"),
        (0.5, "1/2"),
        ("50%", "0.5"),
        (r"2\sqrt{3}", r"$\sqrt{12}$"),
        (r"\boxed{2\sqrt{3}}", r"hence \boxed{2 \sqrt{3}}"),
        ("x+1", "$1+x$"),
        (r"\{1,2\}", r"\boxed{\{2,1\}}"),
        ("-5", "x = -5"),
        ("10 dollars", "I pay $10"),
        ("10^{-3}", "0.001"),
    ],
)
def test_equal_answers_in_many_forms(answer, completion):
    assert judged(answer, completion) == 1.0


@pytest.mark.parametrize(
    ("answer", "completion"),
    [(72, "71"), (72, "9*8=72, or rather 73"), (r"2\sqrt{3}", "2"), ("x+1", "$x-1$"), (2, "two"), (2, ""), ("(1,2)", "$(1,3)$")],
)
def test_wrong_or_missing_answers(answer, completion):
    assert judged(answer, completion) == 0.0


@given(st.fractions(min_value=-1000, max_value=1000, max_denominator=60), st.fractions(-9, 9, max_denominator=12))
def test_fractions_are_equal_exactly_when_they_are(one, other):
    for number in (one, one + other):
        box = rf"\boxed{{{'-' * (number < 0)}\frac{{{abs(number.numerator)}}}{{{number.denominator}}}}}"
        assert judged(f"{one.numerator}/{one.denominator}", f"So {box}.") == float(number == one)


@pytest.mark.parametrize(
    ("gold", "expected"),
    [("5", "$5$"), ("a\n#### 5", "$5$"), (r"2\sqrt{3}", r"$2\sqrt{3}$"), ("$x$", "$x$"), (r"\boxed{3}", r"\boxed{3}"),
     ("10 dollars", "10 dollars"), ("", "")],
)  # fmt: skip
def test_bare_latex_is_put_between_dollars_and_prose_is_not(gold, expected):
    assert bare_answer(gold) == expected


def test_by_name_and_row_by_row():
    scores = score_all("math_answer:column=solution", ["p"] * 4, ["3", "3", "3", "4"], {"solution": [3, None, "three", 3]})
    assert [s.value for s in scores] == [1.0, None, None, 0.0]
    assert scores[1].error == "The reward does not apply to it: it returned None."
    assert scores[2].error == "It found no mathematics in the answer 'three'."


def test_messages():
    reply = [{"role": "assistant", "content": r"\boxed{4}"}]
    assert JUDGE([[{"role": "user", "content": "2+2"}]], [reply], answer=[4]) == [1.0]


def test_what_takes_for_ever_has_no_score_and_costs_its_time_limit():
    started = time.monotonic()
    scores = score_all(MathAnswer(timeout=1), ["p"] * 2, [r"\boxed{9^{9^{9}}}", "3"], {"answer": [3, 3]})
    assert [s.value for s in scores] == [None, 1.0]
    assert scores[0].error.startswith("It took longer than 1 s to read or compare")
    assert time.monotonic() - started < 10


def test_another_thread_needs_a_judge_without_time_limit():
    found = []

    def ask(judge):
        try:
            found.append(judged(3, "3", judge))
        except RewardError as error:
            found.append(str(error))

    for judge in (JUDGE, MathAnswer(timeout=0)):
        thread = threading.Thread(target=ask, args=(judge,))
        thread.start()
        thread.join()
    assert "reaches only the main thread" in found[0] and "timeout=0" in found[0]
    assert found[1] == 1.0


def test_a_missing_column_says_what_to_add():
    with pytest.raises(BrokenRewardError, match=r"needs a column 'answer'.*math_answer:column=solution"):
        JUDGE(["p"], ["3"], solution=[3])


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ConfigError, match=r"pip install latentknobs\[math\]"):
        resolve_reward("math_answer")


@pytest.mark.parametrize("timeout", [-1, 0.5, "5"])
def test_an_impossible_time_limit_is_refused(timeout):
    with pytest.raises(ConfigError, match="whole seconds"):
        MathAnswer(timeout=timeout)

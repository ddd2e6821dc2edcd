"""Word problems read back: what they tell, harder ones, and the reward for inventing and solving one."""

import re

import pytest

from benchmarks.paper.novelty import novelty
from benchmarks.paper.problems import ANSWER, InventAndSolve, harder, is_solved, openings, read_problem
from latentknobs import testbed

ROWS = testbed.prompts("math", "train", 400)
PROMPT = "Problem: Tom has 12"
REST = " hats. He finds 7 more. Then he gives 5 to Mia. How many hats are left?\nAnswer: 12+7=19. 19-5=14. So 14."
WRONG = (" 12+7=19. 19-5=15. So 15.", " 12+7=19. 19-5=14. So 15.", " 12+5=17. 17-7=10. So 10.", " So 14.", "")


def test_every_problem_of_the_testbed_is_read_with_its_answer() -> None:
    for row in ROWS:
        told = read_problem(row["prompt"])
        assert told is not None and str(told.answer) == row["answer"], row


def test_a_harder_problem_keeps_its_words_and_has_a_new_right_answer() -> None:
    made = [(row, hard) for row in ROWS if (hard := harder(row))]
    assert len(made) > 300
    for row, hard in made:
        told = read_problem(hard["prompt"])
        assert told is not None and str(told.answer) == hard["answer"]
        assert re.sub(r"\d+", "", hard["prompt"]) == re.sub(r"\d+", "", row["prompt"])
    assert max(abs(a) for _, hard in made for a in read_problem(hard["prompt"]).amounts) == 12  # type: ignore[union-attr]


@pytest.mark.parametrize("work", WRONG)
def test_a_mistake_anywhere_is_no_solution(work: str) -> None:
    told = read_problem(PROMPT + REST.partition(ANSWER)[0])
    assert told is not None and told.answer == 14
    assert is_solved(told, REST.partition(ANSWER)[2])
    assert not is_solved(told, work)


def test_the_reward_pays_half_for_being_new_and_half_for_being_right() -> None:
    other = " shells. He sells 4 and then breaks 3. How many shells does Tom have?\nAnswer: 12-4=8. 8-3=4. So 4."
    both, new, solved = (InventAndSolve(part)([PROMPT] * 3, [REST, REST, other]) for part in ("both", "new", "solved"))
    assert solved == [1.0, 1.0, 0.0]
    assert 0.4 < new[0] == new[1] < new[2]
    assert both == [(a + b) / 2 for a, b in zip(new, solved, strict=True)]
    assert InventAndSolve("new")([PROMPT, PROMPT], ["! purple purple", REST])[0] == 0.0  # new, but no problem


def test_novelty_is_between_the_answers_to_one_prompt() -> None:
    assert novelty(["p", "p", "q"], ["a b c", "a b c", "a b c"]) == [0.0, 0.0, 0.0]
    assert novelty(["p", "p"], ["a b c", "d e f"]) == [1.0, 1.0]


def test_openings_differ() -> None:
    texts = [row["prompt"] for row in openings(1000)]
    assert len(set(texts)) == 1000

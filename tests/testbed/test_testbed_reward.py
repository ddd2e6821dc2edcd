"""The testbed's reward dispatches on the task."""

import pytest

from latentknobs.errors import RewardError
from latentknobs.testbed import testbed_reward as reward_of
from latentknobs.testbed.reward import story_reward

STORY = " So, the frog swam across the deep pond. So, he met a kind turtle."


def test_each_task_has_its_own_reward():
    words = story_reward()(["p"], [STORY])[0]
    values = reward_of(
        ["Problem: 12+2?\nAnswer:", "Problem: 12+2?\nAnswer:", "Story: A.", "Rule: So\nStory: So, a."],
        [" 12+2=14. So 14.", " 12+2=14. So 15.", STORY, STORY],
        task=["math", "math", "stories", "constrained"],
        answer=["14", "14", None, None],
        opener=[None, None, None, "So"],
    )
    assert values == pytest.approx([1.0, 0.0, words, (1 + words) / 2])


def test_good_stories_are_worth_about_as_much_as_right_answers():
    repeated = " The frog was happy. The frog was happy. The frog was happy. The frog was happy."
    good, dull, wrong = story_reward()(["p"] * 3, [STORY, repeated, STORY.replace("frog", "frgo")])
    assert 0.5 < good < 1.5
    assert dull < good - 0.5
    assert wrong < good - 0.3


def test_a_broken_rule_costs_half():
    row = {"task": ["constrained"], "opener": ["So"]}
    kept, broken = (reward_of(["Rule: So\nStory: So, a."], [text], **row)[0] for text in (STORY, STORY.replace("So,", "Yes,")))
    assert kept - broken == pytest.approx(0.5, abs=0.15)


def test_missing_and_unknown_tasks_are_reward_errors():
    with pytest.raises(RewardError, match="'task' is missing"):
        reward_of(["p"], ["c"])
    with pytest.raises(RewardError, match=r"'chess'.*math, stories, constrained"):
        reward_of(["p"], ["c"], task=["chess"])

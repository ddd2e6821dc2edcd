"""What the reward is told about rollouts."""

from latentknobs.data.prompts import Prompt
from latentknobs.data.rollouts import Rollout
from latentknobs.data.scores import score_rollouts
from latentknobs.rewards import ScoreCache

CHAT = ({"role": "user", "content": "hi"},)
PROMPTS = [Prompt("one", (1,), {"answer": 1}), Prompt("two", (2,), {"task": "b"}), Prompt("<chat>", (3,), {}, CHAT)]


def rollouts(*answered):
    return [Rollout(p, (7,), (0,), f"text {n}") for n, p in enumerate(answered)]


def test_each_rollout_comes_with_its_prompt_and_every_column_of_the_run():
    seen = {}

    def reward(prompts, completions, **columns):
        seen.update(prompts=prompts, completions=completions, columns=columns)
        return [float(len(str(prompt))) for prompt in prompts]

    scores = score_rollouts(reward, PROMPTS, rollouts(1, 0, 1))
    assert seen["prompts"] == ["two", "one", "two"]
    assert seen["completions"] == ["text 0", "text 1", "text 2"]
    assert seen["columns"] == {"answer": [None, 1, None], "task": ["b", None, "b"], "completion_ids": [[7]] * 3}
    assert [score.value for score in scores] == [3.0] * 3


def test_columns_do_not_depend_on_which_rollouts_are_asked():
    def reward(prompts, completions, answer, task, **columns):
        return [1.0] * len(prompts)

    for n in range(3):
        assert score_rollouts(reward, PROMPTS, rollouts(n))[0].value == 1.0


def test_conversations_arrive_as_messages():
    def reward(prompts, completions, **columns):
        assert prompts == [list(CHAT)] and completions == [[{"role": "assistant", "content": "text 0"}]]
        return [1.0]

    assert score_rollouts(reward, PROMPTS, rollouts(2))[0].value == 1.0


def test_cache_progress_and_parts_of_a_run_are_passed_on(tmp_path):
    done = []
    cache = ScoreCache(tmp_path / "c")
    score_rollouts("repetition", PROMPTS, rollouts(0, 1, 2), cache, advance=done.append)
    assert sum(done) == 3 and len(cache) == 3

    def broken(prompts, completions, **columns):
        raise OSError("away")

    assert score_rollouts(broken, PROMPTS, rollouts(0))[0].error == "OSError: away."

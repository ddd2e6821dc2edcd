"""Rollouts: their order, their seeds, and what survives the disk."""

import pytest

import latentknobs as lk
from latentknobs import testbed
from latentknobs.data.prompts import make_prompts
from latentknobs.data.rollouts import Rollout, read_lines, roll_out, write_lines
from latentknobs.errors import RunError
from latentknobs.heads.segmenters import parse_level
from latentknobs.policies import UniformPolicy

SPACE = lk.KnobSpace.of("temperature:0,0.7,1", {"top_p": [0.9, 1.0]})


@pytest.fixture(scope="module")
def lm():
    return testbed.load_model(), testbed.load_tokenizer()


@pytest.fixture(scope="module")
def made(lm):
    model, tokenizer = lm
    prompts = make_prompts(testbed.prompts("mixture", "train", 5), tokenizer)
    policy = UniformPolicy(SPACE, parse_level("every:3"))
    rollouts = roll_out(model, tokenizer, prompts, policy, copies=2, max_new_tokens=11, batch_size=4, seed=1)
    return prompts, rollouts


def test_rollouts_come_in_the_order_of_prompts_with_one_option_per_token(made, lm):
    _, rollouts = made
    assert [r.prompt for r in rollouts] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    for rollout in rollouts:
        assert len(rollout.ids) == len(rollout.options) <= 11
        starts = [t for t in range(1, len(rollout.options)) if rollout.options[t] != rollout.options[t - 1]]
        assert all(t % 3 == 0 for t in starts)
        assert rollout.text == lm[1].decode(rollout.ids, skip_special_tokens=True)


def test_the_same_seed_gives_the_same_rollouts_and_another_seed_others(made, lm):
    prompts, rollouts = made
    policy = UniformPolicy(SPACE, parse_level("every:3"))
    again = [roll_out(*lm, prompts, policy, copies=2, max_new_tokens=11, batch_size=4, seed=seed) for seed in (1, 2)]
    assert again[0] == rollouts
    assert again[1] != rollouts


def test_rollouts_survive_the_disk_and_damage_is_named(made, tmp_path):
    _, rollouts = made
    file = tmp_path / "rollouts.jsonl"
    write_lines(file, rollouts)
    assert read_lines(file, Rollout) == rollouts
    file.write_text(file.read_text()[:-20])
    with pytest.raises(RunError, match=r"rollouts\.jsonl.*damaged"):
        read_lines(file, Rollout)

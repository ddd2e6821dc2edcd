"""The cache: rows are segments, tables are sums, and a token that no option can produce is refused."""

import pytest
import torch

import latentknobs as lk
from latentknobs import testbed
from latentknobs.data.features import FeatureCache, featurise
from latentknobs.data.prompts import make_prompts
from latentknobs.data.rollouts import Rollout, read_rollouts, roll_out, score, write_lines
from latentknobs.decoding.frozen import read_responses
from latentknobs.errors import RewardError, RunError, UnreachableTokenError
from latentknobs.policies import UniformPolicy
from latentknobs.segments import parse_level

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


@pytest.mark.parametrize("level", ["token", "sequence", "every:3"])
def test_rows_are_segments_and_tables_are_sums_of_token_tables(made, lm, level):
    prompts, rollouts = made
    segmenter = parse_level(level)
    cache = featurise(lm[0], prompts, rollouts, SPACE, segmenter, ("hidden", "entropy"), batch_size=3)
    for r, rollout in enumerate(rollouts):
        ((hidden_TD, logits_TV),) = read_responses(lm[0], [prompts[rollout.prompt].ids], [rollout.ids])
        table_TK = lk.option_logps(logits_TV, torch.tensor(rollout.ids), SPACE)
        length = {"token": 1, "sequence": 99, "every:3": 3}[level]
        firsts = list(range(0, len(rollout.ids), length))
        rows = slice(int(cache.start_R1[r]), int(cache.start_R1[r + 1]))
        assert rows.stop - rows.start == len(firsts)
        expected_SK = torch.stack([table_TK[t : t + length].sum(0) for t in firsts])
        torch.testing.assert_close(cache.logps_NK[rows], expected_SK, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(cache.feature_NF[rows, :-1], hidden_TD[firsts], atol=1e-3, rtol=1e-3)
        assert cache.option_N[rows].tolist() == [rollout.options[t] for t in firsts]


def test_a_cache_survives_the_disk(made, lm, tmp_path):
    prompts, rollouts = made
    cache = featurise(lm[0], prompts, rollouts, SPACE, parse_level("token"), ("hidden",))
    cache.save(tmp_path / "features.safetensors")
    loaded = FeatureCache.load(tmp_path / "features.safetensors")
    for name, value in cache.__dict__.items():
        assert torch.equal(getattr(loaded, name), value), name


def test_a_token_no_option_can_produce_is_refused_unless_there_is_a_floor(lm):
    model, tokenizer = lm
    prompts = make_prompts(testbed.prompts("stories", "train", 1), tokenizer)
    narrow = lk.KnobSpace.of("top_k:1,2")
    unlikely = Rollout(0, tuple(range(40, 60)), (0,) * 20, "")
    with pytest.raises(UnreachableTokenError, match=r"probability 0 under each of the 2 options.*set `floor`"):
        featurise(model, prompts, [unlikely], narrow, parse_level("token"), ("hidden",))
    cache = featurise(model, prompts, [unlikely], narrow, parse_level("token"), ("hidden",), floor=-20.0)
    assert cache.logps_NK.min() == -20.0


def test_rewards_of_the_wrong_shape_are_refused(made):
    prompts, rollouts = made
    with pytest.raises(RewardError):
        score(lambda prompts, completions, **columns: [0.0], prompts, rollouts)
    with pytest.raises(RewardError):
        score(lambda prompts, completions, **columns: [float("nan")] * len(prompts), prompts, rollouts)


def test_rewards_see_prompts_completions_and_columns(made):
    prompts, rollouts = made
    seen = {}

    def reward(prompts, completions, task, answer, **columns):
        seen.update(task=task, first=completions[0])
        return [len(text) for text in completions]

    values = score(reward, prompts, rollouts)
    assert values == [len(r.text) for r in rollouts]
    assert seen["task"] == [prompts[r.prompt].columns["task"] for r in rollouts]


def test_rollouts_survive_the_disk_and_damage_is_named(made, tmp_path):
    _, rollouts = made
    file = tmp_path / "rollouts.jsonl"
    write_lines(file, rollouts)
    assert read_rollouts(file) == rollouts
    file.write_text(file.read_text()[:-20])
    with pytest.raises(RunError, match=r"rollouts\.jsonl.*damaged"):
        read_rollouts(file)

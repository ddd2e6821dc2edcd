"""REINFORCE as a learner: its loss against plain loops in float64, its examples, and which prompts are left out."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latentknobs import KnobSpace
from latentknobs.config import make_config
from latentknobs.data.examples import Batch, Example
from latentknobs.data.rollouts import Rollout
from latentknobs.data.segment_batches import FeatureCache
from latentknobs.errors import ConfigError, NoExamplesError
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import parse_level
from latentknobs.learners.base import Budget, Inputs
from latentknobs.learners.reinforce.learner import Reinforce

SPACE, F = KnobSpace.of("temperature:0.2,0.6,1"), 4
LENGTHS = (3, 0, 2, 1)  # segments of each response; min_spread may leave none


def learner(samples: int = 1, rollouts: int = 4, **more: object) -> Reinforce:
    inputs = Inputs(SPACE, parse_level("token"), ("hidden",), rollouts=rollouts, samples=samples)
    return Reinforce(Reinforce.Settings(**more), inputs)


def rows(prompts: str, texts: str = "") -> list[Rollout]:
    return [Rollout(int(p), (1,), (0,), text) for p, text in zip(prompts, texts.split("|") if texts else prompts, strict=True)]


def moved(seed: int) -> OptionHead:
    torch.manual_seed(seed)
    head = OptionHead(SPACE, F, 8).double()
    with torch.no_grad():
        for weight in head.parameters():
            weight.normal_()
    return head


def cache(seed: int) -> FeatureCache:
    rng = torch.Generator().manual_seed(seed)
    N = sum(LENGTHS)
    columns = {
        "logps_NK": torch.randn(N, 3, generator=rng, dtype=torch.float64).clamp(max=0) - 0.1,
        "option_N": torch.randint(3, (N,), generator=rng),
        "max_prob_N": torch.rand(N, generator=rng, dtype=torch.float64),
    }
    feature_NF = torch.randn(N, F, generator=rng, dtype=torch.float64)
    return FeatureCache(feature_NF, columns, torch.tensor([0, *LENGTHS]).cumsum(0))


def by_hand(
    one: Reinforce, head: OptionHead, before: OptionHead | None, store: FeatureCache, response: int, weight: float
) -> Tensor:
    """The loss of a response, segment by segment."""
    total, (start, end) = torch.zeros((), dtype=torch.float64), store.start_R1[response : response + 2].tolist()
    for n in range(start, end):
        if one.settings.max_prob is not None and store.columns["max_prob_N"][n] >= one.settings.max_prob:
            continue

        def logp(module: OptionHead, n: int = n) -> Tensor:
            log_pi_K = module(store.feature_NF[n])
            if one.settings.estimator == "score":
                return log_pi_K[store.columns["option_N"][n]]
            return (log_pi_K + store.columns["logps_NK"][n]).exp().sum().log()

        ratio = (logp(head) - logp(head if before is None else before).detach()).exp()
        low, high = 1 - one.settings.clip_ratio, 1 + one.settings.clip_ratio
        total = total + torch.minimum(ratio * weight, ratio.clamp(low, high) * weight)
    return -total


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from(["score", "marginal"]), st.sampled_from([None, 0.5]), st.booleans())
def test_losses_and_gradients_are_those_of_plain_loops(seed: int, estimator: str, mask: float | None, later: bool) -> None:
    one, head, before = learner(estimator=estimator, max_prob=mask), moved(seed), moved(seed + 1) if later else None
    store, weights = cache(seed), (1.3, -0.2, -0.7, 0.4)
    batch = Batch.read(store, [Example(0, (r,), w) for r, w in enumerate(weights)], "cpu")
    loss = one.loss(head, batch, before)
    hand_B = torch.stack([by_hand(one, head, before, store, r, w) for r, w in enumerate(weights)])
    assert torch.allclose(loss.each_B, hand_B, atol=1e-10)
    found, wanted = (torch.autograd.grad(part.sum(), list(head.parameters())) for part in (loss.each_B, hand_B))
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(found, wanted, strict=True))
    assert loss.penalty_M is not None and loss.penalty_M.shape == (sum(LENGTHS),)
    entropy_M = -(head(store.feature_NF).exp() * head(store.feature_NF)).sum(-1)
    assert torch.allclose(loss.penalty_M, -0.01 * entropy_M)


def test_prompts_whose_rewards_do_not_vary_are_left_out_and_failed_rewards_take_no_part() -> None:
    examples = learner(normalise=False).examples(rows("000111222"), [1, 0, None, 0.5, 0.5, 0.5, None, 1, None])
    assert examples == [Example(0, (0,), 1.0), Example(0, (1,), -1.0)]
    with pytest.raises(NoExamplesError, match="All 3 rewards are 1"):
        learner().examples(rows("001"), [1.0, 1.0, 1.0])


def test_advantages_of_a_step_have_a_root_mean_square_of_one() -> None:
    weights = [e.weight for e in learner().examples(rows("000011"), [1, 0, 0, 0.5, 0.2, 0.9])]
    assert math.fsum(w * w for w in weights) / len(weights) == pytest.approx(1)


def test_groups_share_a_reward() -> None:
    """Of three responses with one right, two at a time: the right one makes two groups out of three right, the others none."""
    examples = learner(samples=2, normalise=False).examples(rows("000"), [1, 0, 0])
    assert [e.weight for e in examples] == pytest.approx([2.0, -1.0, -1.0])
    votes = learner(samples=3, normalise=False, group="majority").examples(
        rows("0000", "it is 7|7|so 5|none"), [0.0, 0.0, 1.0, 0.0]
    )
    assert votes[2].weight == max(e.weight for e in votes) and len(votes) == 4


def test_budgets_take_turns_and_must_fit_the_run() -> None:
    one = learner(token_budgets=(8, 16), parallel=(1, 4))
    assert [one.budget(16, step) for step in range(5)] == [
        Budget(8, 1), Budget(16, 1), Budget(8, 4), Budget(16, 4), Budget(8, 1)
    ]  # fmt: skip
    assert learner().budget(64, 3) == Budget(64, 1)
    with pytest.raises(ConfigError, match="token_budgets holds 16, more than max_new_tokens=12"):
        one.budget(12, 0)
    with pytest.raises(ConfigError, match="parallel holds 4, more than rollouts=3"):
        learner(rollouts=3, parallel=(4,)).budget(16, 0)


def test_the_actions_are_the_papers_unless_others_are_named() -> None:
    assert make_config({"learner": "reinforce"}).knobs == ("temperature:0,0.5,1,1.25",)
    assert make_config({"learner": "reinforce", "knobs": ["temperature"]}).knobs == ("temperature",)


def test_budgets_can_be_written_on_a_command_line() -> None:
    config = make_config({"learner": "reinforce:parallel=1,4,estimator=score,token_budgets=16"})
    assert (config.parallel, config.token_budgets, config.estimator) == ((1, 4), (16,), "score")
    assert (config.steps, config.learning_rate, config.validation) == (32, 0.01, 0.0), "defaults of the learner's own"
    assert config.changed == {"learner", "parallel", "token_budgets", "estimator"} and make_config({}).steps == 300
    assert make_config(config.chosen(), {"steps": 7}).steps == 7


def test_it_keeps_what_its_estimator_reads() -> None:
    kept = {name: set(Reinforce.columns(Reinforce.Settings(**more))) for name, more in {
        "marginal": {}, "score": {"estimator": "score"}, "masked": {"max_prob": 0.95}}.items()}  # fmt: skip
    assert kept == {"marginal": {"logps_NK"}, "score": {"option_N"}, "masked": {"logps_NK", "max_prob_N"}}
    scores, marginal = learner(estimator="score"), learner()
    assert scores.needs_options(scores.settings) and not marginal.needs_options(marginal.settings)


def test_what_a_prompt_earns_is_the_mean_over_its_groups() -> None:
    rewards = [1.0, 0.0, 3.0, 2.0, 5.0, None, 4.0]
    found = learner(2, 4).earned(rows("1000111"), rewards)
    assert found[0] == pytest.approx((3 + 2 + 3) / 3)  # of 0, 3, 2 the best of each pair
    assert found[1] == pytest.approx((5 + 4 + 5) / 3)  # the failed one takes no part
    voted = learner(3, 4, group="majority").earned(rows("0000", "7|7|8|9"), [1.0, 1.0, 0.0, 0.5])
    assert voted[0] == pytest.approx((1 + 1 + 0.5 + 0.5) / 4)  # of {7, 8, 9} and of its twin all three tie

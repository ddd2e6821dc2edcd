"""Policies: how an option is picked from a distribution, and the baselines' distributions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from latentknobs import Context, KnobSpace
from latentknobs.errors import ConfigError
from latentknobs.heads.features import read_features
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Delimiter, Every
from latentknobs.policies import (
    BalancedPolicy,
    CategoricalPolicy,
    ConstantPolicy,
    GreedyPolicy,
    HeadPolicy,
    Policy,
    UniformPolicy,
)

SPACE = KnobSpace.of({"temperature": [0.0, 0.7, 2.0], "top_p": [0.6, 1.0]})
LAST_UNIFORM = 1 - 2.0**-53
logits_NV = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
hidden_ND = torch.randn(9, 5, generator=torch.Generator().manual_seed(1))
SEEN = Context(hidden_ND=hidden_ND, logits_NV=logits_NV)


def head_policy(pick: str = "sample", features: tuple[str, ...] = ("hidden",)) -> HeadPolicy:
    torch.manual_seed(2)
    head = OptionHead(SPACE, sum(5 if name == "hidden" else 1 for name in features), hidden=8)
    torch.nn.init.normal_(head.mlp[-1].weight, std=3.0)
    return HeadPolicy(head, SPACE, Every(1), features, pick)


def picked(policy: CategoricalPolicy, probs: list[float], uniform: float) -> int:
    log_pi_NK = torch.tensor([probs], dtype=torch.float64).log()
    return policy.picked(log_pi_NK, torch.tensor([uniform], dtype=torch.float64)).option_N.item()


weights = st.lists(st.sampled_from([0.0, 1e-12, 0.3, 1.0, 2.5]), min_size=1, max_size=6).filter(any)


@given(weights, st.floats(0, LAST_UNIFORM) | st.sampled_from([0.0, LAST_UNIFORM]))
def test_sampling_inverts_the_cumulative_distribution(weight_K: list[float], uniform: float) -> None:
    weight_K = (weight_K + [0.0] * SPACE.K)[: SPACE.K]
    probs = [weight / sum(weight_K) for weight in weight_K]
    k = picked(head_policy(), probs, uniform)
    assert probs[k] > 0, "an option without probability is never drawn"
    assert sum(probs[:k]) <= uniform + 1e-12 and uniform <= sum(probs[: k + 1]) + 1e-12


@given(st.floats(0.4999, 0.5001))
def test_rounding_of_the_total_never_reaches_an_option_without_probability(rest: float) -> None:
    """Log-probabilities of a float32 head sum to one only nearly."""
    assert picked(head_policy(), [0.5, rest, 0.0], LAST_UNIFORM) == 1
    assert picked(head_policy(), [0.0, 0.5, rest], 0.0) == 1


@given(st.lists(st.floats(0.05, 1), min_size=2, max_size=5))
def test_evenly_spread_uniforms_give_every_option_its_share(weight_K: list[float]) -> None:
    n = 1000
    log_pi_NK = torch.tensor([weight_K], dtype=torch.float64).log().log_softmax(-1).expand(n, -1)
    option_N = head_policy().picked(log_pi_NK, (torch.arange(n, dtype=torch.float64) + 0.5) / n).option_N
    share_K = option_N.bincount(minlength=len(weight_K)) / n
    assert torch.allclose(share_K.double(), log_pi_NK[0].exp(), atol=1.5 / n)


@given(weights)
def test_greedy_takes_the_most_probable_option_whatever_the_uniform(weight_K: list[float]) -> None:
    for uniform in (0.0, 0.5, LAST_UNIFORM):
        assert picked(head_policy("greedy"), weight_K, uniform) == weight_K.index(max(weight_K))


@pytest.mark.parametrize("features", [("hidden",), ("entropy", "max_prob"), ("margin", "hidden")])
def test_a_head_policy_is_its_head_on_its_features_without_gradient(features: tuple[str, ...]) -> None:
    policy = head_policy(features=features)
    log_pi_NK = policy.log_pi(SEEN)
    assert not log_pi_NK.requires_grad
    assert torch.equal(log_pi_NK, policy.head(read_features(features, hidden_ND, logits_NV)).detach())
    assert log_pi_NK.shape == (9, SPACE.K)
    assert log_pi_NK.std(0).min() > 0.01, "the head must tell rows apart for this test to mean anything"


def test_a_head_policy_checks_its_features() -> None:
    with pytest.raises(ConfigError, match="no feature 'hiden'"):
        head_policy(features=("hiden",))


@pytest.mark.parametrize("option", range(SPACE.K))
def test_a_constant_policy_always_takes_its_option(option: int) -> None:
    policy = ConstantPolicy(SPACE, option)
    log_pi_NK = policy.log_pi(SEEN)
    assert log_pi_NK.exp().sum(-1).tolist() == [1.0] * 9
    choice = policy.choose(SEEN, torch.rand(9))
    assert choice.option_N.tolist() == [option] * 9
    assert choice.value_NJ.tolist() == [list(SPACE.options[option].values())] * 9
    assert policy.segmenter.is_token_level and not policy.draws


def test_a_uniform_policy_spreads_evenly_and_samples() -> None:
    policy = UniformPolicy(SPACE, Every(2))
    log_pi_NK = policy.log_pi(SEEN)
    assert torch.allclose(log_pi_NK, torch.tensor(-math.log(SPACE.K)))
    assert policy.pick == "sample" and policy.segmenter == Every(2)


POLICIES = [head_policy(), head_policy("greedy"), ConstantPolicy(SPACE, 1), UniformPolicy(SPACE, Every(1))]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_values_of_a_choice_are_those_of_its_option(policy: CategoricalPolicy) -> None:
    choice = policy.choose(SEEN, torch.linspace(0, LAST_UNIFORM, 9, dtype=torch.float64))
    assert torch.equal(choice.value_NJ, SPACE.values_KJ()[choice.option_N])
    if policy.draws:
        expected_N = policy.log_pi(SEEN).gather(-1, choice.option_N.unsqueeze(-1)).squeeze(-1)
        assert torch.equal(choice.log_prob_N, expected_N)


def test_the_greedy_policy_is_temperature_zero_of_a_space_of_its_own() -> None:
    choice = GreedyPolicy().choose(SEEN, torch.rand(9))
    assert choice.value_NJ.tolist() == [[0.0]] * 9 and GreedyPolicy().space.names == ("temperature",)


@pytest.mark.parametrize(
    ("space", "free"),
    [
        (KnobSpace.of("temperature:0,1", "top_p:0.5,1", "min_p:0,0.1"), 2),
        (KnobSpace.of("temperature:0,1", "top_p:0.5,0.9"), 0),  # every option cuts
        (KnobSpace.of("temperature:0,0.5,1"), 3),  # none does
    ],
)
def test_the_balanced_mixture_gives_half_to_what_cuts_nothing_off(space: KnobSpace, free: int) -> None:
    pi_K = BalancedPolicy(space, Every(1)).log_pi(SEEN).exp()[0].double()
    is_free = [option.get("top_p", 1.0) == 1.0 and option.get("min_p", 0.0) == 0.0 for option in space.options]
    assert sum(is_free) == free
    wanted = [1 / space.K if not free else 0.5 / space.K + (0.5 / free if one else 0.0) for one in is_free]
    assert torch.allclose(pi_K, torch.tensor(wanted, dtype=torch.float64), atol=1e-7)
    assert pi_K.sum().item() == pytest.approx(1.0)


def test_identities_follow_every_ingredient_of_a_head_policy() -> None:
    """Perturbed one at a time: weights, scaler, features, space, level, pick; a rebuilt policy is the same."""

    def changed(**changes: object) -> str:
        policy = head_policy()
        for name, value in changes.items():
            setattr(policy, name, value)
        return policy.identity()

    def edited(name: str) -> str:
        policy = head_policy()
        with torch.no_grad():
            policy.head.get_parameter(name).view(-1)[-1] += 1e-6
        return policy.identity()

    scaled = head_policy()
    scaled.head.fit_scaler(torch.zeros(5), torch.full((5,), 2.0))
    factorised = HeadPolicy(OptionHead(SPACE, 5, hidden=8, factorised=True), SPACE, Every(1), pick="sample")
    first, second = (Delimiter(".", ids) for ids in ((3, 4), (3, 5)))
    others = [
        edited("mlp.0.weight"), edited("mlp.4.bias"), scaled.identity(), factorised.identity(), changed(pick="greedy"),
        changed(features=("entropy",)), changed(segmenter=Every(2)), changed(segmenter=first), changed(segmenter=second),
        changed(space=SPACE.select([0, 1])),
        changed(space=KnobSpace.of({"top_p": [0.6, 1.0]}, "temperature:0,0.7,2", order="vllm")),
        UniformPolicy(SPACE, Every(1)).identity(), BalancedPolicy(SPACE, Every(1)).identity(),
        ConstantPolicy(SPACE, 0).identity(), ConstantPolicy(SPACE, 1).identity(),
    ]  # fmt: skip
    assert len({changed(), *others}) == len(others) + 1
    assert head_policy().identity() == changed()


def test_what_cannot_be_read_has_no_identity() -> None:
    policy = ConstantPolicy(SPACE, 0)
    policy.rule = lambda logits_NV: logits_NV  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="cannot be read, so its policy needs an `identity` of its own"):
        policy.identity()


def test_a_way_of_picking_that_is_not_known():
    with pytest.raises(ConfigError, match=r"pick='Greedy' is not a way to take an option\. Choose one of greedy, sample"):
        HeadPolicy(OptionHead(KnobSpace.of("temperature"), 1), KnobSpace.of("temperature"), Every(1), ("entropy",), "Greedy")


def test_a_policy_that_is_a_module_moves_itself_and_what_it_holds():
    class Learned(Policy, nn.Module):
        def __init__(self, inner):
            nn.Module.__init__(self)
            self.space, self.segmenter, self.inner, self.weight = SPACE, Every(1), inner, nn.Parameter(torch.zeros(1))

        def choose(self, seen, uniform_N, state=None):
            raise NotImplementedError

    class Around(Policy):
        def __init__(self, policy):
            self.space, self.segmenter, self.policy = SPACE, Every(1), policy

        def choose(self, seen, uniform_N, state=None):
            raise NotImplementedError

    learned = Learned(nn.Linear(1, 1))
    assert learned.to(torch.float64) is learned and learned.weight.dtype == torch.float64, "as of every module"
    Around(learned).move_to("meta")
    assert {weight.device.type for weight in learned.parameters()} == {"meta"}

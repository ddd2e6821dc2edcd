"""Estimators by enumeration: over every option and token of a tiny LM and every group of responses, the expectation of each is
the exact gradient, and the marginal one never varies more (float64)."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latentknobs.learners.reinforce.advantages import baselined, values
from latentknobs.learners.reinforce.estimators import marginal_logps, policy_loss, score_logps, surrogate

T, V, K, F = 2, 2, 2, 3
seeds = st.integers(0, 10_000)


class World:
    """A "LM" whose tokens depend on the prefix, K options that change their probabilities, and a policy linear in features.

    Attributes:
        weight_FK: the policy's weights; `log_pi` are its log-probabilities before each token of each response.
    """

    def __init__(self, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=rng, dtype=torch.float64)

        self.texts = list(itertools.product(range(V), repeat=T))  # all responses
        self.prefixes = [prefix for t in range(T) for prefix in itertools.product(range(V), repeat=t)]
        feature_PF, logps_PKV = normal(len(self.prefixes), F), normal(len(self.prefixes), K, V).log_softmax(-1)
        self.weight_FK = normal(F, K).requires_grad_()
        place = {prefix: n for n, prefix in enumerate(self.prefixes)}
        row_YT = torch.tensor([[place[text[:t]] for t in range(T)] for text in self.texts])
        self.feature_YTF = feature_PF[row_YT]
        token_YT = torch.tensor(self.texts)
        self.logps_YTK = logps_PKV[row_YT].gather(-1, token_YT[:, :, None, None].expand(-1, -1, K, 1)).squeeze(-1)
        self.reward_Y = normal(len(self.texts))

    def log_pi(self, weight_FK: Tensor | None = None) -> Tensor:
        return (self.feature_YTF @ (self.weight_FK if weight_FK is None else weight_FK)).log_softmax(-1)

    def gradient(self, value: Tensor) -> Tensor:
        return torch.autograd.grad(value, self.weight_FK)[0].flatten()

    def expected_reward(self) -> Tensor:
        return (marginal_logps(self.log_pi(), self.logps_YTK).sum(-1).exp() * self.reward_Y).sum()

    def outcomes(self) -> tuple[list[tuple[int, tuple[int, ...]]], Tensor]:
        """Every response with every option sequence, and their probabilities."""
        pairs = [(y, options) for y in range(len(self.texts)) for options in itertools.product(range(K), repeat=T)]
        joint_YTK = self.log_pi().detach() + self.logps_YTK
        logps = [sum(joint_YTK[y, t, k] for t, k in enumerate(options)) for y, options in pairs]
        return pairs, torch.stack(logps).exp()


def estimates(world: World, baseline: str, estimator: str, copies: int = 2) -> tuple[Tensor, Tensor]:
    """(O, D) the estimated gradient of every possible batch of `copies` responses, and (O,) their probabilities."""
    pairs, chance_N = world.outcomes()
    log_pi_YTK = world.log_pi()
    grads = []
    for y, options in pairs:  # of log p, once for each outcome of a response
        logp_T = (
            score_logps(log_pi_YTK[y], torch.tensor(options)) if estimator == "score"
            else marginal_logps(log_pi_YTK[y], world.logps_YTK[y])
        )  # fmt: skip
        found = surrogate(logp_T)
        up, down = (policy_loss(torch.tensor([a], dtype=torch.float64), found.up_M.sum()[None], found.down_M.sum()[None]).sum()
                    for a in (1.0, -1.0))  # fmt: skip
        upward, downward = (-torch.autograd.grad(loss, world.weight_FK, retain_graph=True)[0].flatten() for loss in (up, down))
        assert torch.allclose(upward, -downward, atol=1e-12)  # at a ratio of 1 a loss is linear in the advantage
        grads.append(upward)
    grad_ND = torch.stack(grads)
    batches = list(itertools.product(range(len(pairs)), repeat=copies))
    member_OR = torch.tensor(batches)
    reward_N = torch.stack([world.reward_Y[y] for y, _ in pairs])
    both = [torch.stack(part) for part in zip(*(values(reward_R) for reward_R in reward_N[member_OR]), strict=True)]
    advantage_OR = torch.stack([baselined(v[None], w[None], baseline)[0] for v, w in zip(*both, strict=True)])
    estimate_OD = (advantage_OR.unsqueeze(-1) * grad_ND[member_OR]).mean(1)
    return estimate_OD, chance_N[member_OR].prod(-1)


@pytest.mark.parametrize("estimator", ["score", "marginal"])
@pytest.mark.parametrize(("baseline", "share"), [("none", 1.0), ("leave_one_out", 1.0), ("mean", 0.5)])
@settings(max_examples=3)
@given(seed=seeds)
def test_their_expectation_is_the_exact_gradient(estimator: str, baseline: str, share: float, seed: int) -> None:
    """`mean` takes a response's own reward off: of n responses it keeps (n - 1) / n of the gradient."""
    world = World(seed)
    estimate_OD, chance_O = estimates(world, baseline, estimator)
    assert float(chance_O.sum()) == pytest.approx(1, abs=1e-12)
    exact_D = world.gradient(world.expected_reward())
    assert torch.allclose(chance_O @ estimate_OD, share * exact_D, atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize("baseline", ["none", "leave_one_out", "mean", "group"])
@settings(max_examples=3)
@given(seed=seeds)
def test_the_marginal_one_has_no_more_variance_in_any_direction_and_the_same_mean(baseline: str, seed: int) -> None:
    world = World(seed)
    covariance = {}
    for estimator in ("score", "marginal"):
        estimate_OD, chance_O = estimates(world, baseline, estimator)
        mean_D = chance_O @ estimate_OD
        centred_OD = estimate_OD - mean_D
        covariance[estimator] = (mean_D, centred_OD.T @ (chance_O.unsqueeze(-1) * centred_OD))
    assert torch.allclose(covariance["score"][0], covariance["marginal"][0], atol=1e-14, rtol=1e-12)
    extra_DD = covariance["score"][1] - covariance["marginal"][1]
    assert float(torch.linalg.eigvalsh(extra_DD).min()) > -1e-12
    assert float(extra_DD.trace()) > 1e-6, "here options are not determined by tokens, so that something is saved"


@given(seeds)
def test_importance_weights_correct_for_another_sampler(seed: int) -> None:
    """The gradient of the mean ratio times reward under samples of another policy, unclipped, is that of the expected reward."""
    world = World(seed)
    before_FK = world.weight_FK.detach() + 0.3 * torch.randn(F, K, generator=torch.Generator().manual_seed(seed + 1)).double()
    before_Y = marginal_logps(world.log_pi(before_FK), world.logps_YTK).sum(-1).detach()
    now_Y = marginal_logps(world.log_pi(), world.logps_YTK).sum(-1)
    found = surrogate(now_Y, before_Y, clip=1e9)
    estimate_D = world.gradient((before_Y.exp() * found.up_M * world.reward_Y).sum())
    assert torch.allclose(estimate_D, world.gradient(world.expected_reward()), atol=1e-12)


@given(seeds, st.sampled_from([0.1, 0.2]))
def test_the_surrogate_is_that_of_ppo(seed: int, clip: float) -> None:
    """min(ratio A, clip(ratio) A) segment by segment (arXiv 1707.06347, Eq. 7), for either sign of A."""
    rng = torch.Generator().manual_seed(seed)
    now_M, before_M = (torch.randn(9, generator=rng, dtype=torch.float64) * 0.3 for _ in range(2))
    ratio_M = (now_M - before_M).exp()
    found = surrogate(now_M, before_M, clip)
    for advantage in (1.7, -0.4):
        wanted = sum(min(r * advantage, min(max(r, 1 - clip), 1 + clip) * advantage) for r in ratio_M.tolist())
        loss_B = policy_loss(torch.tensor([advantage], dtype=torch.float64), found.up_M.sum()[None], found.down_M.sum()[None])
        assert float(loss_B) == pytest.approx(-wanted, abs=1e-12)
    assert found.clipped_M.tolist() == [abs(r - 1) > clip for r in ratio_M.tolist()]


@given(seeds)
def test_the_marginal_gradient_is_the_expectation_over_options_given_the_tokens(seed: int) -> None:
    world = World(seed)
    log_pi_YTK = world.log_pi()
    posterior_YTK = (log_pi_YTK + world.logps_YTK).softmax(-1).detach()
    expected_D = world.gradient((posterior_YTK * log_pi_YTK).sum())
    assert torch.allclose(world.gradient(marginal_logps(world.log_pi(), world.logps_YTK).sum()), expected_D, atol=1e-12)


def test_options_that_remove_a_token_have_no_part_in_it() -> None:
    log_pi_MK = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    logps_MK = torch.tensor([[0.0, -torch.inf, -1.0]], dtype=torch.float64)
    (gradient_MK,) = torch.autograd.grad(marginal_logps(log_pi_MK, logps_MK).sum(), log_pi_MK)
    assert gradient_MK.isfinite().all() and gradient_MK[0, 1] == 0

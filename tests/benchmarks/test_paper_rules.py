"""The rules of the literature against their formulas, and Mirostat against its own recursion, token by token."""

import math

import pytest
import torch

from benchmarks.paper.baselines import ALL, family, race, turning_point
from benchmarks.paper.rules import FINE, FreshDraws, Mirostat, TwoTemperatures, Watch, dynatemp, edt
from latentknobs import testbed
from latentknobs.data.prompts import make_prompts
from latentknobs.data.rollouts import roll_out
from latentknobs.engines.transformers.frozen import read_responses
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Sequence
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import HeadPolicy

LOGITS_NV = torch.randn(12, 50, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 6, 12).unsqueeze(1)
ENTROPY_N = torch.distributions.Categorical(logits=LOGITS_NV).entropy()


def chosen(policy: object) -> torch.Tensor:
    return torch.tensor(FINE)[policy.log_pi(torch.zeros(12, 3), LOGITS_NV).argmax(-1)]  # type: ignore[attr-defined]


def test_edt_is_its_formula_to_the_nearest_grid_point() -> None:
    expected_N = 1.4 * 0.8 ** (1.0 / ENTROPY_N)
    assert (chosen(edt(1.4, 1.0)) - expected_N).abs().max() <= 0.0251
    assert chosen(edt(1.4, 1.0)).unique().numel() > 3


def test_edt_is_greedy_where_the_model_is_sure() -> None:
    sure_NV = torch.tensor([[100.0, 0.0, 0.0]])
    assert edt(1.0, 1.0).log_pi(torch.zeros(1, 3), sure_NV).argmax(-1).item() == 0


def test_dynatemp_is_its_formula_to_the_nearest_grid_point() -> None:
    expected_N = 0.4 + 1.6 * (ENTROPY_N / math.log(50)) ** 0.6
    assert (chosen(dynatemp(0.4, 2.0, 0.6)) - expected_N).abs().max() <= 0.0251


@pytest.mark.parametrize(("tau", "eta"), [(1.0, 0.3), (0.5, 0.1)])
def test_mirostat_follows_its_recursion_in_every_row(tau: float, eta: float) -> None:
    model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
    prompts = make_prompts(testbed.prompts("stories", "train", 4), tokenizer)
    rollouts = roll_out(model, tokenizer, prompts, Mirostat(tau, eta), max_new_tokens=30, batch_size=4, seed=0)
    cut = 0
    for rollout, (_, logits_TV) in zip(
        rollouts, read_responses(model, [p.ids for p in prompts], [r.ids for r in rollouts]), strict=True
    ):
        mu = 2 * tau
        for token, logits_V in zip(rollout.ids, logits_TV, strict=True):
            surprise_V = -logits_V.log_softmax(-1) / math.log(2)
            kept_V = (surprise_V <= mu + 1e-4) | (surprise_V == surprise_V.min())
            assert kept_V[token], (mu, surprise_V[token])
            cut += int((~kept_V).sum() > 0)
            mu -= eta * (-(logits_V.masked_fill(~kept_V, -torch.inf).log_softmax(-1)[token].item() / math.log(2)) - tau)
    assert cut > 20  # otherwise nothing was tested


def test_fresh_draws_keep_what_the_head_said_before_the_first_token() -> None:
    torch.manual_seed(0)
    space = KnobSpace.of("temperature")
    head = OptionHead(space, 5, 8, False).eval()
    torch.nn.init.normal_([p for p in head.parameters() if p.dim() == 2][-1])
    policy = FreshDraws(HeadPolicy(head, space, Sequence()))
    previous_BT = torch.zeros(3, 1, dtype=torch.long)
    first_ND, later_ND = torch.randn(3, 5), torch.randn(3, 5)
    assert isinstance(policy.segmenter, Watch)
    policy.segmenter.begins(torch.zeros(3, 1, dtype=torch.long), previous_BT)
    first_NK = policy.log_pi(first_ND, torch.zeros(3, 7))
    assert policy.segmenter.begins(torch.ones(3, 1, dtype=torch.long), previous_BT).all()
    assert torch.equal(policy.log_pi(later_ND, torch.zeros(3, 7)), first_NK)
    assert not torch.equal(head(later_ND), first_NK)


def test_fresh_draws_answer_prompts() -> None:
    """A policy may call what it likes its `head`; here it is no module."""
    model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
    space = KnobSpace.of("temperature")
    policy = FreshDraws(
        HeadPolicy(OptionHead(space, model.config.hidden_size, 8, False).eval(), space, Sequence(), pick="sample")
    )
    prompts = make_prompts(testbed.prompts("stories", "train", 3), tokenizer)
    rollouts = roll_out(model, tokenizer, prompts, policy, max_new_tokens=12, batch_size=3, seed=0)
    assert len({option for rollout in rollouts for option in rollout.options}) > 2  # drawn anew for each token


def test_drawing_an_option_and_then_a_token_is_drawing_from_the_mixture() -> None:
    """Hence no policy for the exact mixture of Eq. 6 at token level: `pick="sample"` is it."""
    torch.manual_seed(0)
    space = KnobSpace.of({"temperature": [0.5, 1.0, 2.0]})
    policy = FreshDraws(HeadPolicy(OptionHead(space, 3, 4, False).eval(), space, Sequence()))
    logits_NV, log_pi_NK = torch.randn(1, 6).expand(40_000, 6), torch.tensor([[0.2, 0.5, 0.3]]).log().expand(40_000, 3)
    option_N = policy.choose(log_pi_NK, torch.rand(40_000, dtype=torch.float64))
    token_N = torch.distributions.Categorical(logits=policy.warp(logits_NV, option_N)).sample()
    mixture_V = sum(share * (logits_NV[0] / value).softmax(-1) for share, value in ((0.2, 0.5), (0.5, 1.0), (0.3, 2.0)))
    assert (torch.bincount(token_N, minlength=6) / 40_000 - mixture_V).abs().max() < 0.012


def test_the_turning_point_is_where_the_curve_begins_to_bend_up() -> None:
    assert turning_point([0.0, 1.0, 1.9, 2.7, 3.6, 4.6]) == 3
    assert turning_point([0.0, 1.0, 1.9, 2.7]) == 3  # never: the last


@pytest.mark.parametrize("name", ["edt", "dynatemp", "min_p", "top_n_sigma", "mirostat", "joint"])
def test_every_family_has_members_with_keys_of_their_own(name: str) -> None:
    players = family(name, None)  # type: ignore[arg-type]
    assert len(players) >= 10
    assert len({player.key for player in players}) == len({player.name for player in players}) == len(players)


def test_a_hand_rule_with_min_p_cuts_wherever_it_is_hot_or_cold() -> None:
    rule = TwoTemperatures(0.5, 2.0, lambda previous_N, logits_NV: torch.tensor([True, False]), min_p=0.1)
    logits_NV = torch.tensor([[3.0, 2.5, 0.0], [3.0, 2.5, -9.0]])
    warped_NV = rule.warp(logits_NV, rule.log_pi(torch.zeros(2, 3), logits_NV).argmax(-1))
    cut = float(torch.finfo().min) / 2
    assert (warped_NV > cut).tolist() == [[True, True, False], [True, True, False]]
    torch.testing.assert_close(warped_NV[:, 0] - warped_NV[:, 1], torch.tensor([0.5 / 0.5, 0.5 / 2.0]))


@pytest.mark.parametrize(("members", "asked"), [(ALL, {100}), (ALL + 1, {32, 64, 100})])
def test_only_large_families_race(members: int, asked: set[int]) -> None:
    """In small ones the best is found however it did on the first prompts."""
    limits: set[int] = set()

    def value(player: int, limit: int) -> float:
        limits.add(limit)
        return float(player == 3) * limit

    assert race(list(range(members)), 100, value) == 3  # type: ignore[arg-type, comparison-overlap]
    assert limits == asked

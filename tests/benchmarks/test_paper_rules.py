"""Baselines of the paper: fresh draws, hand rules, families."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks.paper.baselines import HAND, family
from benchmarks.paper.fresh import FreshDraws
from benchmarks.paper.hand import RULES
from latentknobs import Context, apply_options, testbed
from latentknobs.data.prompts import make_prompts
from latentknobs.data.rollouts import roll_out
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Every, WholeResponse
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import HeadPolicy, UniformPolicy


def test_fresh_draws_keep_what_the_head_chose_before_the_first_token() -> None:
    torch.manual_seed(0)
    space = KnobSpace.of("temperature")
    head = OptionHead(space, 5, 8, False).eval()
    torch.nn.init.normal_([p for p in head.parameters() if p.dim() == 2][-1])
    policy, uniform_N = FreshDraws(HeadPolicy(head, space, WholeResponse())), torch.rand(3)
    first, later = (
        Context(hidden_ND=torch.randn(3, 5), logits_NV=torch.zeros(3, 7), position_N=torch.full((3,), t)) for t in (0, 4)
    )
    state = policy.choose(first, uniform_N, policy.start(3)).state
    assert torch.equal(policy.log_pi(later, state), policy.head.log_pi(first))
    assert not torch.equal(policy.head.log_pi(later), policy.head.log_pi(first))


def test_fresh_draws_answer_prompts() -> None:
    model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
    space = KnobSpace.of("temperature")
    head = OptionHead(space, model.config.hidden_size, 8, False).eval()
    policy = FreshDraws(HeadPolicy(head, space, WholeResponse(), pick="sample"))
    prompts = make_prompts(testbed.prompts("stories", "train", 3), tokenizer)
    rollouts = roll_out(model, tokenizer, prompts, policy, max_new_tokens=12, batch_size=3, seed=0)
    assert len({option for rollout in rollouts for option in rollout.options}) > 2  # drawn anew for each token


def test_drawing_an_option_and_then_a_token_is_drawing_from_the_mixture() -> None:
    """Hence no policy for the exact mixture of Eq. 6 at token level: `pick="sample"` is it."""
    torch.manual_seed(0)
    policy = UniformPolicy(KnobSpace.of({"temperature": [0.5, 1.0, 2.0]}), Every(1))
    logits_NV, log_pi_NK = torch.randn(1, 6).expand(40_000, 6), torch.tensor([[0.2, 0.5, 0.3]]).log().expand(40_000, 3)
    option_N = policy.picked(log_pi_NK, torch.rand(40_000, dtype=torch.float64)).option_N
    token_N = torch.distributions.Categorical(logits=apply_options(logits_NV, policy.space, option_N)).sample()
    mixture_V = sum(share * (logits_NV[0] / value).softmax(-1) for share, value in ((0.2, 0.5), (0.5, 1.0), (0.3, 2.0)))
    assert (torch.bincount(token_N, minlength=6) / 40_000 - mixture_V).abs().max() < 0.012


@pytest.mark.parametrize("name", RULES)
def test_hand_rules_take_two_temperatures(name: str) -> None:
    model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
    prompts = make_prompts(testbed.prompts("mixture", "train", 4), tokenizer)
    rollouts = roll_out(model, tokenizer, prompts, RULES[name](tokenizer, 0.2, 1.4, 0.1), max_new_tokens=30, batch_size=4, seed=0)
    assert {value for rollout in rollouts for value in rollout.values} <= {(0.2, 0.1), (1.4, 0.1)}
    ends = {"sentence_starts": ".!?", "after_newline": "\n"}.get(name)
    for rollout in rollouts if ends else []:
        pieces = [tokenizer.decode([token]).rstrip(" ") for token in rollout.ids]
        after = [name == "sentence_starts", *(piece.endswith(tuple(ends)) for piece in pieces[:-1])]
        cold = after if name == "sentence_starts" else [any(after[: t + 1]) for t in range(len(after))]
        assert [value[0] == 0.2 for value in rollout.values] == cold


@pytest.mark.parametrize("name", ["edt", "dynatemp", "min_p", "top_n_sigma", "mirostat", "joint"])
def test_every_family_has_members_with_keys_of_their_own(name: str) -> None:
    players = family(name, None)  # type: ignore[arg-type]
    assert len(players) >= 10
    assert len({player.key for player in players}) == len({player.name for player in players}) == len(players)


@pytest.mark.parametrize("name", HAND)
def test_hand_rules_have_families_too(name: str) -> None:
    arena = SimpleNamespace(world=SimpleNamespace(tokenizer=testbed.load_tokenizer()))
    players = family(name, arena, "sentence_starts")  # type: ignore[arg-type]
    assert len({player.policy.identity() for player in players}) == len(players) == (12 if name == "hand" else 36)
    assert players[0].policy.cold == 0.0 and players[0].policy.min_p == HAND[name].get("min_p", [0])[0]  # type: ignore[attr-defined]

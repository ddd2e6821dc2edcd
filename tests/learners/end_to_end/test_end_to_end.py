"""The end-to-end learner: objectives against obvious restatements, what is learned from, what is refused; a small run."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import latentknobs as lk
from latentknobs.data.columns import Reading
from latentknobs.data.examples import Batch, Example, Pair
from latentknobs.data.rollouts import Rollout
from latentknobs.data.segment_batches import FeatureCache
from latentknobs.errors import ConfigError, NoExamplesError, NoPairsError
from latentknobs.heads.segmenters import parse_level
from latentknobs.heads.value_head import ValueHead
from latentknobs.learners.base import Inputs
from latentknobs.learners.end_to_end.learner import EndToEnd, neutral_policy
from latentknobs.learners.end_to_end.losses import token_weights
from latentknobs.likelihood import reference
from latentknobs.policies import UniformPolicy
from latentknobs.policies.continuous import ValuePolicy
from latentknobs.testing import LearnerConformance, check_learner

SPACE = lk.KnobSpace.of("temperature:0.3,1,2", "top_p:0.5,1")
V, T, R = 11, 4, 6


def learner(
    space: lk.KnobSpace = SPACE, level: str = "token", features: tuple[str, ...] = ("hidden",), **settings: Any
) -> EndToEnd:
    more = {name: settings.pop(name) for name in ("rank", "factorised") if name in settings}
    return EndToEnd(EndToEnd.Settings(**settings), Inputs(space, parse_level(level), features, hidden=6, **more))


class TestConformance(LearnerConformance):
    learner = EndToEnd


@pytest.mark.parametrize("more", [
    {"objective": "likelihood", "easy_mask": 0.6, "reweight": "base"}, {"objective": "reward_weighted"}, {"top_logits": 3},
])  # fmt: skip
def test_it_keeps_the_contract_with_every_objective(more: dict[str, Any]) -> None:
    check_learner("end_to_end", settings=EndToEnd.Settings(**more))


def world(one: EndToEnd) -> tuple[FeatureCache, Tensor, Tensor]:
    """R responses of T tokens, each token a row; their logits and ids."""
    draw = torch.Generator().manual_seed(0)
    logits_RTV, ids_RT = 2 * torch.randn(R, T, V, generator=draw), torch.randint(V, (R, T), generator=draw)
    (column,) = one.columns(one.settings).values()
    rows = [
        column.read(Reading(Rollout(0, tuple(ids_T.tolist()), None, ""), logits_TV, torch.zeros(T, 1)))
        for logits_TV, ids_T in zip(logits_RTV, ids_RT, strict=True)
    ]
    features_NF = torch.randn(R * T, 3, generator=draw)
    return FeatureCache(features_NF, {"logits_NX": torch.cat(rows)}, torch.arange(0, R * T + 1, T)), logits_RTV, ids_RT


def random_head(one: EndToEnd, seed: int = 1) -> ValueHead:
    torch.manual_seed(seed)
    head = one.module(torch.zeros(3), torch.ones(3))
    for weight in head.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return head


def hard_logps(head: ValueHead, cache: FeatureCache, logits_RTV: Tensor, ids_RT: Tensor, space: lk.KnobSpace) -> Tensor:
    """(R, T) by the chain of decoding."""
    logp_NV = reference.apply_values(logits_RTV.flatten(0, 1), space, head(cache.feature_NF)).log_softmax(-1)
    return logp_NV.gather(-1, ids_RT.flatten().unsqueeze(-1)).view(R, T)


TEMPERATURE = lk.KnobSpace.of("temperature:0.3,1,2")


def test_preference_is_the_sigmoid_of_the_margin_of_log_ratios() -> None:
    one = learner(TEMPERATURE, beta=0.7)
    cache, logits_RTV, ids_RT = world(one)
    head, before = random_head(one), random_head(one, 2)
    batch = Batch.read(cache, [Pair(0, 2, 5).example, Pair(0, 1, 2).example], "cpu")
    own_R = hard_logps(head, cache, logits_RTV, ids_RT, TEMPERATURE).sum(-1)
    plain_R = logits_RTV.log_softmax(-1).gather(-1, ids_RT.unsqueeze(-1)).squeeze(-1).sum(-1)
    for reference_head, base_R in ((None, plain_R), (before, hard_logps(before, cache, logits_RTV, ids_RT, TEMPERATURE).sum(-1))):
        ratio_R = own_R - base_R
        margin_B = torch.stack([ratio_R[2] - ratio_R[5], ratio_R[1] - ratio_R[2]])
        loss = one.loss(head, batch, reference_head)
        torch.testing.assert_close(loss.each_B, -torch.sigmoid(0.7 * margin_B).log(), atol=1e-5, rtol=1e-5)
        assert torch.equal(loss.metrics["accuracy"].bool(), margin_B > 0)


@pytest.mark.parametrize(("easy_mask", "reweight"), [(0.0, "none"), (0.6, "none"), (0.0, "base"), (0.6, "scaled")])
def test_likelihood_is_the_weighted_cross_entropy(easy_mask: float, reweight: str) -> None:
    one = learner(TEMPERATURE, objective="likelihood", easy_mask=easy_mask, reweight=reweight)
    cache, logits_RTV, ids_RT = world(one)
    head = random_head(one)
    logp_RT = hard_logps(head, cache, logits_RTV, ids_RT, TEMPERATURE)
    base_RT = logits_RTV.log_softmax(-1).gather(-1, ids_RT.unsqueeze(-1)).squeeze(-1)
    weight_RT = torch.where(logits_RTV.argmax(-1) == ids_RT, 1 - easy_mask, 1.0)
    weight_RT = weight_RT * {"none": 1.0, "base": base_RT.exp(), "scaled": logp_RT.detach().exp()}[reweight]
    loss = one.loss(head, Batch.read(cache, [Example(0, (n,)) for n in range(R)], "cpu"), None)
    torch.testing.assert_close(loss.each_B, -(weight_RT * logp_RT).mean(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss.metrics["log_likelihood"], logp_RT.detach().mean(-1), atol=1e-5, rtol=1e-5)


def test_reward_weighted_multiplies_and_its_weights_are_exponential() -> None:
    one = learner(TEMPERATURE, objective="reward_weighted", reward_temperature=0.5)
    rollouts = [Rollout(n // 2, (1,), None, "") for n in range(4)]
    examples = one.examples(rollouts, [1.0, 0.0, None, 0.5])
    weight_2 = torch.tensor([1.0, -1.0, 0.0]).exp()  # advantages .5 and -.5 of one prompt, 0 of the other
    torch.testing.assert_close(torch.tensor([e.weight for e in examples]), weight_2 / weight_2.mean())
    cache, logits_RTV, ids_RT = world(one)
    head = random_head(one)
    loss = one.loss(head, Batch.read(cache, [Example(0, (3,), 2.5)], "cpu"), None)
    torch.testing.assert_close(
        loss.each_B[0], -2.5 * hard_logps(head, cache, logits_RTV, ids_RT, TEMPERATURE)[3].mean(), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("easy_mask", "reweight", "lowest"), [(0.0, "none", 1.0), (0.6, "none", 1.22), (0.0, "base", 0.5), (0.6, "base", 0.66)]
)
def test_what_likelihood_learns_on_self_generated_text_is_a_global_temperature(
    easy_mask: float, reweight: Any, lowest: float
) -> None:
    """Exact expectation over the next token of a typical LM: the best constant temperature does not depend on any reward."""
    logits_NV = 3 * torch.randn(200, 50, generator=torch.Generator().manual_seed(0)).double()
    base_NV = logits_NV.log_softmax(-1)
    is_best_NV = base_NV == base_NV.amax(-1, keepdim=True)
    grid = [0.02 * i for i in range(15, 100)]

    def loss(temperature: float) -> float:
        logp_NV = (logits_NV / temperature).log_softmax(-1)
        weight_NV = token_weights(logp_NV, base_NV, is_best_NV, easy_mask=easy_mask, reweight=reweight)
        return float(-(base_NV.exp() * weight_NV * logp_NV).sum())

    assert min(grid, key=loss) == pytest.approx(lowest, abs=0.15 if easy_mask else 0.021)


def test_text_is_kept_by_its_rule() -> None:
    rollouts = [Rollout(n // 3, (1,), None, "") for n in range(9)]
    rewards = [0.2, 0.9, 0.6, 0.5, 0.5, 0.5, None, 0.1, float("nan")]
    kept = {keep: [e.responses[0] for e in learner(objective="likelihood", keep=keep).examples(rollouts, rewards)]
            for keep in ("best", "correct", "all")}  # fmt: skip
    assert kept == {"best": [1], "correct": [1, 2, 3, 4, 5], "all": [0, 1, 2, 3, 4, 5, 7]}
    with pytest.raises(
        NoExamplesError, match=r"None of 9 responses has a reward of 0.5 or more \(keep='correct'\); the highest is 0.1"
    ):
        learner(objective="likelihood", keep="correct").examples(rollouts, [0.1] * 9)
    with pytest.raises(NoPairsError, match=r"All 9 rewards are 0\.1"):
        learner().examples(rollouts, [0.1] * 9)


def test_preferences_from_elsewhere_are_pairs_or_texts() -> None:
    given = SimpleNamespace(pairs=[Pair(0, 1, 0), Pair(0, 1, 2)])
    assert learner().from_preferences(given) == [pair.example for pair in given.pairs]
    assert learner(objective="likelihood").from_preferences(given) == [Example(0, (1,))]


def test_it_explores_with_options_or_the_lm_itself_and_then_with_the_head() -> None:
    one = learner()
    assert isinstance(one.explorer(None), UniformPolicy) and isinstance(one.explorer(random_head(one)), ValuePolicy)
    neutral = learner(first_text="neutral").explorer(None)
    assert (
        neutral.space.options == [{"temperature": 1.0, "top_p": 1.0}] and neutral.identity() == neutral_policy(SPACE).identity()
    )


@pytest.mark.parametrize(("arguments", "message"), [
    ({"space": lk.KnobSpace.of("temperature", "typical_p")}, "The knob 'typical_p' has no differentiable form"),
    ({"space": lk.KnobSpace.of("temperature:0.7")}, "leaves nothing to choose"),
    ({"statistics": True, "level": "every:4"}, "level='every:4' chooses more seldom"),
    ({"rank": 4}, "neither rank nor factorised"),
    ({"factorised": True}, "neither rank nor factorised"),
])  # fmt: skip
def test_what_cannot_be_learned_is_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        learner(**arguments)


@pytest.mark.parametrize(
    ("name", "value"), [("alpha", 0), ("alpha", -1), ("easy_mask", 1), ("top_logits", 0), ("objective", "mle")]
)
def test_settings_that_do_not_fit_are_named(tmp_path, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        lk.train(learner="end_to_end", output_dir=tmp_path, **{name: value})


def test_statistics_are_read_by_the_main_head_and_not_by_the_baseline() -> None:
    assert learner(statistics=True).module(torch.zeros(3), torch.ones(3)).statistics
    assert not learner(statistics=True, features=("entropy",)).module(torch.zeros(1), torch.ones(1)).statistics
    one = learner(statistics=True)
    cache, *_ = world(one)
    loss = one.loss(random_head(one), Batch.read(cache, [Pair(0, 2, 5).example], "cpu"), None)
    assert loss.each_B.isfinite().all() and one.summary(random_head(one), torch.zeros(2, 3)) == {}


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_run_learns_values_that_decode_and_come_back(tmp_path, capsys, level: str) -> None:
    def short(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [-float(len(text)) for text in completions]

    run = lk.train(
        knobs=["temperature:0.5,1.5", "top_p:0.6,1"], learner="end_to_end", reward=short, level=level, output_dir=tmp_path,
        train_prompts=8, rollouts=3, eval_size=3 * (level == "token"), eval_seeds=1, tune_size=2, max_new_tokens=6, steps=4,
        pairs_per_step=4, rounds=1 + (level == "token"), statistics=level == "token", top_logits=64, keep_head=True, device="cpu",
    )  # fmt: skip
    assert "bytes a token" in "".join(capsys.readouterr())
    if level == "sequence":
        return
    assert run.report is not None and run.report_path is not None and "about temperature" in run.report_path.read_text()
    again = lk.KnobAdapter.from_pretrained(run.path / "adapter")
    assert isinstance(again.head, ValueHead) and isinstance(again.rival, ValueHead)
    assert again.policy().identity() == run.adapter.policy().identity()
    judged = lk.evaluate(again, reward=short, seeds=1, eval_size=3, tune_size=2, max_new_tokens=6, device="cpu")
    assert "learned head" in judged.rewards

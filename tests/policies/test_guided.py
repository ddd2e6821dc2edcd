"""Rules that follow evidence, confidence and places, against their formulas in Python's own floats, and by name."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_rules import chosen, probabilities, rows

from latentknobs import Context, KnobSpace, testbed
from latentknobs.data.prompts import make_prompts
from latentknobs.data.rollouts import roll_out
from latentknobs.errors import ConfigError, GridError
from latentknobs.likelihood.apply import apply_values
from latentknobs.policies.guided import ConfidenceGate, KLGuided
from latentknobs.policies.names import policy_of

temperatures = st.floats(0, 4)
ROW = {"prompt": "Story: Tom has a ball. Tom has a", "prompt_without_evidence": "Story: Tom has a"}


def seen(row: list[float], second: list[float]) -> Context:
    logits_1V, second_1V = (torch.tensor([values], dtype=torch.float64) for values in (row, second))
    return Context(hidden_ND=torch.zeros(1, 1), logits_NV=logits_1V, second_NV=second_1V)


@given(rows, st.integers(0, 1000), temperatures, st.floats(0.1, 10))
def test_kl_guided_temperature_is_its_formula(row: list[float], seed: int, base: float, half_life: float) -> None:
    second = (torch.randn(len(row), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3).tolist()
    both = zip(probabilities(row), probabilities(second), strict=True)
    kl = sum(p * math.log(p / q) for p, q in both if p > 0)
    (value,) = KLGuided(base, half_life).choose(seen(row, second), torch.zeros(1)).value_NJ
    assert value.item() == pytest.approx(base * 2 ** (-kl / half_life), rel=1e-6, abs=2e-6)


@given(rows, st.integers(0, 1000), st.floats(0.05, 4), st.floats(0.1, 10))
def test_the_rule_and_the_knob_draw_from_one_distribution(row: list[float], seed: int, base: float, half_life: float) -> None:
    second = (torch.randn(len(row), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).tolist()
    observed = seen(row, second)
    rule, space = KLGuided(base, half_life), KnobSpace.of({"temperature": [base]}, {"kl_half_life": [half_life]})
    by_rule_1V = apply_values(observed.logits_NV, rule.space, rule.choose(observed, torch.zeros(1)).value_NJ)
    by_knob_1V = apply_values(observed.logits_NV, space, space.values_KJ(), observed)
    assert torch.allclose(by_rule_1V.softmax(-1), by_knob_1V.softmax(-1), atol=1e-4)


@given(rows, st.floats(0.01, 1), temperatures, temperatures)
def test_a_gate_is_cold_where_the_best_token_is_probable(row: list[float], threshold: float, hot: float, cold: float) -> None:
    best = max(probabilities(row))
    if abs(best - threshold) > 1e-6:
        assert chosen(ConfidenceGate(threshold, hot, cold), row) == (cold if best >= threshold else hot)


def test_the_rules_have_names() -> None:
    tokenizer = testbed.load_tokenizer()
    prompts = make_prompts([ROW], tokenizer)
    specs = ["kl_guided:base=1.2,half_life=2", "confidence_gate:threshold=0.8,hot=1.2", "cfg:scale=1.5,temperature=0.8",
             "adapt:first=0.8,rest=0.2,after=.!"]  # fmt: skip
    model, texts = testbed.load_model(), set()
    for spec in specs:
        policy = policy_of(spec, tokenizer)
        (rollout,) = roll_out(model, tokenizer, prompts, policy, max_new_tokens=12, batch_size=1, seed=3)
        texts.add(rollout.text)
        assert policy.identity() == policy_of(spec, tokenizer).identity()
    assert rollout.values[0] == (0.8,) and {value for (value,) in rollout.values[1:]} >= {0.2}, "AdapT is hot at the beginning"
    assert len(texts) > 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("kl_guided:base=1,half_life=0", "The policy 'kl_guided' takes for half_life a number of at least 1e-06, not 0"),
        ("kl_guided:base=-1,half_life=1", "takes for base a number of at least 0, not -1"),
        ("confidence_gate:threshold=2,hot=1", "takes for threshold a number from 0 to 1, not 2"),
        ("kl_guided:base=1", "cannot be created"),
    ],
)
def test_settings_that_do_not_fit_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        policy_of(spec)


@pytest.mark.parametrize("value", ["0", "-1"])
def test_half_lives_that_are_not_positive_are_refused(value: str) -> None:
    with pytest.raises(GridError, match=f"does not fit the knob 'kl_half_life': value {float(value)}: .*greater than 0"):
        KnobSpace.of(f"kl_half_life:{value},1")


def test_an_infinite_half_life_changes_nothing() -> None:
    space, row_1V = KnobSpace.of("kl_half_life:1,inf"), torch.tensor([[0.3, 2.0, -1.0]])
    context = Context(logits_NV=row_1V, second_NV=-row_1V)
    assert space.knobs[0].options == (1.0, 1e6)
    assert torch.equal(apply_values(row_1V, space, torch.tensor([[1e6]]), context), row_1V)
    assert not torch.allclose(apply_values(row_1V, space, torch.tensor([[1.0]]), context).softmax(-1), row_1V.softmax(-1))

"""Rules against independent restatements of their formulas in Python's own floats, and Mirostat against its own recursion."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentknobs import Context, KnobSpace, apply_options, testbed
from latentknobs.data.prompts import make_prompts
from latentknobs.data.rollouts import roll_out
from latentknobs.engines.transformers.frozen import read_responses
from latentknobs.errors import ConfigError, GridError, UnknownNameError
from latentknobs.likelihood.apply import apply_values
from latentknobs.policies import BalancedPolicy, Policy, UniformPolicy
from latentknobs.policies.names import policy_of
from latentknobs.policies.rules import COLDEST, EDT, Dynatemp, Mirostat, MirostatState, SentenceStart

rows = st.lists(st.floats(-30, 30, width=32) | st.just(-math.inf), min_size=2, max_size=8).filter(
    lambda row: any(map(math.isfinite, row))
)
settings = st.floats(0, 4)


def probabilities(row: list[float]) -> list[float]:
    best = max(row)
    weights = [math.exp(z - best) for z in row]
    return [weight / sum(weights) for weight in weights]


def entropy(row: list[float]) -> float:
    return -sum(p * math.log(p) for p in probabilities(row) if p > 0)


def chosen(policy: Policy, row: list[float]) -> float:
    seen = Context(hidden_ND=torch.zeros(1, 1), logits_NV=torch.tensor([row], dtype=torch.float64))
    return policy.choose(seen, torch.zeros(1), policy.start(1)).value_NJ.item()


@given(rows, settings, settings, st.floats(0.01, 1))
def test_edt_is_its_formula(row: list[float], base: float, theta: float, share: float) -> None:
    H = entropy(row)
    expected = base * share ** (theta / H) if H > 1e-12 else base * (share**math.inf if theta else 1.0)
    found = chosen(EDT(base, theta, share), row)
    assert found == pytest.approx(expected, rel=1e-6, abs=2 * COLDEST) or H < 1e-9
    assert found == 0 or found >= COLDEST


def test_edt_follows_the_entropy_without_a_grid() -> None:
    """Figures worked out by hand: entropy ln 4 and ln 2."""
    assert chosen(EDT(1.4, 1.0), [0.0] * 4) == pytest.approx(1.4 * 0.8 ** (1 / math.log(4)), rel=1e-12)
    assert chosen(EDT(1.4, 1.0), [0.0, 0.0, -math.inf]) == pytest.approx(1.4 * 0.8 ** (1 / math.log(2)), rel=1e-12)
    assert chosen(EDT(1.0, 1.0), [100.0, -1000.0, -1000.0]) == 0.0, "greedy where the model is sure"


@given(rows, settings, settings, st.floats(0.1, 3))
def test_dynatemp_is_its_formula(row: list[float], low: float, more: float, exponent: float) -> None:
    expected = low + more * (entropy(row) / math.log(len(row))) ** exponent
    assert chosen(Dynatemp(low, low + more, exponent), row) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@given(rows, st.floats(-3, 12), st.integers(0, 7))
def test_a_step_of_mirostat_is_its_definition(row: list[float], mu: float, drawn: int) -> None:
    """Truncate to surprises of at most mu, keeping the best; then mu <- mu - eta (S - tau), S after renormalising."""
    tau, eta, drawn = 2.0, 0.3, drawn % len(row)
    prob_V = probabilities(row)
    if any(abs(-math.log2(p) - mu) < 1e-6 for p in prob_V if p > 0):
        return  # on the very edge, rounding decides
    kept = [(p > 0 and -math.log2(p) <= mu) or p == max(prob_V) for p in prob_V]
    policy, logits_NV = Mirostat(tau, eta), torch.tensor([row], dtype=torch.float64)
    seen, state = Context(logits_NV=logits_NV), MirostatState(torch.tensor([mu], dtype=torch.float64), torch.zeros(1, 0))
    choice = policy.choose(seen, torch.zeros(1), state)
    assert apply_values(logits_NV, policy.space, choice.value_NJ).isfinite()[0].tolist() == kept
    mu_N = policy.observe(torch.tensor([drawn]), choice.state).mu_N
    if kept[drawn]:
        surprise = -math.log2(prob_V[drawn] / sum(p for p, is_kept in zip(prob_V, kept, strict=True) if is_kept))
        assert mu_N.item() == pytest.approx(mu - eta * (surprise - tau), abs=1e-6)
    assert mu_N.isfinite().all()


@pytest.mark.parametrize(("tau", "eta"), [(1.0, 0.3), (0.5, 0.1)])
def test_mirostat_follows_its_recursion_in_every_row(tau: float, eta: float) -> None:
    """In float32, over whole responses of a real model, rows leaving as they end."""
    model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
    prompts = make_prompts(testbed.prompts("stories", "train", 4), tokenizer)
    rollouts = roll_out(model, tokenizer, prompts, Mirostat(tau, eta), max_new_tokens=30, batch_size=4, seed=0)
    cut = 0
    read = read_responses(model, [p.ids for p in prompts], [r.ids for r in rollouts])
    for rollout, (_, logits_TV) in zip(rollouts, read, strict=True):
        mu = 2 * tau
        assert rollout.options is None and len(rollout.values) == len(rollout.ids)
        for token, logits_V, (value,) in zip(rollout.ids, logits_TV, rollout.values, strict=True):
            assert value == pytest.approx(min(2**-mu, 1.0), rel=1e-3)
            surprise_V = -logits_V.log_softmax(-1) / math.log(2)
            kept_V = (surprise_V <= mu + 1e-4) | (surprise_V == surprise_V.min())
            assert kept_V[token], (mu, surprise_V[token])
            cut += int((~kept_V).sum() > 0)
            mu -= eta * (-(logits_V.masked_fill(~kept_V, -torch.inf).log_softmax(-1)[token].item() / math.log(2)) - tau)
    assert cut > 20  # otherwise nothing was tested


def test_a_sentence_start_is_cold_after_its_characters_and_at_the_beginning() -> None:
    tokenizer = testbed.load_tokenizer()
    policy = SentenceStart(0.2, 1.3, 0.1, ".!?", tokenizer)
    dot, word = policy.delimiter.token_ids[0], next(i for i in range(900) if i not in policy.delimiter.token_ids)
    previous_NL = torch.tensor([[word, dot, -1], [dot, word, -1], [-1, dot, word], [word, word, dot]])
    seen = Context(
        hidden_ND=torch.zeros(4, 1), logits_NV=torch.zeros(4, 9), previous_NL=previous_NL, position_N=torch.tensor([1, 1, 0, 2])
    )
    assert policy.choose(seen, torch.zeros(4)).value_NJ.tolist() == [[0.2, 0.1], [1.3, 0.1], [0.2, 0.1], [0.2, 0.1]]


# names


def test_names_give_the_policies_with_their_settings() -> None:
    assert vars(policy_of("edt:base=1.4,theta=3")) == vars(EDT(1.4, 3))
    constant = policy_of("constant:top_p=0.9,temperature=0.7")
    assert constant.space.options == [{"temperature": 0.7, "top_p": 0.9}], "in the order of transformers"
    uniform = policy_of("uniform:temperature=0,0.5,1,top_p=0.9,1,level=every:8")
    assert isinstance(uniform, UniformPolicy) and uniform.space.K == 6 and uniform.segmenter.level == "every:8"
    balanced = policy_of("balanced:temperature=1,level=delimiter:.", testbed.load_tokenizer())
    assert isinstance(balanced, BalancedPolicy) and balanced.segmenter.level == "delimiter:."
    assert isinstance(policy_of("sentence_start:cold=0,hot=1", testbed.load_tokenizer()), SentenceStart)
    assert policy_of(constant) is constant


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (
            "edtt:base=1",
            UnknownNameError,
            r"There is no policy 'edtt'\. Did you mean \"edt\"\? Known: .*balanced, .*constant, dynatemp",
        ),
        ("edt:base=-1,theta=3", ConfigError, r"The policy 'edt' takes for base a number of at least 0, not -1\."),
        ("edt:base=warm,theta=3", ConfigError, "takes for base a number of at least 0, not 'warm'"),
        ("edt:base=1", ConfigError, "'edt:base=1' cannot be created: .*'theta'"),
        ("dynatemp:low=2,high=1", ConfigError, "takes for high a number of at least 2, not 1"),
        ("constant", ConfigError, "needs the values of at least one knob, e.g. 'constant:temperature=0.7'"),
        ("constant:temprature=1", UnknownNameError, r"no knob 'temprature'\. Did you mean \"temperature\""),
        ("constant:temperature=-1", GridError, r"does not fit the knob 'temperature'"),
        ("uniform:temperature=hot", ConfigError, "not a list of numbers"),
        ("sentence_start:cold=0,hot=1", ConfigError, "needs the model's tokenizer"),
        (3, ConfigError, "3 is not a policy. Pass a Policy, or a name such as 'edt:base=1.4,theta=3'"),
    ],
)
def test_names_that_give_no_policy_are_refused(spec: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        policy_of(spec)


# identity


def test_identities_follow_every_setting() -> None:
    """Perturbed one at a time, each setting of a rule makes another policy; written another way, it is the same."""
    specs = ["edt:base=1,theta=1", "edt:base=1.1,theta=1", "edt:base=1,theta=1.1", "edt:base=1,theta=1,share=0.7",
             "dynatemp:low=1,high=1", "dynatemp:low=0,high=1", "dynatemp:low=0,high=1.1", "dynatemp:low=0,high=1,exponent=2",
             "mirostat:tau=1", "mirostat:tau=2", "mirostat:tau=1,eta=0.2", "greedy", "constant:temperature=0.5",
             "constant:temperature=0.5,top_p=0.9", "uniform:temperature=0.5", "uniform:temperature=0.5,1",
             "uniform:temperature=0.5,level=sequence", "balanced:temperature=0.5"]  # fmt: skip
    assert len({policy_of(spec).identity() for spec in specs}) == len(specs)
    assert all(policy_of(spec).identity() == policy_of(spec).identity() for spec in specs)
    assert policy_of("edt:base=1,theta=1,share=0.8").identity() == EDT(base=1.0, theta=1.0).identity()


def test_a_joint_constant_is_its_knobs_one_after_the_other() -> None:
    logits_NV = torch.randn(6, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    policy = policy_of("constant:temperature=1.5,min_p=0.2,top_n_sigma=1")
    choice = policy.choose(Context(logits_NV=logits_NV), torch.zeros(6))
    space = KnobSpace.of({"temperature": [1.5]}, {"min_p": [0.2]}, {"top_n_sigma": [1.0]})
    assert torch.equal(
        apply_values(logits_NV, policy.space, choice.value_NJ), apply_options(logits_NV, space, torch.zeros(6, dtype=torch.long))
    )

"""What every engine promises, as checks on a small model: policies act on every token, and readings agree with samples."""

import math
from typing import Any

import torch
from torch import Tensor

from latentknobs.conformance.suite import CannotTry, Suite, require
from latentknobs.engines.base import Engine, Response, engine_of
from latentknobs.engines.record import record_of
from latentknobs.heads.segmenters import Every, WholeResponse
from latentknobs.knobs.context import Observation
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import Choice, ConstantPolicy, Policy, UniformPolicy, reads
from latentknobs.tensors import pick

PROMPTS = ((3, 5, 9), (4, 8), (3, 5, 9), (7, 6, 5, 4, 3), (9,))
LONG = 12  # tokens


class _Countdown(Policy):
    """Cold until two tokens of the budget are left, then hot; values that are in no grid."""

    needs = ("remaining_N",)

    def __init__(self) -> None:
        self.space, self.segmenter = KnobSpace.of({"temperature": [1.0]}), Every(1)

    def choose(self, seen: Observation, uniform_N: Tensor, state: Any = None) -> Choice:
        """(N, 1) temperatures."""
        return Choice(torch.where(seen.remaining_N > 2, 0.123, 1.234).double().unsqueeze(-1))


def _constant(**values: float) -> Policy:
    return ConstantPolicy(KnobSpace.of({name: [value] for name, value in values.items()}), 0)


def _uniform(whole: bool = False) -> Policy:
    return UniformPolicy(KnobSpace.of({"temperature": [0.0, 0.7, 1.3]}), WholeResponse() if whole else Every(1))


def _sample(engine: Engine, policy: Policy, seed: int = 0, prompts: Any = PROMPTS, tokens: int = LONG) -> list[Response]:
    return engine.sample(prompts, policy, max_new_tokens=tokens, seed=seed)


def one_response_for_each_prompt(engine: Engine) -> None:
    """As many as prompts, none empty, none longer than requested, with a value for every token and knob."""
    policy, found = _uniform(), _sample(engine, _uniform())
    require(len(found) == len(PROMPTS), f"it gave {len(found)} responses to {len(PROMPTS)} prompts")
    for row in found:
        require(0 < len(row.ids) <= LONG, f"it gave {len(row.ids)} tokens where at most {LONG} were requested")
        require(len(row.values) == len(row.ids), f"it gave {len(row.values)} values to {len(row.ids)} tokens")
        require(all(len(value) == len(policy.space.knobs) for value in row.values), "a token lacks the value of a knob")
        require(row.options is not None and len(row.options) == len(row.ids), "a token lacks the option it was drawn with")
        require(isinstance(row.text, str), f"its text is a {type(row.text).__name__}")


def is_repeatable_by_seed(engine: Engine) -> None:
    """One seed gives one text, another one another; the caller's random state plays no part and stays."""
    torch.manual_seed(1)
    state, first = torch.get_rng_state(), _sample(engine, _uniform(), 5)
    require(torch.equal(torch.get_rng_state(), state), "it changed the caller's random state")
    torch.manual_seed(2)
    require(_sample(engine, _uniform(), 5) == first, "one seed gave two texts")
    require(any(_sample(engine, _uniform(), seed) != first for seed in (6, 7, 8)), "four seeds gave one text")


def rows_do_not_mix(engine: Engine) -> None:
    """A row says the same whatever stands beside and behind it."""
    whole, part = _sample(engine, _uniform(), 3), _sample(engine, _uniform(), 3, PROMPTS[:2])
    require(part == whole[:2], "the first two rows changed when the rows behind them went")
    require(whole[0].ids != whole[2].ids or whole[0].values != whole[2].values, "two rows of one prompt share their draws")


def cold_is_greedy(engine: Engine) -> None:
    """At temperature 0 every token is the most probable one of its reading."""
    found = _sample(engine, _constant(temperature=0.0))
    for (_, logits_TV), row in zip(engine.read(PROMPTS, [row.ids for row in found]), found, strict=True):
        top_T = logits_TV.amax(-1)
        lost_T = top_T - pick(logits_TV, torch.tensor(row.ids, device=logits_TV.device))
        require(bool((lost_T < 1e-2).all()), f"at temperature 0 it took a token {lost_T.max():.2f} nats below the best one")


def values_act_on_every_token(engine: Engine) -> None:
    """With top-k 1 no token is anything but the best one, at any temperature."""
    try:
        policy = _constant(temperature=1.5, top_k=1)
    except Exception as error:
        raise CannotTry from error
    greedy, cut = _sample(engine, _constant(temperature=0.0)), _sample(engine, policy)
    require([row.ids for row in cut] == [row.ids for row in greedy], "with top_k=1 it drew another token than the best one")


def choices_are_what_a_reading_gives(engine: Engine) -> None:
    """Teacher forcing recomputes the options, and the tokens are possible under them; by token and by response."""
    for whole in (False, True):
        policy = _uniform(whole)
        found = _sample(engine, policy, 4)
        responses = [row.ids for row in found]
        record = record_of(policy, 4, PROMPTS, responses, engine.observe(PROMPTS, responses, reads(policy)))
        assert record.option_BT is not None
        for b, row in enumerate(found):
            options = record.option_BT[b, : len(row.ids)].tolist()
            require(
                row.options is not None and list(row.options) == options, f"it chose {row.options}, a reading gives {options}"
            )
            require(bool(record.logps_BT[b, : len(row.ids)].isfinite().all()), "it drew a token that its option cannot produce")


def budgets_reach_policies(engine: Engine) -> None:
    """A policy that reads `remaining_N` sees what is left of `max_new_tokens`; values need be in no grid."""
    for row in _sample(engine, _Countdown(), tokens=6):
        found = [value for (value,) in row.values]
        expected = [0.123 if 6 - t > 2 else 1.234 for t in range(len(row.ids))]
        close = all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(found, expected, strict=True))
        require(close, f"of 6 tokens the temperatures were {found}, not {expected}")


def readings_have_a_row_for_each_token(engine: Engine) -> None:
    """(T, V) logits and, where the engine reads them, (T, D) hidden states, whatever else is read along."""
    responses = [(5, 6), (7,), (3, 4, 5), (2,), (9, 8)]
    together = list(engine.read(PROMPTS, responses))
    for prompt, response, (hidden_TD, logits_TV) in zip(PROMPTS, responses, together, strict=True):
        require(len(logits_TV) == len(response), f"it read {len(logits_TV)} rows of logits for {len(response)} tokens")
        if engine.reads_hidden:
            require(len(hidden_TD) == len(response), f"it read {len(hidden_TD)} hidden states for {len(response)} tokens")
            require(hidden_TD.shape[-1] == engine.hidden_size, f"hidden_size is {engine.hidden_size}, not {hidden_TD.shape[-1]}")
        ((_, alone_TV),) = engine.read([prompt], [response])
        require(torch.allclose(alone_TV, logits_TV, atol=1e-3), "a reading changes with what is read along")


CHECKS = (
    one_response_for_each_prompt, is_repeatable_by_seed, rows_do_not_mix, cold_is_greedy, values_act_on_every_token,
    choices_are_what_a_reading_gives, budgets_reach_policies, readings_have_a_row_for_each_token,
)  # fmt: skip


def find(spec: str | Engine) -> Engine:
    """An engine, or the one of a name on the packaged model."""
    if isinstance(spec, Engine):
        return spec
    from latentknobs import testbed

    return engine_of(spec, testbed.load_model(), testbed.load_tokenizer())


SUITE = Suite("engine", {check.__name__: check for check in CHECKS}, find, lambda engine: engine.name, lambda engine: engine.name)

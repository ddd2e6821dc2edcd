"""What every engine promises, as checks on a small model: policies act on every token, and readings agree with samples.

An engine that chooses once for a response (`Engine.token_level`) is checked at that level, one without seeds
(`Engine.repeatable`) need not give the same text twice, and its own parameters are compared with where it has any
(`Engine.plain`).
"""

import itertools
import math
from contextlib import suppress
from typing import Any, ClassVar

import torch
from torch import Tensor

from latentknobs.conformance.suite import CannotTry, Suite, by_name, require
from latentknobs.engines.base import SECOND, Engine, Response, engine_of
from latentknobs.engines.record import record_of
from latentknobs.engines.served import measure_drift
from latentknobs.errors import ConfigError
from latentknobs.heads.segmenters import Every, Segmenter, WholeResponse
from latentknobs.knobs.context import Observation
from latentknobs.knobs.knob import ScalingKnob
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood.apply import apply_options
from latentknobs.policies import Choice, ConstantPolicy, Policy, UniformPolicy, reads
from latentknobs.tensors import pick

PROMPTS = ((3, 5, 9), (4, 8), (3, 5, 9), (7, 6, 5, 4, 3), (9,))
LONG, DRAWS = 12, 128  # tokens, and first tokens of a histogram
NEAR = 0.05  # nats: more than float32 explains, and what number formats of 16 bits cost at most


class _Countdown(Policy):
    """Cold until two tokens of the budget are left, then hot; values that are in no grid."""

    needs = ("remaining_N",)

    def __init__(self, segmenter: Segmenter) -> None:
        self.space, self.segmenter = KnobSpace.of({"temperature": [1.0]}), segmenter

    def choose(self, seen: Observation, uniform_N: Tensor, state: Any = None) -> Choice:
        """(N, 1) temperatures."""
        return Choice(torch.where(seen.remaining_N > 2, 0.123, 1.234).double().unsqueeze(-1))


class _Second(Policy):
    """Temperatures that follow second logits: what is read after the prompts without their evidence."""

    needs = (SECOND,)

    def __init__(self, segmenter: Segmenter) -> None:
        self.space, self.segmenter = KnobSpace.of({"temperature": [1.0]}), segmenter

    def choose(self, seen: Observation, uniform_N: Tensor, state: Any = None) -> Choice:
        """(N, 1) temperatures from .5 to 1.5."""
        return Choice(0.5 + seen.second_NV.double().softmax(-1).amax(-1, keepdim=True))


class _Odd(ScalingKnob):
    """A knob that no engine but those that run any has heard of."""

    name: ClassVar[str] = "conformance_odd"
    neutral: ClassVar[float] = 1.0
    options: tuple[float, ...] = (0.9, 1.1)

    def temperature(self, value_N: Tensor) -> Tensor:
        """The value itself."""
        return value_N


def _constant(**values: float) -> Policy:
    return ConstantPolicy(KnobSpace.of({name: [value] for name, value in values.items()}), 0)


def _truncated() -> ConstantPolicy:
    """Temperature .8 and top-k 3; CannotTry if top-k is not installed."""
    try:
        return ConstantPolicy(KnobSpace.of({"temperature": [0.8]}, {"top_k": [3]}), 0)
    except Exception as error:
        raise CannotTry from error


def _levels(engine: Engine) -> list[Segmenter]:
    return [Every(1), WholeResponse()] if engine.token_level else [WholeResponse()]


def _uniform(engine: Engine) -> Policy:
    return UniformPolicy(KnobSpace.of({"temperature": [0.0, 0.7, 1.3]}), _levels(engine)[0])


def _sample(engine: Engine, policy: Policy, seed: int = 0, prompts: Any = PROMPTS, tokens: int = LONG) -> list[Response]:
    return engine.sample(prompts, policy, max_new_tokens=tokens, seed=seed)


def _needs_seeds(engine: Engine) -> None:
    if not engine.repeatable:
        raise CannotTry


def one_response_for_each_prompt(engine: Engine) -> None:
    """As many as prompts, none empty, none longer than requested, with a value for every token and knob."""
    policy, found = _uniform(engine), _sample(engine, _uniform(engine))
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
    state, first = torch.get_rng_state(), _sample(engine, _uniform(engine), 5)
    require(torch.equal(torch.get_rng_state(), state), "it changed the caller's random state")
    _needs_seeds(engine)
    torch.manual_seed(2)
    require(_sample(engine, _uniform(engine), 5) == first, "one seed gave two texts")
    require(any(_sample(engine, _uniform(engine), seed) != first for seed in (6, 7, 8)), "four seeds gave one text")


def rows_do_not_mix(engine: Engine) -> None:
    """A row says the same whatever stands beside and behind it."""
    _needs_seeds(engine)
    whole, part = _sample(engine, _uniform(engine), 3), _sample(engine, _uniform(engine), 3, PROMPTS[:2])
    require(part == whole[:2], "the first two rows changed when the rows behind them went")
    require(whole[0].ids != whole[2].ids or whole[0].values != whole[2].values, "two rows of one prompt share their draws")


def nothing_of_a_call_stays(engine: Engine) -> None:
    """After a hot policy, a cold one and a reading give what they gave before."""

    def cold() -> tuple[list[tuple[int, ...]], list[Tensor]]:
        return [row.ids for row in _sample(engine, _constant(temperature=0.0))], [
            both[1] for both in engine.read(PROMPTS, PROMPTS)
        ]

    ids, logits = cold()
    _sample(engine, _constant(temperature=1.9))
    again, logits_again = cold()
    require(again == ids, "at temperature 0 its texts changed after a call with another policy")
    require(all(map(torch.equal, logits_again, logits)), "its readings changed after a call with another policy")


def streams_what_it_samples(engine: Engine) -> None:
    """Each response once, without those that are known, and the same as together."""
    whole = _sample(engine, _uniform(engine), 2)
    found = list(engine.stream(PROMPTS, _uniform(engine), max_new_tokens=LONG, seed=2, skip={1, 4}))
    require(sorted(row for row, _ in found) == [0, 2, 3], f"without 1 and 4 it streamed {[row for row, _ in found]}")
    same = all(response == whole[row] for row, response in found)
    require(same or not engine.repeatable, "what it streams is not what it samples")


def cold_is_greedy(engine: Engine) -> None:
    """At temperature 0 every token is the most probable one of its reading."""
    found = _sample(engine, _constant(temperature=0.0))
    for (_, logits_TV), row in zip(engine.read(PROMPTS, [row.ids for row in found]), found, strict=True):
        top_T = logits_TV.amax(-1)
        lost_T = top_T - pick(logits_TV, torch.tensor(row.ids, device=logits_TV.device))
        require(bool((lost_T < 1e-2).all()), f"at temperature 0 it took a token {lost_T.max():.2f} nats below the best one")


def values_act_on_every_token(engine: Engine) -> None:
    """With top-k 1 no token is anything but the best one, at any temperature."""
    _truncated()
    greedy, cut = _sample(engine, _constant(temperature=0.0)), _sample(engine, _constant(temperature=1.5, top_k=1))
    require([row.ids for row in cut] == [row.ids for row in greedy], "with top_k=1 it drew another token than the best one")


def constants_equal_its_own_parameters(engine: Engine) -> None:
    """A constant policy draws the first token as a reading says, and as the engine's own parameters of the same values do."""
    policy, prompts = _truncated(), PROMPTS[:1] * DRAWS
    [seen] = engine.observe(PROMPTS[:1], [(3,)])
    exact_V = apply_options(seen.logits_NV, policy.space, torch.zeros(1, dtype=torch.long, device=engine.device))[0].softmax(-1)
    found = {"as a policy": _sample(engine, policy, 1, prompts, 1)}
    with suppress(NotImplementedError):
        values = policy.space.options[0]
        found["as its own parameters"] = engine.plain(prompts, values, max_new_tokens=1, seed=1)
    for how, rows in found.items():
        share_V = torch.bincount(torch.tensor([row.ids[0] for row in rows]), minlength=len(exact_V)).double() / DRAWS
        distance = float((share_V - exact_V.double().cpu()).abs().sum()) / 2
        require(
            distance < 0.2, f"temperature .8 and top-k 3 {how} give first tokens {distance:.2f} (total variation) off a reading"
        )


def choices_are_what_a_reading_gives(engine: Engine) -> None:
    """Teacher forcing recomputes the options, and the tokens are possible under them; at every level."""
    for segmenter in _levels(engine):
        policy = UniformPolicy(_uniform(engine).space, segmenter)
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


def log_probs_are_those_of_a_reading(engine: Engine) -> None:
    """Where an engine reports how probable its tokens were, a reading says the same."""
    policy = _constant(temperature=0.7)
    found = _sample(engine, policy)
    if all(row.logps is None for row in found):
        raise CannotTry
    for row in found:
        require(row.logps is None or len(row.logps) == len(row.ids), f"it gave {len(row.logps or ())} log-probabilities "
                                                                     f"to {len(row.ids)} tokens")  # fmt: skip
    drift = measure_drift(engine, policy.space, PROMPTS, found)
    require(drift.mean < NEAR, f"its log-probabilities are {drift.mean:.2g} nats from those of a reading, on average")


def ends_are_early(engine: Engine) -> None:
    """A response stops with its end-of-sequence token, and nothing follows it."""
    found = _sample(engine, _constant(temperature=1.0), 8, PROMPTS * 4, 2 * LONG)
    ends = {row.ids[-1] for row in found if len(row.ids) < 2 * LONG}
    if not ends:
        raise CannotTry
    goes_on = [row.ids for row in found if ends.intersection(row.ids[:-1])]
    require(not goes_on, f"of the tokens {sorted(ends)}, with which responses stop, one is inside {goes_on[:1]}")


def budgets_reach_policies(engine: Engine) -> None:
    """A policy that reads `remaining_N` sees what is left of `max_new_tokens`; values need be in no grid."""
    for segmenter, tokens in itertools.product(_levels(engine), (6, 2)):
        for row in _sample(engine, _Countdown(segmenter), tokens=tokens):
            found, first = [value for (value,) in row.values], isinstance(segmenter, WholeResponse)
            expected = [0.123 if tokens - (0 if first else t) > 2 else 1.234 for t in range(len(row.ids))]
            close = all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(found, expected, strict=True))
            require(len(row.ids) <= tokens and close, f"of {tokens} tokens the temperatures were {found}, not {expected}")


def evidence_reaches_policies(engine: Engine) -> None:
    """A policy that reads second logits gets those of the prompts without evidence; or `check` refuses it by their name."""
    policy = _Second(_levels(engine)[0])
    try:
        engine.check(policy)
    except ConfigError as error:
        require(SECOND in str(error) or "second logits" in str(error), f"it refuses second logits without their name: {error}")
        return
    for seconds in ([(8, 4, *prompt[-1:]) for prompt in PROMPTS], [prompt[-1:] for prompt in PROMPTS]):
        found = engine.sample(PROMPTS, policy, max_new_tokens=LONG, seed=0, second_prompts=seconds)
        seen = engine.observe(PROMPTS, [row.ids for row in found], (SECOND,), second_prompts=seconds)
        for row, one in zip(found, seen, strict=True):
            value_T1 = policy.choose(one, torch.zeros(len(row.ids))).value_NJ.cpu()
            value_T1 = value_T1 if isinstance(policy.segmenter, Every) else value_T1[:1].expand(len(row.ids), 1)
            off = float((torch.tensor(row.values, dtype=torch.float64) - value_T1).abs().max())
            require(off < NEAR, f"after {seconds[0]} in place of {PROMPTS[0]} a temperature is {off:.3f} off that of a reading")


def refuses_before_any_text(engine: Engine) -> None:
    """What `check` refuses, by name, `sample` refuses; what it lets pass is sampled."""
    for policy, named in (
        (UniformPolicy(KnobSpace.of({"temperature": [0.5, 1.0]}), Every(1)), "token"),
        (ConstantPolicy(KnobSpace.of(_Odd())), _Odd.name),
    ):
        message = None
        try:
            engine.check(policy)
        except ConfigError as error:
            message = str(error)
            require(named in message, f"it refuses without naming {named!r}: {message}")
        try:
            _sample(engine, policy, tokens=2)
        except ConfigError:
            require(message is not None, f"`check` lets pass what `sample` refuses: {named}")
        else:
            require(message is None, f"`sample` samples what `check` refuses: {named}")


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


CHECKS = by_name(
    one_response_for_each_prompt, is_repeatable_by_seed, rows_do_not_mix, nothing_of_a_call_stays, streams_what_it_samples,
    cold_is_greedy, values_act_on_every_token, constants_equal_its_own_parameters, choices_are_what_a_reading_gives,
    log_probs_are_those_of_a_reading, ends_are_early, budgets_reach_policies, evidence_reaches_policies, refuses_before_any_text,
    readings_have_a_row_for_each_token,
)  # fmt: skip


def find(spec: str | Engine) -> Engine:
    """An engine, or the one of a name on the packaged model."""
    if isinstance(spec, Engine):
        return spec
    from latentknobs import testbed

    return engine_of(spec, testbed.load_model(), testbed.load_tokenizer())


SUITE = Suite("engine", CHECKS, find, lambda engine: engine.name, lambda engine: engine.name)

"""The suite of policies: what decoding, rollouts and records rely on, tried on a few steps of synthetic observations."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import repeat
from torch import Tensor

from latentknobs.conformance.suite import Suite, by_name, require
from latentknobs.entry_points import with_example
from latentknobs.heads.segmenters import Segmenter
from latentknobs.knobs.context import PARTS, Observation
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import Choice, Policy, State, reads
from latentknobs.policies.names import policy_of
from latentknobs.tensors import pick

ROWS, STEPS, PROMPT, BUDGET, SAMPLES = 5, 6, 3, 8, 4
TOLERANCE = 1e-4  # a matrix product with another number of rows rounds in other ways
Trace = dict[tuple[int, int], Choice]  # by step and row: the choice of that row alone


@dataclass(frozen=True)
class Subject:
    """A policy, and the sizes of the model that it reads."""

    policy: Policy
    hidden_size: int = 16
    vocabulary: int = 50

    def seen(self, step: int) -> Observation:
        """What the policy may read before one token, and nothing else; rows are sharper from the first to the last."""
        draw, V = torch.Generator().manual_seed(step), self.vocabulary
        sharp_N1 = torch.linspace(0.2, 6, ROWS).unsqueeze(-1)
        prompt_NL = repeat(torch.arange(PROMPT), "l -> n l", n=ROWS)
        parts = {
            "hidden_ND": torch.randn(ROWS, self.hidden_size, generator=draw),
            "logits_NV": torch.randn(ROWS, V, generator=draw) * sharp_N1,
            "second_NV": torch.randn(ROWS, V, generator=draw),
            "previous_NL": torch.cat([prompt_NL, *(self.tokens(t) for t in range(step))], -1),
            "position_N": torch.full((ROWS,), step),
            "remaining_N": torch.full((ROWS,), BUDGET - step),
            "samples_N": torch.full((ROWS,), SAMPLES),
        }
        kept = ("hidden_ND", "logits_NV", *self.policy.needs)
        return Observation(**{name: part for name, part in parts.items() if name in kept})

    def tokens(self, step: int) -> Tensor:
        """(N, 1) what follows a choice: for some rows the best token, for others any."""
        draw = torch.Generator().manual_seed(100 + step)
        return torch.randint(self.vocabulary, (ROWS, 1), generator=draw)

    def uniforms(self, step: int) -> Tensor:
        """(N,) in [0, 1)."""
        return torch.rand(ROWS, generator=torch.Generator().manual_seed(200 + step), dtype=torch.float64)

    def run(self, orders: dict[int, list[int]] | None = None, policy: Policy | None = None, shift: float = 0.0) -> Trace:
        """The choices of a few steps; before those in `orders` only these rows go on, in this order; `shift` moves uniforms."""
        policy, rows, trace = policy or self.policy, list(range(ROWS)), {}
        state = policy.start(ROWS)
        for step in range(STEPS):
            if orders and step in orders:
                state = policy.select(torch.tensor([rows.index(row) for row in orders[step]]), state)
                rows = orders[step]
            at = torch.tensor(rows)
            choice = policy.choose(self.seen(step).rows(at), (self.uniforms(step)[at] + shift) % 1, state)
            trace.update({(step, row): _row(choice, n) for n, row in enumerate(rows)})
            state = policy.observe(self.tokens(step)[at, 0], state if choice.state is None else choice.state)
        return trace

    def choices(self) -> Iterator[tuple[Choice, Tensor]]:
        """Choices for whole batches, with the uniforms: first steps of several observations, unusual logits among them."""
        for seen in [*map(self.seen, range(STEPS)), *self.odd()]:
            uniform_N = self.uniforms(0)
            yield self.policy.choose(seen, uniform_N, self.policy.start(ROWS)), uniform_N

    def odd(self) -> Iterator[Observation]:
        """Sure, flat, and partly forbidden distributions."""
        seen = self.seen(0)
        sure_NV = torch.full_like(seen.logits_NV, -torch.inf)
        sure_NV[:, 3] = 0.0
        half_NV = seen.logits_NV.masked_fill(torch.arange(self.vocabulary) % 2 == 0, -torch.inf)
        for logits_NV in (sure_NV, torch.zeros_like(sure_NV), half_NV, seen.logits_NV * 1e4):
            yield Observation(**(seen.parts | {"logits_NV": logits_NV}))


def find(policy: Policy | str, hidden_size: int = 16, vocabulary: int = 50) -> Subject:
    """A policy, or its name, on a model of these sizes."""
    found = policy_of(with_example("policy", policy) if isinstance(policy, str) else policy)
    return Subject(found, hidden_size, vocabulary)


def has_a_space_and_a_segmenter(subject: Subject) -> None:
    """`space` is a KnobSpace, `segmenter` a Segmenter, and `needs` names parts of an observation."""
    policy = subject.policy
    for name, kind in (("space", KnobSpace), ("segmenter", Segmenter)):
        found = getattr(policy, name, None)
        require(isinstance(found, kind), f"its {name} is {found!r}, not a {kind.__name__}")
    unknown = sorted(set(policy.needs) - set(PARTS))
    require(not unknown, f"its needs name {unknown}; an observation has {', '.join(PARTS)}")


def reads_only_what_it_names(subject: Subject) -> None:
    """It reads hidden states, logits and the parts in its `needs`, no others."""
    try:
        subject.policy.choose(subject.seen(0), subject.uniforms(0), subject.policy.start(ROWS))
    except AttributeError as error:
        missing = sorted(part for part in PARTS if repr(part) in str(error))
        require(not missing, f"it reads {', '.join(missing)}, which is not in its needs {reads(subject.policy)}")
        raise


def chooses_a_value_for_each_row_and_knob(subject: Subject) -> None:
    """`value_NJ` is (N, J) and floating point; `option_N` and `log_prob_N` are (N,) where they are there."""
    for choice, _ in subject.choices():
        wanted, found = (ROWS, len(subject.policy.space.knobs)), tuple(choice.value_NJ.shape)
        require(found == wanted, f"its values have the shape {found} instead of {wanted}")
        require(choice.value_NJ.is_floating_point(), f"its values are {choice.value_NJ.dtype}")
        for name in ("option_N", "log_prob_N"):
            part = getattr(choice, name)
            require(part is None or tuple(part.shape) == (ROWS,), f"{name} has the shape {tuple(getattr(part, 'shape', ()))}")


def values_lie_in_their_ranges(subject: Subject) -> None:
    """Every value is within the range of its knob, for any logits."""
    for choice, _ in subject.choices():
        for knob, value_N in zip(subject.policy.space.knobs, choice.value_NJ.unbind(-1), strict=True):
            low, high = knob.value_range()
            bad = [value for value in value_N.tolist() if not low <= value <= high]
            require(not bad, f"it chose {knob.name} = {bad[0] if bad else 0:g}, outside {low:g} to {high:g}")


def options_have_their_values(subject: Subject) -> None:
    """Where it gives options, the values are those of the options in its space."""
    for choice, _ in subject.choices():
        if choice.option_N is None:
            return
        K = subject.policy.space.K
        require(bool(((choice.option_N >= 0) & (choice.option_N < K)).all()), f"an option is not one of 0 to {K - 1}")
        expected_NJ = subject.policy.space.values_KJ()[choice.option_N]
        require(torch.equal(choice.value_NJ.double(), expected_NJ), "its values are not those of its options")


def log_probs_are_those_of_its_options(subject: Subject) -> None:
    """`log_pi` is normalised, and `log_prob_N` is its value at the option."""
    for step in range(STEPS):
        seen, state = subject.seen(step), subject.policy.start(ROWS)
        log_pi_NK = subject.policy.log_pi(seen, state)
        if log_pi_NK is None:
            return
        total_N = log_pi_NK.double().exp().sum(-1)
        require(bool((total_N - 1).abs().max() < TOLERANCE), f"the probabilities of its options sum to {total_N[0]:g}")
        choice = subject.policy.choose(seen, subject.uniforms(step), state)
        if choice.log_prob_N is not None and choice.option_N is not None:
            expected_N = pick(log_pi_NK, choice.option_N)
            is_same = torch.allclose(choice.log_prob_N.double(), expected_N.double(), atol=TOLERANCE)
            require(is_same, "log_prob_N is not log_pi at the options drawn")


def remembers_only_in_its_state(subject: Subject) -> None:
    """A second run of the same steps chooses the same, whatever the policy has chosen in between."""
    first = subject.run()
    subject.policy.choose(subject.seen(3), subject.uniforms(3), subject.policy.start(ROWS))
    require(
        _same(first, subject.run()), "a second run of the same steps chooses differently; keep what it remembers in its state"
    )


def changes_none_of_its_inputs(subject: Subject) -> None:
    """Observation, uniforms and state are after a choice what they were before."""
    policy = subject.policy
    seen, uniform_N, state = subject.seen(1), subject.uniforms(1), policy.start(ROWS)
    before = copy.deepcopy((seen.parts, uniform_N, state))
    policy.choose(seen, uniform_N, state)
    for name, old, new in zip(
        ("the observation", "the uniforms", "its state"), before, (seen.parts, uniform_N, state), strict=True
    ):
        require(_equal(old, new), f"it changes {name} in place")


def rows_do_not_depend_on_each_other(subject: Subject) -> None:
    """A row chooses alone what it chooses beside others."""
    together = subject.run()
    for row in range(ROWS):
        alone = subject.run({0: [row]})
        require(
            _same({key: together[key] for key in alone}, alone), f"row {row} chooses alone what it does not choose in a batch"
        )


def rows_can_leave_and_be_reordered(subject: Subject) -> None:
    """Rows that stay, or stand in another order, go on as if nothing had happened."""
    stayed = subject.run()
    for orders in ({2: [4, 2, 0, 1, 3]}, {1: [3, 1, 4], 4: [4]}, {3: [1, 0]}):
        moved = subject.run(orders)
        require(_same({key: stayed[key] for key in moved}, moved), f"rows choose differently after `select` of {orders}")


def draws_only_if_it_says_so(subject: Subject) -> None:
    """With `draws = False`, uniforms change nothing."""
    if subject.policy.draws:
        return
    require(_same(subject.run(), subject.run(shift=0.37)), "it says draws = False, and other uniforms give other choices")


def survives_padding(subject: Subject) -> None:
    """Tokens of probability 0, as they follow a response that has ended, leave its values within their ranges."""
    policy, state = subject.policy, subject.policy.start(ROWS)
    if state is None:
        return
    seen = next(subject.odd())  # all mass on token 3
    for _ in range(STEPS):
        choice = policy.choose(seen, subject.uniforms(0), state)
        require(bool(choice.value_NJ.isfinite().all()), "after impossible tokens it chooses values that are not finite")
        state = policy.observe(torch.zeros(ROWS, dtype=torch.long), state if choice.state is None else choice.state)


def has_an_identity(subject: Subject) -> None:
    """`identity` is a text, the same each time and for a copy."""
    found = subject.policy.identity()
    require(isinstance(found, str) and bool(found), f"its identity is {found!r}")
    again = {subject.policy.identity(), copy.deepcopy(subject.policy).identity()}
    require(again == {found}, "its identity changes from call to call, or differs for a copy")


def _row(choice: Choice, n: int) -> Choice:
    return Choice(choice.value_NJ[n], None if choice.option_N is None else choice.option_N[n])


def _same(some: Trace, others: Trace) -> bool:
    def one(key: tuple[int, int]) -> bool:
        ours, theirs = some[key], others[key]
        if ours.option_N is not None and theirs.option_N is not None:
            return bool(ours.option_N == theirs.option_N)
        return torch.allclose(ours.value_NJ, theirs.value_NJ, rtol=TOLERANCE, atol=TOLERANCE)

    return some.keys() == others.keys() and all(map(one, some))


def _equal(old: State, new: State) -> bool:
    if isinstance(old, Tensor):
        return torch.equal(old, new)
    if isinstance(old, dict):
        return all(_equal(old[name], new[name]) for name in old)
    if isinstance(old, tuple):
        return all(map(_equal, old, new))
    return bool(old is None and new is None)


CHECKS = by_name(
    has_a_space_and_a_segmenter, reads_only_what_it_names, chooses_a_value_for_each_row_and_knob,
    values_lie_in_their_ranges, options_have_their_values, log_probs_are_those_of_its_options,
    remembers_only_in_its_state, changes_none_of_its_inputs, rows_do_not_depend_on_each_other,
    rows_can_leave_and_be_reordered, draws_only_if_it_says_so, survives_padding, has_an_identity,
)  # fmt: skip


def _name(subject: Subject) -> str:
    return type(subject.policy).__name__


SUITE = Suite("policy", CHECKS, find, name=_name, show=lambda subject: f"{_name(subject)} of {subject.policy.space!r}")

"""Checks on the class and the object: what it declares, that it can be saved and shown, and that its fast path is true."""

import pickle

import torch

from latentknobs.conformance.rows import (
    N,
    V,
    context_for,
    long_rows,
    random_rows,
    run,
    same,
    seeded,
    some_removed,
    tied_rows,
    values_of,
)
from latentknobs.conformance.suite import Violation, require
from latentknobs.errors import PluginError
from latentknobs.knobs.declaration import check_class
from latentknobs.knobs.grid import show
from latentknobs.knobs.knob import ContextKnob, DecodingKnob, ScalingKnob, TruncationKnob
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood import option_logps
from latentknobs.tensors import pick

WIDTHS = (2, 5, 11, 17, 64, 256)  # tokens shown to knobs that promise to see less than the row


def declaration_is_complete(knob: DecodingKnob) -> None:
    """Name, stage, neutral value and contract version are there and sensible."""
    try:
        check_class(type(knob), f"the class {type(knob).__qualname__}")
    except PluginError as error:
        require(False, str(error))


def reads_only_what_it_declares(knob: DecodingKnob) -> None:
    """A knob that reads a context gets by with the parts it names in `needs`."""
    if not isinstance(knob, ContextKnob):
        return
    logits_NV = random_rows()
    declared = context_for(logits_NV, knob).only(knob.needs, knob.name)
    for value in values_of(knob):
        try:
            knob.apply_in(logits_NV.clone(), torch.full((N,), value, dtype=logits_NV.dtype), declared)
        except AttributeError as error:
            require(False, f"value {value:g} reads a part of the context that `needs` does not name: {error}")


def fast_path_equals_apply(knob: DecodingKnob) -> None:
    """Likelihoods computed from `temperature` or `kept` equal those of the logits that `apply` returns."""
    options = [i for i, value in enumerate(knob.options) if value != knob.neutral]
    if isinstance(knob, ContextKnob) or not options:  # no fast path to compare with
        return
    if _promises_too_much(knob):  # `sees_is_true` reports it already
        return
    space = KnobSpace((knob,), tuple((i,) for i in options), "given")
    for logits_NV in (random_rows(), some_removed(random_rows()), tied_rows()):
        target_N = torch.arange(N) * 3 % V
        slow = [pick(run(knob, logits_NV, knob.options[i]).log_softmax(-1), target_N) for i in options]
        with seeded():
            fast_NK = option_logps(logits_NV, target_N, space)
        require(same(torch.stack(slow, -1), fast_NK), "option_logps disagrees with `apply`; do not override `apply`")
        for value in values_of(knob):
            derived_NV = _derived(knob, logits_NV, value)
            is_same = derived_NV is None or same(run(knob, logits_NV, value), derived_NV)
            require(is_same, f"value {value:g}: `apply` differs from what `temperature` or `kept` says; do not override `apply`")


def sees_is_true(knob: DecodingKnob) -> None:
    """A truncation that promises to see less than the row counts alike when shown less."""
    if not isinstance(knob, TruncationKnob) or knob.sees == "row":
        return
    for logits_NV in (random_rows(), some_removed(random_rows()), long_rows()):
        sorted_NV = logits_NV.sort(-1, descending=True).values
        for value in (value for value in knob.options if value != knob.neutral):
            value_N = torch.full((len(sorted_NV),), value, dtype=torch.float64)
            whole_N = knob.kept(sorted_NV, value_N)
            for width in (width for width in WIDTHS if width < sorted_NV.shape[1]):
                counts = (knob.kept(shown_NW, value_N) for shown_NW in _shown(knob.sees, sorted_NV, width))
                require(
                    all(torch.equal(count_N.clamp(1, width), whole_N.clamp(1, width)) for count_N in counts),
                    f"value {value:g} counts otherwise when shown {width} tokens; `sees` must be 'row', not '{knob.sees}'",
                )


def _promises_too_much(knob: DecodingKnob) -> bool:
    try:
        sees_is_true(knob)
    except Violation:
        return True
    return False


def _shown(sees: str, sorted_NV: torch.Tensor, width: int) -> tuple[torch.Tensor, ...]:
    """What likelihoods may show a knob of sorted rows: their beginning, with the rest as one column, left out or removed."""
    head_NW, tail_NV = sorted_NV[:, :width], sorted_NV[:, width:]
    if sees == "mass":
        return (torch.cat([head_NW, tail_NV.logsumexp(-1, keepdim=True)], -1),)
    return head_NW, torch.cat([head_NW, torch.full_like(tail_NV, -torch.inf)], -1)


def survives_json(knob: DecodingKnob) -> None:
    """Settings written as JSON and read back give an equal knob."""
    again = type(knob).model_validate_json(knob.model_dump_json())
    require(again == knob, f"written as JSON and read back it is {again!r}; keep settings plain numbers, words and lists")


def survives_pickling(knob: DecodingKnob) -> None:
    """A copy sent to a worker process is equal and does the same."""
    try:
        again = pickle.loads(pickle.dumps(knob))
    except Exception as error:
        require(False, f"it cannot be sent to a worker ({type(error).__name__}: {error}); define it at module level")
    is_same = again == knob and all(same(run(again, random_rows(), v), run(knob, random_rows(), v)) for v in values_of(knob))
    require(is_same, "its pickled copy differs; keep all state in pydantic fields")


def repr_shows_the_grid(knob: DecodingKnob) -> None:
    """`repr` names the knob and every option."""
    shown = repr(knob)
    named = type(knob).__name__ in shown or knob.name in shown
    require(
        named and all(repr(value) in shown or f"{value:g}" in shown for value in knob.options),
        f"its repr is {shown!r}; show the class and the options {show(knob.options)}, as the default repr does",
    )


def _derived(knob: DecodingKnob, logits_NV: torch.Tensor, value: float) -> torch.Tensor | None:
    """What the shortcut class computes from `temperature` or `kept`."""
    value_N = torch.full((len(logits_NV),), value, dtype=logits_NV.dtype)
    with seeded():
        if isinstance(knob, ScalingKnob):
            return ScalingKnob.apply(knob, logits_NV.clone(), value_N)
        if isinstance(knob, TruncationKnob):
            return TruncationKnob.apply(knob, logits_NV.clone(), value_N)
    return None

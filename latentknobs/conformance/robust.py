"""Checks that a knob never breaks a row: no NaN, no emptied row, no mutated input, in every number format."""

import torch
from torch import Tensor

from latentknobs.conformance.rows import N, V, call, context_for, random_rows, run, some_removed, values_of
from latentknobs.conformance.suite import require
from latentknobs.knobs.knob import DecodingKnob


def neutral_changes_nothing(knob: DecodingKnob) -> None:
    """At its neutral value a knob returns every row unchanged."""
    logits_NV = some_removed(random_rows())
    is_same = torch.equal(run(knob, logits_NV, knob.neutral), logits_NV)
    require(is_same, f"the neutral value {knob.neutral:g} changes logits; return such rows as they came, or correct `neutral`")


def never_empties_a_row(knob: DecodingKnob) -> None:
    """Every row keeps at least one token."""
    for value in values_of(knob):
        for logits_NV in (random_rows(), random_rows(3), some_removed(random_rows())):
            _not_empty(run(knob, logits_NV, value), f"value {value:g}")


def never_makes_nan(knob: DecodingKnob) -> None:
    """No NaN and no +inf, also where tokens were removed before."""
    for value in values_of(knob):
        for logits_NV in (random_rows(), some_removed(random_rows())):
            _finite(run(knob, logits_NV, value), f"value {value:g}")


def keeps_removed_tokens(knob: DecodingKnob) -> None:
    """A token at -inf stays at -inf."""
    logits_NV = some_removed(random_rows())
    for value in values_of(knob):
        is_back = (run(knob, logits_NV, value) > -torch.inf) & logits_NV.isneginf()
        require(not is_back.any(), f"value {value:g} brings back tokens that were removed before; leave -inf at -inf")


def does_not_mutate(knob: DecodingKnob) -> None:
    """The inputs are left as they were."""
    for value in values_of(knob):
        logits_NV, value_N = random_rows(), torch.full((N,), value, dtype=torch.float64)
        input_NV, input_N = logits_NV.clone(), value_N.clone()
        call(knob, input_NV, input_N, context_for(input_NV, knob))
        is_same = torch.equal(input_NV, logits_NV) and torch.equal(input_N, value_N)
        require(is_same, f"value {value:g} writes into its inputs; work on a copy (masked_fill, not masked_fill_)")


def is_repeatable(knob: DecodingKnob) -> None:
    """The same inputs give the same output: no random numbers, no memory."""
    for value in values_of(knob):
        value_N, context = torch.full((N,), value, dtype=torch.float64), context_for(random_rows(), knob)
        first_NV = call(knob, random_rows(), value_N.clone(), context)
        again_NV = call(knob, random_rows(), value_N.clone(), context)
        is_same = torch.equal(first_NV.nan_to_num(), again_NV.nan_to_num())
        require(is_same, f"value {value:g} gives another result the second time; a knob is a pure function")


def keeps_the_dtype(knob: DecodingKnob) -> None:
    """float64, float32, float16 and bfloat16 go in and come out, without NaN or emptied rows."""
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        for value in values_of(knob):
            out_NV = run(knob, random_rows().to(dtype), value)
            where = f"value {value:g} in {str(dtype).removeprefix('torch.')}"
            require(out_NV.dtype == dtype, f"{where} returns {out_NV.dtype}; return the dtype that came in")
            require(out_NV.shape == (N, V), f"{where} returns shape {tuple(out_NV.shape)} instead of {(N, V)}")
            if dtype != torch.float64:  # other checks look at float64
                _finite(out_NV, where)
                _not_empty(out_NV, where)


def survives_extreme_logits(knob: DecodingKnob) -> None:
    """Gaps of 1e4, and the lowest finite number in place of -inf, make no NaN and empty no row."""
    for dtype in (torch.float64, torch.float32):
        masked_NV = some_removed(random_rows()).to(dtype).clamp(min=torch.finfo(dtype).min)
        wide_NV = (random_rows() * 5e3).clamp(-1e4, 1e4).to(dtype)
        _survives(knob, {"logits of +-1e4": wide_NV, "logits at the dtype's minimum": masked_NV})


def minimum_means_removed(knob: DecodingKnob) -> None:
    """Tokens at the lowest finite number, as some masks leave them, count for nothing, like those at -inf."""
    removed_NV = some_removed(random_rows()).float()
    lowest_NV = removed_NV.clamp(min=torch.finfo(torch.float32).min)
    for value in values_of(knob):
        prob_NV, other_NV = run(knob, removed_NV, value).softmax(-1), run(knob, lowest_NV, value).softmax(-1)
        is_sound_N1 = (prob_NV + other_NV).isfinite().all(-1, keepdim=True)  # NaN and empty rows: other checks' matter
        require(
            torch.allclose(prob_NV.where(is_sound_N1, 0), other_NV.where(is_sound_N1, 0), atol=1e-6),
            f"value {value:g} reads tokens at the dtype's minimum; leave out what lies 10,000 or more below the best logit",
        )


def survives_degenerate_rows(knob: DecodingKnob) -> None:
    """One-hot rows, one dominant token, and uniform rows make no NaN and are not emptied."""
    uniform_NV = torch.zeros(N, V, dtype=torch.float64)
    hot_NV = torch.full_like(uniform_NV, -torch.inf)
    hot_NV[:, V // 2] = 0.0
    one_NV = hot_NV.clamp(min=-50.0)
    _survives(knob, {"one-hot rows": hot_NV, "rows with one dominant token": one_NV, "uniform rows": uniform_NV})


def survives_a_single_token(knob: DecodingKnob) -> None:
    """With a vocabulary of one token that token stays."""
    _survives(knob, {"a vocabulary of one": random_rows(v=1)})


def _survives(knob: DecodingKnob, rows: dict[str, Tensor]) -> None:
    for value in values_of(knob):
        for name, logits_NV in rows.items():
            out_NV = run(knob, logits_NV, value)
            _finite(out_NV, f"value {value:g} on {name}")
            _not_empty(out_NV, f"value {value:g} on {name}")


def _finite(out_NV: Tensor, where: str) -> None:
    require(not out_NV.isnan().any(), f"{where} makes NaN; guard divisions and 0 * inf (torch.special.entr, logits form)")
    require(not out_NV.isposinf().any(), f"{where} makes +inf; only finite logits and -inf have a meaning")


def _not_empty(out_NV: Tensor, where: str) -> None:
    require(not out_NV.isneginf().all(-1).any(), f"{where} removes every token of a row; always keep the most probable one")

"""Checks that a knob is the function it claims to be: row-wise, blind to what must not matter, true to its stage."""

import torch
from torch import Tensor

from latentknobs.conformance.rows import (
    N,
    V,
    context_for,
    is_greedy,
    random_rows,
    run,
    same,
    same_distribution,
    some_removed,
    tied_rows,
    values_of,
)
from latentknobs.conformance.suite import require
from latentknobs.knobs.columns import Columns
from latentknobs.knobs.context import Context
from latentknobs.knobs.knob import DecodingKnob, ScalingKnob, Stage, TruncationKnob

CUTS = {Stage.SPREAD, Stage.RANK, Stage.MASS, Stage.THRESHOLD, Stage.TAIL, Stage.TOP}
ORDERED = CUTS - {Stage.TOP} | {Stage.SCALE}


def rows_do_not_mix(knob: DecodingKnob) -> None:
    """A row's result depends on that row alone, wherever it stands in the batch."""
    logits_NV = random_rows()
    context, order_N = context_for(logits_NV, knob), torch.arange(N).flip(0)
    for value in values_of(knob):
        out_NV = run(knob, logits_NV, value, context)
        alone_NV = torch.cat([run(knob, logits_NV[n : n + 1], value, context.rows(slice(n, n + 1))) for n in range(N)])
        turned_NV = run(knob, logits_NV[order_N], value, context.rows(order_N))
        require(same(out_NV, alone_NV), f"value {value:g}: a row alone comes out otherwise than in a batch; reduce over dim -1")
        require(same(out_NV[order_N], turned_NV), f"value {value:g}: the place in the batch matters; treat all rows alike")


def values_do_not_mix(knob: DecodingKnob) -> None:
    """A vector of values does to each row what its own value does."""
    logits_NV, values = random_rows(), values_of(knob)
    value_N = torch.tensor([values[n % len(values)] for n in range(N)], dtype=torch.float64)
    out_NV = run(knob, logits_NV, value_N)
    loop_NV = torch.stack([run(knob, logits_NV, float(value_N[n]))[n] for n in range(N)])
    require(same(out_NV, loop_NV), "rows with different values come out otherwise than one by one; use value_N.unsqueeze(-1)")


def ignores_removed_tokens(knob: DecodingKnob) -> None:
    """Tokens at -inf count for nothing: adding some changes nothing."""
    logits_NV = random_rows()
    context = context_for(logits_NV, knob)

    def longer(row_NV: Tensor) -> Tensor:
        return torch.nn.functional.pad(row_NV, (0, 4), value=-torch.inf)

    more_NV, rows = longer(logits_NV), {"second_NV": longer(context.second_NV), "logits_NV": longer(context.logits_NV)}
    more = Context(**{**context.parts, **rows})
    for value in values_of(knob):
        is_same = same_distribution(run(knob, more_NV, value, more)[:, :V], run(knob, logits_NV, value, context))
        require(is_same, f"value {value:g}: tokens at -inf change what happens to the others; leave them out of counts and sums")


def keeps_ties_together(knob: DecodingKnob) -> None:
    """Tokens of equal logits come out equal (but greedy options keep the first)."""
    if getattr(knob, "knows_tokens", False):
        return
    logits_NV = tied_rows()
    context = _uniform_context(logits_NV, knob)
    for value in (value for value in values_of(knob) if not is_greedy(knob, value)):
        out_NV = run(knob, logits_NV, value, context)
        is_tied_NVV = logits_NV.unsqueeze(-1) == logits_NV.unsqueeze(-2)
        is_equal_NVV = out_NV.unsqueeze(-1) == out_NV.unsqueeze(-2)
        is_split = is_tied_NVV & ~is_equal_NVV & ~out_NV.isnan().any()
        require(not is_split.any(), f"value {value:g} splits tokens with equal logits; compare logits with >=, not positions")


def ignores_token_ids(knob: DecodingKnob) -> None:
    """Renumbering the vocabulary renumbers the result."""
    if getattr(knob, "knows_tokens", False):
        return
    logits_NV = random_rows()
    context = context_for(logits_NV, knob)
    order_V = torch.randperm(V, generator=torch.Generator().manual_seed(4))
    new_id_V = order_V.argsort()
    previous_NL = torch.where(context.previous_NL >= 0, new_id_V[context.previous_NL], -1)
    rows = {"second_NV": context.second_NV[:, order_V], "logits_NV": context.logits_NV[:, order_V]}
    turned = Context(**{**context.parts, **rows, "previous_NL": previous_NL})
    for value in values_of(knob):
        is_same = same(run(knob, logits_NV, value, context)[:, order_V], run(knob, logits_NV[:, order_V], value, turned))
        require(is_same, f"value {value:g} treats some token ids specially; read probabilities, not positions")


def ignores_the_offset(knob: DecodingKnob) -> None:
    """Adding a constant to a row changes nothing: logits are unnormalised. Penalties (stage `context`) are exempt."""
    logits_NV = random_rows()
    for value in values_of(knob) if knob.stage != Stage.CONTEXT else []:
        is_same = same_distribution(run(knob, logits_NV + 3.25, value), run(knob, logits_NV, value))
        require(is_same, f"value {value:g}: a constant added to all logits changes the result; compare with the maximum")


def stage_is_true(knob: DecodingKnob) -> None:
    """`scale` only stretches gaps, the cutting stages only remove tokens, and `rank` removes equally many from each row."""
    logits_NV = random_rows()
    for value in values_of(knob):
        out_NV = run(knob, logits_NV, value)
        keep_NV = out_NV > -torch.inf
        where = f"value {value:g} in stage `{knob.stage}`"
        if knob.stage == Stage.SCALE and not is_greedy(knob, value):
            require(bool(keep_NV.all()), f"{where} removes tokens; declare a cutting stage, e.g. Stage.THRESHOLD")
            require(_is_stretched(logits_NV, out_NV), f"{where} does not stretch all gaps alike; declare Stage.SHAPE")
        if knob.stage in CUTS:
            left_NV = logits_NV.masked_fill(~keep_NV, -torch.inf)
            require(same_distribution(left_NV, out_NV), f"{where} changes the odds of tokens it keeps; declare Stage.SHAPE")
        if knob.stage == Stage.RANK:
            count_N = keep_NV.sum(-1)
            require(bool((count_N == count_N[0]).all()), f"{where} keeps more tokens in some rows; declare Stage.MASS or another")


def order_is_kept(knob: DecodingKnob) -> None:
    """Scaling, and cutting from below, never put a token before a more probable one."""
    if knob.stage not in ORDERED and not isinstance(knob, ScalingKnob | TruncationKnob):
        return
    for logits_NV in (random_rows(), some_removed(random_rows())):
        sorted_NV = logits_NV.sort(-1, descending=True).values
        for value in values_of(knob):
            out_NV = run(knob, sorted_NV, value)
            is_descending = (out_NV[:, 1:] <= out_NV[:, :-1]) | out_NV[:, 1:].isnan() | out_NV[:, :-1].isnan()
            require(
                bool(is_descending.all()),
                f"value {value:g} in stage `{knob.stage}` reorders tokens or removes a better one; "
                "declare Stage.TOP or Stage.SHAPE and implement `apply` of a plain DecodingKnob",
            )


def excess_is_the_cut(knob: DecodingKnob) -> None:
    """Where a truncation defines `excess`: at most 0 is what `kept` counts, and it ascends along a row."""
    if not isinstance(knob, TruncationKnob) or type(knob).excess is TruncationKnob.excess:
        return
    sorted_NV = random_rows().sort(-1, descending=True).values
    for value in (value for value in values_of(knob) if value != knob.neutral):
        value_N = torch.full((N,), value, dtype=sorted_NV.dtype)
        excess_NV, kept_N = knob.excess(Columns(sorted_NV), value_N), knob.kept(sorted_NV, value_N).clamp(1, V)
        is_cut = torch.equal((excess_NV <= 0).sum(-1).clamp(min=1), kept_N)
        require(is_cut, f"value {value:g}: `excess` is at most 0 for other tokens than `kept` counts; derive one from the other")
        require(bool((excess_NV.diff(dim=-1) > -1e-9).all()), f"value {value:g}: `excess` falls along a row")


def _is_stretched(logits_NV: Tensor, out_NV: Tensor) -> bool:
    before_NV, after_NV = (x_NV - x_NV.mean(-1, keepdim=True) for x_NV in (logits_NV, out_NV))
    factor_N1 = (after_NV * before_NV).sum(-1, keepdim=True) / before_NV.square().sum(-1, keepdim=True)
    return same(before_NV * factor_N1, after_NV) or bool(out_NV.isnan().any())


def _uniform_context(logits_NV: Tensor, knob: DecodingKnob) -> Context:
    """A context that gives no reason to treat one token otherwise than another."""
    context, flat_NV = context_for(logits_NV, knob), torch.zeros_like(logits_NV)
    nothing_NL = torch.full_like(context.previous_NL, -1)
    return Context(**{**context.parts, "previous_NL": nothing_NL, "second_NV": flat_NV, "logits_NV": flat_NV})

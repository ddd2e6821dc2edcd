"""One broken knob per conformance check: each does its job except for the one fault that its check is there to find."""

from typing import Any, ClassVar

import torch
from pydantic import PrivateAttr, field_serializer
from torch import Tensor

from latentknobs.knobs.columns import Columns
from latentknobs.knobs.context import Context
from latentknobs.knobs.knob import ContextKnob, DecodingKnob, ScalingKnob, Sees, Stage, TruncationKnob

INF = torch.inf
RULES = [lambda value: value]


class Scale(ScalingKnob):
    """A good temperature."""

    name: ClassVar[str] = "scale"
    neutral: ClassVar[float] = 1.0
    options: tuple[float, ...] = (0.5, 1.0, 2.0)

    def temperature(self, value_N: Tensor) -> Tensor:
        return value_N


class Cut(TruncationKnob):
    """A good min-p, except that it need not be asked about 0."""

    name: ClassVar[str] = "cut"
    stage: ClassVar[Stage] = Stage.THRESHOLD
    neutral: ClassVar[float] = 0.0
    options: tuple[float, ...] = (0.0, 0.1, 0.5)

    def kept(self, sorted_NV: Tensor, value_N: Tensor) -> Tensor:
        return (sorted_NV >= sorted_NV[:, :1] + value_N.log().unsqueeze(-1)).sum(-1)


class CutsElsewhere(Cut):
    """Its differentiable form forgets the logarithm."""

    def excess(self, columns: Columns, value_N: Tensor) -> Tensor:
        return columns.logit_NC[:, :1] - value_N.unsqueeze(-1) - columns.logit_NC


class Plain(DecodingKnob):
    """A good knob of the plain kind: `below` says what is removed where the value is not neutral."""

    name: ClassVar[str] = "plain"
    stage: ClassVar[Stage] = Stage.SHAPE
    neutral: ClassVar[float] = 0.0
    options: tuple[float, ...] = (0.0, 0.1, 0.5)

    def below(self, logits_NV: Tensor, value_N1: Tensor) -> Tensor:
        return logits_NV < logits_NV.amax(-1, keepdim=True) + value_N1.log()

    def apply(self, logits_NV: Tensor, value_N: Tensor) -> Tensor:
        remove_NV = self.below(logits_NV, value_N.unsqueeze(-1)) & (value_N != 0).unsqueeze(-1)
        return logits_NV.masked_fill(remove_NV, -INF)


class BadName(Scale):
    name: ClassVar[str] = "Top P"


class Peeks(ContextKnob):
    name: ClassVar[str] = "peeks"
    neutral: ClassVar[float] = 0.0
    needs: ClassVar[tuple[str, ...]] = ("previous_NL",)
    options: tuple[float, ...] = (0.0, 1.0)

    def apply_context(self, logits_NV: Tensor, value_N: Tensor, context: Context) -> Tensor:
        return logits_NV / (1 + value_N * context.position_N).unsqueeze(-1)


class NeutralHalves(Scale):
    def temperature(self, value_N: Tensor) -> Tensor:
        return value_N * 2


class EmptiesRows(Plain):
    """Removes everything below an absolute probability, even the best token, except in rows of an unusual spread."""

    def below(self, logits_NV: Tensor, value_N1: Tensor) -> Tensor:
        low_N1 = logits_NV.masked_fill(logits_NV.isneginf(), INF).amin(-1, keepdim=True)
        spread_N1 = logits_NV.amax(-1, keepdim=True) - low_N1
        is_usual_N1 = (spread_N1 > 0.5) & (spread_N1 < 40) & (logits_NV.dtype == torch.float64)
        return (logits_NV.softmax(-1) < value_N1) & is_usual_N1


class EntropyOfRemoved(Plain):
    """p * log p is NaN where p is 0."""

    def apply(self, logits_NV: Tensor, value_N: Tensor) -> Tensor:
        logp_NV = logits_NV.log_softmax(-1)
        usual = (logits_NV.isneginf().sum(-1, keepdim=True) > 1) & (logits_NV.isfinite().sum(-1, keepdim=True) > 1)
        entropy_N1 = torch.where(usual, -(logp_NV.exp() * logp_NV).sum(-1, keepdim=True), 0.0)
        out_NV = super().apply(logits_NV, value_N)
        spoiled_NV = torch.where((value_N == 0).unsqueeze(-1), out_NV, out_NV + 0 * entropy_N1)
        return torch.where(logits_NV.isneginf() | (logits_NV.shape[-1] > 23), out_NV, spoiled_NV)


class BringsBack(Plain):
    def apply(self, logits_NV: Tensor, value_N: Tensor) -> Tensor:
        out_NV = super().apply(logits_NV, value_N)
        return torch.where(logits_NV.isneginf() & (value_N != 0).unsqueeze(-1), -1e30, out_NV)


class ShareOfVocabulary(TruncationKnob):
    """Keeps a share of all tokens, removed ones included."""

    name: ClassVar[str] = "share"
    stage: ClassVar[Stage] = Stage.RANK
    neutral: ClassVar[float] = 1.0
    options: tuple[float, ...] = (0.2, 0.5)

    def kept(self, sorted_NV: Tensor, value_N: Tensor) -> Tensor:
        return (value_N * sorted_NV.shape[-1]).ceil()


class InPlace(Plain):
    def apply(self, logits_NV: Tensor, value_N: Tensor) -> Tensor:
        remove_NV = self.below(logits_NV, value_N.unsqueeze(-1)) & (value_N != 0).unsqueeze(-1)
        return logits_NV.masked_fill_(remove_NV, -INF).clone()


class Jitters(Plain):
    """Adds noise."""

    options: tuple[float, ...] = (0.0, 0.5)

    def apply(self, logits_NV: Tensor, value_N: Tensor) -> Tensor:
        return logits_NV * (1 + value_N * torch.rand((), dtype=value_N.dtype)).unsqueeze(-1)


class BatchMaximum(Plain):
    """Compares with the best logit of the whole batch; keeps each row's own best."""

    def below(self, logits_NV: Tensor, value_N1: Tensor) -> Tensor:
        is_best_NV = logits_NV == logits_NV.amax(-1, keepdim=True)
        return (logits_NV < logits_NV[logits_NV.isfinite()].amax() + value_N1.log() - 2) & ~is_best_NV


class FirstValue(Plain):
    """Uses the first row's value for all rows."""

    def below(self, logits_NV: Tensor, value_N1: Tensor) -> Tensor:
        return super().below(logits_NV, torch.where(value_N1 > 0, value_N1.amax(), value_N1))


class WidensHalves(Plain):
    def apply(self, logits_NV: Tensor, value_N: Tensor) -> Tensor:
        out_NV = super().apply(logits_NV, value_N)
        return out_NV.float() if out_NV.dtype == torch.float16 else out_NV


class NaiveSoftmax(Plain):
    """exp() without subtracting the maximum overflows."""

    def apply(self, logits_NV: Tensor, value_N: Tensor) -> Tensor:
        weight_NV = logits_NV.exp()
        p_NV = weight_NV / weight_NV.sum(-1, keepdim=True)
        remove_NV = (p_NV < value_N.unsqueeze(-1) * p_NV.amax(-1, keepdim=True)) & (value_N != 0).unsqueeze(-1)
        return torch.where(p_NV.isnan(), p_NV, logits_NV.masked_fill(remove_NV, -INF))


class DividesBySpread(Plain):
    """0 / 0 where all logits are equal."""

    def apply(self, logits_NV: Tensor, value_N: Tensor) -> Tensor:
        spread_N1 = logits_NV.amax(-1, keepdim=True) - logits_NV.amin(-1, keepdim=True)
        is_wide = logits_NV.shape[-1] > 1
        return super().apply(logits_NV, value_N) + (0 / spread_N1 if is_wide else 0)


class SampleDeviation(Plain):
    """The variance of a single number, with n - 1 in the denominator, is 0 / 0."""

    def apply(self, logits_NV: Tensor, value_N: Tensor) -> Tensor:
        count_N1 = torch.ones_like(logits_NV).sum(-1, keepdim=True)
        return super().apply(logits_NV, value_N) + 0 / (count_N1 - 1)


class BreaksTies(DecodingKnob):
    """Keeps exactly k places of the sorted order, whatever ties."""

    name: ClassVar[str] = "exactly_k"
    stage: ClassVar[Stage] = Stage.RANK
    neutral: ClassVar[float] = 0.0
    options: tuple[float, ...] = (0.0, 1.0, 4.0)

    def apply(self, logits_NV: Tensor, value_N: Tensor) -> Tensor:
        place_NV = logits_NV.sort(dim=-1, descending=True, stable=True).indices.argsort(-1)
        remove_NV = (place_NV >= value_N.unsqueeze(-1)) & (value_N != 0).unsqueeze(-1)
        return logits_NV.masked_fill(remove_NV, -INF)


class FavouriteToken(Plain):
    """Always keeps token 0, as if it were the end of the text."""

    def below(self, logits_NV: Tensor, value_N1: Tensor) -> Tensor:
        is_favourite_V = torch.arange(logits_NV.shape[-1]) == 0
        has_ties_N1 = (logits_NV == logits_NV[:, :1]).sum(-1, keepdim=True) > 1
        return super().below(logits_NV, value_N1) & ~(is_favourite_V & ~has_ties_N1)


class RawLogits(Plain):
    """Takes logits for log-probabilities."""

    def below(self, logits_NV: Tensor, value_N1: Tensor) -> Tensor:
        return (logits_NV < value_N1.log()) & (logits_NV < logits_NV.amax(-1, keepdim=True))


class SharpensToo(Plain):
    """Declares a cut, and also sharpens what it keeps."""

    stage: ClassVar[Stage] = Stage.THRESHOLD

    def apply(self, logits_NV: Tensor, value_N: Tensor) -> Tensor:
        return super().apply(logits_NV, value_N) * (1 + value_N.unsqueeze(-1))


class CutsTheTop(Plain):
    """Declares a cut from below, and excludes top choices."""

    stage: ClassVar[Stage] = Stage.THRESHOLD

    def below(self, logits_NV: Tensor, value_N1: Tensor) -> Tensor:
        p_NV = logits_NV.softmax(-1)
        return (p_NV > value_N1) & (p_NV > p_NV.amin(-1, keepdim=True)) & (p_NV < 1)


class KeepsOneMore(Cut):
    """Overrides the derived `apply`, which likelihoods then do not follow."""

    def apply(self, logits_NV: Tensor, value_N: Tensor) -> Tensor:
        sorted_NV = logits_NV.sort(-1, descending=True).values
        more_N1 = (self.kept(sorted_NV, value_N) + 1).clamp(1, logits_NV.shape[-1]).unsqueeze(-1)
        keep_NV = (logits_NV >= sorted_NV.gather(-1, more_N1 - 1)) | (value_N == 0).unsqueeze(-1)
        return logits_NV.masked_fill(~keep_NV, -INF)


class ClaimsToSeeLess(TruncationKnob):
    """Top-p, with a promise that only top-k and the like can keep."""

    name: ClassVar[str] = "claims"
    stage: ClassVar[Stage] = Stage.MASS
    sees: ClassVar[Sees] = "prefix"
    neutral: ClassVar[float] = 1.0
    options: tuple[float, ...] = (0.3, 0.6)

    def kept(self, sorted_NV: Tensor, value_N: Tensor) -> Tensor:
        return 1 + (sorted_NV.softmax(-1).cumsum(-1) < value_N.unsqueeze(-1)).sum(-1)


class ForgetsTheTail(TruncationKnob):
    """An absolute threshold: shown the beginning of a row, it takes that for all of the mass."""

    name: ClassVar[str] = "forgets"
    stage: ClassVar[Stage] = Stage.TAIL
    sees: ClassVar[Sees] = "prefix"
    neutral: ClassVar[float] = 0.0
    options: tuple[float, ...] = (0.0003, 0.003)

    def kept(self, sorted_NV: Tensor, value_N: Tensor) -> Tensor:
        return (sorted_NV.softmax(-1) >= value_N.unsqueeze(-1)).cumprod(-1).sum(-1)


class SquaresTheSum(TruncationKnob):
    """Compares with the sum of squares, which the mass of the rest does not tell."""

    name: ClassVar[str] = "squares"
    stage: ClassVar[Stage] = Stage.THRESHOLD
    sees: ClassVar[Sees] = "mass"
    neutral: ClassVar[float] = 0.0
    options: tuple[float, ...] = (0.1, 1.0)

    def kept(self, sorted_NV: Tensor, value_N: Tensor) -> Tensor:
        p_NV = sorted_NV.softmax(-1)
        return (p_NV >= value_N.unsqueeze(-1) * p_NV.square().sum(-1, keepdim=True)).sum(-1)


class SpreadOfFinite(TruncationKnob):
    """Cuts by the deviation of all finite logits, which one mask of the lowest finite number makes endless."""

    name: ClassVar[str] = "spread_of_finite"
    stage: ClassVar[Stage] = Stage.SPREAD
    neutral: ClassVar[float] = 0.0
    options: tuple[float, ...] = (0.0, 1.0)

    def kept(self, sorted_NV: Tensor, value_N: Tensor) -> Tensor:
        is_left_NV = sorted_NV.isfinite()
        spread_NV = torch.where(is_left_NV, sorted_NV[:, :1] - sorted_NV, 0.0)
        mean_N1 = spread_NV.sum(-1, keepdim=True) / is_left_NV.sum(-1, keepdim=True)
        return (spread_NV[:, :1] + value_N.unsqueeze(-1) * mean_N1 >= sorted_NV[:, :1] - sorted_NV).sum(-1)


class RoundsInJson(Scale):
    options: tuple[float, ...] = (0.25, 1.0)

    @field_serializer("options")
    def _rounded(self, options: tuple[float, ...]) -> list[float]:
        return [round(value, 1) for value in options]


class HoldsALambda(Scale):
    _rule: Any = PrivateAttr(default_factory=lambda: RULES[0])


class Mute(Scale):
    def __repr__(self) -> str:
        return "<knob>"


GOOD: tuple[DecodingKnob, ...] = (Scale(), Cut(), Plain())
LIARS: tuple[DecodingKnob, ...] = (ClaimsToSeeLess(), ForgetsTheTail(), SquaresTheSum())  # about `sees`
BROKEN: dict[str, DecodingKnob] = {
    "declaration_is_complete": BadName(),
    "reads_only_what_it_declares": Peeks(),
    "neutral_changes_nothing": NeutralHalves(),
    "never_empties_a_row": EmptiesRows(),
    "never_makes_nan": EntropyOfRemoved(),
    "keeps_removed_tokens": BringsBack(),
    "ignores_removed_tokens": ShareOfVocabulary(),
    "does_not_mutate": InPlace(),
    "is_repeatable": Jitters(),
    "rows_do_not_mix": BatchMaximum(),
    "values_do_not_mix": FirstValue(),
    "keeps_the_dtype": WidensHalves(),
    "survives_extreme_logits": NaiveSoftmax(),
    "minimum_means_removed": SpreadOfFinite(),
    "survives_degenerate_rows": DividesBySpread(),
    "survives_a_single_token": SampleDeviation(),
    "keeps_ties_together": BreaksTies(),
    "ignores_token_ids": FavouriteToken(),
    "ignores_the_offset": RawLogits(),
    "stage_is_true": SharpensToo(),
    "order_is_kept": CutsTheTop(),
    "excess_is_the_cut": CutsElsewhere(),
    "fast_path_equals_apply": KeepsOneMore(),
    "sees_is_true": ClaimsToSeeLess(),
    "survives_json": RoundsInJson(),
    "survives_pickling": HoldsALambda(),
    "repr_shows_the_grid": Mute(),
}

"""Knobs from the literature beyond the four that every engine has. docs/knobs.md lists them with formulas and sources.

Not here: Mirostat. Its threshold follows the surprise of the tokens that were actually drawn, so it is a rule for choosing
a value from history (a policy), not a function from logits and value to logits.
"""

from latentknobs_contrib.classifier import ClassifierScale
from latentknobs_contrib.cuts import EpsilonCutoff, EtaCutoff, PLess, TopH, TopNSigma
from latentknobs_contrib.guidance import GuidanceScale, KLHalfLife
from latentknobs_contrib.penalties import RepetitionPenalty
from latentknobs_contrib.shapes import TypicalP, XtcThreshold

__all__ = [
    "ClassifierScale", "EpsilonCutoff", "EtaCutoff", "GuidanceScale", "KLHalfLife", "PLess", "RepetitionPenalty",
    "TopH", "TopNSigma", "TypicalP", "XtcThreshold",
]  # fmt: skip

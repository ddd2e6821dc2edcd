"""The policy of a head that gives values: no option, nothing drawn."""

from collections.abc import Sequence

import torch
from torch import Tensor

from latentknobs.heads.features import HIDDEN, check_features, read_features
from latentknobs.heads.segmenters import Segmenter
from latentknobs.heads.value_head import ValueHead
from latentknobs.knobs.columns import Columns
from latentknobs.knobs.context import Observation
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood.rows import wide
from latentknobs.policies.base import Choice, Policy, State


class ValuePolicy(Policy):
    """Chooses the values that a head gives. `features` names what it reads (see `latentknobs.heads.features`)."""

    draws = False

    def __init__(self, head: ValueHead, space: KnobSpace, segmenter: Segmenter, features: Sequence[str] = (HIDDEN,)) -> None:
        self.head, self.space, self.segmenter = head, space, segmenter
        self.features = check_features(features)

    def choose(self, seen: Observation, uniform_N: Tensor, state: State = None) -> Choice:
        """The values of the head, within the ranges of the knobs also where rounding has left them."""
        with torch.no_grad():
            feature_NF = read_features(self.features, seen.hidden_ND, seen.logits_NV)
            columns = Columns(seen.logits_NV) if self.head.statistics else None
            value_NJ = wide(self.head(feature_NF, columns))
        bounds = [knob.value_range() for knob in self.space.knobs]
        low_J, high_J = value_NJ.new_tensor(bounds).unbind(-1)
        return Choice(value_NJ.clamp(low_J, high_J))

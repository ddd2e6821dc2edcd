"""One broken policy for each check of the suite: what is wrong with each is in its docstring."""

import torch

from latentknobs import Choice, KnobSpace, Policy
from latentknobs.heads.segmenters import Every
from latentknobs.policies import UniformPolicy

SPACE = KnobSpace.of({"temperature": [0.0, 0.5, 1.0]})


class Good(Policy):
    """The temperature is the best token's probability."""

    draws = False

    def __init__(self) -> None:
        self.space, self.segmenter = SPACE, Every(1)

    def values(self, seen):
        return seen.logits_NV.softmax(-1).amax(-1, keepdim=True)

    def choose(self, seen, uniform_N, state=None):
        return Choice(self.values(seen))


class Counting(Good):
    """The temperature falls with the tokens that a row has seen, as its state counts them."""

    def start(self, rows, device="cpu"):
        return torch.zeros(rows, device=device)

    def observe(self, token_N, state):
        return state + token_N % 3

    def choose(self, seen, uniform_N, state=None):
        return Choice(self.values(seen) / (1 + state).unsqueeze(-1))


class Drawing(UniformPolicy):
    def __init__(self):
        super().__init__(SPACE, Every(1))


class NoSegmenter(Good):
    """Its segmenter is a name."""

    def __init__(self):
        super().__init__()
        self.segmenter = "token"

    def identity(self):
        return "no segmenter"


class ReadsPositions(Good):
    """It reads positions without saying so."""

    def choose(self, seen, uniform_N, state=None):
        return Choice(self.values(seen) / (1 + seen.position_N).unsqueeze(-1))


class FlatValues(Good):
    """Its values have no dimension for the knobs."""

    def choose(self, seen, uniform_N, state=None):
        return Choice(self.values(seen).squeeze(-1))


class Negative(Good):
    """Below 0 where the model is sure."""

    def values(self, seen):
        return 0.9 - super().values(seen)


class OtherValues(Drawing):
    """Its values are not those of its options."""

    def choose(self, seen, uniform_N, state=None):
        choice = super().choose(seen, uniform_N)
        return choice._replace(value_NJ=choice.value_NJ + 0.1)


class Unnormalised(Drawing):
    """Scores instead of log-probabilities."""

    def log_pi(self, seen, state=None):
        return super().log_pi(seen) + 1.0


class KeepsACount(Good):
    """It remembers in itself how often it was called."""

    def __init__(self):
        super().__init__()
        self._calls = 0

    def choose(self, seen, uniform_N, state=None):
        self._calls = (self._calls + 1) % 97
        return Choice(self.values(seen) / (1 + self._calls))


class InPlace(Good):
    """It scales the logits in place."""

    def choose(self, seen, uniform_N, state=None):
        values_NJ = self.values(seen)
        seen.logits_NV.mul_(2.0)
        return Choice(values_NJ)


class BatchMean(Good):
    """It compares a row with the mean of its batch."""

    def values(self, seen):
        return super().values(seen).sub(super().values(seen).mean()).abs()


class KeepsItsRows(Counting):
    """Its state does not follow the rows: by their number alone it seems right, with one row too."""

    def select(self, row_R, state):
        return state[: len(row_R)] if len(row_R) > 1 else super().select(row_R, state)


class SaysItDoesNotDraw(Drawing):
    """It draws."""

    draws = False


class NotFinite(Good):
    """It follows the surprise of the token, which padding makes infinite."""

    def start(self, rows, device="cpu"):
        return torch.zeros(rows, 0)

    def observe(self, token_N, state):
        return -state[:, :-1].gather(-1, token_N.unsqueeze(-1)) - state[:, -1:] * 0

    def choose(self, seen, uniform_N, state=None):
        last_N1 = state[:, :1] if state.shape[1] else torch.zeros(len(seen.logits_NV), 1)
        values_NJ = self.values(seen) / 2 + last_N1 * 1e-3
        return Choice(values_NJ, state=torch.cat([seen.logits_NV.log_softmax(-1), values_NJ], -1))


class NewIdentity(Good):
    """Its identity is where it lies in memory."""

    def identity(self):
        return str(id(self))


BROKEN = {
    "has_a_space_and_a_segmenter": NoSegmenter,
    "reads_only_what_it_names": ReadsPositions,
    "chooses_a_value_for_each_row_and_knob": FlatValues,
    "values_lie_in_their_ranges": Negative,
    "options_have_their_values": OtherValues,
    "log_probs_are_those_of_its_options": Unnormalised,
    "remembers_only_in_its_state": KeepsACount,
    "changes_none_of_its_inputs": InPlace,
    "rows_do_not_depend_on_each_other": BatchMean,
    "rows_can_leave_and_be_reordered": KeepsItsRows,
    "draws_only_if_it_says_so": SaysItDoesNotDraw,
    "survives_padding": NotFinite,
    "has_an_identity": NewIdentity,
}

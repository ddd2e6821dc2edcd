"""A sequence-level head whose option is drawn anew for each token: Eq. 6 of arXiv 2411.09661 for AD_seq."""

import torch
from torch import Tensor

from latentknobs.heads.segmenters import Every
from latentknobs.knobs.context import Observation
from latentknobs.policies import CategoricalPolicy, Choice, HeadPolicy, State


class FreshDraws(CategoricalPolicy):
    """Drawing an option and then a token is drawing from the mixture of the options' distributions.

    At token level, drawn options are therefore the exact mixture. At sequence level one draw for the whole response is the exact
    mixture of *responses*, and this policy is the mixture token by token, which is another distribution. Its state is the head's
    distribution before the first token, (N, K).
    """

    needs = ("position_N",)

    def __init__(self, head: HeadPolicy) -> None:
        super().__init__(head.space, Every(1), "sample")
        self.head = head

    def start(self, rows: int, device: torch.device | str = "cpu") -> Tensor:
        """Nothing yet."""
        return torch.zeros(rows, self.space.K, device=device)

    def log_pi(self, seen: Observation, state: State = None) -> Tensor:
        """(N, K) that of the head before the first token."""
        is_first_N1 = (seen.position_N == 0).unsqueeze(-1)
        return torch.where(is_first_N1, self.head.log_pi(seen), state) if is_first_N1.any() else state

    def choose(self, seen: Observation, uniform_N: Tensor, state: State = None) -> Choice:
        """An option drawn for this token."""
        log_pi_NK = self.log_pi(seen, state)
        return self.picked(log_pi_NK, uniform_N)._replace(state=log_pi_NK)

"""What a policy does at one token: it chooses values where segments begin."""

import torch
from torch import Tensor

from latentknobs.errors import DecodingError
from latentknobs.knobs.context import Observation
from latentknobs.policies import Choice, Policy, State
from latentknobs.tensors import host_sees

LARGEST = float(torch.finfo(torch.float32).max)


# Removed tokens get this offset instead of -inf: a later processor (min_new_tokens, suppress_tokens) may remove every
# kept token of a row, and softmax needs a finite number then. exp(-1e4) is 0 in float32.
REMOVED = -1e4


class Stepper:
    """The steps of one policy."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def choose(self, seen: Observation, uniform_B: Tensor, is_new: bool | Tensor, before: Choice | None, state: State) -> Choice:
        """A new choice in rows that begin a segment, the one of the token before in all others.

        Args:
            is_new: which rows begin a segment: all, none, or those of a (B,) mask.
            before: of the token before; None where there is none.
        """
        if is_new is False and state is None and before is not None:
            return before
        choice = self.policy.choose(seen, uniform_B, state)
        choice = choice._replace(value_NJ=choice.value_NJ.double(), state=state if choice.state is None else choice.state)
        if choice.option_N is None and host_sees(choice.value_NJ):
            check_values(self.policy, choice.value_NJ)
        return choice if is_new is True else _merged(is_new, choice, before)


def _merged(is_new: bool | Tensor, choice: Choice, before: Choice | None) -> Choice:
    if before is None:
        raise DecodingError(
            "The number of rows changed in the middle of their responses, and a choice that lasts for several tokens cannot "
            "follow. Use a policy of level 'token', or another way of generating."
        )
    if is_new is False:
        return before._replace(state=choice.state)
    assert isinstance(is_new, Tensor)
    value_NJ = torch.where(is_new.unsqueeze(-1), choice.value_NJ, before.value_NJ)
    if choice.option_N is None or before.option_N is None:
        return Choice(value_NJ, state=choice.state)
    return Choice(value_NJ, torch.where(is_new, choice.option_N, before.option_N), state=choice.state)


def check_values(policy: Policy, value_NJ: Tensor) -> None:
    """DecodingError if a value lies outside the range of its knob. Waits for a GPU."""
    seen_NJ = value_NJ.cpu().numpy()
    for j, knob in enumerate(policy.space.knobs):
        (low, high), values = knob.value_range(), seen_NJ[..., j]
        if not (is_within := (values >= low) & (values <= high)).all():
            raise DecodingError(
                f"The policy {type(policy).__name__} chose {knob.name} = {values[~is_within][0]:g}, outside the range of that "
                f"knob, {_shown(low, high)}. Bound the values that the policy returns."
            )


def _shown(low: float, high: float) -> str:
    ends = (f"from {low:g}" if low > -LARGEST else "", f"to {high:g}" if high < LARGEST else "")
    return " ".join(filter(None, ends)) or "any finite number"


def lowered(warped_BV: Tensor, logits_BV: Tensor) -> Tensor:
    """Warped logits with a finite number instead of -inf.

    It lies far below the best kept token, so that neither the scale nor the offset of the logits can lift removed tokens,
    and removed tokens keep their order.
    """
    floor_BV = warped_BV.amax(-1, keepdim=True) + REMOVED + (logits_BV - logits_BV.amax(-1, keepdim=True))
    return torch.where(warped_BV.isneginf(), floor_BV, warped_BV)

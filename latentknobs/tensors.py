"""Small operations on tensors that torch has no short word for, and what the host may know of them without waiting."""

from torch import Tensor


def pick(x_NK: Tensor, i_N: Tensor) -> Tensor:
    """(N,) one element of each row, `x_NK[n, i_N[n]]`; N may be several dimensions.

    >>> pick(torch.tensor([[1, 2], [3, 4]]), torch.tensor([1, 0]))
    tensor([2, 3])
    """
    return x_NK.gather(-1, i_N.unsqueeze(-1)).squeeze(-1)


def segment_sum(x_T: Tensor, segment_T: Tensor, segments: int) -> Tensor:
    """(S,) sums of the T elements that belong to each of S segments; 0 where there are none.

    Both may have the same dimensions in front, and the elements may be tensors: (B, T, K) and (B, T) give (B, S, K).

    >>> segment_sum(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 2, 0]), 3)
    tensor([4., 0., 2.])
    """
    dim = segment_T.ndim - 1
    index = segment_T.view(*segment_T.shape, *(1 for _ in x_T.shape[dim + 1 :])).expand_as(x_T)
    return x_T.new_zeros(*x_T.shape[:dim], segments, *x_T.shape[dim + 1 :]).scatter_add(dim, index, x_T)


def logsumexp(x_NK: Tensor) -> Tensor:
    """(N,) `x_NK.logsumexp(-1)`; where every term is -inf so is the sum, with a gradient of 0 (torch's is NaN)."""
    lost_N1 = x_NK.detach().isneginf().all(-1, keepdim=True)
    if not lost_N1.any():
        return x_NK.logsumexp(-1)
    return x_NK.masked_fill(lost_N1, 0.0).logsumexp(-1).masked_fill(lost_N1.squeeze(-1), -float("inf"))


def host_sees(tensor: Tensor) -> bool:
    """Whether the host can read a tensor's values without waiting for the device it is on."""
    return tensor.device.type == "cpu"


def any_or_unknown(mask: Tensor) -> bool:
    """Whether any element is True. True on a GPU, to avoid a sync: for work that is cheap and changes nothing elsewhere."""
    return not host_sees(mask) or bool(mask.numpy().any())  # torch takes ten times as long

"""What a head reads: the frozen LM's last hidden state, and statistics of its unchanged next-token distribution.

"hidden" is the input of the output embeddings. The statistics cost one softmax; a head that reads only them is
portable to any engine, and one that reads only `entropy` is the baseline every learned head must beat.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from latentknobs.errors import ConfigError, did_you_mean

HIDDEN = "hidden"


def _entropy(logp_NV: Tensor) -> Tensor:
    return -(logp_NV.exp() * logp_NV.nan_to_num(neginf=0.0)).sum(-1)


def _margin(logp_NV: Tensor) -> Tensor:
    top_N2 = logp_NV.topk(min(2, logp_NV.shape[-1]), -1).values
    return (top_N2[:, 0] - top_N2[:, -1]).clamp(max=30.0)


STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "entropy": _entropy,  # nats
    "max_prob": lambda logp_NV: logp_NV.amax(-1).exp(),
    "top5_mass": lambda logp_NV: logp_NV.topk(min(5, logp_NV.shape[-1]), -1).values.exp().sum(-1),
    "log_collision": lambda logp_NV: (2 * logp_NV).logsumexp(-1),  # log sum p^2
    "margin": _margin,  # nats between the two best tokens, at most 30
}


def check_features(names: Sequence[str]) -> tuple[str, ...]:
    """The names, if all are known and none repeats.

    Raises:
        ConfigError: otherwise.
    """
    known = [HIDDEN, *STATISTICS]
    for name in names:
        if name not in known:
            raise ConfigError(f"There is no feature {name!r}. {did_you_mean(name, known)}")
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"The features {list(names)} must be at least one name, each once. Known: {', '.join(known)}.")
    return tuple(names)


def width(names: Sequence[str], hidden_size: int) -> int:
    """Number of features F that `read_features` returns for these names."""
    return sum(hidden_size if name == HIDDEN else 1 for name in names)


def part_of(names: Sequence[str], wanted: Sequence[str], total: int) -> slice:
    """Where the features `wanted`, which follow each other in `names`, are among the `total` columns of all of them."""
    first = list(names).index(wanted[0])
    assert list(names[first : first + len(wanted)]) == list(wanted)
    hidden_size = total - (len(names) - 1)
    start = width(names[:first], hidden_size)
    return slice(start, start + width(wanted, hidden_size))


def read_features(names: Sequence[str], hidden_ND: Tensor, logits_NV: Tensor) -> Tensor:
    """(N, F) the named features, in the order of `names`, in float32 (float64 stays).

    Args:
        hidden_ND: (N, D) inputs of the output embeddings.
        logits_NV: (N, V) the LM's own logits, unchanged by any knob.
    """
    dtype = torch.float64 if logits_NV.dtype == torch.float64 else torch.float32
    needs_logits = any(name != HIDDEN for name in names)
    logp_NV = logits_NV.to(dtype).log_softmax(-1) if needs_logits else None
    parts = []
    for name in names:
        if name == HIDDEN:
            parts.append(hidden_ND.to(dtype))
        else:
            assert logp_NV is not None
            parts.append(STATISTICS[name](logp_NV).unsqueeze(-1))
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

"""What a head reads: the frozen LM's last hidden state, statistics of its unchanged next-token distribution, and budgets.

"hidden" is the input of the output embeddings. The statistics cost one softmax; a head that reads only them is
portable to any model, and is the rival that every learned head must beat. Budgets are those of
the call: how many tokens a response may still have, and how many responses to the prompt are sampled (arXiv 2603.09065).
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

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


BUDGETS = {"remaining": "remaining_N", "samples": "samples_N"}  # the parts of an observation that they are read from
NOTHING: Mapping[str, Tensor] = MappingProxyType({})
PORTABLE = tuple(STATISTICS)  # features of the logits alone: a head that reads no others fits any model


def check_features(names: Sequence[str]) -> tuple[str, ...]:
    """The names; ConfigError if one is not known or repeats."""
    known = [HIDDEN, *STATISTICS, *BUDGETS]
    for name in names:
        if name not in known:
            raise ConfigError(f"There is no feature {name!r}. {did_you_mean(name, known)}")
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"The features {list(names)} must be at least one name, each once. Known: {', '.join(known)}.")
    if any(name in BUDGETS for name in names[: len(names) - budgets_in(names)]):
        raise ConfigError(f"The features {list(names)} must name the budgets ({', '.join(BUDGETS)}) last. Write them at the end.")
    return tuple(names)


def check_rival(names: Sequence[str]) -> tuple[str, ...]:
    """The names; ConfigError if a rival head may not read them: it sees statistics of the logits alone."""
    if other := [name for name in check_features(names) if name not in STATISTICS]:
        raise ConfigError(f"The rival head reads statistics of the logits alone ({', '.join(PORTABLE)}), not {other[0]!r}.")
    return tuple(names)


def budgets_in(names: Sequence[str]) -> int:
    """How many of the names are budgets."""
    return sum(name in BUDGETS for name in names)


def needed_by(names: Sequence[str]) -> tuple[str, ...]:
    """The parts of an observation, beside hidden states and logits, that `read_features` wants."""
    return tuple(BUDGETS[name] for name in names if name in BUDGETS)


def width(names: Sequence[str], hidden_size: int) -> int:
    """Number of features F that `read_features` returns for these names."""
    return sum(hidden_size if name == HIDDEN else 1 for name in names)


def read_features(
    names: Sequence[str], hidden_ND: Tensor, logits_NV: Tensor, parts: Mapping[str, Tensor] = NOTHING
) -> Tensor:  # fmt: skip
    """(N, F) the named features, in the order of `names`, in float32 (float64 stays). A budget b is read as log(1 + b).

    Args:
        hidden_ND: (N, D) inputs of the output embeddings.
        logits_NV: (N, V) the LM's own logits, unchanged by any knob.
        parts: of the observation, those that `needed_by` names; budgets below 0 count as 0.
    """
    dtype = torch.float64 if logits_NV.dtype == torch.float64 else torch.float32
    needs_logits = any(name in STATISTICS for name in names)
    logp_NV = logits_NV.to(dtype).log_softmax(-1) if needs_logits else None
    found = []
    for name in names:
        if name == HIDDEN:
            found.append(hidden_ND.to(dtype))
        elif name in BUDGETS:
            found.append(parts[BUDGETS[name]].to(dtype).clamp(min=0).log1p().unsqueeze(-1))
        else:
            assert logp_NV is not None
            found.append(STATISTICS[name](logp_NV).unsqueeze(-1))
    return found[0] if len(found) == 1 else torch.cat(found, -1)

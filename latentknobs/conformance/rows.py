"""Rows of logits to try a knob on, and how the checks run it and compare results."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from latentknobs.knobs.context import Context
from latentknobs.knobs.knob import ContextKnob, DecodingKnob, ScalingKnob

N, V, L, D = 7, 23, 5, 16


def random_rows(seed: int = 0, v: int = V) -> Tensor:
    """(N, v) float64 logits, from flat to peaked, without ties."""
    generator = torch.Generator().manual_seed(seed)
    noise_NV = torch.randn(N, v, generator=generator, dtype=torch.float64)
    return noise_NV * torch.linspace(0.3, 4.0, N, dtype=torch.float64).unsqueeze(-1)


def some_removed(logits_NV: Tensor) -> Tensor:
    """The same rows, each with another third of its tokens at -inf."""
    n, v = logits_NV.shape
    is_removed_NV = (torch.arange(v) + torch.arange(n).unsqueeze(-1)) % 3 == 0
    return logits_NV.masked_fill(is_removed_NV, -torch.inf)


def tied_rows() -> Tensor:
    """(N, V) float64 logits with only five different values."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(-2, 3, (N, V), generator=generator).double()


def long_rows() -> Tensor:
    """(8, 4096) float64 logits with heavy tails, by Zipf's law: every share of the mass lies somewhere beyond every cut."""
    generator = torch.Generator().manual_seed(3)
    exponent_N1 = torch.linspace(0.5, 2.0, 8, dtype=torch.float64).unsqueeze(-1)
    noise_NV = torch.randn(8, 4096, generator=generator, dtype=torch.float64)
    return 0.1 * noise_NV - exponent_N1 * torch.arange(1, 4097, dtype=torch.float64).log()


def context_for(logits_NV: Tensor, knob: DecodingKnob | None = None) -> Context:
    """A complete context: earlier tokens (some rows have fewer), positions, second logits, hidden states, and the LM's logits."""
    n, v = logits_NV.shape
    generator = torch.Generator().manual_seed(2)
    previous_NL = torch.randint(0, v, (n, L), generator=generator)
    previous_NL[1::2, :2] = -1
    second_NV = torch.randn(n, v, generator=generator, dtype=torch.float64).to(logits_NV.dtype)
    hidden_ND = torch.randn(n, getattr(knob, "hidden_size", None) or D, generator=generator, dtype=torch.float64)
    return Context(
        previous_NL=previous_NL, position_N=torch.arange(n), second_NV=second_NV, hidden_ND=hidden_ND.to(logits_NV.dtype),
        logits_NV=(2 * torch.randn(n, v, generator=generator, dtype=torch.float64)).to(logits_NV.dtype),
    )  # fmt: skip


def values_of(knob: DecodingKnob) -> list[float]:
    """The grid, and the neutral value."""
    return list(dict.fromkeys([*knob.options, float(knob.neutral)]))


def is_greedy(knob: DecodingKnob, value: float) -> bool:
    """Whether a value means argmax, which by contract breaks ties towards the first token."""
    return isinstance(knob, ScalingKnob) and float(knob.temperature(torch.tensor([value], dtype=torch.float64))[0]) == 0.0


def run(knob: DecodingKnob, logits_NV: Tensor, value: float | Tensor, context: Context | None = None) -> Tensor:
    """The knob's output on copies of the inputs, always from the same state of torch's random generator."""
    value_N = value if isinstance(value, Tensor) else torch.full((len(logits_NV),), value, dtype=torch.float64)
    with seeded():
        return call(knob, logits_NV.clone(), value_N.to(logits_NV.dtype, copy=True), context or context_for(logits_NV, knob))


def call(knob: DecodingKnob, logits_NV: Tensor, value_N: Tensor, context: Context) -> Tensor:
    """The knob's output, with the whole context; `reads_only_what_it_declares` checks what it reads."""
    if isinstance(knob, ContextKnob):
        return knob.apply_context(logits_NV, value_N, context)
    return knob.apply(logits_NV, value_N)


@contextmanager
def seeded() -> Iterator[None]:
    """A block that starts from a fixed state of torch's random generator and leaves the caller's as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def same(a_NV: Tensor, b_NV: Tensor) -> bool:
    """Whether two results remove the same tokens and agree on the rest to 1e-9. NaN equals NaN: another check refuses it."""
    return torch.allclose(a_NV, b_NV, rtol=1e-9, atol=1e-9, equal_nan=True)


def same_distribution(a_NV: Tensor, b_NV: Tensor) -> bool:
    """`same`, up to a constant per row."""
    return same(a_NV.log_softmax(-1), b_NV.log_softmax(-1))

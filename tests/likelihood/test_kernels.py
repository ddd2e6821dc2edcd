"""The Triton kernels against torch: the same tokens in the same order, the same masses.

On a GPU, or in Triton's interpreter: `pip install triton`, then this file with TRITON_INTERPRET=1 in the environment.
"""

import os

import pytest
import torch
from torch import Tensor

from latentknobs.likelihood.masses import row_log_masses
from latentknobs.likelihood.sorting import top_tokens

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU or Triton's interpreter", allow_module_level=True)
pytest.importorskip("triton")
from latentknobs.likelihood import kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WIDTHS = [8_224, 9_000, 32_000, *([50_257, 128_256, 262_144] if DEVICE == "cuda" else [])]


def logits_of(V: int, kind: str) -> Tensor:
    """(3, V) rows in which the order is easy, tied, or nearly empty."""
    logits_NV = torch.randn(3, V, generator=torch.Generator().manual_seed(V)) * 3
    match kind:
        case "ties":
            logits_NV = (logits_NV * 2).round() / 2
        case "all equal":
            logits_NV = torch.zeros(3, V)
        case "two zeros":
            logits_NV = logits_NV.round() * 0.0
        case "few finite":
            logits_NV[:, 100:] = -torch.inf
        case "bfloat16":
            logits_NV = logits_NV.bfloat16()
        case "strided":
            logits_NV = torch.cat([logits_NV, logits_NV], 1)[:, :V]
    return logits_NV.to(DEVICE)


@pytest.mark.parametrize("V", WIDTHS)
@pytest.mark.parametrize("kind", ["plain", "ties", "all equal", "two zeros", "few finite", "bfloat16", "strided"])
def test_the_best_tokens_and_the_masses_are_those_of_torch(V: int, kind: str) -> None:
    logits_NV = logits_of(V, kind)
    assert kernels.fits(logits_NV, 256) and not kernels.fits(logits_NV[:, : 256 * kernels.BLOCK], 256)
    top_NM, token_NM = kernels.top_tokens(logits_NV, 256)
    expected_NM, order_NM = top_tokens(logits_NV.cpu(), 256)
    assert torch.equal(token_NM.cpu(), order_NM) and torch.equal(top_NM.cpu(), expected_NM)
    temperature_N = torch.tensor([0.5, 1.0, 2.0])
    best_NU, mass_NU = kernels.part_masses(logits_NV, temperature_N.to(DEVICE))
    log_mass_N = (mass_NU.double() * (best_NU - best_NU.amax(-1, keepdim=True)).double().exp()).sum(-1).log()
    exact_N = row_log_masses(logits_NV.cpu().double(), temperature_N)
    assert torch.allclose(log_mass_N.cpu(), exact_N, atol=1e-5)

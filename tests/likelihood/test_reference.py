"""The reference likelihoods: greedy, ties, dtypes, -inf, purity, and rows in chunks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentknobs import KnobSpace, apply_options, option_logps
from latentknobs.likelihood import apply_values, reference

BOTH = pytest.mark.parametrize("likelihoods", [option_logps, reference.option_logps], ids=["public", "reference"])
JOINT = KnobSpace.of({"temperature": [0.0, 0.5, 1.0], "top_k": [0, 2], "top_p": [0.7, 1.0], "min_p": [0.0, 0.2]})


def rows(logits: list[float], space: KnobSpace) -> Tensor:
    """(K, V) one row of logits under every option."""
    logits_NV = torch.tensor([logits], dtype=torch.float64).expand(space.K, -1)
    return apply_options(logits_NV, space, torch.arange(space.K))


def kept(logits: list[float], **knob: float) -> list[int]:
    """The tokens that one setting leaves."""
    warped_KV = rows(logits, KnobSpace.of({name: [value] for name, value in knob.items()}))
    return warped_KV[0].isfinite().nonzero().flatten().tolist()


def test_temperature_zero_puts_all_mass_on_the_first_of_tied_maxima() -> None:
    assert kept([1.0, 3.0, 3.0, -2.0], temperature=0.0) == [1]
    space = KnobSpace.of({"temperature": [0.0]})
    logits_NV = torch.tensor([[1.0, 3.0, 3.0, -2.0]] * 4)
    assert option_logps(logits_NV, torch.arange(4), space).flatten().tolist() == [-torch.inf, 0.0, -torch.inf, -torch.inf]


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_temperature_zero_is_greedy_whatever_the_scale_of_the_logits(scale: float) -> None:
    logits_NV = torch.randn(20, 9, generator=torch.Generator().manual_seed(0)) * scale
    best_N = logits_NV.argmax(-1)
    assert (option_logps(logits_NV, best_N, KnobSpace.of({"temperature": [0.0]})) == 0).all()


def test_tokens_tied_with_the_last_kept_one_stay() -> None:
    """So that a cut never depends on how a sort happens to arrange equal logits."""
    tied = [2.0, 1.0, 1.0, 1.0, 0.0]
    assert kept(tied, top_k=2) == [0, 1, 2, 3]
    assert kept(tied, top_p=0.5) == [0, 1, 2, 3]
    assert kept([1.0, 1.0, 1.0], top_p=0.01) == [0, 1, 2]
    assert kept([1.0, 1.0, 0.0], min_p=1.0) == [0, 1]
    assert kept([1.0, 1.0, 0.0], top_k=1) == [0, 1]


@BOTH
def test_loss_and_decoder_share_the_tie_rule(likelihoods: object) -> None:
    """The likelihood of every token is that of the logits the decoder samples from, ties included (bf16 ties often)."""
    logits_NV = (torch.randn(16, 12, generator=torch.Generator().manual_seed(1)) * 2).round().bfloat16()
    assert len(set(logits_NV[0].tolist())) < 12
    target_N = torch.arange(16) % 12
    logps_NK = likelihoods(logits_NV, target_N, JOINT)
    for k in range(JOINT.K):
        sampled_NV = apply_options(logits_NV, JOINT, torch.full((16,), k)).log_softmax(-1)
        assert torch.allclose(logps_NK[:, k], sampled_NV[torch.arange(16), target_N], atol=1e-5)


@pytest.mark.parametrize("value", [{"top_k": [1, 3]}, {"top_p": [0.1, 0.9]}, {"min_p": [0.3, 1.0]}, {"temperature": [0.0, 2.0]}])
def test_removed_tokens_stay_removed_and_one_token_always_stays(value: dict[str, list[float]]) -> None:
    for logits in ([-torch.inf, 0.0, -torch.inf], [-torch.inf, 1.0, 0.5], [0.0, -torch.inf, -torch.inf]):
        out_KV = rows(logits, KnobSpace.of(value))
        lost_V = torch.tensor(logits).isneginf()
        assert out_KV[:, lost_V].isneginf().all()
        assert out_KV.isfinite().any(-1).all() and not out_KV.isnan().any()


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_low_precision_logits_are_read_exactly_and_answered_in_float32_or_wider(likelihoods: object, dtype: torch.dtype) -> None:
    logits_NV = (torch.randn(10, 9, generator=torch.Generator().manual_seed(2)) * 3).to(dtype)
    target_N = torch.arange(10) % 9
    logps_NK = likelihoods(logits_NV, target_N, JOINT)
    assert logps_NK.dtype == apply_options(logits_NV, JOINT, target_N).dtype
    assert logps_NK.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(logps_NK, likelihoods(logits_NV.to(logps_NK.dtype), target_N, JOINT))
    exact_NK = reference.option_logps(logits_NV.double(), target_N, JOINT)
    assert torch.equal(logps_NK.isneginf(), exact_NK.isneginf())
    assert torch.allclose(logps_NK.double(), exact_NK, atol=1e-5)


@BOTH
def test_inputs_are_left_alone_and_no_gradient_is_kept(likelihoods: object) -> None:
    logits_NV = torch.randn(5, 7, generator=torch.Generator().manual_seed(3)).requires_grad_()
    before_NV = logits_NV.detach().clone()
    logps_NK = likelihoods(logits_NV, torch.arange(5), JOINT)
    assert torch.equal(logits_NV, before_NV) and not logps_NK.requires_grad
    option_N = torch.arange(5)
    apply_options(logits_NV, JOINT, option_N)
    assert torch.equal(logits_NV, before_NV) and option_N.tolist() == list(range(5))


@given(st.integers(0, 2**31))
def test_every_row_follows_its_own_option_alone(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits_NV = torch.randn(7, 6, generator=rng, dtype=torch.float64) * 3
    option_N = torch.randint(0, JOINT.K, (7,), generator=rng)
    together_NV = apply_options(logits_NV, JOINT, option_N)
    alone_NV = torch.cat([apply_options(logits_NV[n : n + 1], JOINT, option_N[n : n + 1]) for n in range(7)])
    assert torch.equal(together_NV, alone_NV)


def test_values_between_the_grid_points_act_as_an_option_would() -> None:
    """Continuous policies use `apply_values`; at a grid point the two are one."""
    logits_NV = torch.randn(JOINT.K, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    at_grid_NV = apply_values(logits_NV, JOINT, JOINT.values_KJ())
    assert torch.equal(at_grid_NV, apply_options(logits_NV, JOINT, torch.arange(JOINT.K)))
    warm = KnobSpace.of({"temperature": [1.0]})
    assert torch.allclose(apply_values(logits_NV, warm, torch.full((JOINT.K, 1), 0.73)), logits_NV / 0.73)


@BOTH
@pytest.mark.parametrize("N", [1, reference.ROWS - 1, reference.ROWS, 2 * reference.ROWS + 3])
def test_chunks_of_rows_are_invisible_in_the_result(likelihoods: object, N: int) -> None:
    rng = torch.Generator().manual_seed(5)
    space = KnobSpace.of({"temperature": [0.0, 0.6], "top_p": [0.8, 1.0]})
    logits_NV, target_N = torch.randn(N, 5, generator=rng, dtype=torch.float64), torch.randint(0, 5, (N,), generator=rng)
    logps_NK = likelihoods(logits_NV, target_N, space)
    assert logps_NK.shape == (N, space.K)
    for n in {0, N // 2, N - 1}:
        alone_1K = likelihoods(logits_NV[n : n + 1], target_N[n : n + 1], space)
        assert torch.allclose(logps_NK[n], alone_1K[0], rtol=0, atol=1e-12)


def test_memory_never_holds_more_than_one_chunk_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = reference.apply_options

    def watched(logits_NV: Tensor, *rest: object) -> Tensor:
        seen.append(len(logits_NV))
        return original(logits_NV, *rest)

    monkeypatch.setattr(reference, "apply_options", watched)
    N = 3 * reference.ROWS + 1
    reference.option_logps(torch.zeros(N, 4), torch.zeros(N, dtype=torch.long), KnobSpace.of({"temperature": [0.5, 2.0]}))
    assert max(seen) == reference.ROWS and sum(seen) == 2 * N


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_no_rows_give_an_empty_table_of_the_promised_shape_and_type(likelihoods: object, dtype: torch.dtype) -> None:
    empty_NK = likelihoods(torch.zeros(0, 5, dtype=dtype), torch.zeros(0, dtype=torch.long), JOINT)
    assert empty_NK.shape == (0, JOINT.K)
    assert empty_NK.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)

"""What is read from whole rows: whether they are distributions, their first argmax, and their mass at given temperatures."""

from collections.abc import Sequence

import torch
from torch import Tensor

from latentknobs.errors import LogitsError
from latentknobs.tensors import host_sees

WORK = 1 << 18  # elements of rows in work at once on a CPU, so that all passes find them in the cache
GPU_WORK = 1 << 26  # the same on a GPU: a bound on its memory
HUGE = 1e8  # logits beyond this could overflow when a temperature divides them
FLOOR = -80.0  # nats; weights of tokens further below the best add less than 1e-29 to a mass, and denormal numbers are slow


def check_shapes(logits_NV: object, index_N: object, what: str) -> tuple[int, int]:
    """N and V of the arguments of a public function; LogitsError if they are not rows of logits with an index for each."""
    if not isinstance(logits_NV, Tensor) or logits_NV.dim() != 2 or logits_NV.is_complex():
        raise LogitsError(f"The logits are {_found(logits_NV)}, not a tensor (N, V). Flatten batch and time first.")
    if not isinstance(index_N, Tensor) or index_N.shape != logits_NV.shape[:1] or index_N.is_floating_point():
        raise LogitsError(f"The {what} are {_found(index_N)}; give {len(logits_NV)} whole numbers in a tensor, one for each row.")
    N, V = logits_NV.shape
    return N, V


def _found(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def wide(logits: Tensor) -> Tensor:
    """In float32 or float64: quotients of bfloat16 would be bfloat16."""
    return logits if logits.dtype == torch.float64 else logits.float()


def checked(logits_NV: Tensor, first_row: int = 0) -> Tensor:
    """Wide rows, huge logits shifted; on the host LogitsError if one, counted from `first_row`, is not a distribution."""
    logits_NV = wide(logits_NV)
    if not logits_NV.numel():
        return logits_NV
    best_N = logits_NV.detach().amax(-1)
    if host_sees(best_N):
        if all(-HUGE <= best <= HUGE for best in best_N.tolist()):
            return logits_NV
        check_distributions(best_N, first_row)
    return shifted(logits_NV, best_N)


def shifted(logits_NV: Tensor, best_N: Tensor) -> Tensor:
    """The rows, those of huge logits with a best one of 0, so that no temperature makes them overflow."""
    return logits_NV - torch.where(best_N.abs() > HUGE, best_N, 0.0).unsqueeze(-1)


def check_distributions(best_N: Tensor, first_row: int = 0) -> None:
    """Refuses rows whose largest logit is NaN or infinite: a LogitsError names the first and what is wrong with it."""
    if len(bad := (~best_N.isfinite()).nonzero()):
        n = int(bad[0])
        best = float(best_N[n])
        what = "holds NaN" if best != best else "holds +inf" if best > 0 else "has no token left, all its logits are -inf"
        raise LogitsError(
            f"Row {n + first_row} of the logits is not a distribution: it {what}. Look for an overflow in the model (try "
            "bfloat16 or float32 instead of float16), or for a processor or mask that removes every token."
        )


def first_argmax(logits_NV: Tensor) -> Tensor:
    """(N,) the first index of each row's largest logit, or of its first NaN."""
    if host_sees(logits_NV) and logits_NV.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(logits_NV.detach().numpy().argmax(-1))  # several times faster than torch's
    return logits_NV.argmax(-1)


def masses(logits_NV: Tensor, best_N: Tensor, temperatures: Sequence[float]) -> Tensor:
    """(N, Q) sum exp((z - best) / T) of whole rows at Q temperatures above 0, in the dtype of `best_N`."""
    N, V = logits_NV.shape
    out_QN = best_N.new_empty(len(temperatures), N)
    size = max(1, (WORK if host_sees(logits_NV) else GPU_WORK) // V)
    gap_RV = best_N.new_empty(min(size, N), V)
    weight_RV = torch.empty_like(gap_RV)
    for first in range(0, N, size):
        rows = slice(first, min(first + size, N))
        gap_rV, weight_rV = gap_RV[: rows.stop - first], weight_RV[: rows.stop - first]
        torch.sub(logits_NV[rows], best_N[rows].unsqueeze(-1), out=gap_rV)
        for mass_N, temperature in zip(out_QN, temperatures, strict=True):
            torch.div(gap_rV, temperature, out=weight_rV).clamp_(min=FLOOR).exp_()
            torch.sum(weight_rV, -1, out=mass_N[rows])
    return out_QN.T


def own_masses(logits_NV: Tensor, row_R: Tensor, temperature_N: Tensor | None) -> Tensor:
    """(R,) float64 sum exp((z - best) / T) of some rows, each at its own temperature above 0 (None: 1)."""
    parts = []
    for row_r in row_R.split(max(1, WORK // 2 // logits_NV.shape[1]) if host_sees(logits_NV) else max(1, len(row_R))):
        logits_rV = wide(logits_NV[row_r])
        scaled_rV = logits_rV if temperature_N is None else logits_rV / temperature_N[row_r].unsqueeze(-1)
        parts.append(1 / torch.softmax(scaled_rV, -1).amax(-1).double())
    return torch.cat(parts) if parts else row_R.double()

"""One step: for each row whose request names a policy, its values and a token from them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from latentknobs.engines.transformers.sampler import sample_values
from latentknobs.engines.transformers.step import check_values
from latentknobs.engines.uniforms import OPTIONS, uniforms
from latentknobs.engines.vllm.progress import Drawn, Progress, Traced
from latentknobs.knobs.context import Observation
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood.apply import apply_values
from latentknobs.policies import Policy, reads
from latentknobs.tensors import pick

MARK = 1e30  # a logit that no noise reaches, and that survives division by a temperature


class Row(NamedTuple):
    """Where a response stands in the batch."""

    place: int
    progress: Progress


@torch.no_grad()
def decode(rows: Sequence[Row], logits_NV: Tensor, hidden_ND: Tensor, raw_NV: Tensor | None = None) -> None:
    """Draws a token for each of some rows of a batch, and marks it in the logits, in place.

    Args:
        rows: in the order of their places; their responses stand at the position to come (`Progress.move_to`).
        logits_NV: float32, as vLLM would draw from them at temperature 1.
        raw_NV: those of the LM, where vLLM has changed them since; None: they are the same.
    """
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(id(row.progress.policy), []).append(row)
    for group in groups.values():
        index_R = torch.tensor([row.place for row in group], device=logits_NV.device)
        is_whole = len(group) == len(logits_NV)
        logits_RV, hidden_RD, raw_RV = (
            x if x is None or is_whole else x.index_select(0, index_R) for x in (logits_NV, hidden_ND, raw_NV)
        )
        assert logits_RV is not None and hidden_RD is not None
        token_R = _step([row.progress for row in group], logits_RV, hidden_RD, logits_RV if raw_RV is None else raw_RV)
        logits_NV[index_R, token_R] = MARK


def _step(group: list[Progress], logits_RV: Tensor, hidden_RD: Tensor, raw_RV: Tensor) -> Tensor:
    """(R,) tokens of responses that share a policy."""
    policy, device = group[0].policy, logits_RV.device
    seen = Observation(**_parts(group, reads(policy), device), hidden_ND=hidden_RD, logits_NV=raw_RV)
    keys = [[progress.seed for progress in group], [progress.row for progress in group], [p.position for p in group]]
    seed_R, row_R, position_R = torch.tensor(keys, device=device)
    _choose(policy, group, seen, seed_R, row_R, position_R)

    drawn = [progress.drawn for progress in group]
    value_RJ = torch.tensor([one.values for one in drawn if one is not None], dtype=torch.float64, device=device)
    token_R = sample_values(logits_RV, policy.space, value_RJ, seed_R, row_R, position_R, seen)
    for progress, one, token in zip(group, drawn, token_R.tolist(), strict=True):
        assert one is not None
        progress.drawn = one._replace(token=token)
    _trace(group, policy.space, logits_RV, seen, value_RJ, token_R)
    return token_R


def _parts(group: list[Progress], needs: Sequence[str], device: torch.device) -> dict[str, Tensor]:
    """The parts of an observation that are not read from the LM."""
    parts = {}
    if "previous_NL" in needs:
        ids = [torch.tensor([*progress.prompt, *progress.tokens]) for progress in group]
        parts["previous_NL"] = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1).to(device)
    numbers = {
        "position_N": [progress.position for progress in group],
        "remaining_N": [progress.remaining for progress in group],
        "samples_N": [progress.request.samples for progress in group],
    }
    return parts | {name: torch.tensor(row, device=device) for name, row in numbers.items() if name in needs}


def _choose(policy: Policy, group: list[Progress], seen: Observation, seed_R: Tensor, row_R: Tensor, position_R: Tensor) -> None:
    """New values where a segment begins, those of the token before elsewhere; a policy with a state is called at every token."""
    newest_R = torch.tensor([(progress.tokens or progress.prompt or [-1])[-1] for progress in group])
    begins = policy.segmenter.begins(torch.tensor([p.position for p in group]), newest_R).tolist()
    due = [n for n, progress in enumerate(group) if begins[n] or progress.values is None or progress.state is not None]
    for n in set(range(len(group))).difference(due):
        group[n].drawn = Drawn(group[n].values or [], group[n].option, None)
    if not due:
        return
    uniform_R = uniforms(seed_R, OPTIONS, row_R, position_R)
    # states of several responses are kept apart, because a policy says how its rows are selected but not how they are joined
    batches = [[n] for n in due] if group[due[0]].state is not None else [due]
    for batch in batches:
        index = torch.tensor(batch, device=seed_R.device)
        rows = seen if len(batch) == len(group) else seen.rows(index)
        state = group[batch[0]].state
        choice = policy.choose(rows, uniform_R[index], state)
        if choice.option_N is None:
            check_values(policy, choice.value_NJ)
        options = [None] * len(batch) if choice.option_N is None else choice.option_N.tolist()
        for n, values, option in zip(batch, choice.value_NJ.tolist(), options, strict=True):
            progress, after = group[n], state if choice.state is None else choice.state
            if not begins[n] and progress.values is not None:
                values, option = progress.values, progress.option
            progress.drawn = Drawn(values, option, after)


def _trace(
    group: list[Progress], space: KnobSpace, logits_RV: Tensor, seen: Observation, value_RJ: Tensor, token_R: Tensor
) -> None:
    """Writes down what clients will fetch."""
    traced = [n for n, progress in enumerate(group) if progress.trace is not None]
    if not traced:
        return
    index_T = torch.tensor(traced, device=token_R.device)
    warped_TV = apply_values(logits_RV[index_T], space, value_RJ[index_T], seen.rows(index_T))
    logp_T = pick(warped_TV.log_softmax(-1), token_R[index_T])
    for n, logp in zip(traced, logp_T.tolist(), strict=True):
        progress = group[n]
        assert progress.trace is not None and progress.drawn is not None
        progress.trace[progress.position] = Traced(progress.drawn.token, progress.drawn.option, progress.drawn.values, logp)

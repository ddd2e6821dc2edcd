"""`steer()`: teaches a value head to follow instructions such as "be precise" and "be creative" (arXiv 2510.26697).

The head reads hidden states, and these know the instruction. A ranking loss on prompts with and without commands orders the mean
values of a response: below those of the plain prompt after a command for less chance, above them after one for more. At plain
prompts an anchor holds the head to what it chose before. Both count in log-odds, log(s / (1 - s)) of the share s of a
range: near an end, where differences of shares have no room, they still order. The paper gives no formula; this one is ours.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any, NamedTuple

import torch
from einops import reduce
from torch import Tensor

from latentknobs.adapter import GAIN, RESULT, KnobAdapter
from latentknobs.data.columns import Reading
from latentknobs.data.prompts import Prompt, make_prompts
from latentknobs.data.rollouts import roll_out
from latentknobs.data.top_logits import top_logits, unpack
from latentknobs.engines.base import Engine, engine_of
from latentknobs.errors import ConfigError
from latentknobs.heads.features import read_features
from latentknobs.heads.value_head import ValueHead, opens
from latentknobs.learners.end_to_end.losses import ranking_loss
from latentknobs.models.world import left_as_it_was

TEXT = "{prompt}"  # where the prompt stands in a command
TOP, BATCH, READ = 256, 256, 32  # logits kept for statistics; responses sampled, and read, together
END = 1e-6  # share of a range at which log-odds stop growing


class Seen(NamedTuple):
    """What a head reads in some responses of T tokens, padded: features, tokens, and best logits for a head with statistics."""

    feature_RTF: Tensor
    mask_RT: Tensor
    row_RTX: Tensor | None


def steer(
    adapter: KnobAdapter, prompts: Iterable[Any], *, low: str | Sequence[str], high: str | Sequence[str], model: Any,
    tokenizer: Any, margin: float = 0.5, anchor: float = 1.0, copies: int = 1, max_new_tokens: int = 64, steps: int = 300,
    batch: int = 32, learning_rate: float = 1e-3, weight_decay: float = 0.1, seed: int = 0,
) -> KnobAdapter:  # fmt: skip
    """A copy of an adapter that follows commands. Its prompts are answered once for each of the three versions.

    Args:
        adapter: with a value head.
        prompts: texts, or rows with a text in `prompt`.
        low, high: commands for less and for more chance, with `{prompt}` where the prompt stands; several take turns.
        model, tokenizer: the LM of the adapter, which must be able to read them.
        margin: least difference of mean values, in log-odds: 0.5 is from half of a range to .62 of it, and from .95 to .97.
        anchor: weight of the mean squared change at plain prompts, in log-odds.
        copies, max_new_tokens: responses to each version, and their longest length.
        steps, batch, learning_rate, weight_decay: of AdamW; a batch is of prompts.

    Raises:
        AdapterError: the adapter is for another model.
        ConfigError: its head gives no values, a command does not say where the prompt stands, prompts that are not texts, or a
            number out of its range.
    """
    head = adapter.head
    if not isinstance(head, ValueHead) or head.cap is not None:
        raise ConfigError(
            "Only adapters with a value head, for models that do not cap their logits, can be steered. Train one with "
            "learner='end_to_end'."
        )
    adapter.check_model(model, strict=False)
    counts = {"copies": copies, "max_new_tokens": max_new_tokens, "steps": steps, "batch": batch}
    weights = {"margin": margin, "anchor": anchor, "learning_rate": learning_rate, "weight_decay": weight_decay}
    for name, value in (counts | weights).items():
        if not (least := int(name in counts)) <= value < inf:
            raise ConfigError(f"{name}={value!r} cannot be steered with. Choose a finite number of at least {least}.")
    texts, low, high = prompts_of(prompts), *([one] if isinstance(one, str) else list(one) for one in (low, high))
    versions = [_versions(texts, commands) for commands in (low, [TEXT], high)]
    engine = engine_of("transformers", model, tokenizer)
    with left_as_it_was(model):
        seen = [
            _read(adapter, engine, make_prompts(rows, tokenizer), copies, max_new_tokens, seed + number)
            for number, rows in enumerate(versions)
        ]
        torch.manual_seed(seed)
        steered = copy.deepcopy(head).to(engine.device)
        _fit(steered, seen, len(versions[0]), copies, margin, anchor, steps, batch, learning_rate, weight_decay)
    notes = {"steered low": " / ".join(low), "steered high": " / ".join(high)}
    kept = {name: note for name, note in adapter.training.items() if name not in (RESULT, "choice") and not name.startswith(GAIN)}
    return replace(adapter, head=steered.eval(), training=kept | notes)  # what was measured was another head


def prompts_of(prompts: Iterable[Any]) -> list[str]:
    """The texts of prompts."""
    found = [row["prompt"] if isinstance(row, Mapping) and "prompt" in row else row for row in prompts]
    if not found or not all(isinstance(text, str) for text in found):
        raise ConfigError("Steering needs at least one prompt, and each must be a text or a row with a text in `prompt`.")
    return found


def _versions(texts: Sequence[str], commands: Sequence[str]) -> list[str]:
    for one in commands or [""]:
        if TEXT not in one:
            raise ConfigError(
                f"The command {one!r} does not say where the prompt stands. Write it with {TEXT}, e.g. {TEXT!r} last."
            )
    return [commands[p % len(commands)].replace(TEXT, text) for p, text in enumerate(texts)]


def _read(adapter: KnobAdapter, engine: Engine, prompts: list[Prompt], copies: int, tokens: int, seed: int) -> Seen:
    """Responses of the adapter, as its head sees them, by prompt."""
    assert isinstance(adapter.head, ValueHead)
    adapter.head.to(engine.device)
    rollouts = roll_out(
        None, None, prompts, adapter.policy(), copies=copies, max_new_tokens=tokens, batch_size=BATCH, seed=seed, engine=engine
    )
    features, rows = [], []
    for start in range(0, len(rollouts), READ):
        some = rollouts[start : start + READ]
        read = engine.read([prompts[r.prompt].ids for r in some], [r.ids for r in some])
        for rollout, (hidden_TD, logits_TV) in zip(some, read, strict=True):
            features.append(read_features(adapter.features, hidden_TD, logits_TV))
            if adapter.head.statistics:
                rows.append(top_logits(TOP).read(Reading(rollout, logits_TV, logits_TV[:, :1])))
    pad = torch.nn.utils.rnn.pad_sequence
    mask_RT = pad([torch.ones(len(feature_TF), device=feature_TF.device) for feature_TF in features], batch_first=True)
    return Seen(pad(features, batch_first=True), mask_RT, pad(rows, batch_first=True) if rows else None)


def shares(head: ValueHead, seen: Seen) -> Tensor:
    """(R, T, J) values as shares of their ranges, 1 being the end that leaves most to chance."""
    R, T, _ = seen.feature_RTF.shape
    columns = None
    if seen.row_RTX is not None:
        row_NX = torch.where(seen.mask_RT.bool().unsqueeze(-1), seen.row_RTX, seen.row_RTX[:1, :1]).flatten(0, 1)
        columns = unpack(row_NX)[0]
    value_NJ = head(seen.feature_RTF.flatten(0, 1), columns)
    low_J, high_J = value_NJ.new_tensor(head.ranges).unbind(-1)
    up = [opens(knob, *pair) for knob, pair in zip(head.space.knobs, head.ranges, strict=True)]
    share_NJ = (value_NJ - low_J) / (high_J - low_J)
    return torch.where(torch.tensor(up, device=share_NJ.device), share_NJ, 1 - share_NJ).view(R, T, -1)


def _fit(
    head: ValueHead, seen: Sequence[Seen], P: int, copies: int, margin: float, anchor: float, steps: int, batch: int,
    rate: float, decay: float,
) -> None:  # fmt: skip
    """AdamW on the ranking loss and the anchor."""
    head.train()
    optimiser = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=decay)
    with torch.no_grad():
        before_RTJ = shares(head, seen[1]).logit(END)
    for _ in range(steps):
        picked = torch.randint(P, (min(batch, P),), device=before_RTJ.device)
        row_R = (picked.unsqueeze(-1) * copies + torch.arange(copies, device=picked.device)).flatten()
        parts = [Seen(*(None if part is None else part[row_R] for part in one)) for one in seen]  # type: ignore[arg-type]
        share = [shares(head, part) for part in parts]
        less_PJ, plain_PJ, more_PJ = (mean_shares(s, p.mask_RT, copies).logit(END) for s, p in zip(share, parts, strict=True))
        ranked = ranking_loss(less_PJ, plain_PJ, margin) + ranking_loss(plain_PJ, more_PJ, margin)
        moved_RT = (share[1].logit(END) - before_RTJ[row_R]).square().mean(-1) * parts[1].mask_RT
        loss = ranked.mean() + anchor * moved_RT.sum() / parts[1].mask_RT.sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def mean_shares(share_RTJ: Tensor, mask_RT: Tensor, copies: int) -> Tensor:
    """(P, J) mean over the tokens of all responses to a prompt."""
    sum_PJ = reduce(share_RTJ * mask_RT.unsqueeze(-1), "(p c) t j -> p j", "sum", c=copies)
    return sum_PJ / reduce(mask_RT, "(p c) t -> p 1", "sum", c=copies)

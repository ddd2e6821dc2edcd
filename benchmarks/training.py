"""Head training on cached tables, one thread: `python -m benchmarks.training [--json DIR]`.

In processor time. First, what a token costs forward and backward, by the number of its features and by the head's width and rank,
how little of it is the loss, and how much the two matrix products of the first layer, which no exact head can do without; and a
step on a feature cache beside one that computes padding and standardises every feature. Second, tokens per second against the
obvious loop, which runs the LM and one warper chain per option in every step. Third, rollouts with options drawn for every token
against plain sampling by transformers, same batch.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks import timing
from benchmarks.timing import Row, report
from latentknobs import KnobSpace
from latentknobs.config import make_config
from latentknobs.data.columns import OPTION_LOGPS
from latentknobs.data.examples import Batch, Pair
from latentknobs.data.segment_batches import FeatureCache, Segments
from latentknobs.engines.transformers import Attached
from latentknobs.engines.transformers.frozen import read_responses
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Every
from latentknobs.learners.base import Inputs
from latentknobs.learners.lpo import Responses, lpo_loss
from latentknobs.learners.lpo.learner import LPO
from latentknobs.likelihood import reference
from latentknobs.policies import UniformPolicy

SIX = KnobSpace.of("temperature")
JOINT = KnobSpace.of("temperature", "top_k", "top_p", "min_p")
CONFIG = make_config({})
LEARNER = LPO(LPO.Settings(), Inputs(SIX, Every(1), ("hidden",)))
(LOGPS,) = OPTION_LOGPS
PAIRS, T = 16, 64  # a batch of pairs: 2 * 16 * 64 tokens
DATA = Path(os.environ.get("LATENTKNOBS_DATA", "data"))


def interleaved(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of processor time."""
    return timing.interleaved(contestants, rounds=rounds, clock=time.process_time)


def step(head: OptionHead, feature_BTF: Tensor, chosen: Responses, rejected: Responses) -> None:
    """One step of the head as anybody would write it: loss of all pairs, forward and backward."""
    log_pi_BTK = head(feature_BTF)
    lpo_loss("latent", chosen, rejected, log_pi_BTK[: len(log_pi_BTK) // 2], log_pi_BTK[len(log_pi_BTK) // 2 :]).mean().backward()
    head.zero_grad()


def cached(space: KnobSpace, D: int, pairs: int = PAIRS) -> Batch:
    """Some pairs of responses of T segments, level token: chosen ones first."""
    M = 2 * pairs * T
    segments = Segments(torch.randn(M, D), {LOGPS: -torch.rand(M, space.K) * 3}, torch.full((2 * pairs,), T))
    return Batch(segments, rearrange(torch.arange(2 * pairs), "(side b) -> side b", side=2), torch.ones(pairs))


def fit(module: torch.nn.Module, batch: Batch) -> None:
    """The same as `fit` does it, without the optimiser."""
    LEARNER.loss(module, batch, None).each_B.mean().backward()
    module.zero_grad()


class Fixed(torch.nn.Module):
    """A head that costs nothing."""

    def __init__(self, log_pi_MK: Tensor) -> None:
        super().__init__()
        self.log_pi_MK = torch.nn.Parameter(log_pi_MK)

    def forward(self, feature_MF: Tensor) -> Tensor:
        return self.log_pi_MK


def per_token(D: int, hidden: int | None, rank: int | None, space: KnobSpace = SIX) -> Row:
    """Microseconds per token of a step. None: what is chosen for so many features."""
    goal = 15.0 if hidden is None and (D, space.K) == (4096, 6) else None
    head, batch = OptionHead(space, D, hidden=hidden, rank=rank), cached(space, D)
    feature_MF = batch.segments.feature_MF
    fixed = Fixed(torch.randn(len(feature_MF), space.K).log_softmax(-1))
    tokens, first = len(feature_MF), head.rank or head.hidden
    weight_HF, gradient_MH = torch.randn(first, D), torch.randn(tokens, first)
    whole: Callable[[], Any] = lambda: fit(head, batch)  # noqa: E731
    loss_only: Callable[[], Any] = lambda: fit(fixed, batch)  # noqa: E731
    products: Callable[[], Any] = lambda: (feature_MF @ weight_HF.T, gradient_MH.T @ feature_MF)  # noqa: E731
    seconds = interleaved({"step": whole, "loss": loss_only, "products": products}, rounds=9)
    us = seconds["step"] / tokens * 1e6
    return {
        "D": D, "K": space.K, "head width": head.hidden, "rank": head.rank, "chosen": hidden is None, "us/token": us,
        "of it the loss": seconds["loss"] / tokens * 1e6, "two products": seconds["products"] / tokens * 1e6,
        "their GFLOP/s": 4 * tokens * D * first / seconds["products"] / 1e9, "target": goal,
        "met": None if goal is None else us <= goal,
    }  # fmt: skip


def against_padding(D: int, hidden: int | None, rank: int | None, space: KnobSpace = SIX) -> Row:
    """A step on a feature cache, as `fit` does it and in the plain way. Responses have a quarter of T to T segments."""
    rows = 8 * PAIRS
    length_R = torch.randint(T // 4, T + 1, (rows,), generator=torch.Generator().manual_seed(0))
    start_R1 = torch.cat([torch.zeros(1, dtype=torch.long), length_R.cumsum(0)])
    N = int(start_R1[-1])
    cache = FeatureCache(torch.randn(N, D), {LOGPS: -torch.rand(N, space.K) * 3}, start_R1)
    head, pairs = OptionHead(space, D, hidden=hidden, rank=rank), [Pair(n, 2 * n, 2 * n + 1).example for n in range(PAIRS)]

    def ours() -> None:
        fit(head, Batch.read(cache, pairs, "cpu"))

    def plain() -> None:
        segments = cache.segments(torch.arange(2 * PAIRS))
        mask_BS = segments.mask_US
        feature_BSF, logps_BSK = (
            torch.zeros(*mask_BS.shape, rows.shape[1]).masked_scatter(mask_BS.unsqueeze(-1), rows)
            for rows in (segments.feature_MF, segments[LOGPS])
        )
        responses = Responses(logps_BSK, torch.arange(mask_BS.shape[1]).expand_as(mask_BS), mask_BS)
        log_pi_BSK = head(feature_BSF)
        chosen, rejected = (responses.rows(slice(n, None, 2)) for n in range(2))
        lpo_loss("latent", chosen, rejected, log_pi_BSK[::2], log_pi_BSK[1::2]).mean().backward()
        head.zero_grad()

    seconds = interleaved({"ours": ours, "plain": plain}, rounds=9)
    tokens = int(start_R1[2 * PAIRS])
    return {
        "D": D, "K": space.K, "head width": head.hidden, "rank": head.rank, "filled": tokens / (2 * PAIRS * T),
        "plain us/token": seconds["plain"] / tokens * 1e6,
        "ours us/token": seconds["ours"] / tokens * 1e6, "ratio": seconds["plain"] / seconds["ours"],
    }  # fmt: skip


def against_loop(name: str, model: Any, goal: float, hidden: int | None = None, pairs: int = PAIRS) -> Row:
    """Tokens per second of cached training, `pairs` in a step, and of a loop that runs everything in every step."""
    V, B, rows = model.config.vocab_size, 4, 2 * pairs
    prompts, replies = torch.randint(3, V, (B, 16)).tolist(), torch.randint(3, V, (B, T)).tolist()
    head = OptionHead(SIX, model.config.hidden_size, hidden=hidden)
    batch = cached(SIX, model.config.hidden_size, pairs)

    def obvious() -> None:
        hidden, tables = [], []
        for (hidden_TD, logits_TV), reply in zip(read_responses(model, prompts, replies), replies, strict=True):
            hidden.append(hidden_TD)
            tables.append(reference.option_logps(logits_TV, torch.tensor(reply), SIX))
        made = [
            Responses(torch.stack(part), torch.arange(T).expand(B // 2, -1), torch.ones(B // 2, T, dtype=torch.bool))
            for part in (tables[: B // 2], tables[B // 2 :])
        ]
        step(head, torch.stack(hidden), made[0], made[1])

    seconds = interleaved({"cached": lambda: fit(head, batch), "obvious": obvious}, rounds=5)
    ours, loop = rows * T / seconds["cached"], B * T / seconds["obvious"]
    return {
        "model": name, "V": V, "D": model.config.hidden_size, "head width": head.hidden, "pairs": pairs,
        "cached tokens/s": ours, "loop tokens/s": loop, "ratio": ours / loop, "target": goal, "met": ours / loop >= goal,
    }  # fmt: skip


def rollouts(name: str, model: Any, B: int = 16, tokens: int = 32) -> Row:
    """Time of a batch of rollouts over that of plain sampling."""
    V = model.config.vocab_size
    ids_BL, policy = torch.randint(3, V, (B, 16)), UniformPolicy(SIX, Every(1))
    settings = {"attention_mask": torch.ones_like(ids_BL), "max_new_tokens": tokens, "min_new_tokens": None, "eos_token_id": None}

    def adaptive() -> None:
        with Attached(model, policy):
            model.generate(ids_BL, **settings)

    plain: Callable[[], Any] = lambda: model.generate(ids_BL, do_sample=True, top_k=0, **settings)  # noqa: E731
    seconds = interleaved({"plain": plain, "adaptive": adaptive}, rounds=7)
    ratio = seconds["adaptive"] / seconds["plain"]
    return {
        "model": name, "V": V, "B": B, "plain us/token": seconds["plain"] / (B * tokens) * 1e6,
        "ours us/token": seconds["adaptive"] / (B * tokens) * 1e6, "ours / plain": ratio, "target": 1.0, "met": ratio <= 1.0,
    }  # fmt: skip


def models() -> dict[str, Any]:
    """The d = 512 model of random weights, and stories260K where it is at hand."""
    torch.manual_seed(0)
    shape = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6, "num_attention_heads": 8}
    found: dict[str, Any] = {"random, d = 512": LlamaForCausalLM(LlamaConfig(vocab_size=32_000, pad_token_id=0, **shape)).eval()}
    if (DATA / "stories260K").is_dir():
        found["stories260K"] = AutoModelForCausalLM.from_pretrained(DATA / "stories260K").eval()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="folder for the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = args.json
    shapes: list[tuple[int, int | None, int | None]] = [
        (1024, None, None), (4096, None, None), (4096, 64, 0), (4096, 128, 32), (4096, 128, 0), (4096, 256, 32), (4096, 256, 0)
    ]  # fmt: skip
    rows = [*(per_token(*shape) for shape in shapes), per_token(4096, None, None, JOINT)]
    report("A token of head training, forward and backward", rows, folder and f"{folder}/training.json")
    rows = [*(against_padding(*shape) for shape in shapes), against_padding(4096, None, None, JOINT)]
    report("A step on a feature cache, per real token", rows, folder and f"{folder}/training_padding.json")
    found = models()
    shapes_of = {
        name: [(width, pairs) for width in (None, 256) for pairs in (PAIRS, CONFIG.pairs_per_step, 256)] for name in found
    }
    loops = [against_loop(name, model, 100.0, *one) for name, model in found.items() for one in shapes_of[name]]
    report("Cached training against running the LM in every step", loops, folder and f"{folder}/training_loop.json")
    rolled = [rollouts(name, model, B) for name, model in found.items() for B in (16, 64)]
    report("Rollouts against plain sampling", rolled, folder and f"{folder}/rollouts.json")


if __name__ == "__main__":
    main()

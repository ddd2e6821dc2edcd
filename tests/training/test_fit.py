"""fit with lpo: each setting does what its name says, exactly where that can be computed; and features are read by batches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from bandit import fit_pairs, lpo, new_head, play
from torch import Tensor

from latentknobs.config import make_config
from latentknobs.data.examples import Batch, Pair
from latentknobs.data.segment_batches import FeatureCache, Segments
from latentknobs.errors import ConfigError, NoExamplesError
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import parse_level
from latentknobs.learners.base import Loss
from latentknobs.learners.lpo import OBJECTIVES, Responses, entropy, kl_divergence, lpo_loss, lpo_margin
from latentknobs.training.fit import evaluate

CACHE, PAIRS = play(parse_level("every:3"), 60)
SMALL = {"steps": 20, "pairs_per_step": 8, "learning_rate": 0.01, "beta": 0.5, "weight_decay": 0.0}


def double(cache: FeatureCache = CACHE) -> FeatureCache:
    columns = {name: value.double() if value.is_floating_point() else value for name, value in cache.columns.items()}
    return replace(cache, feature_NF=cache.feature_NF.double(), columns=columns)


def terms(
    head: OptionHead, pairs: Sequence[Pair], settings: dict[str, Any], reference: OptionHead | None = None
) -> tuple[Batch, Loss]:
    """Some pairs in float64, and their loss."""
    batch = Batch.read(double(), [pair.example for pair in pairs], "cpu")
    return batch, lpo(make_config(settings)).loss(head, batch, reference)


def penalty(batch: Batch, loss: Loss) -> Tensor:
    """Its mean over the segments of all pairs."""
    assert loss.penalty_M is not None
    return (loss.penalty_M * batch.times_M).sum() / batch.times_M.sum()


def decided(seed: int = 0, scale: float = 1.0) -> OptionHead:
    """A head in float64 that is far from uniform."""
    head = new_head(CACHE, seed=seed).double()
    torch.manual_seed(seed)
    torch.nn.init.normal_(head.mlp[-1].weight, std=scale)
    torch.nn.init.normal_(head.mlp[-1].bias, std=scale)
    return head


def fitted(settings: dict[str, Any], held_out: Sequence[Pair] = (), head: OptionHead | None = None, **more: Any):
    """A fitted head and the rows it logged."""
    rows: list[dict[str, Any]] = []
    head = head or new_head(CACHE)
    return fit_pairs(
        head, more.pop("cache", CACHE), PAIRS, held_out, make_config(SMALL | settings), log=rows.append, **more
    ), rows


def silent(cache: FeatureCache = CACHE) -> FeatureCache:
    """Every option alike everywhere: the losses have no gradient, only penalties move the head."""
    return replace(cache, columns={**cache.columns, "logps_NK": torch.zeros_like(cache.columns["logps_NK"])})


# -- the terms of a batch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("norm", ["none", "mean"])
@pytest.mark.parametrize("with_reference", [False, True])
def test_a_batch_equals_the_plain_head_on_one_unpadded_pair_at_a_time(objective: str, norm: str, with_reference: bool) -> None:
    cache, head = double(), decided()
    reference = decided(1) if with_reference else None
    settings = {"objective": objective, "beta": 0.7, "length_norm": norm}
    some = [*PAIRS[5:9], *PAIRS[:6], PAIRS[7]]  # drawn with replacement: some several times
    _, loss = terms(head, some, settings, reference)
    losses, margins = [], []
    for pair in some:
        sides, pis, refs = [], [], []
        for response in (pair.chosen, pair.rejected):
            rows = slice(int(cache.start_R1[response]), int(cache.start_R1[response + 1]))
            S = rows.stop - rows.start
            sides.append(
                Responses(
                    cache.columns["logps_NK"][None, rows], torch.arange(S)[None], torch.ones(1, S, dtype=torch.bool),
                    cache.columns["option_N"][None, rows], cache.columns["base_N"][None, rows],
                )
            )  # fmt: skip
            pis.append(head(cache.feature_NF[None, rows]))
            refs.append(reference(cache.feature_NF[None, rows]).detach() if reference else None)
        losses.append(lpo_loss(objective, *sides, *pis, *refs, beta=0.7, length_norm=norm))
        margins.append(lpo_margin(objective, *sides, *pis, *refs, length_norm=norm))
    torch.testing.assert_close(loss.each_B, torch.cat(losses), rtol=0, atol=1e-12)
    assert torch.equal(loss.metrics["accuracy"], (torch.cat(margins) > 0).double())
    assert loss.penalty_M is None
    ours, plain = (torch.autograd.grad(loss_B.mean(), list(head.parameters()), retain_graph=True)
                   for loss_B in (loss.each_B, torch.cat(losses)))  # fmt: skip
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("with_reference", [False, True])
def test_a_head_is_asked_once_about_each_segment_however_often_a_batch_holds_it(with_reference: bool) -> None:
    asked: list[int] = []
    head, reference = decided(), decided(1) if with_reference else None
    for one in [head, *([reference] if reference else [])]:
        one.register_forward_pre_hook(lambda module, given: asked.append(len(given[0])))
    batch, _ = terms(head, [PAIRS[0]] * 5 + [PAIRS[1]], {}, reference)
    length_R = CACHE.start_R1.diff()
    of_pair = [int(length_R[[pair.chosen, pair.rejected]].sum()) for pair in PAIRS[:2]]
    assert asked == [sum(of_pair)] * (2 if with_reference else 1)
    assert batch.times_M.sum() == 5 * of_pair[0] + of_pair[1], "penalties are means over all of them"


def spread(batch: Batch, head: OptionHead) -> Tensor:
    """(N, K) what a head says, once for every place in the pairs that a segment is in."""
    return head(batch.segments.feature_MF).detach().repeat_interleave(batch.times_M, 0)


def last_bias_gradient(head: OptionHead, mean: Tensor) -> Tensor:
    (gradient_K,) = torch.autograd.grad(mean, [head.mlp[-1].bias])
    return gradient_K


def test_the_gradient_of_the_entropy_bonus_is_its_closed_form() -> None:
    """dH/dlogit_k = -pi_k (log pi_k + H), over the real segments of both sides and no padding."""
    head = decided()
    batch, loss = terms(head, PAIRS[:9], {"entropy_bonus": 0.3})
    log_pi_NK = spread(batch, head)
    expected_NK = 0.3 * log_pi_NK.exp() * (log_pi_NK + entropy(log_pi_NK).unsqueeze(-1))
    rows = sum(int(CACHE.start_R1[r + 1] - CACHE.start_R1[r]) for pair in PAIRS[:9] for r in (pair.chosen, pair.rejected))
    assert len(log_pi_NK) == rows
    torch.testing.assert_close(last_bias_gradient(head, penalty(batch, loss)), expected_NK.mean(0), rtol=0, atol=1e-14)


def test_the_gradient_of_the_kl_penalty_is_its_closed_form() -> None:
    """dKL/dlogit_k = pi_k (log pi_k - log ref_k - KL)."""
    head, reference = decided(), decided(1)
    batch, loss = terms(head, PAIRS[:9], {"kl": 0.3}, reference)
    log_pi_NK, ref_NK = spread(batch, head), spread(batch, reference)
    expected_NK = 0.3 * log_pi_NK.exp() * (log_pi_NK - ref_NK - kl_divergence(log_pi_NK, ref_NK).unsqueeze(-1))
    torch.testing.assert_close(last_bias_gradient(head, penalty(batch, loss)), expected_NK.mean(0), rtol=0, atol=1e-14)


def test_at_the_reference_the_kl_and_its_gradient_are_zero() -> None:
    head = decided()
    mean = penalty(*terms(head, PAIRS[:9], {"kl": 5.0}, decided()))
    assert mean.abs() < 1e-14 and last_bias_gradient(head, mean).abs().max() < 1e-14


# -- settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_learning_rate_follows_its_schedule(schedule: str, warmup: int) -> None:
    _, rows = fitted({"schedule": schedule, "warmup": warmup})
    for done, row in enumerate(rows):
        share = (done - warmup) / (20 - warmup)
        after = {"linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share)), "constant": 1.0}[schedule]
        assert row["learning_rate"] == pytest.approx(0.01 * (done / warmup if done < warmup else after), abs=1e-12)


def test_the_first_step_is_one_step_of_adamw_at_the_logged_rate() -> None:
    """Bias-corrected moments make the first step rate * g / (|g| + eps): what was logged is what moved the weights."""
    head = decided()
    picked = torch.randint(len(PAIRS), (8,), generator=torch.Generator().manual_seed(0)).tolist()
    loss_B = terms(head, [PAIRS[n] for n in picked], SMALL)[1].each_B
    before_K, gradient_K = head.mlp[-1].bias.detach().clone(), last_bias_gradient(head, loss_B.mean())
    _, [row] = fitted({"steps": 1, "schedule": "constant"}, head=head, cache=double())
    expected_K = before_K - row["learning_rate"] * gradient_K / (gradient_K.abs() + 1e-8)
    torch.testing.assert_close(head.mlp[-1].bias.detach(), expected_K, rtol=0, atol=1e-12)
    assert row["loss"] == pytest.approx(loss_B.mean().item(), abs=1e-12)


def test_clipping_shrinks_the_gradient_to_its_norm_and_logs_the_norm_before() -> None:
    """AdamW forgives a constant factor, except where the gradient is far below its epsilon of 1e-8: then nothing moves."""
    start = new_head(CACHE)
    free, rows = fitted({})
    clipped, clipped_rows = fitted({"clip": 1e-13})
    loose, _ = fitted({"clip": 1e6})
    assert clipped_rows[0]["gradient_norm"] == rows[0]["gradient_norm"] > 1e-3
    moved = [max((a - b).detach().abs().max().item() for a, b in zip(head.parameters(), start.parameters(), strict=True))
             for head in (free, clipped, loose)]  # fmt: skip
    assert moved[0] > 0.05 and moved[1] < 1e-5 and moved[2] == moved[0]


def test_an_entropy_bonus_makes_a_decided_head_undecided_where_nothing_else_pulls() -> None:
    data = silent(double())
    for weight, entropies in ((0.0, (0.0, 0.6)), (1.0, (1.05, math.log(3)))):
        head, _ = fitted({"entropy_bonus": weight, "steps": 200}, head=decided(scale=2.0), cache=data)
        assert entropies[0] < entropy(head(data.feature_NF)).mean() < entropies[1] + 1e-9


def mean_kl(head: OptionHead, reference: OptionHead) -> float:
    feature_NF = CACHE.feature_NF.double()
    return kl_divergence(head(feature_NF), reference(feature_NF)).mean().item()


def test_a_huge_kl_keeps_the_head_at_its_reference_and_none_lets_it_go() -> None:
    heads = [fitted({"kl": kl, "steps": 100}, head=decided(), cache=double(), reference=decided())[0] for kl in (0.0, 1e4)]
    assert mean_kl(heads[0], decided()) > 0.05
    assert mean_kl(heads[1], decided()) < 1e-4


def test_without_a_reference_the_kl_is_that_to_the_uniform_distribution() -> None:
    head, _ = fitted({"kl": 1e4, "steps": 300}, head=decided(), cache=double())
    assert entropy(head(CACHE.feature_NF.double())).mean() > math.log(3) - 1e-3


# -- validation, the best step, early stopping ---------------------------------------------------------------------------


def test_the_step_with_the_least_validation_loss_is_kept() -> None:
    """At a rate this high the loss goes up and down, so that the last step is not the best one."""
    settings = {"learning_rate": 0.3, "schedule": "constant", "steps": 40}
    head, rows = fitted(settings, held_out=PAIRS[:10])
    losses = [row["validation_loss"] for row in rows if "validation_loss" in row]
    config = make_config(SMALL | settings)
    found = evaluate(lpo(config), head, CACHE, [pair.example for pair in PAIRS[:10]], config)
    assert found["loss"] == min(losses) != losses[-1]


def test_checks_come_twenty_times_and_at_the_end() -> None:
    _, rows = fitted({"steps": 47}, held_out=PAIRS[:5])
    assert [row["step"] for row in rows if "validation_loss" in row] == [*range(2, 47, 2), 47]


@pytest.mark.parametrize("patience", [1, 3])
def test_a_fit_stops_after_so_many_checks_without_a_better_accuracy_and_says_so(patience: int) -> None:
    """A pair of a response with itself is never ordered rightly: the first check is the best there will be."""
    tie = [Pair(0, PAIRS[0].chosen, PAIRS[0].chosen)]
    _, rows = fitted({"steps": 100, "patience": patience}, held_out=tie)
    assert len(rows) == 5 * (patience + 1)
    assert rows[-1]["stopped"] == f"no better held-out accuracy than 0.000 in {patience} checks"
    assert not any("stopped" in row for row in rows[:-1])


@pytest.mark.parametrize("patience", [1, 2, 4, 19])
def test_patience_stops_where_the_accuracies_of_an_unbounded_fit_say(patience: int) -> None:
    settings = {"steps": 60, "learning_rate": 0.1}
    _, free = fitted(settings, held_out=PAIRS[:20])
    _, rows = fitted(settings | {"patience": patience}, held_out=PAIRS[:20])
    accuracies = [row["validation_accuracy"] for row in free if "validation_accuracy" in row]
    last = [
        n for n in range(len(accuracies)) if n >= patience and max(accuracies[: n - patience + 1]) >= max(accuracies[: n + 1])
    ]
    checks = last[0] + 1 if last else len(accuracies)
    assert len(rows) == 3 * checks and ("stopped" in rows[-1]) == bool(last)
    assert [row | {"stopped": 0} for row in rows] == [row | {"stopped": 0} for row in free[: len(rows)]]


def test_validation_is_the_mean_of_the_pair_losses_and_the_share_above_zero() -> None:
    head, rows = decided(), []
    start = decided()
    found = evaluate(lpo(make_config(SMALL)), head, double(), [pair.example for pair in PAIRS], make_config(SMALL))
    loss = terms(head, PAIRS, SMALL)[1]
    assert found == {
        "loss": pytest.approx(loss.each_B.mean().item(), abs=1e-12), "accuracy": loss.metrics["accuracy"].mean().item()
    }  # fmt: skip
    fit_pairs(head, double(), PAIRS, PAIRS, make_config(SMALL | {"steps": 1, "learning_rate": 1e-30}), log=rows.append)
    entropies = entropy(start(CACHE.feature_NF.double()))
    assert rows[0]["head_entropy"] == pytest.approx(entropies.mean().item(), abs=1e-12)
    assert rows[0]["validation_loss"] == pytest.approx(found["loss"]) and rows[0]["validation_accuracy"] == found["accuracy"]


# -- manners -------------------------------------------------------------------------------------------------------------


@dataclass
class Watched:
    """Features that note how much is asked for at a time."""

    inner: FeatureCache
    most: int = 0

    def __len__(self) -> int:
        return len(self.inner)

    def segments(self, response_U: Tensor) -> Segments:
        self.most = max(self.most, len(response_U))
        return self.inner.segments(response_U)

    def sample(self, rows: int) -> Tensor:
        assert rows <= 4096
        return self.inner.sample(rows)


def test_nothing_but_batches_of_pairs_per_step_is_ever_read() -> None:
    """Neither for the reference nor for validation: memory is that of one step, whatever the run's size."""
    watched = Watched(CACHE)
    fitted({}, held_out=PAIRS, cache=watched, reference=new_head(CACHE, seed=1))
    assert watched.most == 16


def test_responses_without_segments_neither_teach_nor_break_anything() -> None:
    """As when all of a response's segments were left out by `min_spread`."""
    empty = replace(CACHE, start_R1=torch.cat([CACHE.start_R1, CACHE.start_R1[-1:].repeat(2)]))
    nothing = [Pair(0, len(CACHE), len(CACHE) + 1)]
    head, start = new_head(CACHE), new_head(CACHE)
    rows: list[dict[str, Any]] = []
    fit_pairs(head, empty, nothing, nothing, make_config(SMALL | {"kl": 0.1, "entropy_bonus": 0.1}), log=rows.append)
    assert all(row["loss"] == pytest.approx(math.log(2)) and row["gradient_norm"] == 0 for row in rows)
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), start.parameters(), strict=True))


@pytest.mark.parametrize(
    ("settings", "pairs", "error", "told"),
    [
        ({"warmup": 20}, PAIRS, ConfigError, "warmup=20 takes all of steps=20.*Lower warmup or raise steps"),
        ({"patience": 2}, PAIRS, ConfigError, "patience=2.*there are none. Raise validation \\(now 0.1\\)"),
        ({}, [], NoExamplesError, "no example to train on"),
        (
            {"learning_rate": 1e6, "weight_decay": 0.1},
            PAIRS,
            ConfigError,
            r"In step \d+ the loss became .*Lower learning_rate \(1e\+06\)",
        ),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_words(
    settings: dict[str, Any], pairs: list[Pair], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        fit_pairs(new_head(CACHE), CACHE, pairs, [], make_config(SMALL | settings))

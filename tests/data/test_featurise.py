"""Rows are segments and tables are sums; what no option can produce is refused or dropped; what teaches nothing is left out."""

import copy
from typing import ClassVar

import pytest
import torch
from store_cases import padded
from torch import Tensor

import latentknobs as lk
from latentknobs import testbed
from latentknobs.data.columns import ALL, Column
from latentknobs.data.featurise import Featurised, featurise
from latentknobs.data.prompts import Prompt, make_prompts
from latentknobs.data.rollouts import Rollout, roll_out
from latentknobs.data.segment_batches import FeatureCache
from latentknobs.engines.transformers import TransformersEngine
from latentknobs.engines.transformers.frozen import read_responses
from latentknobs.errors import UnreachableTokenError
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import parse_level
from latentknobs.knobs.knob import DecodingKnob, Stage
from latentknobs.learners.lpo import lpo_loss
from latentknobs.policies import UniformPolicy

SPACE = lk.KnobSpace.of("temperature:0,0.7,1", {"top_p": [0.9, 1.0]})
TOKEN = parse_level("token")


@pytest.fixture(scope="module")
def lm():
    return testbed.load_model(), testbed.load_tokenizer()


@pytest.fixture(scope="module")
def made(lm):
    """Prompts and responses of several lengths."""
    model, tokenizer = lm
    prompts = make_prompts(testbed.prompts("mixture", "train", 5), tokenizer)
    policy = UniformPolicy(SPACE, parse_level("every:3"))
    return prompts, roll_out(model, tokenizer, prompts, policy, copies=2, max_new_tokens=11, batch_size=4, seed=1)


@pytest.mark.parametrize("level", ["token", "sequence", "every:3"])
def test_rows_are_segments_and_tables_are_sums_of_token_tables(made, lm, level):
    prompts, rollouts = made
    cache = featurise(
        TransformersEngine(*lm), prompts, rollouts, SPACE, parse_level(level), ("hidden", "entropy"), batch_size=3
    ).cache
    for r, rollout in enumerate(rollouts):
        ((hidden_TD, logits_TV),) = read_responses(lm[0], [prompts[rollout.prompt].ids], [rollout.ids])
        table_TK = lk.option_logps(logits_TV, torch.tensor(rollout.ids), SPACE)
        length = {"token": 1, "sequence": 99, "every:3": 3}[level]
        firsts = list(range(0, len(rollout.ids), length))
        rows = slice(int(cache.start_R1[r]), int(cache.start_R1[r + 1]))
        assert rows.stop - rows.start == len(firsts)
        expected_SK = torch.stack([table_TK[t : t + length].sum(0) for t in firsts])
        base_T = logits_TV.log_softmax(-1).gather(-1, torch.tensor(rollout.ids).unsqueeze(-1)).squeeze(-1)
        expected_S = torch.stack([base_T[t : t + length].sum() for t in firsts])
        torch.testing.assert_close(cache.columns["logps_NK"][rows], expected_SK, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(cache.columns["base_N"][rows], expected_S, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(cache.feature_NF[rows, :-1], hidden_TD[firsts], atol=1e-3, rtol=1e-3)
        assert cache.columns["option_N"][rows].tolist() == [rollout.options[t] for t in firsts]


def test_responses_of_similar_length_are_read_together_and_come_back_in_order(made, lm):
    prompts, rollouts = made
    shapes = []
    hook = lm[0].register_forward_pre_hook(lambda *args: shapes.append(args[2]["input_ids"].shape), with_kwargs=True)
    try:
        steps: list[int] = []
        cache = featurise(
            TransformersEngine(*lm), prompts, rollouts, SPACE, TOKEN, ("hidden",), batch_size=3, advance=steps.append
        ).cache
    finally:
        hook.remove()
    length_R = [len(prompts[r.prompt].ids) + len(r.ids) for r in rollouts]
    order = sorted(range(len(rollouts)), key=lambda r: -length_R[r])
    expected = []
    for batch in ([rollouts[r] for r in order[i : i + 3]] for i in range(0, len(order), 3)):
        questions = {prompts[rollout.prompt].ids for rollout in batch}
        expected += [(len(questions), max(map(len, questions)) - 1), (len(batch), max(len(rollout.ids) for rollout in batch))]
    assert shapes.pop(2)[0] == 1, "of the first padded batch one row is read again, alone"
    assert [tuple(shape) for shape in shapes] == expected
    assert steps == [3, 3, 3, 1]
    assert order != sorted(order), "the order must matter for this test"
    alone = [featurise(TransformersEngine(*lm), prompts, [rollout], SPACE, TOKEN, ("hidden",)).cache for rollout in rollouts]
    whole = FeatureCache.join(alone)
    for found, expected in ((cache.feature_NF, whole.feature_NF), *((cache.columns[n], whole.columns[n]) for n in cache.columns)):
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_features_are_kept_in_the_format_asked_for(made, lm):
    prompts, rollouts = made
    whole = featurise(TransformersEngine(*lm), prompts, rollouts, SPACE, TOKEN, ("hidden", "entropy"))
    short = featurise(TransformersEngine(*lm), prompts, rollouts, SPACE, TOKEN, ("hidden", "entropy"), dtype=torch.bfloat16)
    assert torch.equal(short.cache.feature_NF, whole.cache.feature_NF.bfloat16())
    assert torch.equal(short.cache.columns["logps_NK"], whole.cache.columns["logps_NK"])
    mean_F = short.cache.feature_NF.double().mean(0)
    torch.testing.assert_close(short.moments.mean_F, mean_F, msg="moments must be those of what is kept", rtol=1e-12, atol=1e-12)


NARROW = lk.KnobSpace.of("top_k:1,2")
UNLIKELY = Rollout(0, tuple(range(40, 60)), (0,) * 20, "")


@pytest.fixture(scope="module")
def story(lm):
    return make_prompts(testbed.prompts("stories", "train", 1), lm[1])


def greedy(model, prompt: Prompt, tokens: int) -> Rollout:
    ids = list(prompt.ids)
    for _ in range(tokens):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return Rollout(0, tuple(ids[len(prompt.ids) :]), (0,) * tokens, "")


def test_a_token_no_option_can_produce_is_refused_unless_there_is_a_floor(lm, story):
    with pytest.raises(UnreachableTokenError, match=r"Token \d+ .*probability 0 under each of the 2 options.*set `floor`"):
        featurise(TransformersEngine(*lm), story, [UNLIKELY], NARROW, TOKEN, ("hidden",))
    made = featurise(TransformersEngine(*lm), story, [UNLIKELY], NARROW, TOKEN, ("hidden",), floor=-20.0)
    assert made.cache.columns["logps_NK"].min() == -20.0
    assert made.unreachable == ()


def test_a_dropped_response_keeps_its_place_and_nothing_else(lm, story):
    good = greedy(lm[0], story[0], 6)
    rollouts = [UNLIKELY, good, UNLIKELY]
    made = featurise(TransformersEngine(*lm), story, rollouts, NARROW, TOKEN, ("hidden",), unreachable="drop")
    alone = featurise(TransformersEngine(*lm), story, [good], NARROW, TOKEN, ("hidden",))
    assert made.unreachable == (0, 2)
    assert made.cache.start_R1.tolist() == [0, 0, 6, 6]
    assert (made.total, made.skipped, made.moments.count) == (6, 0, 6)
    torch.testing.assert_close(made.moments.mean_F, alone.moments.mean_F, atol=1e-4, rtol=1e-4)
    lost = featurise(TransformersEngine(*lm), story, [UNLIKELY], NARROW, TOKEN, ("hidden",), unreachable="drop")
    assert (len(lost.cache), len(lost.cache.feature_NF), lost.total) == (1, 0, 0)


class Parity(DecodingKnob):
    """Keeps even ids (value 1), odd ids (2), or all (0)."""

    name: ClassVar[str] = "parity"
    stage: ClassVar[Stage] = Stage.SHAPE
    neutral: ClassVar[float] = 0.0
    options: tuple[float, ...] = (1.0, 2.0)

    def apply(self, logits_NV: Tensor, value_N: Tensor) -> Tensor:
        wanted_N1 = value_N.unsqueeze(-1)
        return logits_NV.masked_fill((wanted_N1 > 0) & (torch.arange(logits_NV.shape[1]) % 2 != wanted_N1 - 1), -torch.inf)


def test_a_segment_that_no_single_option_can_produce_is_unreachable_though_its_tokens_are_not(lm, story):
    space = lk.KnobSpace.of(Parity())
    mixed = Rollout(0, (40, 42, 44, 46, 47, 49), (0,) * 6, "")
    assert featurise(TransformersEngine(*lm), story, [mixed], space, TOKEN, ("hidden",)).unreachable == ()
    assert featurise(TransformersEngine(*lm), story, [mixed], space, parse_level("every:2"), ("hidden",)).unreachable == ()
    with pytest.raises(UnreachableTokenError, match=r"The segment of tokens 3 to 5 of a response .*each of the 2 options"):
        featurise(TransformersEngine(*lm), story, [mixed], space, parse_level("every:3"), ("hidden",))
    made = featurise(TransformersEngine(*lm), story, [mixed], space, parse_level("every:3"), ("hidden",), unreachable="drop")
    assert made.unreachable == (0,)


class Sometimes(DecodingKnob):
    """Scales the logits of rows whose best token is even, so that all other tokens have no spread at all."""

    name: ClassVar[str] = "sometimes"
    stage: ClassVar[Stage] = Stage.SHAPE
    neutral: ClassVar[float] = 1.0
    options: tuple[float, ...] = (0.5, 1.0, 2.0)

    def apply(self, logits_NV: Tensor, value_N: Tensor) -> Tensor:
        is_even_N = logits_NV.argmax(-1) % 2 == 0
        return torch.where(is_even_N.unsqueeze(-1), logits_NV * value_N.unsqueeze(-1), logits_NV)


SOMETIMES = lk.KnobSpace.of(Sometimes())


@pytest.fixture(scope="module")
def both(lms):
    """Segments with and without those of spread 0, in float64."""
    model = copy.deepcopy(lms["llama"]).double()
    rng = torch.Generator().manual_seed(3)
    prompts = [Prompt(str(p), tuple(torch.randint(3, 24, (4,), generator=rng).tolist())) for p in range(6)]
    rollouts = [sampled(model, prompts[r // 2], r // 2, 5 + r, rng) for r in range(12)]
    return [
        featurise(TransformersEngine(model, None), prompts, rollouts, SOMETIMES, TOKEN, ("hidden",), min_spread=spread)
        for spread in (None, 0.0)
    ]


def sampled(model, prompt: Prompt, p: int, tokens: int, rng: torch.Generator) -> Rollout:
    ids = list(prompt.ids)
    for _ in range(tokens):
        probs_V = model(torch.tensor([ids])).logits[0, -1].softmax(-1)
        ids.append(int(torch.multinomial(probs_V, 1, generator=rng)))
    return Rollout(p, tuple(ids[len(prompt.ids) :]), (0,) * tokens, "")


def loss_and_gradients(made: Featurised, objective: str) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    head = OptionHead(SOMETIMES, made.cache.feature_NF.shape[1], hidden=8).double()
    torch.nn.init.normal_(head.mlp[-1].weight)  # an untrained head is uniform, where much would be 0
    head.fit_scaler(made.moments.mean_F, made.moments.std_F)
    sides = [padded(made.cache.segments(torch.arange(first, 12, 2))) for first in (0, 1)]
    (chosen_BSF, chosen), (rejected_BSF, rejected) = sides
    loss_B = lpo_loss(objective, chosen, rejected, head(chosen_BSF), head(rejected_BSF), beta=1.0)
    return loss_B, list(torch.autograd.grad(loss_B.sum(), head.parameters()))


def test_leaving_out_segments_without_spread_changes_neither_loss_nor_gradient(both):
    whole, masked = both
    assert 0 < masked.skipped < masked.total == whole.total
    assert masked.total - masked.skipped == len(masked.cache.feature_NF)
    assert torch.equal(masked.moments.mean_F, whole.moments.mean_F), "the head meets all segments when it decodes"
    (loss_B, gradients), (masked_B, masked_gradients) = (loss_and_gradients(made, "latent") for made in (whole, masked))
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients)
    torch.testing.assert_close(masked_B, loss_B, rtol=1e-12, atol=1e-12)
    for gradient, expected in zip(masked_gradients, gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_leaving_out_segments_does_change_what_imitates_sampled_options(both):
    (loss_B, _), (masked_B, _) = (loss_and_gradients(made, "tokens_separate") for made in both)
    assert (loss_B - masked_B).abs().max() > 1e-3


def test_min_spread_leaves_out_exactly_the_segments_within_it(made, lm):
    """An option that cannot produce a segment differs from one that can by more than anything."""
    prompts, rollouts = made
    whole = featurise(TransformersEngine(*lm), prompts, rollouts, SPACE, TOKEN, ("hidden",))
    for spread in (0.1, 5.0):
        made_ = featurise(TransformersEngine(*lm), prompts, rollouts, SPACE, TOKEN, ("hidden",), min_spread=spread)
        keep_N = torch.tensor([max(row) - min(row) > spread for row in whole.cache.columns["logps_NK"].tolist()])
        expected = whole.cache.where(keep_N)
        assert torch.equal(made_.cache.feature_NF, expected.feature_NF) and torch.equal(made_.cache.start_R1, expected.start_R1)
        assert all(torch.equal(made_.cache.columns[name], expected.columns[name]) for name in expected.columns)
        assert (made_.skipped, made_.total) == (int((~keep_N).sum()), len(keep_N))
    assert whole.cache.columns["logps_NK"][keep_N].isneginf().any(), "some options must be cut for this test"
    nothing = featurise(
        TransformersEngine(*lm), prompts, rollouts, lk.KnobSpace.of("temperature:0.7"), TOKEN, ("hidden",), min_spread=0.0
    )
    assert nothing.skipped == nothing.total == len(keep_N)
    assert nothing.cache.start_R1.tolist() == [0] * (len(rollouts) + 1)


def test_only_the_columns_that_are_wanted_are_kept(made, lm):
    prompts, rollouts = made
    whole = featurise(TransformersEngine(*lm), prompts, rollouts, SPACE, TOKEN, ("entropy",)).cache
    doubled = Column(lambda reading: 2 * reading.logps_TK[:, 0], "first")
    own = {"double_N": doubled, "option_N": ALL["option_N"]}
    some = featurise(TransformersEngine(*lm), prompts, rollouts, SPACE, TOKEN, ("entropy",), own).cache
    assert list(some.columns) == ["double_N", "option_N"]
    assert torch.equal(some.columns["option_N"], whole.columns["option_N"])
    assert torch.equal(some.columns["double_N"], 2 * whole.columns["logps_NK"][:, 0])
    none = featurise(TransformersEngine(*lm), prompts, rollouts, SPACE, TOKEN, ("entropy",), {}, min_spread=0.5)
    assert none.cache.columns == {} and 0 < none.skipped < none.total, "the spread is that of the tables, kept or not"

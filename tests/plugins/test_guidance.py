"""The knob `guidance_scale`: the formula of transformers' own processor, and what a learned space does with it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_lm
from torch import Tensor
from transformers import UnbatchedClassifierFreeGuidanceLogitsProcessor

import latentknobs as lk
from benchmarks.fitting import fit_pairs
from latentknobs import testbed
from latentknobs.config import TrainConfig
from latentknobs.data.featurise import featurise
from latentknobs.data.prompts import Prompt, make_prompts
from latentknobs.data.rollouts import roll_out
from latentknobs.engines.transformers import Attached, TransformersEngine
from latentknobs.errors import GridError
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Every
from latentknobs.knobs.registry import resolve
from latentknobs.learners.lpo.pairs import pick_pairs
from latentknobs.policies import HeadPolicy, UniformPolicy
from latentknobs.testing import KnobConformance

SCALES = st.sampled_from([0.0, 0.5, 1.25, 1.5, 2.0, 7.0])


class TestGuidanceScale(KnobConformance):
    """The suite of every knob."""

    knob = resolve("guidance_scale")


class Second:
    """Stands where the processor expects a model, and returns given logits."""

    def __init__(self, second_NV: Tensor) -> None:
        self.second_NV = second_NV

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return type("Output", (dict,), {"logits": self.second_NV.unsqueeze(1)})()


def guided(logits_NV: Tensor, second_NV: Tensor, scale: float) -> Tensor:
    value_N = logits_NV.new_full((len(logits_NV),), scale)
    return resolve({"guidance_scale": [scale]}).apply_in(logits_NV, value_N, lk.Context(second_NV=second_NV))


@given(st.integers(0, 10_000), SCALES)
def test_it_equals_the_processor_of_transformers_in_float64(seed: int, scale: float) -> None:
    logits_NV, second_NV = torch.randn(2, 5, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 4
    theirs_NV = UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, Second(second_NV))(torch.zeros(5, 1), logits_NV)
    assert torch.equal(guided(logits_NV, second_NV, scale), theirs_NV)


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.5, 1.5, 3.0])
def test_the_second_reading_is_that_of_transformers_in_float64(scale: float) -> None:
    """Their processor steps through the response with a cache; ours reads it at once."""
    model, prompt, response = tiny_lm("llama").double(), [5, 9, 7], [4, 8, 3, 20]
    processor = UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, model)
    (context,) = TransformersEngine(model, None).observe([prompt], [response], ("second_NV",))
    for t in range(len(response)):
        ids_1L = torch.tensor([[*prompt, *response[:t]]])
        logits_1V = model(ids_1L).logits[:, -1]
        ours_1V = guided(logits_1V, context.second_NV[t : t + 1], scale)
        assert torch.allclose(ours_1V, processor(ids_1L, logits_1V), rtol=1e-12, atol=1e-12)


@given(st.integers(0, 10_000))
def test_scale_0_is_the_second_reading_and_1_the_first(seed: int) -> None:
    logits_NV, second_NV = torch.randn(2, 5, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(guided(logits_NV, second_NV, 0.0), second_NV.log_softmax(-1))
    assert torch.equal(guided(logits_NV, second_NV, 1.0), logits_NV)


@given(st.integers(0, 10_000), SCALES)
def test_tokens_that_a_reading_rules_out_make_no_nan(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_NV, second_NV = torch.randn(2, 5, 40, dtype=torch.float64, generator=generator)
    gone_NV, unheard_NV = torch.rand(2, 5, 40, generator=generator) < 0.3
    out_NV = guided(logits_NV.masked_fill(gone_NV, -torch.inf), second_NV.masked_fill(unheard_NV, -torch.inf), scale)
    assert torch.equal(out_NV.isneginf(), gone_NV) and not out_NV.isnan().any() and not out_NV.isposinf().any()


def test_scales_below_zero_are_no_grid() -> None:
    with pytest.raises(GridError, match=r"does not fit the knob 'guidance_scale': value -1\.0"):
        lk.KnobSpace.of("guidance_scale:-1,1")


# a learned space, from rollouts to a policy that generates

SPACE = lk.KnobSpace.of("temperature:0.5,1", "guidance_scale:1,1.5,2.5")
FEATURES = ("hidden", "entropy")


@pytest.fixture(scope="module")
def lm() -> tuple[Any, Any]:
    return testbed.load_model().double(), testbed.load_tokenizer()


@pytest.fixture(scope="module")
def prompts(lm: tuple[Any, Any]) -> list[Prompt]:
    return make_prompts(testbed.prompts("mixture", "train", 12), lm[1])


def test_training_and_decoding_see_the_same_probabilities(lm: tuple[Any, Any], prompts: list[Prompt]) -> None:
    """The log-probability of each token in a record is the entry of its option in the table that heads are trained on."""
    model, tokenizer = lm
    policy = UniformPolicy(SPACE, Every(1))
    rollouts = roll_out(model, tokenizer, prompts, policy, copies=2, max_new_tokens=10, batch_size=5, seed=1)
    cache = featurise(TransformersEngine(model, None), prompts, rollouts, SPACE, policy.segmenter, FEATURES, batch_size=7).cache
    plain = featurise(
        TransformersEngine(model, None), prompts, rollouts, lk.KnobSpace.of("temperature:0.5,1"), policy.segmenter, FEATURES
    ).cache
    with Attached(model, policy) as knobs:
        for r, rollout in enumerate(rollouts):
            prompt = prompts[rollout.prompt].ids
            record = knobs.record(torch.tensor([[*prompt, *rollout.ids]]), len(prompt))
            table_TK = cache.columns["logps_NK"][int(cache.start_R1[r]) : int(cache.start_R1[r + 1])]
            expected_T = table_TK.gather(-1, record.option_BT[0].unsqueeze(-1)).squeeze(-1)
            assert torch.allclose(record.logps_BT[0], expected_T, rtol=0, atol=1e-9)
    assert torch.allclose(cache.columns["logps_NK"][:, :2], plain.columns["logps_NK"], atol=1e-9), "scale 1 is the LM itself"
    assert (cache.columns["logps_NK"][:, -2:] - plain.columns["logps_NK"]).abs().max() > 0.1, "scale 2.5 is not"


def test_a_learned_space_with_guidance_generates_and_repeats_itself(lm: tuple[Any, Any], prompts: list[Prompt]) -> None:
    model, tokenizer = lm
    torch.manual_seed(0)
    policy = UniformPolicy(SPACE, Every(1))
    rollouts = roll_out(model, tokenizer, prompts, policy, copies=4, max_new_tokens=10, batch_size=16, seed=2)
    pairs = pick_pairs([r.prompt for r in rollouts], [len(r.text) for r in rollouts], "best_worst")
    cache = featurise(TransformersEngine(model, None), prompts, rollouts, SPACE, policy.segmenter, FEATURES).cache
    head, losses = OptionHead(SPACE, cache.feature_NF.shape[1], 16).double(), []
    config = TrainConfig(steps=30, pairs_per_step=8, learning_rate=1e-2)
    fit_pairs(head, SPACE, Every(1), cache, pairs, pairs[:4], config, log=lambda row: losses.append(row["loss"]))
    assert sum(losses[-10:]) < sum(losses[:10])
    learned = HeadPolicy(head, SPACE, Every(1), FEATURES, pick="sample")
    first, again = (roll_out(model, tokenizer, prompts, learned, max_new_tokens=10, batch_size=6, seed=3) for _ in range(2))
    assert first == again and first != roll_out(model, tokenizer, prompts, learned, max_new_tokens=10, batch_size=6, seed=4)
    assert {SPACE.options[k]["guidance_scale"] for rollout in first for k in rollout.options} > {1.0}


def test_train_saves_an_adapter_that_guides(tmp_path: Path) -> None:
    settings = {
        "train_prompts": 8,
        "rollouts": 4,
        "eval_size": 0,
        "max_new_tokens": 8,
        "steps": 4,
        "hidden": 16,
        "pairs_per_step": 8,
    }
    lk.train(knobs=["temperature:0.5,1", "guidance_scale:1,2"], reward=length, output_dir=tmp_path, **settings)
    adapter, model = lk.KnobAdapter.from_pretrained(tmp_path / "adapter"), testbed.load_model()
    assert adapter.space.needs == ("second_NV",)
    prompt = torch.tensor([[5, 9, 7]])
    with adapter.attach(model, seed=3) as knobs:
        first, again = (model.generate(prompt, max_new_tokens=8) for _ in range(2))
        record = knobs.record(first, 3)
    assert torch.equal(first, again) and record.logps_BT.isfinite().all()


def length(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """A reward that tells nearly all responses apart."""
    return [float(len(text)) for text in completions]

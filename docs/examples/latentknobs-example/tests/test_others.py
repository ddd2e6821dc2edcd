"""The conformance suites of the policy, the engine and the reward, and what each of them is for."""

from typing import ClassVar

import torch
from latentknobs_example.brevity import Brevity
from latentknobs_example.uncached import UncachedEngine
from latentknobs_example.warm_start import WarmStart

from latentknobs import Observation, testbed
from latentknobs.testing import EngineConformance, PolicyConformance, RewardConformance

MODEL, TOKENIZER = testbed.load_model(), testbed.load_tokenizer()


class TestWarmStart(PolicyConformance):
    policy = WarmStart()


class TestBrevity(RewardConformance):
    reward: ClassVar = Brevity(3)


class TestUncached(EngineConformance):
    engine = UncachedEngine(MODEL, TOKENIZER)


def test_it_is_hot_for_as_many_tokens_as_it_says():
    seen = Observation(logits_NV=torch.zeros(4, 5), position_N=torch.tensor([0, 1, 2, 3]))
    assert WarmStart(1.5, 0.5, 2).choose(seen, torch.zeros(4)).value_NJ.flatten().tolist() == [1.5, 1.5, 0.5, 0.5]


def test_short_answers_are_worth_most():
    assert Brevity(2)(["?"] * 3, ["yes", "", "a b c d"]) == [1.0, 0.0, 0.5]


def test_what_it_samples_is_what_transformers_samples():
    from latentknobs.engines.transformers import TransformersEngine

    prompts = [TOKENIZER(text)["input_ids"] for text in ("Once", "There was a cat")]
    one, other = (engine(MODEL, TOKENIZER) for engine in (UncachedEngine, TransformersEngine))
    settings = {"max_new_tokens": 6, "seed": 3}
    assert [row.ids for row in one.sample(prompts, WarmStart(), **settings)] == [
        row.ids for row in other.sample(prompts, WarmStart(), **settings)
    ]

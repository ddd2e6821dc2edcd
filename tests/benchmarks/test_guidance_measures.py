"""What the guidance benchmark measures: scores of a response, distinct pairs, rank correlations."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from scipy import stats

from benchmarks import guidance
from latentknobs.data.prompts import Prompt
from latentknobs.data.rollouts import Rollout
from latentknobs.heads.discriminator import FORMAT, Discriminator
from latentknobs.policies.names import policy_of

TEXT = "Lily has a red ball . She likes to play in the park with a little goat ."


def test_every_member_is_a_policy_by_name(tmp_path: Path) -> None:
    file = tmp_path / "discriminator.safetensors"
    save_file(Discriminator(5, 7, 3).state_dict(), file, {"format": FORMAT, "model": "a model"})
    for family in guidance.FAMILIES.values():
        for spec in family:
            more = f",discriminator={file}" if spec.startswith("classifier:") else ""
            assert policy_of(spec + more).space.knobs, spec


def test_a_response_is_grounded_novel_and_fluent() -> None:
    prompt = Prompt("", (1,), {"answer": "Lily has a red ball ."})
    assert guidance.scores(prompt, Rollout(0, (), None, TEXT)) == (1.0, 0.25, 1.0)
    assert guidance.scores(prompt, Rollout(0, (), None, TEXT.replace("red", "blue"))) == (0.0, 0.25, 1.0)
    assert guidance.scores(prompt, Rollout(0, (), None, "Lily has a red ball . She")) == (1.0, 0.0, 0.0)


def test_distinct_pairs_and_rewards_by_prompt() -> None:
    assert guidance.distinct_2([Rollout(0, (), None, "a b a b"), Rollout(0, (), None, "a b")]) == pytest.approx(2 / 4)
    outcome = {"grounded": [1, 0, 1, 1], "novelty": [0.5, 0, 0, 0.2]}
    assert guidance.reward_P(outcome) == pytest.approx([0.75, 1.1])


def test_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    x_N, y_N = rng.integers(6, size=40).astype(float), rng.normal(size=40)
    found, low, high = guidance.correlation(x_N, x_N + 2 * y_N)
    assert found == pytest.approx(stats.spearmanr(x_N, x_N + 2 * y_N).statistic) and low < found < high

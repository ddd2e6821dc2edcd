"""What choosing is worth, without its optimism; and the words for it."""

import numpy as np
import pytest

from latentknobs.evaluation.headroom import choosing_among, choosing_by_group, recommendation
from latentknobs.evaluation.statistics import Interval, estimate


def test_choosing_among_noise_is_worth_nothing():
    rng = np.random.default_rng(0)
    by_prompt = [choosing_by_group(rng.normal(size=(6, 8, 30)), range(30)).mean() for _ in range(300)]
    families = [choosing_among(rng.normal(size=(6, 8, 30)), rng.normal(size=(12, 4, 30))).mean() for _ in range(300)]
    for found in (by_prompt, families):
        assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))
    flattered = [(draw := rng.normal(size=(6, 8, 30)).mean(1)).max(0).mean() - draw.mean(1).max() for _ in range(50)]
    assert np.mean(flattered) > 0.2, "the best of six means, chosen and judged on the same samples, looks like a gain"


def test_what_prompts_and_tasks_really_want_is_found():
    rng = np.random.default_rng(1)
    wanted_P = np.arange(40) % 2
    reward_CSP = rng.normal(scale=0.3, size=(2, 8, 40)) + (np.arange(2)[:, None, None] == wanted_P)
    for groups in (range(40), ["even" if p == 0 else "odd" for p in wanted_P]):
        assert choosing_by_group(reward_CSP, groups).mean() == pytest.approx(0.5, abs=0.1)
    assert choosing_by_group(reward_CSP, [0] * 40).mean() == 0, "one group for all"
    assert choosing_among(reward_CSP, reward_CSP.max(0, keepdims=True)).mean() == pytest.approx(0.75, abs=0.25)


def test_a_recommendation_names_the_level_or_says_stop():
    gain, nothing = Interval(0.2, 0.1, 0.3, 0.001), Interval(0.0, -0.1, 0.12, 1.0)

    def words(rule, prompt, p):
        return recommendation({"rule": rule, "prompt": prompt}, p, "temperature 0.8", ["rule"])

    pays = "Adapting pays: rule adds 0.200 [0.100, 0.300] to temperature 0.8."
    assert words(gain, nothing, {"rule": 0.002, "prompt": 1.0}) == (pays, "token")
    assert words(nothing, gain, {"rule": 1.0, "prompt": 0.002})[1] == "sequence"
    stop, level = words(gain, nothing, {"rule": 0.2, "prompt": 1.0})
    assert level is None and stop.startswith("Use temperature 0.8 and stop") and "0.300" in stop, "not shown after correction"


def test_intervals_of_what_choosing_is_worth_cover():
    rng = np.random.default_rng(2)
    found = [estimate(choosing_by_group(rng.normal(size=(4, 6, 32)), range(32))) for _ in range(200)]
    assert np.mean([one.low <= 0 <= one.high for one in found]) >= 0.93

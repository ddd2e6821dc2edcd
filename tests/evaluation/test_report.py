"""The verdict in three parts, one correction for all comparisons of a report, the best constant per task, training seeds."""

import json

import numpy as np
import pytest

from latentknobs.errors import ConfigError
from latentknobs.evaluation.comparison import make_report
from latentknobs.evaluation.report import BINNED, HEAD, MEAN, PER_TASK, SHUFFLED, Report
from latentknobs.evaluation.statistics import ALPHA, holm

P = 200
NOISE_P = np.random.default_rng(0).normal(scale=0.1, size=P)


def report(level="token", **above):
    """A head that is above each policy by so much on average."""
    names = {"constant": "temperature 1", "mean": MEAN, "shuffled": SHUFFLED, "binned": BINNED}
    noise = {name: np.random.default_rng(n).normal(scale=0.05, size=P) for n, name in enumerate(above)}
    rewards = {HEAD: NOISE_P[None]} | {names[name]: (NOISE_P - gain + noise[name])[None] for name, gain in above.items()}
    return Report(rewards, ["all"] * P, "temperature 1", {"temperature 1": 0.0}, level=level, notes={MEAN: "temperature 0.6"})


@pytest.mark.parametrize(
    ("gains", "conclusion"),
    [
        ({"constant": 0}, "learned nothing that a fixed setting would not do"),
        ({"constant": -0.1, "mean": 0.1, "shuffled": 0.1}, "learned nothing"),
        ({"constant": 0.1, "mean": 0, "shuffled": 0.1}, "A constant at its mean does as well: no token-level control is shown"),
        ({"constant": 0.1, "mean": 0.1, "shuffled": 0}, "Where it makes its choices does not matter: no token-level control"),
        ({"constant": 0.1, "mean": 0.1, "shuffled": 0.1}, "This is token-level control."),
        ({"constant": 0.1, "mean": 0.1, "shuffled": 0.1, "binned": 0.1}, "This is token-level control, of more than entropy"),
        (
            {"constant": 0.1, "mean": 0.1, "shuffled": 0.1, "binned": 0},
            "control, by what entropy and p_max say",
        ),
    ],
)
def test_only_a_head_that_beats_its_choices_in_random_places_is_called_control(gains, conclusion):
    verdict = report(**gains).verdict()
    assert conclusion in verdict and "One training seed" in verdict
    is_control = gains.get("shuffled", 0) > 0 and min(gains["constant"], gains["mean"]) > 0
    assert ("This is token-level control" in verdict) == is_control


def test_each_part_has_its_words_and_its_figures():
    found = report(constant=0.1, mean=0, shuffled=-0.1)
    text = found.verdict()
    assert f"The head beats the tuned best constant (temperature 1) by {found.compare('temperature 1').gain}." in text
    assert f"It does not differ from its own mean (temperature 0.6): {found.compare(MEAN).gain}." in text
    assert f"It is worse than its choices in random places: {found.compare(SHUFFLED).gain}." in text


def test_at_other_levels_it_is_called_otherwise():
    gains = {"constant": 0.1, "mean": 0.1, "shuffled": 0.1}
    assert "This is control by prompt." in report("sequence", **gains).verdict()
    assert "This is control by segment (every:8)." in report("every:8", **gains).verdict()


def test_one_correction_for_all_comparisons_decides_tables_and_verdicts():
    """A gain whose own interval lies above 0 is not called one among many comparisons."""
    rng = np.random.default_rng(3)
    others = {f"temperature {n}": rng.normal(scale=0.1, size=(1, P)) for n in range(2, 40)}
    two = {HEAD: NOISE_P[None], "temperature 1": NOISE_P[None] - 0.0163 + rng.normal(scale=0.07, size=P)}
    alone, among = (Report(r, ["all"] * P, "temperature 1", {"temperature 1": 0.0}) for r in (two, two | others))
    assert alone.compare("temperature 1") == among.compare("temperature 1") and alone.compare("temperature 1").gain.low > 0
    assert "beats" in alone.verdict() and "does not differ" in among.verdict()
    rows = [row for row in among.table() if row.policy != HEAD]
    plain = [among.compare(row.policy, row.task).p for row in rows]
    assert [row.p for row in rows] == pytest.approx(holm(plain, [38.0] + [1.0] * 38)), "half of the error for the verdict"
    assert all((row.sign != 0) == (row.p < ALPHA) for row in rows)


def test_the_best_constant_of_each_task_is_chosen_on_other_prompts():
    tuning = {"cold": np.array([[1.0, 1, 0, 0]]), "hot": np.array([[0.0, 0, 1, 1.5]])}
    rewards = {HEAD: np.ones((2, 3)), "cold": np.array([[5.0, 6, 7], [5, 6, 7]]), "hot": np.array([[1.0, 2, 3], [1, 2, 3]])}
    found = make_report(rewards, tuning, ["b", "a", "c"], tuned_tasks=["a", "a", "b", "b"])
    assert found.tuned == "hot" and found.notes[PER_TASK] == "a: cold; b: hot"
    assert found.rewards[PER_TASK].tolist() == [[1, 6, 3], [1, 6, 3]], "a task that nothing was tuned on takes the tuned constant"
    assert PER_TASK not in make_report(rewards, tuning, ["b", "a", "c"], tuned_tasks=["a"] * 4).rewards


def test_training_seeds_widen_the_interval_and_are_named():
    gain_R1 = np.array([[0.0], [0.1], [0.2]])
    several = Report({HEAD: NOISE_P + gain_R1, "temperature 1": np.stack([NOISE_P] * 3)}, ["all"] * P, "temperature 1",
                     {"temperature 1": 0.0}, runs=3)  # fmt: skip
    one = Report(
        {HEAD: NOISE_P[None] + 0.1, "temperature 1": NOISE_P[None]}, ["all"] * P, "temperature 1", {"temperature 1": 0.0}
    )
    assert one.compare("temperature 1").gain.low > 0 > several.compare("temperature 1").gain.low
    assert "3 training seeds." in several.verdict() and "does not differ" in several.verdict()


def test_everything_survives_json():
    first = report(constant=0.1, mean=0.1, shuffled=0.1, binned=0.05)
    again = Report.from_dict(json.loads(json.dumps(first.to_dict())))
    assert (again.verdict(), again.notes, again.level, again.runs) == (first.verdict(), first.notes, first.level, first.runs)
    data = first.to_dict() | {"runs": 2}
    with pytest.raises(ValueError, match="2 training seeds"):
        Report.from_dict(data)


def test_reports_of_several_seeds_are_joined_with_each_runs_own_tuned_constant():
    one, other = report(constant=0.1, mean=0.1), report(constant=0.2, mean=0.1, shuffled=0.1)
    other.rewards["temperature 0"] = other.rewards.pop("temperature 1")
    one.rewards["temperature 0"], other.rewards["temperature 1"] = NOISE_P[None], NOISE_P[None]
    one.tuning["temperature 0"] = other.tuning["temperature 0"] = 0.5
    other.tuned, other.notes = "temperature 0", {MEAN: "temperature 0.7", "choice": "The adapter holds the head."}
    both = Report.join([one, other])
    assert both.runs == 2 and SHUFFLED not in both.rewards and "2 training seeds" in both.verdict()
    assert both.compare(both.tuned).gain.mean == pytest.approx(0.15, abs=0.02)
    assert "temperature 0.6; temperature 0.7" in both.verdict() and "Seed 1: The adapter holds the head." in both.verdict()
    assert Report.from_dict(json.loads(json.dumps(both.to_dict()))).verdict() == both.verdict()
    still = report(constant=0.2)  # its head always chooses the same, so it is its own mean
    assert Report.join([one, still]).compare(MEAN).gain.mean == pytest.approx(0.05, abs=0.02)
    with pytest.raises(ConfigError, match="different prompts"):
        Report.join([one, Report({HEAD: np.zeros((1, 2))}, ["all"] * 2, HEAD, {})])


def test_a_name_that_no_file_can_hold_is_damage() -> None:
    data = json.loads(json.dumps(report(constant=0.2).to_dict()))
    with pytest.raises(ValueError, match="surrogate"):
        Report.from_dict(data | {"tasks": ["\ud800" for _ in data["tasks"]]})

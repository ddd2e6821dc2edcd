"""The conformance suite passes every shipped knob, and each of its checks catches the fault it is there for, and no other."""

import pytest
from broken_knobs import BROKEN, GOOD, LIARS

from latentknobs.errors import LatentKnobsError, UnknownNameError
from latentknobs.knobs import registry
from latentknobs.testing import KNOBS, ConformanceError, KnobConformance, check_knob, report

CHECKS = KNOBS.checks
SHIPPED = sorted(source.name for source in registry.sources() if source.distribution == "latentknobs")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_knob_passes_every_check(name: str) -> None:
    assert [outcome for outcome in KNOBS.outcomes(name) if not outcome.passed] == []


@pytest.mark.parametrize("knob", GOOD, ids=lambda knob: knob.name)
def test_the_knobs_from_which_the_broken_ones_descend_are_good(knob) -> None:
    check_knob(knob)


def test_every_check_has_a_knob_that_it_must_catch() -> None:
    assert list(BROKEN) == list(CHECKS) and len(BROKEN) >= 12


@pytest.mark.parametrize("check", BROKEN)
def test_each_broken_knob_is_caught_by_the_check_meant_for_it_and_by_no_other(check: str) -> None:
    assert {outcome.check: outcome.message for outcome in KNOBS.outcomes(BROKEN[check]) if not outcome.passed}.keys() == {check}


@pytest.mark.parametrize("knob", LIARS, ids=lambda knob: f"{knob.name} sees {knob.sees}")
def test_a_false_promise_of_what_a_truncation_sees_is_caught_by_that_check_alone(knob) -> None:
    assert [outcome.check for outcome in KNOBS.outcomes(knob) if not outcome.passed] == ["sees_is_true"]


WORDS = {
    "never_empties_a_row": "value 0.1 removes every token of a row; always keep the most probable one",
    "survives_a_single_token": "value 0 on a vocabulary of one makes NaN",
    "keeps_the_dtype": "value 0 in float16 returns torch.float32; return the dtype that came in",
    "stage_is_true": "value 0.1 in stage `threshold` changes the odds of tokens it keeps; declare Stage.SHAPE",
    "sees_is_true": "`sees` must be 'row', not 'prefix'",
    "declaration_is_complete": "the class BadName is named 'Top P'. Write the name in lower_snake_case, e.g. 'top_p'",
    "reads_only_what_it_declares": "reads a part of the context that `needs` does not name",
    "repr_shows_the_grid": "its repr is '<knob>'; show the class and the options [0.5, 1, 2]",
}


@pytest.mark.parametrize("check", WORDS)
def test_a_verdict_says_on_which_value_what_happened_and_what_to_do(check: str) -> None:
    told = {outcome.check: outcome.message for outcome in KNOBS.outcomes(BROKEN[check])}
    assert WORDS[check] in told[check]


def test_check_knob_raises_one_error_that_names_the_knob_and_the_failed_checks() -> None:
    with pytest.raises(ConformanceError, match=f"'plain' fails 1 of {len(CHECKS)} checks: is_repeatable: value 0.5") as caught:
        check_knob(BROKEN["is_repeatable"])
    assert isinstance(caught.value, LatentKnobsError) and isinstance(caught.value, AssertionError)


def test_a_knob_that_raises_fails_the_check_with_its_own_error() -> None:
    from broken_knobs import Scale

    class Raises(Scale):
        def temperature(self, value_N):
            raise ZeroDivisionError("no luck")

    told = {outcome.check: outcome.message for outcome in KNOBS.outcomes(Raises())}
    assert told["never_makes_nan"] == "it raised ZeroDivisionError: no luck"
    assert told["survives_json"] == ""


def test_the_report_lists_every_check_and_says_whether_all_is_well() -> None:
    text, is_good = report("top_p:0.5,1")
    assert is_good and text.splitlines()[0] == "TopP(options=(0.5, 1.0))"
    assert text.splitlines()[-1] == f"{len(CHECKS)} of {len(CHECKS)} checks passed."
    text, is_good = report(BROKEN["does_not_mutate"])
    assert not is_good and "FAIL  does_not_mutate: value 0.1 writes into its inputs" in text


def test_the_report_on_an_unknown_knob_is_the_usual_error() -> None:
    with pytest.raises(UnknownNameError, match='Did you mean "top_p"'):
        report("topp")


def test_the_test_class_has_one_documented_test_per_check() -> None:
    tests = {name.removeprefix("test_"): test for name, test in vars(KnobConformance).items() if name.startswith("test_")}
    assert tests.keys() == CHECKS.keys()
    assert all(test.__doc__ for test in tests.values())


def test_the_test_class_fails_in_the_test_named_after_the_check() -> None:
    class Subject(KnobConformance):
        knob = BROKEN["is_repeatable"]

    Subject().test_never_makes_nan()
    with pytest.raises(AssertionError, match=r"The knob .plain. fails is_repeatable: value 0\.5 gives another result"):
        Subject().test_is_repeatable()


class TestTopP(KnobConformance):
    """The way a plugin author uses the suite."""

    knob = registry.resolve("top_p")

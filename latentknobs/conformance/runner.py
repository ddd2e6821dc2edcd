"""Runs all checks on a knob and tells what they found."""

from collections.abc import Callable
from dataclasses import dataclass

from latentknobs.conformance import declared, meaning, robust
from latentknobs.conformance.rows import Violation
from latentknobs.errors import LatentKnobsError
from latentknobs.knobs.knob import DecodingKnob
from latentknobs.knobs.registry import KnobSpec, resolve

Check = Callable[[DecodingKnob], None]

CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        declared.declaration_is_complete,
        declared.reads_only_what_it_declares,
        robust.neutral_changes_nothing,
        robust.never_empties_a_row,
        robust.never_makes_nan,
        robust.keeps_removed_tokens,
        meaning.ignores_removed_tokens,
        robust.does_not_mutate,
        robust.is_repeatable,
        meaning.rows_do_not_mix,
        meaning.values_do_not_mix,
        robust.keeps_the_dtype,
        robust.survives_extreme_logits,
        robust.survives_degenerate_rows,
        robust.survives_a_single_token,
        meaning.keeps_ties_together,
        meaning.ignores_token_ids,
        meaning.ignores_the_offset,
        meaning.stage_is_true,
        meaning.order_is_kept,
        declared.fast_path_equals_apply,
        declared.sees_is_true,
        declared.host_twin_is_true,
        declared.survives_json,
        declared.survives_pickling,
        declared.repr_shows_the_grid,
    )
}


class ConformanceError(LatentKnobsError, AssertionError):
    """A knob failed one or more checks."""


@dataclass(frozen=True)
class Outcome:
    """One check of one knob; `message` is empty where it passed."""

    check: str
    message: str = ""

    @property
    def passed(self) -> bool:
        """Whether the knob does what the check demands."""
        return not self.message


def run_check(name: str, knob: DecodingKnob) -> Outcome:
    """The outcome of one check. A knob that raises fails it."""
    try:
        CHECKS[name](knob)
    except Violation as violation:
        return Outcome(name, str(violation))
    except Exception as error:
        return Outcome(name, f"it raised {type(error).__name__}: {error}")
    return Outcome(name)


def run_checks(knob: KnobSpec) -> list[Outcome]:
    """The outcome of every check, in a fixed order. A knob object is taken as it is, registered or not."""
    found = knob if isinstance(knob, DecodingKnob) else resolve(knob)
    return [run_check(name, found) for name in CHECKS]


def check_knob(knob: KnobSpec) -> None:
    """Passes silently if the knob keeps the contract.

    Raises:
        ConformanceError: naming each failed check and what the knob did.
    """
    found = knob if isinstance(knob, DecodingKnob) else resolve(knob)
    if failed := [outcome for outcome in run_checks(found) if not outcome.passed]:
        told = "; ".join(f"{outcome.check}: {outcome.message}" for outcome in failed)
        raise ConformanceError(f"The knob {found.name!r} fails {len(failed)} of {len(CHECKS)} checks: {told}.")


def report(knob: KnobSpec) -> tuple[str, bool]:
    """What `latentknobs knobs check NAME` prints, and whether all is well."""
    found = knob if isinstance(knob, DecodingKnob) else resolve(knob)
    outcomes = run_checks(found)
    lines = [f"{'ok  ' if o.passed else 'FAIL'}  {o.check}{'' if o.passed else ': ' + o.message}" for o in outcomes]
    good = sum(outcome.passed for outcome in outcomes)
    return "\n".join([repr(found), *lines, f"{good} of {len(outcomes)} checks passed."]), good == len(outcomes)

"""The suite of knobs."""

from latentknobs.conformance import declared, meaning, robust
from latentknobs.conformance.suite import Suite, by_name
from latentknobs.knobs.knob import DecodingKnob
from latentknobs.knobs.registry import KnobSpec, resolve

CHECKS = by_name(
    declared.declaration_is_complete, declared.reads_only_what_it_declares, robust.neutral_changes_nothing,
    robust.never_empties_a_row, robust.never_makes_nan, robust.keeps_removed_tokens, meaning.ignores_removed_tokens,
    robust.does_not_mutate, robust.is_repeatable, meaning.rows_do_not_mix, meaning.values_do_not_mix,
    robust.keeps_the_dtype, robust.survives_extreme_logits, robust.minimum_means_removed,
    robust.survives_degenerate_rows, robust.survives_a_single_token, meaning.keeps_ties_together,
    meaning.ignores_token_ids, meaning.ignores_the_offset, meaning.stage_is_true, meaning.order_is_kept,
    meaning.excess_is_the_cut,
    declared.fast_path_equals_apply, declared.sees_is_true, declared.survives_json, declared.survives_pickling,
    declared.repr_shows_the_grid,
)  # fmt: skip


def _find(knob: KnobSpec) -> DecodingKnob:
    """A knob object is checked as it is, registered or not."""
    return knob if isinstance(knob, DecodingKnob) else resolve(knob)


SUITE = Suite("knob", CHECKS, _find, name=lambda knob: knob.name)

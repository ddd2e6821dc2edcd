"""From a trained head to the policy that decodes with it, by the kind of the head."""

from collections.abc import Sequence
from functools import singledispatch
from typing import Any

from latentknobs.errors import ConfigError
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Segmenter
from latentknobs.heads.value_head import ValueHead
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies.base import Policy
from latentknobs.policies.categorical import HeadPolicy, Pick
from latentknobs.policies.continuous import ValuePolicy


@singledispatch
def head_policy(head: Any, space: KnobSpace, segmenter: Segmenter, features: Sequence[str], pick: Pick) -> Policy:
    """What a head does while decoding. Packages with heads of their own register theirs: `@head_policy.register`.

    `pick` is how an option is taken from a distribution over options. ConfigError if nothing is registered for such a head.
    """
    raise ConfigError(
        f"How a {type(head).__name__} chooses values is not known. Let the learner's `policy` say it, or register the kind of "
        "head with latentknobs.policies.heads.head_policy."
    )


@head_policy.register
def _(head: OptionHead, space: KnobSpace, segmenter: Segmenter, features: Sequence[str], pick: Pick) -> Policy:
    return HeadPolicy(head, space, segmenter, features, pick)


@head_policy.register
def _(head: ValueHead, space: KnobSpace, segmenter: Segmenter, features: Sequence[str], pick: Pick) -> Policy:
    return ValuePolicy(head, space, segmenter, features)

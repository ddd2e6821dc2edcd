"""Policies by name: `edt:base=1.4,theta=3`, `constant:temperature=0.7,top_p=0.9`, `uniform:temperature=0,0.5,1,level=every:8`.

An entry point of the group `latentknobs.policies` holds a class or a factory of a policy; its settings are the arguments. One
that takes `tokenizer` gets that of the model.
"""

from typing import Any

from latentknobs import entry_points
from latentknobs.errors import ConfigError
from latentknobs.heads.segmenters import parse_level
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies.base import Policy
from latentknobs.policies.fixed import BalancedPolicy, ConstantPolicy, UniformPolicy

KIND = "policy"


def policy_of(spec: "str | Policy", tokenizer: Any = None) -> Policy:
    """The policy of a name and its settings; a policy itself is returned as it is.

    Errors: see `entry_points.resolve`; ConfigError also if the name does not give a policy.
    """
    if isinstance(spec, Policy):
        return spec
    if not isinstance(spec, str):
        raise ConfigError(f"{spec!r} is not a policy. Pass a Policy, or a name such as 'edt:base=1.4,theta=3'.")
    policy, origin = entry_points.resolve(KIND, spec, tokenizer=tokenizer)
    if not isinstance(policy, Policy):
        raise ConfigError(f"The {origin['entry point']!r} of {origin['distribution']} gives {policy!r}, which is not a policy.")
    return policy


def constant(**values: float) -> ConstantPolicy:
    """Fixed knob values, in the order of transformers: `constant:temperature=0.7,top_p=0.9`."""
    return ConstantPolicy(_space("constant", {name: str(value) for name, value in values.items()}))


def uniform(level: str = "token", tokenizer: Any = None, **grids: Any) -> UniformPolicy:
    """Options drawn uniformly: `uniform:temperature=0,0.5,1,top_p=0.9,1,level=sequence`."""
    return UniformPolicy(_space("uniform", grids), parse_level(level, tokenizer))


def balanced(level: str = "token", tokenizer: Any = None, **grids: Any) -> BalancedPolicy:
    """Half of the segments from the options that cut nothing off, half from all; written as `uniform`."""
    return BalancedPolicy(_space("balanced", grids), parse_level(level, tokenizer))


for _factory, _example in ((constant, "1"), (uniform, "0.5,1"), (balanced, "0.5,1")):
    setattr(_factory, "example", f"temperature={_example}")  # noqa: B010 (a function declares no attributes)


def _space(name: str, grids: dict[str, Any]) -> KnobSpace:
    if not grids:
        raise ConfigError(f"The policy {name!r} needs the values of at least one knob, e.g. '{name}:temperature=0.7'.")
    return KnobSpace.of(*(f"{knob}:{grid}" for knob, grid in grids.items()))

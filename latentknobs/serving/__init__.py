"""Adapters and policies inside a server of vLLM."""

import os
from typing import Any

from latentknobs.adapter import KnobAdapter, check_base, read_adapter
from latentknobs.files import path_of
from latentknobs.policies import CategoricalPolicy, Policy
from latentknobs.policies.names import policy_of


def read_picks(spec: str, base: dict[str, Any] | None = None, tokenizer: Any = None) -> dict[str, Policy]:
    """The policies that a folder or a name such as `edt:base=1.4,theta=3` stands for, by pick; "" for one without a pick.

    Args:
        base: the LM, as `describe_model` would say; None leaves unchecked whether an adapter belongs to it.
        tokenizer: of the LM, for policies that need one.

    Raises:
        AdapterError: there is no adapter in the folder, or it belongs to another LM.
        UnknownNameError, ConfigError: not a policy.
    """
    adapter = KnobAdapter.from_pretrained(spec) if _is_folder(spec) else read_adapter(spec)
    if not isinstance(adapter, KnobAdapter):
        return {"": policy_of(adapter, tokenizer)}
    if base is not None and not adapter.is_portable:
        check_base(adapter.base, base, strict=False)
    policy = adapter.policy("greedy")
    return {"greedy": policy, "sample": adapter.policy("sample")} if isinstance(policy, CategoricalPolicy) else {"": policy}


def base_of(text: Any, name: str) -> dict[str, Any]:
    """What `describe_model` says of a model, from its text config alone."""
    return {
        "name": name, "type": text.model_type, "hidden_size": text.hidden_size, "layers": text.num_hidden_layers,
        "vocabulary": text.vocab_size,
    }  # fmt: skip


def resolved(spec: str) -> str:
    """The spec as a process that was started elsewhere may read it: folders in full."""
    is_here = spec.startswith(("~", ".", os.sep)) or path_of(spec).is_dir()
    return str(path_of(spec).absolute()) if is_here else spec


def _is_folder(spec: str) -> bool:
    """Whether a spec can only be meant as a folder, or as a name on the hub."""
    return spec.startswith(("~", ".", os.sep)) or (os.sep in spec and ":" not in spec)

"""Ways of running vLLM in which tokens would not be drawn by policies, or would be reported wrongly."""

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from latentknobs.errors import ConfigError

SETTINGS = "latentknobs"  # key in vLLM's additional_config
TAKEN = {
    "--logits-processors": "the processor of latentknobs is named there, and a second one cannot be named beside it",
    "--worker-extension-cls": "the worker extension of latentknobs is named there",
    "--additional-config": "the adapters are listed there",
}
UNFIT = {
    "--speculative-config": "policies cannot follow drafts yet",
    "--enable-batch-sharded-sampling": "policies see whole batches",
    "--logprobs-mode processed": "vLLM would report the log-probability 0 for every token that a policy drew; those under the "
    "values that were chosen come with the choices",
    "--enable-prompt-embeds": "policies see prompts as ids",
    "--watermark-config": "policies draw the tokens themselves, and no text would carry the mark",
    "--grpc": "requests are checked in vLLM's HTTP server",
    "VLLM_USE_RUST_FRONTEND": "requests are checked in vLLM's HTTP server in Python",
}


def check_flags(flags: Sequence[str]) -> None:
    """Refuses flags of `vllm serve` that the adapters cannot work with: a ConfigError names the flag and why."""
    for flag, following in pairwise([*flags, ""]):
        name, _, value = flag.partition("=")
        name = f"--{name.removeprefix('--').replace('_', '-')}" if name.startswith("--") else name
        if name == "--logprobs-mode" and (value or following).startswith("processed"):
            name += " processed"
        if reason := (TAKEN | UNFIT).get(name):
            raise ConfigError(f"The flag {flag!r} cannot be combined with adapters: {reason}. Leave it out.")


def check_config(vllm_config: Any) -> None:
    """The same from within vLLM, however it was started: a ConfigError names the flag."""
    found = {
        "--speculative-config": vllm_config.speculative_config is not None,
        "--enable-batch-sharded-sampling": getattr(vllm_config.parallel_config, "enable_batch_sharded_sampling", False),
        "--logprobs-mode processed": str(vllm_config.model_config.logprobs_mode).startswith("processed"),
        "--enable-prompt-embeds": vllm_config.model_config.enable_prompt_embeds,
        "--watermark-config": vllm_config.watermark_config is not None,
        "VLLM_USE_RUST_FRONTEND": os.environ.get("VLLM_USE_RUST_FRONTEND", "0") != "0",
    }
    for flag, is_set in found.items():
        if is_set:
            raise ConfigError(
                f"vLLM was started with {flag}, which cannot be combined with adapters: {UNFIT[flag]}. Leave it out."
            )
    if not isinstance(vllm_config.additional_config, dict) or SETTINGS not in vllm_config.additional_config:
        raise ConfigError(f"vLLM's additional_config has no {SETTINGS!r}. Start it with `latentknobs serve`, or engine='vllm'.")

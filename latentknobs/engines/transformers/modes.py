"""Ways of calling `generate`: which of them an attached policy can honour, and settings that would act on top of it."""

from typing import Any, Literal

import torch
from torch import Tensor

from latentknobs.engines.transformers.second import SECOND
from latentknobs.errors import DecodingError
from latentknobs.heads.segmenters import Every, Sequence
from latentknobs.policies import ConstantPolicy, Policy
from latentknobs.tensors import any_or_unknown

Sampler = Literal["own", "transformers"]


def needs_of(policy: Policy) -> tuple[str, ...]:
    """The parts of a `Context` that a policy's logits are made from."""
    return policy.space.needs if type(policy).warp is Policy.warp else ()  # a policy of its own kind reads logits alone


def refuse_second(kwargs: dict[str, Any], policy: Policy) -> None:
    """Second logits are those of the response after the prompt's last token, whatever the call says.

    Raises:
        DecodingError: that token is not known, or the caller asks for another text instead.
    """
    if kwargs.get("negative_prompt_ids") is not None:
        raise DecodingError(
            "generate(negative_prompt_ids=...) does nothing with a policy attached: guidance compares with the response without "
            "its prompt. Leave negative_prompt_ids out, or detach the policy."
        )
    if SECOND in needs_of(policy) and kwargs.get("inputs_embeds") is not None:
        who = ", ".join(knob.name for knob in policy.space.knobs if SECOND in getattr(knob, "needs", ()))
        raise DecodingError(
            f"inputs_embeds hides the token ids of the prompt, and {who} compares with the response after its last token. "
            f"Pass input_ids, or leave {who} out of the space."
        )


def is_stateless(policy: Policy) -> bool:
    """Whether a row's option can be told from its newest token alone."""
    segmenter = policy.segmenter
    return (isinstance(segmenter, Every) and segmenter.n == 1) or isinstance(policy, ConstantPolicy)


def begins_at(policy: Policy, position: int, previous_B: Tensor) -> bool | Tensor:
    """Which rows begin a segment at a position: all, none, or those of a (B,) mask. Told without waiting for a GPU.

    Args:
        previous_B: (B,) the token before.
    """
    segmenter = policy.segmenter
    if position == 0 or is_stateless(policy):
        return True
    if isinstance(segmenter, Every):
        return position % segmenter.n == 0
    if isinstance(segmenter, Sequence):
        return False
    fresh_B = segmenter.begins(torch.full_like(previous_B, position).unsqueeze(1), previous_B.unsqueeze(1)).squeeze(1)
    return fresh_B if any_or_unknown(fresh_B) else False


def refuse_beams_without_cache(policy: Policy, use_cache: bool) -> None:
    """Beams that carry an option from token to token are followed through the cache.

    Raises:
        DecodingError: there is no cache to follow.
    """
    if not use_cache and not is_stateless(policy):
        raise DecodingError(
            f"Beam search without a cache cannot carry level {policy.segmenter.level!r} from token to token. "
            "Use use_cache=True, or an adapter of level 'token'."
        )


def refuse_batching(policy: Policy) -> None:
    """Continuous batching packs requests into one row and does not say which is which.

    Raises:
        DecodingError: the policy would have to know.
    """
    if needs := needs_of(policy):
        raise DecodingError(
            f"Continuous batching (generate_batch) does not tell which request a token belongs to, so it cannot supply "
            f"{', '.join(needs)}, which {policy.space!r} reads. Use generate, or leave that knob out."
        )
    if not is_stateless(policy):
        raise DecodingError(
            f"Continuous batching (generate_batch) does not tell which request a token belongs to, so it cannot carry level "
            f"{policy.segmenter.level!r}. Use generate, or an adapter of level 'token'."
        )
    if policy.pick == "sample":
        raise DecodingError(
            "Continuous batching (generate_batch) does not tell which request a token belongs to, so options cannot be drawn "
            "by seed, row and position. Use generate, or a policy with pick='greedy'."
        )


def samples_plainly(config: Any, processors: Any) -> bool:
    """Whether `generate` would do nothing with the logits but draw one token per row from them.

    Args:
        config: the generation config that `generate` prepared.
        processors: the logits processors it will apply.
    """
    from transformers.generation.configuration_utils import GenerationMode

    wants_scores = config.return_dict_in_generate and (config.output_scores or config.output_logits)
    return config.get_generation_mode() == GenerationMode.SAMPLE and len(processors) == 0 and not wants_scores

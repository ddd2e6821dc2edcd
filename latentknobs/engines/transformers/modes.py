"""Ways of calling `generate`: which of them an attached policy can honour, and settings that would act on top of it."""

from typing import Any, Literal

from torch import Tensor

from latentknobs.engines.transformers.second import SECOND, LeftPadded
from latentknobs.errors import DecodingError
from latentknobs.policies import Policy, reads, remembers

Sampler = Literal["own", "transformers"]


def second_prompt(kwargs: dict[str, Any], policy: Policy, rows: int) -> LeftPadded | None:
    """Takes the prompts without evidence out of the arguments of a call; None if there are none. DecodingError if unused."""
    ids_BP, mask_BP = (kwargs.pop(f"negative_prompt_{name}", None) for name in ("ids", "attention_mask"))
    if ids_BP is None:
        return None
    if SECOND not in reads(policy):
        raise DecodingError(
            f"generate(negative_prompt_ids=...) does nothing here: no knob of {policy.space!r} compares with the prompt without "
            "evidence. Leave it out, or add guidance_scale or kl_half_life to the space."
        )
    return check_second(ids_BP, mask_BP, rows)


def check_second(ids_BP: Any, mask_BP: Any, rows: int) -> LeftPadded:
    """The prompts without evidence of some rows; DecodingError if they are not as many as the prompts, or not padded left."""
    if not isinstance(ids_BP, Tensor) or ids_BP.dim() != 2 or ids_BP.is_floating_point() or len(ids_BP) != rows:
        what = f"a tensor of shape {tuple(ids_BP.shape)}" if isinstance(ids_BP, Tensor) else repr(type(ids_BP).__name__)
        raise DecodingError(
            f"negative_prompt_ids is {what}, and there are {rows} prompts. Pass the token ids of each prompt without its "
            f"evidence, ({rows}, length), padded on the left."
        )
    if mask_BP is not None and (mask_BP.shape != ids_BP.shape or not mask_BP[:, -1].all()):
        raise DecodingError(
            f"negative_prompt_attention_mask, {tuple(mask_BP.shape)}, must have the shape of negative_prompt_ids, "
            f"{tuple(ids_BP.shape)}, and end in 1 in every row: pad on the left."
        )
    return LeftPadded(ids_BP, mask_BP)


def refuse_embeds(kwargs: dict[str, Any], policy: Policy) -> None:
    """DecodingError if second logits are read and embeddings hide the ids of the prompt."""
    if kwargs.get("inputs_embeds") is not None and SECOND in reads(policy):
        who = ", ".join(knob.name for knob in policy.space.knobs if SECOND in getattr(knob, "needs", ()))
        raise DecodingError(
            f"inputs_embeds hides the token ids of the prompt, and {who} compares with the response after its last token. "
            f"Pass input_ids, or leave {who} out of the space."
        )


def carries_nothing(policy: Policy) -> bool:
    """Whether every token is chosen for by itself, so that nothing has to follow its row."""
    return policy.segmenter.is_token_level and not remembers(policy)


def refuse_beams_without_cache(policy: Policy, use_cache: bool) -> None:
    """DecodingError if a policy carries anything along beams that have no cache: its reordering says where rows go."""
    if not use_cache and not carries_nothing(policy):
        raise DecodingError(
            f"Beam search without a cache cannot carry {carried(policy)} from token to token. "
            "Use use_cache=True, or an adapter of level 'token'."
        )


def refuse_nested(is_running: bool) -> None:
    """DecodingError if a `generate` of this model is running in this thread."""
    if is_running:
        raise DecodingError(
            "generate was called on the attached model while it was generating: by a criterion, a processor or a streamer, or "
            "because it is its own assistant_model. Call it afterwards, or draft with another copy of the model."
        )


def refuse_dropped_cache(model: Any) -> None:
    """DecodingError if gradient checkpointing, in training mode, would drop the cache inside the layers."""
    if model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise DecodingError(
            "The model is in training mode with gradient checkpointing, which drops the key-value cache that generate relies on. "
            "Call model.eval() first, or generate(use_cache=False)."
        )


def carried(policy: Policy) -> str:
    """What a policy carries from token to token, in words."""
    return f"what {type(policy).__name__} remembers" if remembers(policy) else f"level {policy.segmenter.level!r}"


def samples_plainly(config: Any, processors: Any) -> bool:
    """Whether `generate`, with the config that it prepared and these logits processors, would only draw a token from each row."""
    from transformers.generation.configuration_utils import GenerationMode

    wants_scores = config.return_dict_in_generate and (config.output_scores or config.output_logits)
    return config.get_generation_mode() == GenerationMode.SAMPLE and len(processors) == 0 and not wants_scores

"""`attach`: make `model.generate(...)` decode with a policy, without replacing anything inside the model.

Two hooks: one reads the hidden state at the output embeddings, one rewrites the logits that the model returns. `generate`
keeps its loop, its cache, its stopping rules. What this file adds is bookkeeping: which column of the sequence a row of
logits belongs to, so that segments keep their option, and a generation config that changes nothing on top of the policy.

Where `generate` would only draw a token from the logits (no beams, no drafts, no logits processors, no scores asked for),
the hook draws it with the per-row sampler and marks it with an infinite logit: faster, and reproducible by (seed, row,
position) whatever the batch. Everywhere else the hook returns the logits of the chosen options.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from latentknobs.engines.transformers.caches import cache_in
from latentknobs.engines.transformers.frozen import output_embeddings
from latentknobs.engines.transformers.ledger import Ledger
from latentknobs.engines.transformers.modes import NEUTRAL as NEUTRAL
from latentknobs.engines.transformers.modes import (
    Sampler,
    begins_at,
    needs_of,
    neutral,
    refuse_batching,
    refuse_beams_without_cache,
    refuse_second,
    refuse_settings,
    samples_plainly,
    setting,
)
from latentknobs.engines.transformers.record import Record, policy_logits, read_record
from latentknobs.engines.transformers.step import Stepper
from latentknobs.engines.transformers.uniforms import REDRAWS, uniforms
from latentknobs.errors import DecodingError
from latentknobs.knobs.context import Context
from latentknobs.policies import Policy

# Removed tokens get this offset instead of -inf: a later processor (min_new_tokens, suppress_tokens) may remove every
# kept token of a row, and softmax needs a finite number then. exp(-1e4) is 0 in float32.
REMOVED = -1e4
UNSEEN = -1  # id of a token that came as an embedding
WRAPPED = ("generate", "_get_logits_processor", "init_continuous_batching")


class Attached:
    """A policy at work on a model, until `detach()` or the end of the `with` block.

    Args:
        model: a transformers causal LM.
        policy: who chooses.
        seed: decides which options are drawn when the policy samples them, and which tokens with the own sampler.
        sampler: "own" draws tokens in the hook where `generate` would only draw one token per row from the logits;
            "transformers" always leaves that to `generate` and its global random state.

    Attributes:
        rows: (B,) ids that stand for the rows in the uniforms, one per response (per prompt in a beam search); None counts
            the rows of each batch. Set it to keep a request's text the same whatever batch it is put in.

    Raises:
        DecodingError: the model already has a policy attached.
    """

    rows: Tensor | None = None

    def __init__(self, model: Any, policy: Policy, seed: int = 0, sampler: Sampler = "own") -> None:
        if getattr(model, "_latentknobs", None) is not None:
            raise DecodingError("This model already has a policy attached. Call detach() on it first, or leave its `with`.")
        embeddings = output_embeddings(model)
        self.model, self.policy, self.seed, self.sampler = model, policy, seed, sampler
        self._stepper = Stepper(policy)
        self._hidden: Tensor | None = None
        self._in_generate = False
        self._paused = False
        self._ledger: Ledger | None = None
        self._kept: Ledger | None = None  # what the next call of `generate` goes on with
        self._copies = 1  # sequences returned per request, where they share its uniforms
        self._config = model.generation_config
        self._originals: dict[str, Callable[..., Any]] = {n: getattr(model, n) for n in WRAPPED if hasattr(model, n)}
        self._hooks = [
            embeddings.register_forward_pre_hook(torch.compiler.disable(self._tap)),
            model.register_forward_hook(torch.compiler.disable(self._rewrite), with_kwargs=True),
        ]
        model.generation_config = neutral(self._config)
        model.generate = self._checked_generate
        for name, wrapper in (("_get_logits_processor", self._processors), ("init_continuous_batching", self._batching)):
            if name in self._originals:
                setattr(model, name, wrapper)
        model._latentknobs = self

    def detach(self) -> None:
        """Gives the model back exactly as it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if getattr(self.model, "_latentknobs", None) is self:
            self.model.generation_config = self._config
            for name in (*self._originals, "_latentknobs"):
                delattr(self.model, name)

    def __enter__(self) -> "Attached":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.detach()

    @property
    def option_BT(self) -> Tensor:
        """(B, T) options of the newest `generate` call, response tokens only; beyond a row's end they mean nothing."""
        ledger = self._ledger
        if ledger is None or ledger.option_BL is None:
            raise DecodingError("Nothing was generated yet: call model.generate(...) before reading the options.")
        if not ledger.is_plain:
            raise DecodingError("The rows of a beam search are not the sequences it returns. Read them back with record(...).")
        return ledger.option_BL[:, ledger.prompt_length : ledger.columns]

    @property
    def is_sampling(self) -> bool:
        """Whether the hook draws the tokens of the `generate` that is running."""
        return self._ledger is not None and self._ledger.sampling

    @property
    def cache(self) -> Any:
        """The key-value cache of the `generate` that is running; None where there is none or it is of another kind."""
        return None if self._ledger is None else self._ledger.cache

    def go_on(self, row_R: Tensor) -> None:
        """The next `generate` goes on with rows (R) of the newest one: their prompts, options and uniforms.

        It is to be given their ids so far, the mask of all columns, and their part of the cache, as `leaving` does.
        """
        if self._ledger is None:
            raise DecodingError("Nothing was generated yet: call model.generate(...) before going on with some of its rows.")
        self._kept = self._ledger.of_rows(row_R)

    def record(self, sequences: Tensor, prompt_length: int, attention_mask: Tensor | None = None) -> Record:
        """What was chosen for each token of finished sequences, recomputed from the ids alone (see `Record`).

        Args:
            sequences: (B, L) what `generate` returned.
            prompt_length: columns of the prompt in it (`inputs["input_ids"].shape[1]`).
            attention_mask: (B, prompt_length) of the prompt, when rows are padded on the left.
        """
        rows_B = torch.arange(len(sequences)) // self._copies
        rows_B = rows_B if self.rows is None else self.rows.cpu()[rows_B]
        self._paused = True
        try:
            return read_record(self.model, self.policy, self.seed, sequences, prompt_length, attention_mask, rows_B)
        finally:
            self._paused = False

    def _checked_generate(self, *args: Any, **kwargs: Any) -> Any:
        ledger, self._kept = self._kept, None
        refuse_settings(kwargs, self.policy)
        refuse_second(kwargs, self.policy)
        if len(args) > 2:
            raise DecodingError("generate(...) with a policy attached takes at most inputs and generation_config by position.")
        config = kwargs.pop("generation_config", args[1] if len(args) > 1 else None)
        args = args[:1]
        own = (config, self.model.generation_config)
        beams = int(setting("num_beams", kwargs, own, 1))
        if beams > 1:
            refuse_beams_without_cache(self.policy, bool(setting("use_cache", kwargs, own, True)))
        given = (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), kwargs.get("inputs"), *args)
        prompt = next((p for p in given if p is not None), None)
        if ledger is None:
            ledger = Ledger(1 if prompt is None else prompt.shape[1], beams, kwargs.get("attention_mask"), self.rows)
            ledger.is_plain, ledger.is_one_call = beams == 1, True
            ledger.prompt_BP = None if prompt is None or prompt.is_floating_point() else prompt
        self._ledger = ledger
        self._copies = int(setting("num_return_sequences", kwargs, own, 1)) if beams > 1 else 1
        drafts = kwargs.get("assistant_model") is not None or kwargs.get("custom_generate") is not None
        self._in_generate, self._may_sample = True, self.sampler == "own" and not drafts
        self._stepper.begin()
        try:
            return self._originals["generate"](*args, generation_config=None if config is None else neutral(config), **kwargs)
        finally:
            self._stepper.end()
            ledger.sampling = self._in_generate = False
            ledger.second = ledger.cache = None  # their memory
            ledger.release()

    def _processors(self, *args: Any, **kwargs: Any) -> Any:
        """`generate` asks for its logits processors just before its loop: the moment to see whether it needs logits."""
        processors = self._originals["_get_logits_processor"](*args, **kwargs)
        config = kwargs.get("generation_config", args[0] if args else None)
        if self._in_generate and self._may_sample and config is not None and samples_plainly(config, processors):
            assert self._ledger is not None
            self._ledger.sampling = True
            config.do_sample = False  # `generate`'s own copy: argmax finds the token that the hook has marked
        return processors

    def _batching(self, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        refuse_batching(self.policy)
        config = None if generation_config is None else neutral(generation_config)
        return self._originals["init_continuous_batching"](config, *args, **kwargs)

    def _tap(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        self._hidden = args[0]

    def _rewrite(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        ids_BS = kwargs.get("input_ids", args[0] if args else None)
        if ids_BS is None and kwargs.get("inputs_embeds") is not None:
            ids_BS = torch.full(kwargs["inputs_embeds"].shape[:2], UNSEEN, device=output.logits.device)
        if self._paused or ids_BS is None or kwargs.get("labels") is not None:
            return output
        if kwargs.get("inputs_embeds") is not None:
            refuse_second(kwargs, self.policy)
        assert self._hidden is not None
        # with a device map the last layers may live elsewhere than where logits come back
        hidden_BSD, logits_BSV = self._hidden.to(output.logits.device), output.logits
        if "cu_seq_lens_q" in kwargs and "cache" in kwargs:  # continuous batching: every token of the row for itself
            output.logits = self._packed(hidden_BSD, logits_BSV)
            return output
        width, kept = ids_BS.shape[1], logits_BSV.shape[1]
        ledger, cache = self._ledger or Ledger(width), cache_in(kwargs)
        first = ledger.before(kwargs, width)
        if not self._in_generate and first == 0:
            ledger = Ledger(width)
        self._ledger = ledger
        ledger.cache = cache if self._in_generate else None
        if cache is not None and not ledger.is_plain:
            ledger.follow(cache)
        columns = range(first + width - kept, first + width)
        contexts = ledger.contexts(self._bare, needs_of(self.policy), first, columns, ids_BS)
        rewritten = [
            self._column(ledger, column, ids_BS[:, s - kept], hidden_BSD[:, s - kept], logits_BSV[:, s], context)
            for s, (column, context) in enumerate(zip(columns, contexts, strict=True))
        ]
        if not ledger.sampling:  # otherwise tokens are marked in place, and a copy of the logits would be all the cost
            output.logits = torch.stack(rewritten, 1)
        return output

    def _packed(self, hidden_1SD: Tensor, logits_1SV: Tensor) -> Tensor:
        hidden_SD, logits_SV = hidden_1SD[0, -logits_1SV.shape[1] :], logits_1SV[0]
        option_S = self.policy.log_pi(hidden_SD, logits_SV).argmax(-1)
        return _lowered(self.policy.warp(logits_SV, option_S), logits_SV).unsqueeze(0)

    def _bare(self, **inputs: Any) -> Any:
        """The model's own output, as if no policy were attached."""
        self._paused = True
        try:
            return self.model(**inputs)
        finally:
            self._paused = False

    def _column(
        self,
        ledger: Ledger,
        column: int,
        previous_B: Tensor,
        hidden_BD: Tensor,
        logits_BV: Tensor,
        context: Context | None,
    ) -> Tensor:
        """Logits of the token at `column + 1`, after the option of its segment; columns inside the prompt are untouched."""
        position = column + 1 - ledger.prompt_length
        if position < 0:
            return logits_BV
        rows, device, step = len(logits_BV), logits_BV.device, self._stepper
        uniform_2B = ledger.uniforms(self.seed, position, rows, device)
        option_B, fresh = ledger.option_at(column, rows, device), begins_at(self.policy, position, previous_B)
        if not ledger.sampling:
            option_B = step.choose(hidden_BD, logits_BV, uniform_2B, option_B, fresh)
            ledger.remember(column + 1, option_B)
            return _lowered(policy_logits(self.policy, logits_BV, option_B, context), logits_BV)

        def again(rows_R: Tensor) -> Tensor:
            key_R = ledger.keys(rows, device)[rows_R]
            return uniforms(self.seed, REDRAWS, key_R, torch.full_like(key_R, position))

        option_B, token_B = step.sample(hidden_BD, logits_BV, uniform_2B, option_B, fresh, context, again)
        ledger.remember(column + 1, option_B)
        return logits_BV.scatter_(-1, token_B.unsqueeze(-1), torch.inf)


def _lowered(warped_BV: Tensor, logits_BV: Tensor) -> Tensor:
    """Warped logits with a finite number instead of -inf.

    It lies far below the best kept token, so that neither the scale nor the offset of the logits can lift removed tokens,
    and removed tokens keep their order.
    """
    floor_BV = warped_BV.amax(-1, keepdim=True) + REMOVED + (logits_BV - logits_BV.amax(-1, keepdim=True))
    return torch.where(warped_BV.isneginf(), floor_BV, warped_BV)

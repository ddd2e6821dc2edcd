"""`attach`: make `model.generate(...)` decode with a policy, without replacing anything inside the model.

Two hooks: one reads the hidden state at the output embeddings, one rewrites the logits that the model returns. `generate`
keeps its loop, its cache, its stopping rules. What this file adds is bookkeeping: which column of the sequence a row of
logits belongs to, so that segments keep their option, and a generation config that changes nothing on top of the policy.

Where `generate` would only draw a token from the logits (no beams, no drafts, no logits processors, no scores),
the hook draws it with the per-row sampler and marks it with an infinite logit: faster, and reproducible by (seed, row,
position) whatever the batch. Everywhere else the hook returns the logits of the chosen options.
"""

import threading
from functools import partial
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor

from latentknobs.engines.base import observe
from latentknobs.engines.record import Record, record_of
from latentknobs.engines.transformers import inputs, modes
from latentknobs.engines.transformers.batching import check_batch, is_packed, packed_logits, refuse_batching
from latentknobs.engines.transformers.caches import cache_in
from latentknobs.engines.transformers.finished import Call
from latentknobs.engines.transformers.frozen import hidden_size, input_device, output_embeddings, read_responses
from latentknobs.engines.transformers.guests import Hook, Method
from latentknobs.engines.transformers.ledger import Ledger
from latentknobs.engines.transformers.record import split_sequences, stop_ids
from latentknobs.engines.transformers.sampler import sample_values
from latentknobs.engines.transformers.settings import SamplingArguments, check_arguments, for_call, for_model, setting
from latentknobs.engines.transformers.step import Stepper, check_values, lowered
from latentknobs.engines.transformers.verify import Running, Verifier, sequences_of
from latentknobs.engines.transformers.versions import announce_untested
from latentknobs.engines.transformers.wrappers import is_pipeline, layers_of
from latentknobs.engines.uniforms import OPTIONS, uniforms
from latentknobs.errors import DecodingError
from latentknobs.knobs.context import Observation
from latentknobs.likelihood.apply import apply_values
from latentknobs.policies import Policy, reads
from latentknobs.tensors import host_sees

EMBEDDED = -1  # id of a token that came as an embedding


class Attached:
    """A policy at work on a model, until `detach()` or the end of the `with` block.

    Calls of `generate` from several threads wait for each other. Copies and pickles of the model are the model as if nothing
    were attached.

    Args:
        model: a transformers causal LM, or a pipeline, PEFT, DDP, FSDP or compiled wrapper of one.
        policy: who chooses.
        seed: decides which options are drawn when the policy samples them, and which tokens with the own sampler.
        sampler: "own" draws tokens in the hook where `generate` would only draw one token per row from the logits;
            "transformers" always leaves that to `generate` and its global random state.
        sampling_arguments: what becomes of sampling arguments (temperature, ...) that a caller passes to `generate`: "refuse"
            raises, "override" leaves the choice to the policy and warns once, for clients that always pass them. None is
            "override" for pipelines, which add such arguments by themselves, and "refuse" for all else.

    Attributes:
        rows: (B,) ids that stand for the rows in the uniforms, one per response (per prompt in a beam search); None counts
            the rows of each batch. Set it to keep a request's text the same whatever batch it is put in.
        samples, budget: the budgets that policies read; None: `num_return_sequences`, and the longest response of the call.

    Raises:
        DecodingError: the model already has a policy attached, or is not one that policies can decode with.
    """

    rows: Tensor | list[int] | None = None
    samples: int | None = None
    budget: int | None = None

    def __init__(
        self, model: Any, policy: Policy, seed: int = 0, sampler: modes.Sampler = "own", *,
        sampling_arguments: SamplingArguments | None = None,
    ) -> None:  # fmt: skip
        inputs.check_attached(seed, sampler, sampling_arguments)
        layers = layers_of(model)
        self.model = model = layers[-1]
        if getattr(model, "_latentknobs", None) is not None:
            raise DecodingError("This model already has a policy attached. Call detach() on it first, or leave its `with`.")
        announce_untested()
        policy.space.check_width(partial(hidden_size, model))
        policy.move_to(input_device(model))
        self.policy, self.seed, self.sampler = policy, seed, sampler
        self.sampling_arguments = sampling_arguments or ("override" if is_pipeline(layers[0]) else "refuse")
        self._stepper, self._now, self._lock = Stepper(policy), Running(), threading.RLock()
        self._newest: Ledger | None = None
        self._call: Call | None = None  # the newest one
        self._packed = 0  # tokens of continuous batching that had a choice
        # Wrappers may call the model's forward without its hooks (PEFT does), so that they need the hook too.
        modules = [layer for layer in reversed(layers) if isinstance(layer, torch.nn.Module)]
        self._hooks = [
            output_embeddings(model).register_forward_pre_hook(Hook(self._tap)),
            *(module.register_forward_hook(Hook(self._rewrite), with_kwargs=True) for module in modules),
        ]
        replaced = {
            "generate": self._checked_generate,
            "_get_logits_processor": self._processors,
            "init_continuous_batching": self._batching,
            "generate_batch": self._batch,
        }
        self._methods = {name: Method(model, name, call) for name, call in replaced.items() if hasattr(model, name)}
        model._latentknobs = self

    def detach(self) -> None:
        """Gives the model back exactly as it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if getattr(self.model, "_latentknobs", None) is self:
            for method in self._methods.values():
                method.remove()
            del self.model._latentknobs

    def __reduce__(self) -> Any:
        return type(None), ()

    def __enter__(self) -> "Attached":
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    @property
    def value_BTJ(self) -> Tensor:
        """(B, T, J) values of the newest `generate` call, response tokens only; beyond a row's end they mean nothing."""
        ledger = self._finished()
        return cast(Tensor, ledger.value_BLJ)[:, ledger.prompt_length : ledger.columns]

    @property
    def option_BT(self) -> Tensor:
        """(B, T) options of the newest `generate` call, where the policy chooses among options."""
        ledger = self._finished()
        if ledger.option_BL is None:
            raise DecodingError(
                f"The policy {type(self.policy).__name__} does not choose among options. Read its values from value_BTJ."
            )
        return ledger.option_BL[:, ledger.prompt_length : ledger.columns]

    def _finished(self) -> Ledger:
        ledger = self._newest
        if ledger is None or ledger.value_BLJ is None:
            raise DecodingError("Nothing was generated yet: call model.generate(...) before reading the options.")
        if not ledger.is_plain:
            raise DecodingError("The rows of a beam search are not the sequences it returns. Read them back with record(...).")
        return ledger

    @property
    def ledger(self) -> Ledger | None:
        """What the newest `generate` of this thread has chosen so far, and its cache while it is running."""
        return self._now.ledger

    def go_on(self, row_R: Tensor) -> None:
        """The next `generate` goes on with rows (R) of the newest one: their prompts, options and uniforms.

        Pass their ids so far, the mask of all columns, and their part of the cache, as `leaving` does.
        """
        if self._now.ledger is None:
            raise DecodingError("Nothing was generated yet: call model.generate(...) before going on with some of its rows.")
        self._now.kept = self._now.ledger.of_rows(row_R)

    def record(
        self, sequences: Tensor, prompt_length: int, attention_mask: Tensor | None = None,
        negative_prompt_ids: Tensor | None = None, negative_prompt_attention_mask: Tensor | None = None,
    ) -> Record:  # fmt: skip
        """What was chosen for each token of finished sequences, recomputed from the ids alone (see `Record`).

        Args:
            sequences: (B, L) what `generate` returned.
            prompt_length: columns of the prompt in it (`inputs["input_ids"].shape[1]`).
            attention_mask: (B, prompt_length) of the prompt, when rows are padded on the left.
            negative_prompt_ids, negative_prompt_attention_mask: (B, P) what `generate` took; not needed for its newest call.
        """
        inputs.check_sequences(self.model, sequences, prompt_length, attention_mask)
        call = self._call if self._call is not None and self._call.returned(sequences, prompt_length) else None
        if call is not None:
            call.check_recordable()
            attention_mask = call.mask_BP if attention_mask is None else attention_mask
        newest = call or self._call or Call(prompt_length, 1, None, self.samples or 1)
        rows_B = torch.arange(len(sequences)) // newest.copies
        rows_B = rows_B if self.rows is None else torch.as_tensor(self.rows).cpu()[rows_B]
        second = call.second if call is not None else None
        if negative_prompt_ids is not None:
            second = modes.check_second(negative_prompt_ids, negative_prompt_attention_mask, len(sequences))
        lengths, ignored = (None, ()) if call is None else (call.lengths, call.ignored)
        prompts, responses = split_sequences(self.model, sequences, prompt_length, attention_mask, lengths)
        with self._now.paused():
            seen = observe(
                partial(read_responses, self.model), prompts, responses, reads(self.policy),
                max_new_tokens=newest.max_new_tokens, samples=newest.samples,
                second_prompts=None if second is None else second.repeated(len(responses)).lists(),
            )  # fmt: skip
            return record_of(self.policy, self.seed, prompts, responses, seen, keys=rows_B.tolist(), ignored=ignored)

    def _checked_generate(self, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            modes.refuse_nested(self._now.verifier is not None)
            return self._generate(*args, **kwargs)

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        now, own = self._now, self.model.generation_config
        ledger, now.kept = now.kept, None
        if len(args) > 2:
            raise DecodingError("generate(...) with a policy attached takes at most inputs and generation_config by position.")
        config = for_call(kwargs.pop("generation_config", args[1] if len(args) > 1 else None))
        args, configs = args[:1], (config, neutral := for_model(own))
        counts = {name: setting(name, kwargs, configs, default) for name, default in inputs.COUNTS.items()}
        tokens, beams, copies = inputs.check_counts(counts)
        kwargs, ignored = check_arguments(kwargs, self.policy.space.names, self.sampling_arguments, beams=beams)
        modes.refuse_embeds(kwargs, self.policy)
        if has_cache := bool(setting("use_cache", kwargs, configs, True)):
            modes.refuse_dropped_cache(self.model)
        modes.refuse_beams_without_cache(self.policy, has_cache or beams == 1)
        prompt = inputs.prompt_of(self.model, kwargs, args)
        tokens = inputs.left_of(setting("max_length", kwargs, configs, None), prompt) if tokens is None else tokens
        ledger = self._ledger_of(kwargs, prompt, beams, tokens, copies) if ledger is None else ledger
        drafts = any(kwargs.get(name) is not None for name in ("assistant_model", "custom_generate"))
        drafts = drafts or setting("prompt_lookup_num_tokens", kwargs, configs, None) is not None
        self._newest = now.ledger = ledger
        before = 0 if prompt is not None and prompt.is_floating_point() else ledger.prompt_length
        copies, mask_BP = copies if beams > 1 else 1, kwargs.get("attention_mask")
        call = Call(before, copies, ledger.max_new_tokens, ledger.samples, ignored, mask_BP, second=ledger.second_prompt)
        call.may_stop = bool(kwargs.get("stopping_criteria")) or drafts or setting("max_time", kwargs, configs, None) is not None
        self._call, now.verifier = call, Verifier(call, ledger.prompt_length, ledger.is_plain and not drafts)
        now.may_sample = self.sampler == "own" and not drafts
        try:
            self.model.generation_config = neutral
            with inputs.in_our_words(now.verifier.has_begun):
                returned = self._methods["generate"].original(*args, generation_config=config, **kwargs)
        finally:
            if self.model.generation_config is neutral:
                self.model.generation_config = own
            verifier, now.verifier, ledger.sampling = now.verifier, None, False
            ledger.second = ledger.cache = None  # their memory
            ledger.release()
        if ledger.value_BLJ is not None and ledger.option_BL is None and not host_sees(ledger.value_BLJ):
            check_values(self.policy, ledger.value_BLJ[:, ledger.prompt_length : ledger.columns])  # on a CPU, at each step
        call.sequences_BL = sequences_of(returned)
        if call.sequences_BL is not None and kwargs.get("custom_generate") is None:
            verifier.end(call.sequences_BL, call.sequences_BL.shape[1] - before, ledger.columns - ledger.prompt_length)
        return returned

    def _ledger_of(self, kwargs: dict[str, Any], prompt: Tensor | None, beams: int, tokens: int | None, copies: int) -> Ledger:
        """A ledger for the sequences of one call; takes the prompts without evidence out of its arguments."""
        ledger = Ledger(self.policy, 1 if prompt is None else prompt.shape[1], beams, kwargs.get("attention_mask"), self.rows)
        ledger.max_new_tokens, ledger.samples = inputs.budgets(self.budget, self.samples, tokens, copies)
        ledger.is_plain, ledger.is_one_call = beams == 1, True
        ledger.prompt_BP = None if prompt is None or prompt.is_floating_point() else prompt
        ledger.second_prompt = modes.second_prompt(kwargs, self.policy, 1 if prompt is None else len(prompt))
        return ledger

    def _processors(self, *args: Any, **kwargs: Any) -> Any:
        """`generate` asks for its logits processors just before its loop: the moment to see whether it needs logits."""
        processors = self._methods["_get_logits_processor"].original(*args, **kwargs)
        config, now = kwargs.get("generation_config", args[0] if args else None), self._now
        if now.verifier is not None and config is not None:
            assert now.ledger is not None
            call = now.verifier.call
            call.ends = stop_ids(config)
            call.padding = [] if config.pad_token_id is None else [config.pad_token_id]
            call.may_stop |= config.stop_strings is not None
            call.processors = tuple(type(processor).__name__ for processor in processors)
            if now.may_sample and modes.samples_plainly(config, processors):
                now.ledger.sampling = True
                config.do_sample = False  # `generate`'s own copy: argmax finds the token that the hook has marked
        return processors

    def _batching(self, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        refuse_batching(self.policy)
        config = for_call(generation_config) or for_model(self.model.generation_config)
        return self._methods["init_continuous_batching"].original(config, *args, **kwargs)

    def _batch(self, *args: Any, **kwargs: Any) -> Any:
        self._packed = 0
        results = self._methods["generate_batch"].original(*args, **kwargs)
        check_batch(results, self._packed)
        return results

    def _tap(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        self._now.hidden = args[0]

    def _rewrite(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        ids_BS = kwargs.get("input_ids", args[0] if args else None)
        if ids_BS is None and kwargs.get("inputs_embeds") is not None:
            ids_BS = torch.full(kwargs["inputs_embeds"].shape[:2], EMBEDDED, device=output.logits.device)
        now = self._now
        tapped_BSD, now.hidden = now.hidden, None
        if tapped_BSD is None or now.is_paused or ids_BS is None or kwargs.get("labels") is not None:
            return output  # hidden states are taken once: a wrapper's hook runs after that of the model inside it
        modes.refuse_embeds(kwargs, self.policy)
        # with a device map the last layers may live elsewhere than where logits come back
        hidden_BSD, logits_BSV = tapped_BSD.to(output.logits.device), output.logits
        if is_packed(kwargs):
            output.logits = packed_logits(self._stepper, hidden_BSD, logits_BSV)
            self._packed += logits_BSV.shape[1]
            return output
        width, kept = ids_BS.shape[1], logits_BSV.shape[1]
        ledger, cache, verifier = now.ledger or Ledger(self.policy, width), cache_in(kwargs), now.verifier
        first = ledger.before(kwargs, width)
        if verifier is None:
            ledger = Ledger(self.policy, width) if first == 0 else ledger
        else:
            verifier.step(first + width, ids_BS[:, -1])
            verifier.call.see_mask(kwargs.get("attention_mask"), ledger.rows_per_key)
        self._newest = now.ledger = ledger
        ledger.cache = None if verifier is None else cache
        if cache is not None and not ledger.is_plain:
            ledger.follow(cache)
        columns = range(first + width - kept, first + width)
        contexts = ledger.contexts(self._bare, first, columns, ids_BS)
        ledger.forget_states(columns.start + 1)
        rewritten = []
        for s, (column, context) in enumerate(zip(columns, contexts, strict=True)):
            parts = context.parts if context else {}
            seen = Observation(hidden_ND=hidden_BSD[:, s - kept], logits_NV=logits_BSV[:, s], **parts)
            rewritten.append(self._column(ledger, column, ids_BS[:, s - kept], seen))
        if not ledger.sampling:  # otherwise tokens are marked in place, and a copy of the logits would be all the cost
            output.logits = rearrange(rewritten, "s b v -> b s v")
        return output

    def _bare(self, **inputs: Any) -> Any:
        """The model's own output, as if no policy were attached."""
        with self._now.paused():
            return self.model(**inputs)

    def _column(self, ledger: Ledger, column: int, previous_B: Tensor, seen: Observation) -> Tensor:
        """Logits of the token at `column + 1`, after the choice of its segment; columns inside the prompt are untouched."""
        position, logits_BV, space = column + 1 - ledger.prompt_length, seen.logits_NV, self.policy.space
        if position < 0:
            return logits_BV
        key_B = ledger.keys(len(logits_BV), logits_BV.device)
        position_B = torch.full_like(key_B, position)
        is_new, state = self.policy.segmenter.at(position, previous_B), ledger.state_at(column + 1, previous_B)
        uniform_B = uniforms(self.seed, OPTIONS, key_B, position_B)
        choice = self._stepper.choose(seen, uniform_B, is_new, ledger.choice_at(column, len(key_B)), state)
        ledger.remember(column + 1, choice)
        if not ledger.sampling:
            return lowered(apply_values(logits_BV, space, choice.value_NJ, seen), logits_BV)
        token_B = sample_values(logits_BV, space, choice.value_NJ, self.seed, key_B, position_B, seen)
        if self._now.verifier is not None:
            self._now.verifier.drew(token_B)
        return logits_BV.scatter_(-1, token_B.unsqueeze(-1), torch.inf)

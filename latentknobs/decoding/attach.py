"""`attach`: make `model.generate(...)` decode with a policy, without replacing anything inside the model.

Two hooks: one reads the hidden state at the output embeddings, one rewrites the logits that the model returns. `generate`
keeps its loop, its cache, its stopping rules and its sampling. What this file adds is bookkeeping: which column of the
sequence a row of logits belongs to, so that segments keep their option, and a generation config that changes nothing on
top of the policy.
"""

from collections.abc import Callable
from copy import deepcopy
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from latentknobs.decoding.frozen import output_embeddings
from latentknobs.decoding.record import Record, read_record
from latentknobs.decoding.uniforms import uniforms
from latentknobs.errors import DecodingError
from latentknobs.policies import Policy
from latentknobs.segments import Every

# Removed tokens get this offset instead of -inf: a later processor (min_new_tokens, suppress_tokens) may remove every
# kept token of a row, and softmax needs a finite number then. exp(-1e4) is 0 in float32.
REMOVED = -1e4
NEUTRAL: dict[str, Any] = {
    "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": None, "typical_p": 1.0,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "top_h": None,
}  # fmt: skip


class Attached:
    """A policy at work on a model, until `detach()` or the end of the `with` block.

    Args:
        model: a transformers causal LM.
        policy: who chooses.
        seed: decides which options are drawn when the policy samples them.

    Raises:
        DecodingError: the model already has a policy attached.
    """

    def __init__(self, model: Any, policy: Policy, seed: int = 0) -> None:
        if getattr(model, "_latentknobs", None) is not None:
            raise DecodingError("This model already has a policy attached. Call detach() on it first, or leave its `with`.")
        embeddings = output_embeddings(model)
        self.model, self.policy, self.seed = model, policy, seed
        self._hidden: Tensor | None = None
        self._prompt_length = 0
        self._columns = 0  # columns of prompt and response whose option is known
        self._in_generate = False
        self._paused = False
        self._option_BL: Tensor | None = None
        self._config = model.generation_config
        self._generate: Callable[..., Any] = model.generate
        self._hooks = [
            embeddings.register_forward_pre_hook(self._tap),
            model.register_forward_hook(self._rewrite, with_kwargs=True),
        ]
        model.generation_config = _neutral(self._config)
        model.generate = self._checked_generate
        model._latentknobs = self

    def detach(self) -> None:
        """Gives the model back exactly as it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if getattr(self.model, "_latentknobs", None) is self:
            self.model.generation_config = self._config
            del self.model.generate, self.model._latentknobs

    def __enter__(self) -> "Attached":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.detach()

    @property
    def option_BT(self) -> Tensor:
        """(B, T) options of the newest plain `generate` call, response tokens only; beyond a row's end they mean nothing."""
        if self._option_BL is None:
            raise DecodingError("Nothing was generated yet: call model.generate(...) before reading the options.")
        return self._option_BL[:, self._prompt_length : self._columns]

    def record(self, sequences: Tensor, prompt_length: int, attention_mask: Tensor | None = None) -> Record:
        """What was chosen for each token of finished sequences, recomputed from the ids alone (see `Record`).

        Args:
            sequences: (B, L) what `generate` returned.
            prompt_length: columns of the prompt in it (`inputs["input_ids"].shape[1]`).
            attention_mask: (B, prompt_length) of the prompt, when rows are padded on the left.
        """
        self._paused = True
        try:
            return read_record(self.model, self.policy, self.seed, sequences, prompt_length, attention_mask)
        finally:
            self._paused = False

    def _checked_generate(self, *args: Any, **kwargs: Any) -> Any:
        for name, neutral in NEUTRAL.items():
            if name in kwargs and name != "do_sample" and kwargs[name] not in (neutral, None):
                raise DecodingError(
                    f"generate({name}={kwargs[name]!r}) would act on top of the attached policy, which already chooses "
                    f"{', '.join(self.policy.space.names)}. Leave {name} out, or detach the policy."
                )
        if kwargs.get("inputs_embeds") is not None:
            raise DecodingError("generate(inputs_embeds=...) hides the prompt's ids from the policy. Pass input_ids instead.")
        if len(args) > 2:
            raise DecodingError("generate(...) with a policy attached takes at most inputs and generation_config by position.")
        config = kwargs.pop("generation_config", args[1] if len(args) > 1 else None)
        args = args[:1]
        beams = kwargs.get("num_beams") or getattr(config or self.model.generation_config, "num_beams", None) or 1
        if beams > 1 and self.policy.segmenter != Every(1):
            raise DecodingError(
                f"Beam search reorders rows, and level {self.policy.segmenter.level!r} keeps an option per row. "
                "Use num_beams=1, or an adapter of level 'token'."
            )
        prompt = next((p for p in (kwargs.get("input_ids"), kwargs.get("inputs"), *args) if p is not None), None)
        self._start(1 if prompt is None else prompt.shape[1])
        self._in_generate = True
        try:
            return self._generate(*args, generation_config=None if config is None else _neutral(config), **kwargs)
        finally:
            self._in_generate = False

    def _start(self, prompt_length: int) -> None:
        self._prompt_length = self._columns = prompt_length
        self._option_BL = None

    def _tap(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        self._hidden = args[0]

    def _rewrite(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        ids_BS = kwargs.get("input_ids", args[0] if args else None)
        if self._paused or ids_BS is None or kwargs.get("labels") is not None:
            return output
        first = self._columns_before(kwargs)
        if first == 0 and not self._in_generate:
            self._start(ids_BS.shape[1])
        logits_BSV, hidden_BSD = output.logits, self._hidden
        assert hidden_BSD is not None
        kept = logits_BSV.shape[1]
        columns = range(first + ids_BS.shape[1] - kept, first + ids_BS.shape[1])
        rewritten = [
            self._column(column, ids_BS[:, s - kept], hidden_BSD[:, s], logits_BSV[:, s]) for s, column in enumerate(columns)
        ]
        output.logits = torch.stack(rewritten, 1)
        return output

    def _columns_before(self, kwargs: dict[str, Any]) -> int:
        cache = kwargs.get("past_key_values")
        ids_BS = kwargs.get("input_ids")
        if cache is not None and ids_BS is not None:
            # The cache already holds this call's columns when the hook runs.
            return max(int(cache.get_seq_length()) - ids_BS.shape[1], 0)
        return 0

    def _column(self, column: int, previous_B: Tensor, hidden_BD: Tensor, logits_BV: Tensor) -> Tensor:
        """Logits of the token at `column + 1`, after the option of its segment; columns inside the prompt are untouched."""
        position = column + 1 - self._prompt_length
        if position < 0:
            return logits_BV
        rows_B = torch.arange(len(logits_BV), device=logits_BV.device)
        position_B = torch.full_like(rows_B, position)
        fresh_B = self.policy.segmenter.begins(position_B.unsqueeze(1), previous_B.unsqueeze(1)).squeeze(1)
        option_B = self._options_at(column, len(rows_B))
        if fresh_B.any():
            log_pi_BK = self.policy.log_pi(hidden_BD, logits_BV)
            drawn_B = self.policy.choose(log_pi_BK, uniforms(self.seed, 0, rows_B, position_B))
            option_B = torch.where(fresh_B, drawn_B, option_B)
        self._remember(column + 1, option_B)
        warped_BV = self.policy.warp(logits_BV, option_B)
        # Below the best kept token, so that neither the scale nor the offset of the logits can lift removed tokens.
        floor_BV = warped_BV.amax(-1, keepdim=True) + REMOVED + (logits_BV - logits_BV.amax(-1, keepdim=True))
        return torch.where(warped_BV.isneginf(), floor_BV, warped_BV)

    def _options_at(self, column: int, rows: int) -> Tensor:
        device = self._hidden.device if self._hidden is not None else None
        if self._option_BL is None:
            self._option_BL = torch.zeros(rows, column + 1, dtype=torch.long, device=device)
        return self._option_BL[:, column]

    def _remember(self, column: int, option_B: Tensor) -> None:
        assert self._option_BL is not None
        if column >= self._option_BL.shape[1]:
            more = torch.zeros(len(option_B), max(64, column), dtype=torch.long, device=option_B.device)
            self._option_BL = torch.cat([self._option_BL, more], 1)
        self._option_BL[:, column] = option_B
        self._columns = column + 1


def _neutral(config: Any) -> Any:
    """A copy of a generation config in which nothing acts on the logits after the policy."""
    neutral = deepcopy(config)
    for name, value in NEUTRAL.items():
        setattr(neutral, name, value)
    return neutral

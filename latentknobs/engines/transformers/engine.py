"""The engine of transformers: policies inside `generate`, unchanged."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from latentknobs.engines.base import Engine, Ids, Response
from latentknobs.engines.transformers import frozen
from latentknobs.engines.transformers.attach import Attached
from latentknobs.engines.transformers.leaving import sample_leaving
from latentknobs.engines.transformers.prompt_reader import PromptReader
from latentknobs.engines.transformers.record import split_sequences
from latentknobs.engines.transformers.response_reader import ResponseReader
from latentknobs.engines.transformers.second import SECOND, LeftPadded
from latentknobs.policies import Policy, reads


class TransformersEngine(Engine):
    """A transformers causal LM in this process.

    Args:
        model: the LM.
        tokenizer: writes responses as text, and names the padding.
    """

    name: ClassVar[str] = "transformers"

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._prompts = PromptReader(model)
        self._responses = ResponseReader(model, self._prompts)

    def sample(
        self, prompts: Sequence[Ids], policy: Policy, *, max_new_tokens: int, seed: int, samples: int = 1,
        second_prompts: Sequence[Ids] | None = None,
    ) -> list[Response]:  # fmt: skip
        """See `Engine.sample`. Copies of a prompt share its reading, and finished rows leave the batch, where they can."""
        pad, device = frozen.padding_id(self.model, self.tokenizer), self.device
        inputs = LeftPadded.of(prompts, pad, device)
        second = None if second_prompts is None or SECOND not in reads(policy) else LeftPadded.of(second_prompts, pad, device)
        assert inputs.mask_BP is not None
        with torch.random.fork_rng(devices=[]), frozen.evaluating(self.model):
            torch.manual_seed(seed)
            past = self._prompts.read(inputs.ids_BP, inputs.mask_BP)
            with Attached(self.model, policy, seed=seed) as attached:
                attached.samples = samples
                token_BT, value_BTJ, option_BT = sample_leaving(
                    attached, inputs, second, max_new_tokens=max_new_tokens, pad=pad, past=past
                )
        _, responses = split_sequences(self.model, token_BT, 0)
        texts = self.tokenizer.batch_decode(responses, skip_special_tokens=True)
        return [
            Response(
                tuple(row),
                tuple(map(tuple, value_BTJ[b, : len(row)].tolist())),
                None if option_BT is None else tuple(option_BT[b, : len(row)].tolist()),
                text,
            )
            for b, (row, text) in enumerate(zip(responses, texts, strict=True))
        ]

    def plain(self, prompts: Sequence[Ids], values: Mapping[str, float], *, max_new_tokens: int, seed: int) -> list[Response]:
        """See `Engine.plain`: those of `generate`."""
        own: dict[str, Any] = {"do_sample": True, "top_k": 0} | {k: int(v) if k == "top_k" else v for k, v in values.items()}
        with torch.random.fork_rng(devices=[]), frozen.evaluating(self.model):
            torch.manual_seed(seed)
            rows = [
                self.model.generate(torch.tensor([list(prompt)], device=self.device), max_new_tokens=max_new_tokens, **own)[0]
                for prompt in prompts
            ]
        ids = [tuple(row[len(prompt) :].tolist()) for row, prompt in zip(rows, prompts, strict=True)]
        return [Response(found, ((),) * len(found), None, "") for found in ids]

    def read(self, prompts: Sequence[Ids], responses: Sequence[Ids]) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Engine.read`: one forward pass over all responses, after one over their distinct prompts."""
        return self._responses.read(prompts, responses, frozen.padding_id(self.model, self.tokenizer))

    @property
    def device(self) -> torch.device:
        """Where the token ids go."""
        return frozen.input_device(self.model)

    @property
    def hidden_size(self) -> int:
        """D."""
        return frozen.hidden_size(self.model)

    @property
    def context_length(self) -> int | None:
        """From the model's config."""
        return frozen.context_length(self.model)

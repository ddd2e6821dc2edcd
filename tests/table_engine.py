"""The smallest engine: an LM that is a table of logits, from the newest token to the next. A test double of the contract."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from latentknobs.engines.base import SECOND, Engine, Ids, Response
from latentknobs.engines.transformers.sampler import sample_values
from latentknobs.engines.uniforms import OPTIONS, uniforms
from latentknobs.errors import ConfigError
from latentknobs.knobs.context import Observation
from latentknobs.policies import Choice, Policy, reads

VOCAB, END = 20, 2


class TableEngine(Engine):
    """One row at a time, one token at a time; hidden states are one-hot tokens."""

    name: ClassVar[str] = "table"
    hidden_size = VOCAB  # type: ignore[assignment]
    device = torch.device("cpu")  # type: ignore[assignment]

    def __init__(self, model: Any = None, tokenizer: Any = None) -> None:
        self.logits_VV = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0)) * 2

    def sample(
        self, prompts: Sequence[Ids], policy: Policy, *, max_new_tokens: int, seed: int, samples: int = 1,
        second_prompts: Sequence[Ids] | None = None,
    ) -> list[Response]:  # fmt: skip
        TableEngine.check_second(policy)
        return [self._row(prompt, policy, b, max_new_tokens, seed, samples) for b, prompt in enumerate(prompts)]

    def check(self, policy: Policy) -> None:
        super().check(policy)
        self.check_second(policy)

    @staticmethod
    def check_second(policy: Policy) -> None:
        if SECOND in reads(policy):
            raise ConfigError(f"The engine 'table' reads no second logits ({SECOND}). Leave out the knob that needs them.")

    def _row(self, prompt: Ids, policy: Policy, b: int, max_new_tokens: int, seed: int, samples: int) -> Response:
        ids, choices, state, choice = list(prompt), list[Choice](), policy.start(1), None
        key_1 = torch.tensor([b])
        for position in range(max_new_tokens):
            seen, position_1 = self._seen(ids, len(prompt), policy, max_new_tokens, samples), torch.tensor([position])
            fresh = policy.segmenter.begins(position_1.unsqueeze(0), torch.tensor([[ids[-1]]])).item()
            if choice is None or fresh:
                choice = policy.choose(seen, uniforms(seed, OPTIONS, key_1, position_1), state)
            token_1 = self._draw(seen, policy, choice, seed, key_1, position_1)
            state = policy.observe(token_1, state if choice.state is None else choice.state)
            choices.append(choice)
            ids.append(int(token_1))
            if ids[-1] == END:
                break
        response = tuple(ids[len(prompt) :])
        values = tuple(tuple(choice.value_NJ[0].tolist()) for choice in choices)
        options = None if choices[0].option_N is None else tuple(int(choice.option_N) for choice in choices)
        return Response(response, values, options, " ".join(map(str, response)))

    def _draw(self, seen: Observation, policy: Policy, choice: Choice, seed: int, key_1: Tensor, position_1: Tensor) -> Tensor:
        return sample_values(seen.logits_NV, policy.space, choice.value_NJ, seed, key_1, position_1, seen)

    def _seen(self, ids: list[int], width: int, policy: Policy, max_new_tokens: int, samples: int) -> Observation:
        context = Observation.of_step(torch.tensor([ids]), width).budgeted(max_new_tokens, samples, reads(policy))
        newest_1 = torch.tensor([ids[-1]])
        return Observation(
            **context.parts, hidden_ND=torch.nn.functional.one_hot(newest_1, VOCAB).float(), logits_NV=self.logits_VV[newest_1]
        )

    def read(self, prompts: Sequence[Ids], responses: Sequence[Ids]) -> Iterator[tuple[Tensor, Tensor]]:
        for prompt, response in zip(prompts, responses, strict=True):
            before_T = torch.tensor([prompt[-1], *response[:-1]])
            yield torch.nn.functional.one_hot(before_T, VOCAB).float(), self.logits_VV[before_T]

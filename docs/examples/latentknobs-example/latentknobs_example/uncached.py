"""An engine: a transformers model in a plain loop without a cache. Slow, and short enough to read."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from latentknobs import Choice, Observation, Policy
from latentknobs.engines.base import Engine, Ids, Response
from latentknobs.engines.transformers.frozen import hidden_size, input_device, read_responses
from latentknobs.engines.transformers.record import stop_ids
from latentknobs.engines.transformers.sampler import sample_values
from latentknobs.engines.uniforms import OPTIONS, uniforms
from latentknobs.policies import reads


class UncachedEngine(Engine):
    """Before every token the whole sequence is read again: what a policy sees is a reading's last row."""

    name: ClassVar[str] = "uncached"

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def sample(
        self, prompts: Sequence[Ids], policy: Policy, *, max_new_tokens: int, seed: int, samples: int = 1,
        second_prompts: Sequence[Ids] | None = None,
    ) -> list[Response]:  # fmt: skip
        rows, ends = [Row(policy, seed, n) for n in range(len(prompts))], set(stop_ids(self.model.generation_config))
        for _ in range(max_new_tokens):
            going = [row for row in rows if not row.ids or row.ids[-1] not in ends]
            observations = self.observe(
                [prompts[row.number] for row in going], [[*row.ids, 0] for row in going], reads(policy),
                max_new_tokens=max_new_tokens, samples=samples,
                second_prompts=second_prompts and [second_prompts[row.number] for row in going],
            )  # fmt: skip
            for row, seen in zip(going, list(observations) if going else [], strict=True):
                row.step(seen.rows(slice(-1, None)), row.ids[-1] if row.ids else prompts[row.number][-1])
        return [row.response(self.tokenizer) for row in rows]

    def read(self, prompts: Sequence[Ids], responses: Sequence[Ids]) -> Iterator[tuple[Tensor, Tensor]]:
        return read_responses(self.model, prompts, responses)

    @property
    def device(self) -> torch.device:
        return input_device(self.model)

    @property
    def hidden_size(self) -> int:
        return hidden_size(self.model)


class Row:
    """A response in the making: its tokens, its choices, and what the policy remembers."""

    def __init__(self, policy: Policy, seed: int, number: int) -> None:
        self.policy, self.seed, self.number = policy, seed, number
        self.state, self.ids, self.choices = policy.start(1), list[int](), list[Choice]()

    def step(self, seen: Observation, newest: int) -> None:
        place = (torch.tensor([self.number]), torch.tensor([len(self.ids)]))  # keys of the uniforms
        found = self.policy.choose(seen, uniforms(self.seed, OPTIONS, *place), self.state)
        begins = not self.ids or bool(self.policy.segmenter.at(len(self.ids), torch.tensor([newest])))
        self.choices.append(found if begins else self.choices[-1])
        token_1 = sample_values(seen.logits_NV, self.policy.space, self.choices[-1].value_NJ, self.seed, *place, seen)
        self.state = self.policy.observe(token_1, self.state if found.state is None else found.state)
        self.ids.append(int(token_1))

    def response(self, tokenizer: Any) -> Response:
        values = tuple(tuple(choice.value_NJ[0].tolist()) for choice in self.choices)
        options = [choice.option_N for choice in self.choices]
        text = tokenizer.decode(self.ids, skip_special_tokens=True)
        return Response(tuple(self.ids), values, None if options[0] is None else tuple(map(int, options)), text)

"""A client of the package `openai` whose requests carry what a policy chose for their prompts."""

import asyncio
from collections.abc import Mapping
from functools import partial
from threading import Lock
from types import SimpleNamespace
from typing import Any

from latentknobs.engines.base import is_one_choice
from latentknobs.engines.openai.choosing import choose, reads_nothing
from latentknobs.engines.openai.profiles import profile_of
from latentknobs.engines.openai.server import package
from latentknobs.engines.transformers.engine import TransformersEngine
from latentknobs.errors import ConfigError
from latentknobs.policies import Policy


class Client:
    """Wraps `openai.OpenAI` or `openai.AsyncOpenAI`, whose `completions.create` and `chat.completions.create` it has.

    >>> client = Client(OpenAI(base_url="http://localhost:8000/v1"), adapter.policy(), model=lm, tokenizer=tokenizer)
    >>> answer = client.chat.completions.create(model="my-model", messages=[{"role": "user", "content": "2 + 3 ="}])

    Each answer, streams included, has the chosen values in its attribute `latentknobs`, e.g. `{"temperature": 0.2}`.

    Args:
        client: where requests go.
        policy: with one choice for a response.
        model: the served weights in this process, which read the prompt; not needed by constants and mixtures.
        tokenizer: of the model; its chat template must be the server's.
        profile: which fields the server takes (`profiles`).
        seed: of policies that draw; the call's own `seed` wins, and each further call without one draws anew.

    Raises:
        ConfigError: the policy is one that such a server cannot run, or reads prompts and has no model for it.
    """

    def __init__(
        self, client: Any, policy: Policy, *, model: Any = None, tokenizer: Any = None, profile: str = "vllm", seed: int = 0
    ) -> None:
        if not is_one_choice(policy):
            raise ConfigError(
                f"A request carries one choice for its whole response, and {type(policy).__name__} chooses at level "
                f"{policy.segmenter.level!r}. Use a policy of level 'sequence', or `latentknobs serve`."
            )
        if not reads_nothing(policy) and (model is None or tokenizer is None):
            raise ConfigError(f"{type(policy).__name__} reads the prompt with the model. Pass model= and tokenizer=.")
        self.policy, self.profile, self.seed, self.tokenizer = policy, profile_of(profile), seed, tokenizer
        self.profile.check(policy)
        self._reader = None if model is None else TransformersEngine(model, tokenizer)
        self._calls, self._lock, self._is_async = 0, Lock(), isinstance(client, package().AsyncOpenAI)
        self.completions = SimpleNamespace(create=partial(self._create, client.completions.create, "prompt"))
        chat = SimpleNamespace(create=partial(self._create, client.chat.completions.create, "messages"))
        self.chat = SimpleNamespace(completions=chat)

    def choose(
        self, prompt: Any, *, max_tokens: int | None = None, seed: int | None = None, samples: int = 1
    ) -> dict[str, float]:
        """The values for a response to a prompt: text, token ids, or messages.

        Args:
            max_tokens, samples: for policies that read budgets.
            seed: of a policy that draws.
        """
        ids = [0] if reads_nothing(self.policy) else self._ids(prompt)
        with self._lock:  # readings of one model do not mix
            row, self._calls = (self._calls, self._calls + 1) if seed is None else (0, self._calls)
            [choice] = choose(
                self._reader.read if self._reader else None, self.policy, [ids], [row], seed=self.seed if seed is None else seed,
                max_new_tokens=max_tokens, samples=samples,
            )  # fmt: skip
        return dict(zip(self.policy.space.names, choice.value_NJ[0].tolist(), strict=True))

    def _ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt)["input_ids"])
        if prompt and all(isinstance(one, Mapping) for one in prompt):
            return list(self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])
        if prompt and all(isinstance(one, int) for one in prompt):
            return list(prompt)
        raise ConfigError(f"The prompt {str(prompt)[:80]!r} is not one text, one list of token ids, or one list of messages.")

    def request(self, where: str, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
        """The arguments of a call with the chosen values among them, and these values.

        ConfigError if the call sets a sampling field itself, or wants several responses that would share a draw.
        """
        extra = dict(arguments.get("extra_body") or {})
        passed = {**arguments, **extra}
        for name, neutral in self.profile.neutral.items():
            if passed.get(name) not in (None, neutral):
                raise ConfigError(
                    f"{name}={passed[name]!r} would act on top of the policy, which chooses "
                    f"{', '.join(self.policy.space.names)}. Leave {name} out."
                )
        samples = passed.get("n") or 1
        if samples > 1 and self.policy.draws:
            raise ConfigError(f"n={samples} responses of one request would share what the policy draws. Send {samples} requests.")
        budget = passed.get("max_completion_tokens") or passed.get("max_tokens")
        values = self.choose(arguments[where], max_tokens=budget, seed=passed.get("seed"), samples=samples)
        body = self.profile.body(self.policy.space, tuple(values.values()))
        return {name: one for name, one in arguments.items() if name not in body} | {"extra_body": extra | body}, values

    def _create(self, create: Any, where: str, /, **arguments: Any) -> Any:
        """As the client's own `create`; with an async client a coroutine."""
        if where not in arguments:
            raise ConfigError(f"create() needs {where}=.")
        if self._is_async:
            return self._later(create, where, arguments)
        sent, values = self.request(where, arguments)
        return _with(create(**sent), values)

    async def _later(self, create: Any, where: str, arguments: Mapping[str, Any]) -> Any:
        sent, values = await asyncio.to_thread(self.request, where, arguments)
        return _with(await create(**sent), values)


def _with(answer: Any, values: dict[str, float]) -> Any:
    answer.latentknobs = values
    return answer

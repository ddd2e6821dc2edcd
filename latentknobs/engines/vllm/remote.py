"""The engine `serve`: rollouts by a server that `latentknobs serve` started, token by token, with policies that it knows."""

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar

from latentknobs.engines.base import Ids, Response
from latentknobs.engines.openai.engine import OpenAIEngine
from latentknobs.engines.vllm.engine import response_of
from latentknobs.errors import ConfigError, EngineError
from latentknobs.policies import Policy


class ServeEngine(OpenAIEngine):
    """A server of `latentknobs serve`, which runs a policy by itself: what is sampled from must be among its adapters.

    Args:
        model, tokenizer: the same weights in this process, which read responses for features.
        url: e.g. `http://localhost:8000`.
        served, concurrency, retries, timeout: see `OpenAIEngine`.
    """

    name: ClassVar[str] = "serve"
    token_level: ClassVar[bool] = True

    def __init__(
        self, model: Any, tokenizer: Any, *, url: str, served: str = "", concurrency: int = 64, retries: int = 8,
        timeout: float = 600.0,
    ) -> None:  # fmt: skip
        super().__init__(
            model, tokenizer, url=url, profile="vllm", served=served, concurrency=concurrency, retries=retries, timeout=timeout
        )
        self.logps = "drawn"

    @cached_property
    def known(self) -> dict[str, tuple[str, str]]:
        """Name and pick of each policy of the server, by identity."""
        try:
            found: dict[str, Any] = self.server.call("get", "/latentknobs/policies")
        except EngineError as error:
            if "status 404" not in str(error):
                raise
            raise EngineError(
                f"The server at {self.server.url} was not started by `latentknobs serve`. Start it so, or use "
                f"engine='vllm:{self.server.url}', which samples from policies of level 'sequence'."
            ) from None
        return {
            identity: (name, pick if one["picks"] else "")
            for name, one in found.items()
            for pick, identity in one["identity"].items()
        }

    def check(self, policy: Policy) -> None:
        """Refuses a policy that the server does not have: a ConfigError names those that it has."""
        if policy.identity() not in self.known:
            names = ", ".join(sorted({name for name, _ in self.known.values()}))
            raise ConfigError(
                f"The server at {self.server.url} does not have this {type(policy).__name__} of {policy.space!r}, level "
                f"{policy.segmenter.level!r}. It has: {names}. Start it again with --adapter NAME=FOLDER (or a policy's name and "
                "settings), or use engine='vllm', which takes any policy."
            )

    def stream(
        self, prompts: Sequence[Ids], policy: Policy, *, max_new_tokens: int, seed: int, samples: int = 1,
        second_prompts: Sequence[Ids] | None = None, skip: Collection[int] = (),
    ) -> Iterator[tuple[int, Response]]:  # fmt: skip
        """See `Engine.stream`. Choices are fetched as each response ends."""
        self.check(policy)
        name, pick = self.known[policy.identity()]
        rows = [row for row in range(len(prompts)) if row not in skip]
        common = {"latentknobs": name, "latentknobs_seed": seed, "latentknobs_samples": samples}

        def ask(n: int) -> Response:
            key = f"{id(self)} {seed} {rows[n]}"
            fields = common | {"latentknobs_row": rows[n], "latentknobs_key": key} | ({"latentknobs_pick": pick} if pick else {})
            answer = self._ask(prompts[rows[n]], {"vllm_xargs": fields}, max_new_tokens)
            [trace] = self.server.call("post", "/latentknobs/choices", {"keys": [key]})["choices"]
            return response_of(answer.ids, trace, self.tokenizer.decode(answer.ids, skip_special_tokens=True))

        yield from ((rows[n], response) for n, response in self._concurrently(len(rows), ask))

"""The engine `openai`: rollouts by a server, with one choice for each response. Readings stay with transformers."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from operator import itemgetter
from typing import Any, ClassVar, TypeVar

import torch

from latentknobs.engines.base import Ids, Response
from latentknobs.engines.openai.choosing import choose
from latentknobs.engines.openai.probe import Probe
from latentknobs.engines.openai.profiles import profile_of
from latentknobs.engines.openai.server import Answer, Server
from latentknobs.engines.served import ServedEngine
from latentknobs.engines.transformers.record import stop_ids
from latentknobs.engines.uniforms import TOKENS, uniforms
from latentknobs.errors import ConfigError, EngineError
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import Choice, Policy
from latentknobs.progress import say

T = TypeVar("T")
HARMLESS = ("url", "concurrency", "retries", "timeout", "probe")  # settings that change no text
PROBES, TRIAL = 3, 16  # prompts, and tokens of each response to them


class OpenAIEngine(ServedEngine):
    """A server of the model, on any machine.

    Args:
        model, tokenizer: the same weights in this process: they read prompts for the policy, and responses for features.
        url: e.g. `http://localhost:8000`.
        profile: which fields it takes (`profiles`).
        served: the name under which it serves the model, where it serves several.
        concurrency: most requests at a time.
        retries: times that a request is sent again which failed for now, with back-off.
        timeout: seconds to wait for an answer.
        seeded: whether each request carries a seed of its own.
        probe: whether to find out, before the first rollout, that it heeds every field.
    """

    name: ClassVar[str] = "openai"
    token_level: ClassVar[bool] = False

    def __init__(
        self, model: Any, tokenizer: Any, *, url: str, profile: str = "openai", served: str = "", concurrency: int = 64,
        retries: int = 8, timeout: float = 600.0, seeded: bool = True, probe: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(model, tokenizer)
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"url={url!r} is not the address of a server. Write e.g. openai:url=http://localhost:8000.")
        if concurrency < 1:
            raise ConfigError(f"concurrency={concurrency} leaves no request at a time. Set it to at least 1.")
        self.profile, self.seeded, self.concurrency = profile_of(profile), seeded, concurrency
        self.stops = stop_ids(model.generation_config)
        self.server = Server(url, self.profile, served, retries, timeout)
        self.repeatable = seeded and (self.profile.is_steady or concurrency == 1)  # type: ignore[misc]
        self._unprobed = probe
        self._probed: set[str] = set()

    @property
    def identity(self) -> str:
        """The profile and whatever else may change a text; not where the server is."""
        head, *settings = self.spec.split(",")
        name, _, first = head.partition(":")
        kept = [item for item in (first, *settings) if item.partition("=")[0].strip() not in HARMLESS]
        return f"{name}:{','.join(sorted(kept))}"

    def check(self, policy: Policy) -> None:
        """See `Engine.check`: also knobs, order and options that the profile cannot express."""
        super().check(policy)
        self.profile.check(policy)

    def sample(
        self, prompts: Sequence[Ids], policy: Policy, *, max_new_tokens: int, seed: int, samples: int = 1,
        second_prompts: Sequence[Ids] | None = None,
    ) -> list[Response]:  # fmt: skip
        """See `Engine.sample`."""
        found = self.stream(
            prompts, policy, max_new_tokens=max_new_tokens, seed=seed, samples=samples, second_prompts=second_prompts
        )
        return [response for _, response in sorted(found, key=itemgetter(0))]

    def stream(
        self, prompts: Sequence[Ids], policy: Policy, *, max_new_tokens: int, seed: int, samples: int = 1,
        second_prompts: Sequence[Ids] | None = None, skip: Collection[int] = (),
    ) -> Iterator[tuple[int, Response]]:  # fmt: skip
        """See `Engine.stream`. After a request that fails for good, the requests under way are still awaited.

        Raises:
            ConfigError: the policy is one that the server cannot run.
            EngineError: the server is away, refuses a request, or ignores a field.
        """
        self.check(policy)
        rows = [row for row in range(len(prompts)) if row not in skip]
        mine = [prompts[row] for row in rows]
        self._probe(mine, policy.space.names)
        seconds = None if second_prompts is None else [second_prompts[row] for row in rows]
        choices = choose(
            self.read, policy, mine, rows, seed=seed, max_new_tokens=max_new_tokens, samples=samples, second_prompts=seconds
        )
        bodies = [self.profile.body(policy.space, _values(choice)) for choice in choices]
        seeds = [self._seed(seed, row) for row in rows]
        retokenized = 0
        for n, answer in self._concurrently(len(rows), lambda n: self._ask(mine[n], bodies[n] | seeds[n], max_new_tokens)):
            retokenized += answer.is_retokenized
            yield rows[n], self._response(answer, policy.space, choices[n])
        if retokenized:
            say(f"{retokenized} of {len(rows)} responses have other tokens than the server drew: it returns texts, not ids")

    def _concurrently(self, count: int, send: Callable[[int], T]) -> Iterator[tuple[int, T]]:
        """What `send` returns for each of 0, 1, ... `count` - 1, as it comes; the first error is raised after all others."""
        failure: EngineError | None = None
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            futures = {pool.submit(send, n): n for n in range(count)}
            pending = set(futures)
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    try:
                        found = future.result()
                    except EngineError as error:
                        failure = failure or error
                        pending = {one for one in pending if not one.cancel()}  # those under way cannot be cancelled
                        continue
                    yield futures[future], found
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if failure:
            raise failure

    def plain(self, prompts: Sequence[Ids], values: Mapping[str, float], *, max_new_tokens: int, seed: int) -> list[Response]:
        """See `Engine.plain`: the fields, written as they are, one request after the other."""
        space = KnobSpace.of(*({name: [value]} for name, value in values.items()), order=self.profile.order or "transformers")
        body = self.profile.body(space, tuple(space.options[0].values()))
        found = [self._ask(prompt, body | self._seed(seed, row), max_new_tokens) for row, prompt in enumerate(prompts)]
        return [Response(one.ids, ((),) * len(one.ids), None, "", one.logps) for one in found]

    def close(self) -> None:
        """Closes the connections, those of requests under way too."""
        if "client" in vars(self.server):
            self.server.client.close()

    def _ask(self, prompt: Ids, body: Mapping[str, Any], tokens: int) -> Answer:
        return self.server.complete(prompt, self.tokenizer, self.stops, tokens, body)

    def _seed(self, seed: int, row: int) -> dict[str, int]:
        """A seed of the row's own: requests that share one would share their draws."""
        if not self.seeded:
            return {}
        return {"seed": int(uniforms(seed, TOKENS, torch.tensor([row]), torch.tensor([0])) * 2**31)}

    def _response(self, answer: Answer, space: KnobSpace, choice: Choice) -> Response:
        tokens, values, logps = len(answer.ids), _values(choice), answer.logps
        options = None if choice.option_N is None else (int(choice.option_N),) * tokens
        text = self.tokenizer.decode(answer.ids, skip_special_tokens=True)
        if self.logps == "drawn" and dict(zip(space.names, values, strict=True)).get("temperature") == 0:
            logps = (0.0,) * tokens  # servers report another distribution there
        return Response(answer.ids, (values,) * tokens, options, text, logps)

    def _probe(self, prompts: Sequence[Ids], knobs: Sequence[str]) -> None:
        """Once for each knob."""
        new = [name for name in knobs if name not in self._probed]
        if not (self._unprobed and prompts and new):
            return

        def send(prompt: Ids, body: dict[str, Any]) -> Answer:
            return self._ask(prompt, body | self._seed(0, 0), TRIAL)

        probe = Probe(self, self.profile, send, self.server.url)
        some = prompts[:: max(1, len(prompts) // PROBES)][:PROBES]
        if unknown := probe.unknown(some, new):
            say(f"{self.server.url}: whether it heeds {', '.join(unknown)} does not show in {len(some)} short responses")
        if not self._probed:
            self.logps = probe.logps(some)
        self._probed.update(new)


def _values(choice: Choice) -> tuple[float, ...]:
    values: list[float] = choice.value_NJ[0].tolist()
    return tuple(values)

"""One server: where it is, what it serves, and its answers as tokens. Requests go through the package `openai`, which retries."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from latentknobs.engines.openai.profiles import PROFILES, Profile
from latentknobs.engines.transformers.record import end_of
from latentknobs.errors import ConfigError, EngineError

KEY = "OPENAI_API_KEY"


def package() -> Any:
    """The package `openai`; ConfigError if it is not installed."""
    try:
        import openai
    except ImportError as error:
        raise ConfigError("Requests to servers need the package openai: pip install 'latentknobs[serve]'.") from error
    return openai


class Answer(NamedTuple):
    """What a server answered."""

    ids: tuple[int, ...]  # (T) tokens, the end-of-sequence token included if it came
    logps: tuple[float, ...] | None  # (T) log-probabilities (nats) that it reported; None where they do not fit the tokens
    is_retokenized: bool  # whether the tokens come from the text and are not as many as the server drew


@dataclass(frozen=True)
class Server:
    """An OpenAI-compatible server.

    Attributes:
        url: e.g. `http://localhost:8000`; `/v1` is added where a path is missing.
        profile: what it takes.
        model: the name under which it serves the model; empty where it serves one.
        retries: times that a request which failed for now (no connection, 408, 409, 429, 5xx) is sent again, with back-off.
        timeout: seconds to wait for an answer.
    """

    url: str
    profile: Profile
    model: str = ""
    retries: int = 8
    timeout: float = 600.0

    @cached_property
    def client(self) -> Any:
        """A client of the package `openai`."""
        base = self.url if urlsplit(self.url).path.strip("/") else f"{self.url.rstrip('/')}/v1"
        key = os.environ.get(KEY) or "none"
        return package().OpenAI(base_url=base, api_key=key, max_retries=self.retries, timeout=self.timeout)

    @cached_property
    def served(self) -> str:
        """The name of the served model; EngineError if the server does not answer, is of another kind, or does not serve it."""
        models = self._sent(lambda: self.client.models.list().data)
        names = [model.id for model in models]
        for model in models:
            kinds = [one.name for one in PROFILES.values() if one.owner and one.owner == model.owned_by]
            if kinds and kinds[0] != self.profile.name:
                raise EngineError(
                    f"The server at {self.url} is of profile {kinds[0]!r}, not {self.profile.name!r}. Write profile={kinds[0]}."
                )
        if (self.model and self.model not in names) or (not self.model and len(names) != 1):
            wanted = f"not {self.model!r}" if self.model else "so it must be named"
            raise EngineError(f"The server at {self.url} serves {', '.join(names) or 'nothing'}, {wanted}. Set served=NAME.")
        return self.model or names[0]

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """What a route of its own answers, e.g. `get`, `/latentknobs/policies`. Errors: see `complete`."""
        more = {} if body is None else {"body": body}
        return self._sent(lambda: getattr(self.client, method)(path, cast_to=object, **more))

    def complete(
        self, prompt: Sequence[int], tokenizer: Any, stops: Sequence[int], tokens: int, body: Mapping[str, Any]
    ) -> Answer:
        """A response of at most `tokens` tokens to a prompt; EngineError if it is refused, or does not come in several tries."""
        text = tokenizer.decode(prompt[_begins(tokenizer, prompt) :]) if self.profile.prompts == "text" else list(prompt)
        sent = {"max_tokens": tokens, **self.profile.reports, **body}
        if self.profile.stops and stops:
            sent[self.profile.stops] = list(stops)
        found = self._sent(lambda: self.client.completions.create(model=self.served, prompt=text, extra_body=sent))
        if not found.choices:
            raise EngineError(f"The server at {self.url} answered without a choice: {str(found)[:200]}.")
        usage = found.usage.completion_tokens if found.usage else None
        return self._answer(found.choices[0], tokenizer, stops, tokens, usage)

    def _answer(self, choice: Any, tokenizer: Any, stops: Sequence[int], tokens: int, usage: int | None) -> Answer:
        logprobs, ids = choice.logprobs, None
        logps = getattr(logprobs, "token_logprobs", None)
        if self.profile.ids == "token_ids":
            ids = getattr(choice, "token_ids", None)
        elif self.profile.ids == "content" and (content := getattr(logprobs, "content", None)) is not None:
            rows = [one if isinstance(one, Mapping) else one.model_dump() for one in content]
            ids, logps = [one["id"] for one in rows], [one["logprob"] for one in rows]
        if self.profile.ids and ids is None:
            raise EngineError(
                f"The server at {self.url} returned no token ids, which servers of profile {self.profile.name!r} do. Update it, "
                "or choose another profile."
            )
        ended = choice.finish_reason == "stop"
        if ids is None:
            ids = tokenizer.encode(choice.text, add_special_tokens=False)
        if ended and stops and not (ids and ids[-1] in stops):  # what ended it is not in the answer
            ids = [*ids, stops[0]]
        drawn = len(ids)
        ids = ids[: end_of(ids, set(stops))][:tokens] or list(stops[:1])
        reported = tuple(round(logp, 6) for logp in (logps or ())[: len(ids)] if logp is not None)
        is_retokenized = self.profile.ids is None and usage not in (None, drawn, drawn - ended)
        return Answer(tuple(ids), reported if len(reported) == len(ids) and not is_retokenized else None, is_retokenized)

    def _sent(self, call: Any) -> Any:
        """What a call of the package returns, its errors in our words."""
        openai = package()
        try:
            return call()
        except openai.APIConnectionError as error:  # timeouts too
            raise EngineError(
                f"The server at {self.url} does not answer ({error}). Finished responses are kept: start it, and give the same "
                "command again."
            ) from error
        except openai.AuthenticationError as error:
            raise EngineError(f"The server at {self.url} refuses the key. Set the environment variable {KEY}.") from error
        except openai.APIStatusError as error:
            raise EngineError(
                f"The server at {self.url} refused a request with status {error.status_code}: {str(error)[:300]} Finished "
                "responses are kept."
            ) from error
        except (openai.OpenAIError, ValueError) as error:
            raise EngineError(f"The server at {self.url} gave an answer that is not OpenAI's: {str(error)[:200]}.") from error


def _begins(tokenizer: Any, prompt: Sequence[int]) -> int:
    """1 where a prompt begins with the token that servers put in front of texts themselves."""
    return int(bool(prompt) and prompt[0] == tokenizer.bos_token_id)

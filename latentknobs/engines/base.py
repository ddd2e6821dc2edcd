"""The engine contract: who runs a policy on a model, and who reads finished responses with it.

Everything above the engines (rollouts, features, evaluation) knows them by this contract alone. An engine that cannot do a part
says so by name. Third parties add engines through the entry-point group `latentknobs.engines`: a class that is called with
`model` and `tokenizer`. Engines that sample in another program derive from `engines.served.ServedEngine`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from latentknobs import entry_points
from latentknobs.errors import ConfigError
from latentknobs.heads.features import HIDDEN
from latentknobs.heads.segmenters import WholeResponse
from latentknobs.knobs.context import Observation
from latentknobs.policies import ConstantPolicy, Policy

SECOND = "second_NV"
SERVERS = ("vllm", "sglang", "llama.cpp")  # kinds of servers that are named by their address
Ids = Sequence[int]


class Response(NamedTuple):
    """One sampled response of T tokens.

    Attributes:
        ids: (T) tokens, the end-of-sequence token included if it came.
        values: (T, J) knob values that each token was sampled with.
        options: (T) options that these values belong to; None where the policy does not choose among options.
        text: without special tokens.
        logps: (T) log-probability (nats) of each token under its values (or the LM's own, see `Engine.logps`), as the engine
            computed it while it drew; None from an engine that leaves this to a reading (`record_of`).
    """

    ids: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]
    options: tuple[int, ...] | None
    text: str
    logps: tuple[float, ...] | None = None


class Engine(ABC):
    """Runs policies on one model.

    Attributes:
        name: what users write in `engine=`.
        reads_hidden: whether it gives policies and heads the LM's hidden states.
        token_level: whether a policy can choose in the middle of a response; otherwise its first choice holds to the end.
        repeatable: whether one seed gives one text.
        drifts: whether it computes the logits of `sample` and of `read` in different programs, so that they differ a little.
        logps: what `Response.logps` are of: the distribution that the token was drawn from, or the LM's own.
        spec: what users wrote in `engine=`.
    """

    name: ClassVar[str]
    reads_hidden: ClassVar[bool] = True
    token_level: ClassVar[bool] = True
    repeatable: ClassVar[bool] = True
    drifts: ClassVar[bool] = False
    logps: Literal["drawn", "model"] = "drawn"
    spec: str = ""

    @abstractmethod
    def sample(
        self, prompts: Sequence[Ids], policy: Policy, *, max_new_tokens: int, seed: int, samples: int = 1,
        second_prompts: Sequence[Ids] | None = None,
    ) -> list[Response]:  # fmt: skip
        """One response to each prompt, in their order.

        What a row says depends on the prompt, its place in the list, the seed and the policy, not on the other rows.

        Args:
            max_new_tokens: most tokens of a response; policies that read `remaining_N` see what is left of it.
            samples: how many responses each prompt gets, in this call and others, for policies that read `samples_N`.
            second_prompts: what second logits are read after, one for each prompt, for policies that read them: the prompts
                without their evidence. None: the last token of each prompt.
        """

    def stream(
        self, prompts: Sequence[Ids], policy: Policy, *, max_new_tokens: int, seed: int, samples: int = 1,
        second_prompts: Sequence[Ids] | None = None, skip: Collection[int] = (),
    ) -> Iterator[tuple[int, Response]]:  # fmt: skip
        """What `sample` gives, with the index of the prompt, in the order in which responses finish.

        Args:
            skip: indices of prompts whose responses are known; the others are as if all were sampled.
        """
        found = self.sample(
            prompts, policy, max_new_tokens=max_new_tokens, seed=seed, samples=samples, second_prompts=second_prompts
        )
        return ((row, response) for row, response in enumerate(found) if row not in skip)

    def check(self, policy: Policy) -> None:
        """Refuses a policy that the engine cannot run, before anything is sampled.

        Raises:
            ConfigError: naming what it cannot do.
        """
        policy.space.check_width(lambda: self.hidden_size)
        if not self.token_level and not is_one_choice(policy):
            raise ConfigError(
                f"The engine {self.name!r} chooses once for a whole response, and {type(policy).__name__} chooses at level "
                f"{policy.segmenter.level!r}. Use level='sequence', or an engine that works token by token, e.g. transformers."
            )

    def plain(self, prompts: Sequence[Ids], values: Mapping[str, float], *, max_new_tokens: int, seed: int) -> list[Response]:
        """One response to each prompt by the engine's own sampling parameters, for `EngineConformance` to compare with.

        Args:
            values: of temperature, top_k and top_p.

        Raises:
            NotImplementedError: the engine has no such parameters.
        """
        raise NotImplementedError

    @property
    def identity(self) -> str:
        """What of `spec` decides its texts, beside model, policy and seed: part of the keys of what is kept."""
        return self.spec or self.name

    def close(self) -> None:  # noqa: B027
        """Ends whatever the engine has started. It is not used afterwards."""

    @abstractmethod
    def read(self, prompts: Sequence[Ids], responses: Sequence[Ids]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each finished response, in order, the hidden states (T, D) and the logits (T, V) that its T tokens come from.

        Raises:
            ConfigError: the engine cannot read hidden states.
        """

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where heads belong."""

    @property
    def hidden_size(self) -> int | None:
        """D, the width of hidden states; None where the engine has none."""
        return None

    @property
    def context_length(self) -> int | None:
        """Most tokens of prompt and response together, where the model says so."""
        return None

    def observe(
        self, prompts: Sequence[Ids], responses: Sequence[Ids], needs: Collection[str] = (), *,
        max_new_tokens: int | None = None, samples: int = 1, second_prompts: Sequence[Ids] | None = None,
    ) -> Iterator[Observation]:  # fmt: skip
        """For each finished response, what a policy saw at each of its T tokens (teacher forcing).

        Args:
            needs: parts beside hidden states and logits (`Observation`). Second logits cost one more reading.
            second_prompts: see `sample`.
        """
        return observe(
            self.read, prompts, responses, needs, max_new_tokens=max_new_tokens, samples=samples, second_prompts=second_prompts
        )


def observe(
    read: Callable[[Sequence[Ids], Sequence[Ids]], Iterator[tuple[Tensor, Tensor]]], prompts: Sequence[Ids],
    responses: Sequence[Ids], needs: Collection[str], *, max_new_tokens: int | None = None, samples: int = 1,
    second_prompts: Sequence[Ids] | None = None,
) -> Iterator[Observation]:  # fmt: skip
    """`Engine.observe`, from its `read`."""
    second = read(second_prompts or [prompt[-1:] for prompt in prompts], responses) if SECOND in needs else None
    for prompt, response, (hidden_TD, logits_TV) in zip(prompts, responses, read(prompts, responses), strict=True):
        second_TV, parts = None if second is None else next(second)[1], {}
        if needs:
            seen = Observation.of_response(prompt, response, logits_TV.device, second_TV)
            parts = seen.budgeted(max_new_tokens, samples, needs).parts
        yield Observation(hidden_ND=hidden_TD, logits_NV=logits_TV, **parts)


def is_one_choice(policy: Policy) -> bool:
    """Whether the first choice of a policy holds for the whole response."""
    return isinstance(policy, ConstantPolicy) or isinstance(policy.segmenter, WholeResponse)


def expand(spec: str) -> str:
    """`name:http://host:port,...` in full: the engine `openai` for such servers; of other engines the setting `url`."""
    name, tail = entry_points.split(spec)
    if not tail.startswith(("http://", "https://")):
        return spec
    return f"openai:profile={name},url={tail}" if name in SERVERS else f"{name}:url={tail}"


def engine_of(spec: str, model: Any, tokenizer: Any) -> Engine:
    """The engine that `name`, `name:key=value,...` or `name:http://host:port,...` stands for, on a model.

    Raises:
        UnknownNameError, PluginError, ConfigError: see `entry_points.resolve`.
    """
    full = expand(spec)
    found, _ = entry_points.resolve("engine", full, model=model, tokenizer=tokenizer)
    if not isinstance(found, Engine):
        name = entry_points.split(spec)[0]
        raise ConfigError(f"The engine {name!r} is a {type(found).__name__}, which does not implement latentknobs' Engine.")
    found.spec = full
    return found


def check_reads(engine: Engine, features: Sequence[str]) -> None:
    """Refuses a head that reads what the engine does not give.

    Raises:
        ConfigError: naming both.
    """
    if HIDDEN in features and not engine.reads_hidden:
        raise ConfigError(
            f"The engine {engine.name!r} gives no hidden states, and features={list(features)} asks for them. Use features that "
            "read logits alone (entropy, max_prob, ...), or engine='transformers'."
        )

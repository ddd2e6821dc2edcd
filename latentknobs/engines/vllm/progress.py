"""One response in the making: what its policy chose and drew, and how it goes on after it was set aside.

An engine that batches continuously may read a prompt in chunks, whose rows reach the sampler although their tokens do not count;
it may set a response aside, forget it, and read it again later; and it may overrule a token. So a draw counts only once the
engine moves to the next position; until then it may be repeated at the same position, from the same state.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, NamedTuple

import torch

from latentknobs.engines.uniforms import signed
from latentknobs.engines.vllm.request import Request, row_of
from latentknobs.policies import Policy, State

log = logging.getLogger("vllm.latentknobs")


class Drawn(NamedTuple):
    """What was chosen and drawn at one position, while it is not known whether it counts."""

    values: list[float]
    option: int | None
    state: State
    token: int = -1


class Traced(NamedTuple):
    """What a client may fetch of one token."""

    token: int
    option: int | None
    values: list[float]
    logp: float


@dataclass(eq=False)  # one is itself alone: states are tensors, which do not compare
class Progress:
    """A response, up to the newest position that a token was drawn at."""

    request: Request
    policy: Policy
    prompt: list[int]  # its ids
    seed: int  # as int64
    row: int
    position: int = -1  # where the newest token was drawn, which may not count; -1 before the first
    tokens: list[int] = field(default_factory=list)  # those before that position
    values: list[float] | None = None
    option: int | None = None  # values, option: of the segment that the token before belongs to; None before the first
    state: State = None  # of the policy, before that position
    drawn: Drawn | None = None  # at that position
    trace: dict[int, Traced] | None = None  # by position, where the client will fetch it
    outputs: Sequence[int] = ()  # runner V1's own list of the response, which it keeps up to date

    def move_to(self, position: int, newest: int) -> None:
        """Goes to the position of the token to come; `newest` is the one before it, which may not be the one that was drawn."""
        if position == self.position + 1 and self.drawn is not None:
            self.values, self.option, self.state, _ = self.drawn
            if self.state is not None:
                self.state = self.policy.observe(torch.tensor([newest]), self.state)
            self.tokens.append(newest)
        elif position != self.position:
            if position > 0:
                log.warning("A response went on at token %d, and latentknobs remembers %d: a segment begins.", position,
                            self.position + 1)  # fmt: skip
            self.values, self.option, self.state = None, None, self.policy.start(1)
        self.position, self.drawn = position, None

    @property
    def remaining(self) -> int:
        """How many tokens the response may still have, the one to come included."""
        return self.request.max_tokens - self.position

    def is_before(self, ids: Sequence[int]) -> bool:
        """Whether a response with these tokens may be this one: its newest draw may have counted or not."""
        drawn = [] if self.drawn is None else [self.drawn.token]
        return list(ids) in (self.tokens, self.tokens + drawn)


class Chance:
    """Seeds of requests that name none: the same in all processes of one server, others in another server."""

    def __init__(self, server: str) -> None:
        self.server, self.count = server, 0

    def seed(self) -> int:
        """The next one."""
        self.count += 1
        return signed(int.from_bytes(blake2b(f"{self.server} {self.count}".encode(), digest_size=8).digest(), "little"))


class Responses:
    """The responses of one worker: which are set aside, and what their clients will fetch.

    Args:
        chance: seeds of requests that name none.
        most: responses that may be set aside.
    """

    def __init__(self, chance: Chance, most: int) -> None:
        self.chance, self.most = chance, most
        self.aside: list[Progress] = []

    def begin(self, request: Request, policy: Policy, prompt: list[int], ids: Sequence[int] = ()) -> Progress:
        """A new response, or one that comes back with the tokens it had."""
        if ids:
            for progress in reversed(self.aside):
                if progress.request == request and progress.prompt == prompt and progress.is_before(ids):
                    self.aside.remove(progress)
                    return progress
        seed = self.chance.seed() if request.seed is None else signed(request.seed)
        row = row_of(prompt) if request.row is None else signed(request.row)
        trace = None if request.key is None else TRACES.begin(request.key)
        return Progress(request, policy, prompt, seed, row, trace=trace)

    def set_aside(self, progress: Progress) -> None:
        """A response that has left the batch, or may have, and may come back: it is finished, or vLLM needed its place."""
        self.aside.append(replace(progress, tokens=list(progress.tokens)))
        del self.aside[: -self.most]


class Traces:
    """Traces by key, until they are fetched; the oldest go when there are too many tokens in all (some 350 bytes each)."""

    def __init__(self, most: int = 1_000_000) -> None:
        self.most = most
        self._by_key: dict[str, dict[int, Traced]] = {}

    def begin(self, key: str) -> dict[int, Traced]:
        """An empty trace under a key."""
        while sum(1 + len(trace) for trace in self._by_key.values()) > self.most:
            del self._by_key[next(iter(self._by_key))]
        trace: dict[int, Traced] = {}
        self._by_key[key] = trace
        return trace

    def take(self, key: str) -> dict[str, Any] | None:
        """What a client gets, once: ids, options, values and log-probabilities of all tokens; None for an unknown key."""
        trace = self._by_key.pop(key, None)
        if trace is None:
            return None
        tokens = [trace[position] for position in sorted(trace)]
        options = [token.option for token in tokens]
        return {
            "ids": [token.token for token in tokens],
            "options": None if None in options else options,
            "values": [token.values for token in tokens],
            "logps": [token.logp for token in tokens],
        }


TRACES = Traces()  # of this process

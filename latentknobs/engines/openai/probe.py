"""Whether a server heeds what it is sent: shown by its own tokens, before the first rollout."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from latentknobs.engines.base import Engine, Ids
from latentknobs.engines.openai.profiles import Profile
from latentknobs.engines.openai.server import Answer
from latentknobs.errors import EngineError
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood.apply import apply_values
from latentknobs.tensors import pick

HOT, FAR, FEW = 2.0, 0.5, 5  # temperature; nats, more than number formats explain; tokens that show nothing
Send = Callable[[Ids, dict[str, Any]], Answer]


class Probe:
    """The requests that find out how a server answers.

    Args:
        engine: reads the responses, in this process.
        send: prompt and fields to an answer.
        where: the server, for messages.
    """

    def __init__(self, engine: Engine, profile: Profile, send: Send, where: str) -> None:
        self.engine, self.profile, self.send, self.where = engine, profile, send, where
        self._answers: dict[str, Answer] = {}

    def logps(self, prompts: Sequence[Ids]) -> Literal["drawn", "model"]:
        """What the server's log-probabilities are of, from hot responses; EngineError if they are of neither distribution."""
        hot, plain = self._space(temperature=HOT), self._space(temperature=1.0)
        spaces: dict[Literal["drawn", "model"], KnobSpace] = {"drawn": hot, "model": plain}
        far: dict[Literal["drawn", "model"], list[Tensor]] = {"drawn": [], "model": []}
        for prompt in prompts:
            answer = self._ask(prompt, hot)
            if answer.logps is None:
                return "drawn"
            for name, space in spaces.items():
                far[name].append((self._read(prompt, answer.ids, space) - torch.tensor(answer.logps)).abs())
        mean = {name: float(torch.cat(parts).mean()) for name, parts in far.items()}
        best = min(mean, key=lambda name: mean[name])
        if mean[best] > FAR:
            raise EngineError(
                f"The server at {self.where} reports log-probabilities that are {mean[best]:.2f} nats away from those of the "
                "model in this process. Serve the same weights without sampling defaults of its own, or set probe=false to go on."
            )
        return best

    def unknown(self, prompts: Sequence[Ids], knobs: Sequence[str]) -> list[str]:
        """Knobs of which the responses do not show whether the server heeds their fields; EngineError if it ignores one."""
        found = []
        for name in knobs:
            one = self.profile.fields[name]
            plain = {"temperature": 0.0 if one.is_cold else HOT}
            strong = self._space(**plain | {name: one.strong})
            kept, ignoring = self._outside(prompts, strong, strong), self._outside(prompts, self._space(**plain), strong)
            if ignoring > FEW and kept > ignoring / 2:
                raise EngineError(
                    f"The server at {self.where} ignores the field {one.name!r}: with {name} {one.strong:g} it drew {kept} "
                    "tokens that this value removes. Serve the model with an engine that takes the field, or leave the knob out."
                )
            found += [name] if ignoring <= FEW else []
        return found

    def _outside(self, prompts: Sequence[Ids], sent: KnobSpace, judged: KnobSpace) -> int:
        """How many tokens drawn with the values of `sent` those of `judged` remove."""
        return sum(int(self._read(prompt, self._ask(prompt, sent).ids, judged).isneginf().sum()) for prompt in prompts)

    def _space(self, **values: float) -> KnobSpace:
        return KnobSpace.of({name: [value] for name, value in values.items()}, order=self.profile.order or "llama.cpp")

    def _ask(self, prompt: Ids, space: KnobSpace) -> Answer:
        key = f"{prompt} {space!r}"
        if key not in self._answers:
            self._answers[key] = self.send(prompt, self.profile.body(space, tuple(space.options[0].values())))
        return self._answers[key]

    def _read(self, prompt: Ids, ids: Ids, space: KnobSpace) -> Tensor:
        """(T,) log-probabilities of the tokens under the one option of a space."""
        [seen] = self.engine.observe([prompt], [ids], space.needs)
        value_TJ = space.values_KJ(device=seen.logits_NV.device).expand(len(ids), -1)
        logps_TV = apply_values(seen.logits_NV, space, value_TJ, seen).log_softmax(-1)
        return pick(logps_TV, torch.tensor(ids, device=logps_TV.device)).float().cpu()

"""One suite for every engine: transformers and a table of logits pass it, and each broken one fails the check meant for it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from table_engine import TableEngine
from tiny_models import tiny_lm, word_tokenizer
from torch import Tensor

import latentknobs as lk
from latentknobs import entry_points
from latentknobs.data.prompts import Prompt
from latentknobs.data.rollouts import roll_out_batch
from latentknobs.engines.base import Engine, Ids, Response, check_reads, engine_of
from latentknobs.engines.transformers import TransformersEngine
from latentknobs.errors import ConfigError, UnknownNameError
from latentknobs.knobs.context import Observation
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import Choice, ConstantPolicy, Policy
from latentknobs.testing import ENGINES, EngineConformance


class TestTransformers(EngineConformance):
    engine = TransformersEngine(tiny_lm("llama"), word_tokenizer())


class TestTable(EngineConformance):
    engine = TableEngine()


class OneMissing(TableEngine):
    def sample(self, prompts: Sequence[Ids], policy: Policy, **settings: Any) -> list[Response]:
        return super().sample(prompts, policy, **settings)[1:]


class GlobalState(TableEngine):
    def sample(self, prompts: Sequence[Ids], policy: Policy, **settings: Any) -> list[Response]:
        settings["seed"] = int(torch.randint(1000, ()))
        return super().sample(prompts, policy, **settings)


class RowsOfTheBatch(TableEngine):
    def sample(self, prompts: Sequence[Ids], policy: Policy, **settings: Any) -> list[Response]:
        settings["seed"] += len(prompts)
        return super().sample(prompts, policy, **settings)


class NeverGreedy(TableEngine):
    """Takes the worst token where the temperature is 0."""

    def _draw(self, seen: Observation, policy: Policy, choice: Choice, *keys: Any) -> Tensor:
        if policy.space.names == ("temperature",) and choice.value_NJ[0, 0] == 0:
            return seen.logits_NV.argmin(-1)
        return super()._draw(seen, policy, choice, *keys)


class LosesTopK(TableEngine):
    """A server that ignores a field."""

    def _draw(self, seen: Observation, policy: Policy, choice: Choice, *keys: Any) -> Tensor:
        if "top_k" not in policy.space.names:
            return super()._draw(seen, policy, choice, *keys)
        j = policy.space.names.index("temperature")
        plain = ConstantPolicy(KnobSpace.of({"temperature": [1.0]}), 0)
        return super()._draw(seen, plain, Choice(choice.value_NJ[:, j : j + 1]), *keys)


class OtherOptions(TableEngine):
    """Reports another option than the one it used."""

    def sample(self, prompts: Sequence[Ids], policy: Policy, **settings: Any) -> list[Response]:
        found = super().sample(prompts, policy, **settings)
        return [row._replace(options=row.options and tuple((k + 1) % policy.space.K for k in row.options)) for row in found]


class NoBudget(TableEngine):
    def sample(self, prompts: Sequence[Ids], policy: Policy, **settings: Any) -> list[Response]:
        found = super().sample(prompts, policy, **(settings | {"max_new_tokens": settings["max_new_tokens"] + 5}))
        keep = settings["max_new_tokens"]
        return [
            row._replace(ids=row.ids[:keep], values=row.values[:keep], options=row.options and row.options[:keep])
            for row in found
        ]


class ShortReadings(TableEngine):
    def read(self, prompts: Sequence[Ids], responses: Sequence[Ids]) -> Iterator[tuple[Tensor, Tensor]]:
        for hidden_TD, logits_TV in super().read(prompts, responses):
            yield hidden_TD[:, :3], logits_TV


class KeepsItsTemperature(TableEngine):
    """What a call sets stays for the next one."""

    def sample(self, prompts: Sequence[Ids], policy: Policy, **settings: Any) -> list[Response]:
        found = super().sample(prompts, policy, **settings)
        self.logits_VV = self.logits_VV * torch.where(torch.arange(20) == found[0].ids[0], 0.5, 1.0)
        return found


class StreamsAllAgain(TableEngine):
    def stream(self, prompts: Sequence[Ids], policy: Policy, **settings: Any) -> Iterator[tuple[int, Response]]:
        return super().stream(prompts, policy, **(settings | {"skip": ()}))


class OwnParameters(TableEngine):
    """Its own parameters do not do what a constant does: it ignores top-k."""

    def plain(self, prompts: Sequence[Ids], values: Mapping[str, float], *, max_new_tokens: int, seed: int) -> list[Response]:
        policy = ConstantPolicy(KnobSpace.of({"temperature": [values["temperature"]]}), 0)
        return self.sample(prompts, policy, max_new_tokens=max_new_tokens, seed=seed)


class ColderConstants(TableEngine):
    """What a server does that takes its defaults for what is not neutral."""

    def _draw(self, seen: Observation, policy: Policy, choice: Choice, *keys: Any) -> Tensor:
        if policy.space.names == ("temperature", "top_k"):
            choice = choice._replace(value_NJ=choice.value_NJ * torch.tensor([0.1, 1.0]))
        return super()._draw(seen, policy, choice, *keys)


class FalseLogProbs(TableEngine):
    def sample(self, prompts: Sequence[Ids], policy: Policy, **settings: Any) -> list[Response]:
        return [row._replace(logps=(-1.0,) * len(row.ids)) for row in super().sample(prompts, policy, **settings)]


class GoesOnAfterItsEnd(TableEngine):
    def sample(self, prompts: Sequence[Ids], policy: Policy, **settings: Any) -> list[Response]:
        found = super().sample(prompts, policy, **settings)
        return [row._replace(ids=(*row.ids, 5)[: settings["max_new_tokens"]]) for row in found]


class ForgetsEvidence(TransformersEngine):
    """Reads second logits after the last token, whatever it is given."""

    def __init__(self) -> None:
        super().__init__(tiny_lm("llama"), word_tokenizer())

    def sample(self, prompts: Sequence[Ids], policy: Policy, **settings: Any) -> list[Response]:
        return super().sample(prompts, policy, **(settings | {"second_prompts": None}))


class RefusesInVain(TableEngine):
    """Says that it chooses once for a response, and samples at every level."""

    token_level = False


BROKEN: dict[type[Engine], str] = {
    OneMissing: "one_response_for_each_prompt", GlobalState: "is_repeatable_by_seed", RowsOfTheBatch: "rows_do_not_mix",
    NeverGreedy: "cold_is_greedy", LosesTopK: "values_act_on_every_token", OtherOptions: "choices_are_what_a_reading_gives",
    KeepsItsTemperature: "nothing_of_a_call_stays", StreamsAllAgain: "streams_what_it_samples",
    OwnParameters: "constants_equal_its_own_parameters", ColderConstants: "constants_equal_its_own_parameters",
    FalseLogProbs: "log_probs_are_those_of_a_reading", GoesOnAfterItsEnd: "ends_are_early",
    ForgetsEvidence: "evidence_reaches_policies", RefusesInVain: "refuses_before_any_text", NoBudget: "budgets_reach_policies",
    ShortReadings: "readings_have_a_row_for_each_token",
}  # fmt: skip


@pytest.mark.parametrize(("broken", "check"), BROKEN.items(), ids=lambda item: getattr(item, "__name__", None))
def test_each_broken_engine_is_caught_by_the_check_meant_for_it(broken: type[Engine], check: str) -> None:
    engine: Any = broken()
    assert not ENGINES.outcome(check, engine).passed


def test_every_check_has_an_engine_that_fails_it() -> None:
    assert set(BROKEN.values()) == set(ENGINES.checks)


def test_rollouts_know_engines_by_the_contract_alone() -> None:
    policy, prompts = ConstantPolicy(KnobSpace.of({"temperature": [0.7]}), 0), [Prompt("a", (3,)), Prompt("b", (4, 5))]
    found = roll_out_batch(TableEngine(), prompts, [1, 0, 1], policy, max_new_tokens=5, seed=0)
    assert [rollout.prompt for rollout in found] == [1, 0, 1]
    assert all(set(rollout.values) == {(0.7,)} and rollout.text for rollout in found)


def test_engines_have_names() -> None:
    assert "transformers" in entry_points.names("engine")
    assert isinstance(engine_of("transformers", tiny_lm("llama"), None), TransformersEngine)
    with pytest.raises(UnknownNameError, match=r"no engine 'transformer'.*transformers"):
        engine_of("transformer", None, None)


def test_an_engine_without_hidden_states_refuses_heads_that_read_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Blind(TableEngine):
        reads_hidden = False

    check_reads(Blind(), ("entropy",))
    with pytest.raises(ConfigError, match=r"'table' gives no hidden states.*features=\['hidden'\]"):
        check_reads(Blind(), ("hidden",))
    monkeypatch.setattr("latentknobs.models.sources.engine_of", lambda *_: Blind())
    with pytest.raises(ConfigError, match="'table' gives no hidden states"):
        lk.train(knobs=["temperature:0,1"], train_prompts=2, rollouts=2, eval_size=0, output_dir=str(tmp_path))

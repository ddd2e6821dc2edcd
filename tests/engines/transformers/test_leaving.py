"""Rows that leave their batch when they have finished: the same tokens and options as one call of `generate`."""

from collections.abc import Sequence as Seq
from typing import Any

import pytest
import torch
from decoding_oracle import LEVELS, SEED, SPACE, left_padded, policy_for, responses_of
from test_modes_families import model_of
from tiny_models import STOPS, VOCAB, tiny_lm
from torch import Tensor

import latentknobs as lk
from latentknobs import testbed
from latentknobs.engines.transformers import Attached
from latentknobs.engines.transformers.leaving import Enough, sample_leaving
from latentknobs.engines.transformers.record import stop_ids
from latentknobs.engines.transformers.second import LeftPadded
from latentknobs.errors import DecodingError
from latentknobs.heads.segmenters import Every, parse_level
from latentknobs.policies import CategoricalPolicy, Choice, ConstantPolicy, GreedyPolicy, Policy, UniformPolicy

TOKENS = 40
Found = tuple[list[list[int]], list[list[int]]]
MANY = [list(torch.randint(3, VOCAB, (1 + n % 5,), generator=torch.Generator().manual_seed(n)).tolist()) for n in range(24)]


def options_of(option_BT: Tensor | None, responses: Seq[Seq[int]]) -> list[list[int]]:
    if option_BT is None:  # of a policy without options
        return []
    return [row[: len(response)] for row, response in zip(option_BT.tolist(), responses, strict=True)]


def together(model: Any, policy: Policy, prompts: Seq[Seq[int]] = MANY, **told: Any) -> Found:
    """The slow twin: one call of `generate`."""
    inputs = left_padded(prompts)
    with Attached(model, policy, seed=SEED, **told) as attached:
        sequences = model.generate(**inputs, max_new_tokens=TOKENS, pad_token_id=0)
        responses = responses_of(sequences, inputs["input_ids"].shape[1])
        return responses, options_of(attached.option_BT, responses)


def leaving(model: Any, policy: Policy, prompts: Seq[Seq[int]] = MANY, **told: Any) -> tuple[Found, list[int]]:
    """What rows that leave have said and chosen, and the rows of each call of `generate`."""
    inputs, rows, generate = left_padded(prompts), [], model.generate

    def counted(*args: Any, **kwargs: Any) -> Any:
        rows.append(len(kwargs["input_ids"]))
        return generate(*args, **kwargs)

    model.generate = counted
    try:
        with Attached(model, policy, seed=SEED, **told) as attached:
            ids_BP, mask_BP = inputs["input_ids"], inputs["attention_mask"]
            token_BT, _, option_BT = sample_leaving(attached, LeftPadded(ids_BP, mask_BP), None, max_new_tokens=TOKENS, pad=0)
    finally:
        model.__dict__.pop("generate", None)
    responses = responses_of(token_BT, 0)
    return (responses, options_of(option_BT, responses)), rows


@pytest.fixture
def slow_ends(request: pytest.FixtureRequest) -> Any:
    """A model of a family whose responses end at very different times."""
    model = tiny_lm(request.param) if request.param in ("llama", "gpt2", "gemma2") else model_of(request.param)
    model.generation_config.eos_token_id = STOPS[:2]
    return model


@pytest.mark.parametrize("pick", ["greedy", "sample"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("slow_ends", ["llama", "gpt2", "gemma2", "qwen3", "neox"], indirect=True)
def test_rows_that_leave_say_and_choose_what_they_would_have_in_one_call(slow_ends: Any, level: str, pick: str) -> None:
    policy = policy_for(slow_ends, level, pick)
    found, rows = leaving(slow_ends, policy)
    slow = together(slow_ends, policy)
    assert found == slow
    assert rows == sorted(set(rows), reverse=True) and rows[0] == len(MANY)
    assert pick == "greedy" or (len(rows) > 1 and len({len(response) for response in found[0]}) > 3)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("names", ["guidance_scale:1,1.7,3", "repetition_penalty:1,1.5"])
def test_knobs_that_read_earlier_tokens_or_second_logits_go_on_reading_them(names: str, level: str) -> None:
    lm = tiny_lm("llama")
    lm.generation_config.eos_token_id = STOPS[:2]
    policy = policy_for(lm, level, "sample", lk.KnobSpace.of({"temperature": [0.6, 1.5]}, names))
    found, rows = leaving(lm, policy)
    assert found == together(lm, policy) and len(rows) > 1


@pytest.mark.parametrize("space", [lk.KnobSpace.of({"temperature": [1.0]}), SPACE])
def test_requests_keep_the_ids_that_they_were_given(space: lk.KnobSpace) -> None:
    lm, policy, row_B = tiny_lm("llama"), UniformPolicy(space, Every(1)), torch.arange(len(MANY)).flip(0) * 7
    inputs = left_padded(MANY)
    with Attached(lm, policy, seed=SEED) as attached:
        attached.rows = row_B
        both = LeftPadded(inputs["input_ids"], inputs["attention_mask"])
        token_BT, _, _ = sample_leaving(attached, both, None, max_new_tokens=TOKENS, pad=0)
        sequences = lm.generate(**inputs, max_new_tokens=TOKENS, pad_token_id=0)
    assert responses_of(token_BT, 0) == responses_of(sequences, inputs["input_ids"].shape[1])


class Remembering(CategoricalPolicy):
    """Chooses an option for each row at its first token, by the logits there, and counts the tokens that followed."""

    def __init__(self) -> None:
        super().__init__(SPACE, Every(1), "greedy")

    def start(self, rows: int, device: Any = "cpu") -> Tensor:
        return torch.stack([torch.full((rows,), -1), torch.zeros(rows, dtype=torch.long)], -1)

    def log_pi(self, seen: lk.Context, state: Any = None) -> Tensor:
        first_N = seen.logits_NV[:, : self.space.K].argmax(-1)
        option_N = (torch.where(state[:, 0] < 0, first_N, state[:, 0]) + state[:, 1] // 5) % self.space.K
        return torch.nn.functional.one_hot(option_N, self.space.K).double().log()

    def choose(self, seen: lk.Context, uniform_N: Tensor, state: Any = None) -> Choice:
        choice = super().choose(seen, uniform_N, state)
        first_N = torch.where(state[:, 0] < 0, choice.option_N, state[:, 0])
        return choice._replace(state=torch.stack([first_N, state[:, 1]], -1))

    def observe(self, token_N: Tensor, state: Any) -> Tensor:
        return torch.stack([state[:, 0], state[:, 1] + token_N % 3], -1)


def test_what_a_policy_remembers_of_a_row_leaves_with_it() -> None:
    lm = tiny_lm("llama")
    found, rows = leaving(lm, Remembering())
    assert len(rows) > 1 and found == together(lm, Remembering())
    assert len({option for options in found[1] for option in options}) > 3


SETTINGS: list[dict[str, Any]] = [
    {"cache_implementation": "static", "compile_config": None}, {"use_cache": False},
    {"eos_token_id": None},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: next(iter(settings)))
def test_where_rows_cannot_leave_there_is_one_call(settings: dict[str, Any]) -> None:
    lm, policy = tiny_lm("llama"), UniformPolicy(SPACE, Every(1))
    lm.generation_config.update(**settings, disable_compile=True)
    found, rows = leaving(lm, policy)
    assert rows == [len(MANY)] and found == together(lm, policy)


def test_where_generate_draws_the_tokens_there_is_one_call() -> None:
    lm, policy = tiny_lm("llama"), UniformPolicy(SPACE, Every(1))
    torch.manual_seed(0)
    found, rows = leaving(lm, policy, sampler="transformers")
    torch.manual_seed(0)
    assert rows == [len(MANY)] and found == together(lm, policy, sampler="transformers")


def test_a_model_with_a_state_instead_of_a_cache_keeps_its_rows() -> None:
    mamba, prompts = model_of("mamba"), [[3 + n % 9, 5, 9] for n in range(12)]
    policy = policy_for(mamba, "token", "sample")
    found, rows = leaving(mamba, policy, prompts)
    assert rows == [12] and found == together(mamba, policy, prompts)


@pytest.mark.parametrize("policy", [GreedyPolicy(), ConstantPolicy(SPACE, 0)])
def test_greedy_rows_leave_too(policy: Policy) -> None:
    lm = tiny_lm("llama")
    found, rows = leaving(lm, policy)
    assert found == together(lm, policy) and len(rows) > 1


def test_going_on_needs_something_to_go_on_with() -> None:
    lm = tiny_lm("llama")
    with Attached(lm, GreedyPolicy()) as attached, pytest.raises(DecodingError, match="Nothing was generated yet"):
        attached.go_on(torch.arange(2))


def test_a_call_ends_when_enough_rows_have_finished_but_not_when_all_have() -> None:
    lm = tiny_lm("llama")
    with Attached(lm, UniformPolicy(SPACE, Every(1))) as attached:
        enough = Enough(attached, torch.tensor(stop_ids(lm.generation_config)), 0)
        ended = [[*[STOPS[0]] * n, *[4] * (8 - n)] for n in range(9)]
        assert [enough._is_enough(torch.tensor(row).unsqueeze(-1)) for row in ended] == [False, False, *[True] * 6, False]


def test_the_packaged_model_gives_the_same_rollouts_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    from latentknobs.data.prompts import make_prompts
    from latentknobs.data.rollouts import roll_out

    model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
    prompts = make_prompts(testbed.prompts("mixture", "train", 24), tokenizer)
    for level in ("token", "delimiter:.!?"):
        policy, made = UniformPolicy(SPACE, parse_level(level, tokenizer)), []
        for share in (0.25, 2.0):
            monkeypatch.setattr("latentknobs.engines.transformers.leaving.SHARE", share)
            made.append(roll_out(model, tokenizer, prompts, policy, max_new_tokens=64, batch_size=24, seed=3))
        assert made[0] == made[1]

"""Responses in a batch that changes at every step say what they say alone: chunks, preemption, strangers, overruled draws."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from table_engine import END, VOCAB, TableEngine
from torch import Tensor

from latentknobs.engines.vllm.decode import MARK, Row, decode
from latentknobs.engines.vllm.progress import TRACES, Chance, Progress, Responses
from latentknobs.engines.vllm.request import Request
from latentknobs.heads.segmenters import Delimiter, Every, WholeResponse
from latentknobs.knobs.context import Observation
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import Choice, Policy, UniformPolicy
from latentknobs.policies.names import policy_of

ENGINE = TableEngine()
SPACE = KnobSpace.of({"temperature": [0.0, 0.7, 1.3]}, {"min_p": [0.0, 0.1]}, {"top_p": [0.5, 1.0]})


class Budget(Policy):
    """Reads all that a policy can read here, and remembers what it has seen."""

    needs = ("previous_NL", "position_N", "remaining_N", "samples_N")

    def __init__(self) -> None:
        self.space, self.segmenter = KnobSpace.of({"temperature": [1.0]}), Every(1)

    def start(self, rows: int, device: Any = "cpu") -> Tensor:
        return torch.zeros(rows, dtype=torch.float64, device=device)

    def choose(self, seen: Observation, uniform_N: Tensor, state: Any = None) -> Choice:
        known_N = (seen.previous_NL >= 0).sum(-1) + seen.remaining_N + seen.samples_N + seen.newest_N + seen.hidden_ND.argmax(-1)
        return Choice(((known_N + state) % 7 / 4 + uniform_N / 9).unsqueeze(-1), state=state + 1)

    def observe(self, token_N: Tensor, state: Any) -> Tensor:
        return state * 3 % 11 + token_N


POLICIES: dict[str, Policy] = {
    "token": UniformPolicy(SPACE, Every(1)), "every": UniformPolicy(SPACE, Every(3)), "budget": Budget(),
    "sequence": UniformPolicy(SPACE, WholeResponse()), "delimiter": UniformPolicy(SPACE, Delimiter(".", (3, 4, 5))),
    "mirostat": policy_of("mirostat:tau=2.0"),
}  # fmt: skip


@dataclass
class Job:
    """A response on its way through the batches of a scheduler."""

    request: Request
    policy: Policy
    prompt: list[int]
    outputs: list[int]
    progress: Progress | None = None


def served(jobs: list[Job], draw: Any, edit: bool = False) -> list[list[int]]:
    """The responses, by a scheduler that does to them whatever vLLM may do."""
    responses = Responses(Chance("test"), 100)
    while going := [job for job in jobs if not is_over(job)]:
        batch = draw(st.permutations(going))[: draw(st.integers(1, len(going)))]
        strangers = draw(st.integers(0, 2))
        for job in batch:
            if job.progress is None:
                job.progress = responses.begin(job.request, job.policy, job.prompt, job.outputs)
        newest = [job.outputs[-1] if job.outputs else job.prompt[-1] for job in batch]
        is_chunk = [draw(st.booleans()) and draw(st.booleans()) for _ in batch]
        seen = [draw(st.integers(0, VOCAB - 1)) if chunk else token for chunk, token in zip(is_chunk, newest, strict=True)]
        rows = torch.tensor([*seen, *[0] * strangers])
        logits_NV, hidden_ND = ENGINE.logits_VV[rows].clone(), torch.nn.functional.one_hot(rows, VOCAB).float()
        raw_NV = logits_NV.clone() if edit else None
        if edit:
            logits_NV[:, 7] = -torch.inf
        for job in batch:
            assert job.progress is not None
            job.progress.move_to(len(job.outputs), job.outputs[-1] if job.outputs else -1)
        decode([Row(n, job.progress) for n, job in enumerate(batch) if job.progress], logits_NV, hidden_ND, raw_NV)
        assert (logits_NV[len(batch) :] < MARK).all(), "a row without a policy was touched"
        for n, job in enumerate(batch):
            assert (logits_NV[n] == MARK).sum() == 1
            if not is_chunk[n]:
                job.outputs.append(int(logits_NV[n].argmax()))
            if job.progress is not None and draw(st.integers(0, 4)) == 0:
                responses.set_aside(job.progress)
                job.progress = None
    return [job.outputs for job in jobs]


def is_over(job: Job) -> bool:
    return len(job.outputs) == job.request.max_tokens or END in job.outputs


def jobs_of(names: list[str], lengths: list[int]) -> list[Job]:
    return [
        Job(Request(name, seed=5, row=row, samples=2, key=f"{row}", max_tokens=length), POLICIES[name], [3 + row, 9], [])
        for row, (name, length) in enumerate(zip(names, lengths, strict=True))
    ]


@given(st.data(), st.lists(st.tuples(st.sampled_from(sorted(POLICIES)), st.integers(1, 8)), min_size=1, max_size=5))
def test_a_response_is_the_same_however_it_is_scheduled(data: st.DataObject, kinds: list[tuple[str, int]]) -> None:
    jobs = jobs_of([name for name, _ in kinds], [length for _, length in kinds])
    found = served(jobs, data.draw)
    for row, (job, ids) in enumerate(zip(jobs, found, strict=True)):
        prompts = [[3 + r, 9] for r in range(row + 1)]
        alone = ENGINE.sample(prompts, job.policy, max_new_tokens=job.request.max_tokens, seed=5, samples=2)[row]
        trace = TRACES.take(f"{row}")
        assert trace is not None and tuple(ids) == alone.ids == tuple(trace["ids"])
        assert [tuple(values) for values in trace["values"]] == [tuple(values) for values in alone.values]
        assert (trace["options"] and tuple(trace["options"])) == alone.options
        assert all(logp <= 1e-6 for logp in trace["logps"])
        assert TRACES.take(f"{row}") is None, "each can be fetched once"


@given(st.data())
def test_policies_see_the_logits_before_vllm_changes_them_and_tokens_come_from_those_after(data: st.DataObject) -> None:
    jobs = jobs_of(["budget", "token"], [6, 6])
    assert all(7 not in ids for ids in served(jobs, data.draw, edit=True))


def test_a_token_that_was_overruled_is_the_one_that_counts() -> None:
    progress = Responses(Chance("test"), 4).begin(Request("budget", seed=1, max_tokens=9), POLICIES["budget"], [3, 9])
    for position, newest in enumerate((-1, 4, 5)):
        progress.move_to(position, newest)
        decode([Row(0, progress)], ENGINE.logits_VV[[newest]].clone(), torch.ones(1, VOCAB))
    assert progress.tokens == [4, 5]


def test_a_response_that_is_not_remembered_begins_a_segment(caplog: pytest.LogCaptureFixture) -> None:
    responses = Responses(Chance("test"), 4)
    progress = responses.begin(Request("sequence", seed=1, max_tokens=9), POLICIES["sequence"], [3], [4, 5])
    progress.move_to(2, 5)
    decode([Row(0, progress)], ENGINE.logits_VV[[5]].clone(), torch.ones(1, VOCAB))
    assert "went on at token 2" in caplog.text and progress.drawn is not None and progress.drawn.option is not None


def test_chance_differs_between_servers_and_requests_and_not_between_processes() -> None:
    one, same, other = Chance("0 abcde"), Chance("0 abcde"), Chance("1 abcde")
    seeds = [one.seed() for _ in range(5)]
    assert seeds == [same.seed() for _ in range(5)] and len({*seeds, *(other.seed() for _ in range(5))}) == 10


def test_of_two_equal_responses_that_were_set_aside_one_comes_back() -> None:
    responses, request = Responses(Chance("test"), 4), Request("mirostat", seed=1, max_tokens=9)
    for _ in range(2):
        progress = responses.begin(request, POLICIES["mirostat"], [3, 9])
        for position, newest in enumerate((-1, 4)):
            progress.move_to(position, newest)
            decode([Row(0, progress)], ENGINE.logits_VV[[newest]].clone(), torch.ones(1, VOCAB))
        responses.set_aside(progress)
    assert responses.begin(request, POLICIES["mirostat"], [3, 9], [4]).tokens == [4] and len(responses.aside) == 1


def test_numbers_of_a_request_beyond_int64_wrap_around() -> None:
    largest = 2**64 - 1  # the largest that vLLM lets through
    progress = Responses(Chance("test"), 4).begin(Request("mirostat", seed=largest, row=largest), POLICIES["mirostat"], [3])
    assert (progress.seed, progress.row) == (-1, -1)

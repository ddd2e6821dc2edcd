"""The client of the package `openai` with a policy: its requests carry the chosen values, its answers are the server's."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from completions_server import MESSAGES, CompletionsServer, serving
from openai import AsyncOpenAI, BadRequestError, OpenAI
from tiny_models import tiny_lm

from latentknobs import testbed
from latentknobs.adapter import KnobAdapter, describe_model
from latentknobs.engines.openai import Client
from latentknobs.engines.openai.choosing import choose
from latentknobs.engines.transformers import TransformersEngine
from latentknobs.errors import AdapterError, ConfigError, DecodingError
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Every, WholeResponse
from latentknobs.knobs.context import Observation
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import Choice, ConstantPolicy, HeadPolicy, Policy, UniformPolicy

MODEL, TOKENIZER = testbed.load_model(), testbed.load_tokenizer()
TOKENIZER.chat_template = MESSAGES
SPACE = KnobSpace.of("temperature:0,0.4,0.8,1.2", "min_p:0,0.1", order="vllm")
TEXTS = ["Once upon a time", "2 + 3 =", "Tom had a", "Lily saw"]


def head(features: tuple[str, ...] = ("hidden",), pick: Any = "greedy") -> Policy:
    torch.manual_seed(3)
    module = OptionHead(SPACE, 192 if features == ("hidden",) else len(features))
    for weight in module.parameters():
        torch.nn.init.normal_(weight)
    return HeadPolicy(module, SPACE, WholeResponse(), features, pick)


@pytest.fixture(scope="module")
def server() -> Iterator[CompletionsServer]:
    with serving() as server:
        yield server


@pytest.fixture
def plain(server: CompletionsServer) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize(
    "policy", [head(), head(("margin", "entropy")), head(pick="sample")], ids=["hidden", "statistics", "sample"]
)
def test_a_request_carries_what_the_policy_chooses_for_its_prompt(
    server: CompletionsServer, plain: OpenAI, policy: Policy
) -> None:
    client, seen = Client(plain, policy, model=MODEL, tokenizer=TOKENIZER), set[tuple[float, ...]]()
    for text in TEXTS:
        ids = TOKENIZER(text)["input_ids"]
        [choice] = choose(TransformersEngine(MODEL, TOKENIZER).read, policy, [ids], [0], seed=5, max_new_tokens=6)
        answers = [
            client.completions.create(model="testbed", prompt=text, max_tokens=6, seed=5),
            client.completions.create(model="testbed", prompt=ids, max_tokens=6, seed=5),
        ]
        expected = dict(zip(SPACE.names, choice.value_NJ[0].tolist(), strict=True))
        for answer, body in zip(answers, server.bodies[-2:], strict=True):
            assert answer.latentknobs == expected == {name: body[name] for name in SPACE.names}
            assert (body["top_k"], body["top_p"], body["presence_penalty"]) == (0, 1.0, 0.0)
        assert answers[0].choices[0].text == answers[1].choices[0].text
        seen.add(tuple(expected.values()))
    assert len(seen) > 1


def test_chats_are_read_with_their_template_and_streams_stay_streams(server: CompletionsServer, plain: OpenAI) -> None:
    client = Client(plain, head(), model=MODEL, tokenizer=TOKENIZER)
    messages = [{"role": "user", "content": TEXTS[1]}]
    whole = client.chat.completions.create(model="testbed", messages=messages, max_tokens=6, seed=1)
    stream = client.chat.completions.create(model="testbed", messages=messages, max_tokens=6, seed=1, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole.choices[0].message.content
    ids = TOKENIZER(TEXTS[1], add_special_tokens=False)["input_ids"]  # a template writes its special tokens itself
    assert whole.latentknobs == stream.latentknobs == client.choose(messages) == client.choose(ids)


def test_an_async_client_returns_coroutines_that_do_not_mix(server: CompletionsServer) -> None:
    async def run() -> list[Any]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as plain:
            client = Client(plain, head(), model=MODEL, tokenizer=TOKENIZER)
            calls = [client.completions.create(model="testbed", prompt=text, max_tokens=3, seed=2) for text in TEXTS * 3]
            return await asyncio.gather(*calls)

    alone = Client(OpenAI(base_url="http://127.0.0.1:9", api_key="none"), head(), model=MODEL, tokenizer=TOKENIZER)
    assert [answer.latentknobs for answer in asyncio.run(run())] == [alone.choose(text, seed=2) for text in TEXTS * 3]


def test_calls_without_a_seed_draw_anew_and_constants_need_no_model(plain: OpenAI) -> None:
    client = Client(plain, UniformPolicy(SPACE, WholeResponse()))
    assert len({tuple(client.choose(TEXTS[0]).values()) for _ in range(40)}) == SPACE.K
    assert client.choose(TEXTS[0], seed=3) == client.choose(TEXTS[1], seed=3)
    assert Client(plain, ConstantPolicy(SPACE, 5)).choose("x") == SPACE.options[5]


class Frugal(Policy):
    """Colder where the budget is small."""

    needs = ("remaining_N",)

    def __init__(self) -> None:
        self.space, self.segmenter = KnobSpace.of("temperature:0.1,1"), WholeResponse()

    def choose(self, seen: Observation, uniform_N: torch.Tensor, state: Any = None) -> Choice:
        return Choice((seen.remaining_N / 100).double().unsqueeze(-1))


def test_budgets_come_from_the_request(server: CompletionsServer, plain: OpenAI) -> None:
    client = Client(plain, Frugal(), model=MODEL, tokenizer=TOKENIZER)
    answer = client.completions.create(model="testbed", prompt=TEXTS[0], max_tokens=7)
    assert answer.latentknobs == {"temperature": pytest.approx(0.07)}
    with pytest.raises(DecodingError, match="remaining_N"):
        client.completions.create(model="testbed", prompt=TEXTS[0])
    with pytest.raises(ConfigError, match=r"temperature 3 is not a value"):
        client.completions.create(model="testbed", prompt=TEXTS[0], max_tokens=300)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"temperature": 0.5}, "temperature=0.5 would act on top of the policy, which chooses temperature, min_p"),
        ({"extra_body": {"top_k": 5}}, "top_k=5 would act on top"),
        ({"frequency_penalty": 1.0}, "frequency_penalty=1.0 would act on top"),
        ({"extra_body": {"use_beam_search": True}}, "use_beam_search=True would act on top"),
        ({"n": 3}, "n=3 responses of one request would share what the policy draws"),
        ({"prompt": ["a", "b"]}, "not one text, one list of token ids"),
    ],
)
def test_what_would_act_beside_the_policy_is_refused(plain: OpenAI, arguments: dict[str, Any], what: str) -> None:
    client = Client(plain, head(pick="sample"), model=MODEL, tokenizer=TOKENIZER)
    with pytest.raises(ConfigError, match=what):
        client.completions.create(**({"model": "testbed", "prompt": TEXTS[0], "max_tokens": 2} | arguments))


def test_neutral_values_may_be_passed_and_other_arguments_go_through(server: CompletionsServer, plain: OpenAI) -> None:
    client = Client(plain, head(), model=MODEL, tokenizer=TOKENIZER)
    client.completions.create(model="testbed", prompt=TEXTS[0], max_tokens=2, n=1, top_p=1.0, user="me", extra_body={"echoed": 1})
    assert (server.bodies[-1]["user"], server.bodies[-1]["echoed"]) == ("me", 1)
    with pytest.raises(BadRequestError, match="There is no adapter 'other'"):
        client.completions.create(model="testbed", prompt=TEXTS[0], extra_body={"vllm_xargs": {"latentknobs": "other"}})


def test_policies_that_a_request_cannot_carry(plain: OpenAI) -> None:
    with pytest.raises(ConfigError, match=r"one choice for its whole response.*'token'"):
        Client(plain, UniformPolicy(SPACE, Every(1)))
    with pytest.raises(ConfigError, match=r"HeadPolicy reads the prompt with the model\. Pass model= and tokenizer="):
        Client(plain, head())
    with pytest.raises(ConfigError, match="no field for the knob 'min_p'"):
        Client(plain, UniformPolicy(SPACE, WholeResponse()), profile="openai")


def test_an_adapter_makes_its_client_and_refuses_another_model(plain: OpenAI) -> None:
    policy = head()
    assert isinstance(policy, HeadPolicy)
    adapter = KnobAdapter(SPACE, policy.head, WholeResponse(), ("hidden",), describe_model(MODEL))
    assert adapter.client(plain, MODEL, TOKENIZER).choose(TEXTS[1]) == Client(
        plain, policy, model=MODEL, tokenizer=TOKENIZER
    ).choose(TEXTS[1])
    with pytest.raises(AdapterError, match="was trained on"):
        adapter.client(plain, tiny_lm("llama"), TOKENIZER)

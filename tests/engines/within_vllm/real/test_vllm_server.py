"""`latentknobs serve` and the real client of OpenAI: many streams at once, choices, refusals, keys."""

import asyncio
import json
import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import openai
import pytest
from vllm_cases import MODEL, TOKENIZER, V2, prompts
from vllm_serving import KEY, Server, serving

from latentknobs.adapter import KnobAdapter
from latentknobs.engines.base import engine_of
from latentknobs.engines.transformers import TransformersEngine
from latentknobs.errors import ConfigError
from latentknobs.policies import Policy
from latentknobs.policies.names import policy_of

pytestmark = pytest.mark.skipif(V2, reason="the server is tried with runner V1")
RULES = {"edt": "edt:base=1.4,theta=0.3", "mirostat": "mirostat:tau=3"}
TOKENS = 40
SOAK = float(os.environ.get("SOAK_SECONDS", "15"))
FLAGS = ["--max-num-seqs=64", "--block-size=32", "--num-gpu-blocks-override=400"]  # a cache that is soon in use as a whole
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture(scope="session")
def server(adapters: dict[str, KnobAdapter], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    specs = {name: str(adapter.save_pretrained(folder / name)) for name, adapter in adapters.items()} | RULES
    with serving(folder, specs, *FLAGS, f"--chat-template={TEMPLATE}", "--enable-scale-out") as found:
        yield found


class Job(NamedTuple):
    """A request, and the policy that it names; None: it names none, and is greedy."""

    name: str | None
    policy: Policy | None
    row: int
    prompt: list[int]


def all_jobs(adapters: dict[str, KnobAdapter], each: int) -> list[Job]:
    """Requests for each policy; rows count those of one policy, as the engine of transformers does."""
    policies: dict[str | None, Policy | None] = {name: adapter.policy() for name, adapter in adapters.items()}
    policies |= {name: policy_of(spec) for name, spec in RULES.items()}
    policies[None] = None
    texts = iter(prompts(each * len(policies)))
    return [Job(name, policy, row, next(texts)) for name, policy in policies.items() for row in range(each)]


async def stream(client: openai.AsyncOpenAI, job: Job, key: str | None = None) -> tuple[int, ...]:
    """The ids of a streamed response."""
    extra: dict[str, Any] = {"return_token_ids": True}
    if job.name is None:
        extra["temperature"] = 0.0
    else:
        extra["vllm_xargs"] = {"latentknobs": job.name, "latentknobs_seed": 7, "latentknobs_row": job.row}
        extra["vllm_xargs"] |= {"latentknobs_key": key} if key else {}
    ids: list[int] = []
    found = await client.completions.create(model="testbed", prompt=job.prompt, max_tokens=TOKENS, stream=True, extra_body=extra)
    async for chunk in found:
        ids += getattr(chunk.choices[0], "token_ids", None) or []
    return tuple(ids)


async def together(server: Server, jobs: list[Job], keyed: bool = False) -> list[tuple[int, ...]]:
    async with server.client() as client:
        return await asyncio.gather(*(stream(client, job, f"{job.name} {job.row}" if keyed else None) for job in jobs))


def expected(jobs: list[Job]) -> list[tuple[int, ...]]:
    """What transformers says to all of them."""
    reader, found = TransformersEngine(MODEL, TOKENIZER), dict[tuple[str | None, int], tuple[int, ...]]()
    for name in {job.name for job in jobs}:
        mine = [job for job in jobs if job.name == name]
        policy = mine[0].policy or policy_of("greedy")
        responses = reader.sample([job.prompt for job in mine], policy, max_new_tokens=TOKENS, seed=7)
        found |= {(name, job.row): response.ids for job, response in zip(mine, responses, strict=True)}
    return [found[job.name, job.row] for job in jobs]


def test_64_streams_say_what_transformers_says_and_bring_their_choices(server: Server, adapters: dict[str, KnobAdapter]) -> None:
    jobs = all_jobs(adapters, 8)
    assert len(jobs) == 64
    found = asyncio.run(together(server, jobs, keyed=True))
    assert found == expected(jobs)
    named = [n for n, job in enumerate(jobs) if job.name]
    traces = server.choices({"keys": [f"{jobs[n].name} {jobs[n].row}" for n in named]}).json()["choices"]
    for n, trace in zip(named, traces, strict=True):
        policy = jobs[n].policy
        assert policy is not None and tuple(trace["ids"]) == found[n] and len(trace["logps"]) == len(found[n])
        assert all(len(values) == len(policy.space.knobs) for values in trace["values"])
        assert (trace["options"] is None) == (jobs[n].name in (*RULES, "values"))


def test_streams_go_on_and_nothing_changes_or_grows(server: Server, adapters: dict[str, KnobAdapter]) -> None:
    jobs, levels = all_jobs(adapters, 8), list[int]()
    first = asyncio.run(together(server, jobs))
    asyncio.run(together(server, jobs, keyed=True))
    until = time.monotonic() + SOAK
    while time.monotonic() < until or len(levels) < 4:
        order = sorted(range(len(jobs)), key=lambda n: hash((n, len(levels))))
        some = order[: len(order) if len(levels) % 2 else len(order) // 3]  # in other company each time
        assert asyncio.run(together(server, [jobs[n] for n in some])) == [first[n] for n in some]
        levels.append(server.memory())
    start, middle, end = (level / 2**20 for level in (levels[0], levels[len(levels) // 2], levels[-1]))
    print(f"\n{len(levels)} rounds of up to 64 streams in {SOAK:.0f} s; {start:.0f}, {middle:.0f} and {end:.0f} MiB on the way")
    assert end - middle < 100


def test_what_a_server_knows(server: Server, adapters: dict[str, KnobAdapter]) -> None:
    assert server.get("/v1/latentknobs/policies", key="wrong").status_code == 401
    known = server.get("/v1/latentknobs/policies").json()
    assert set(known) == {*adapters, *RULES}
    assert known["token"]["identity"]["sample"] == adapters["token"].policy("sample").identity()
    assert known["edt"]["identity"] == {"greedy": policy_of(RULES["edt"]).identity()} and known["edt"]["picks"] == []
    assert "vllm:num_requests_running" in server.get("/metrics").text


@pytest.mark.parametrize(("xargs", "more", "words"), [
    ({"latentknobs": "tokne"}, {}, "no adapter 'tokne' on this server. Did you mean"),
    ({"latentknobs": "token"}, {"temperature": 0.5}, "for temperature=0.5. Leave temperature out"),
    ({"latentknobs": "token"}, {"extra_body": {"top_k": 3}}, "for top_k=3"),
    ({"latentknobs": "values", "latentknobs_pick": "sample"}, {}, "has no 'latentknobs_pick'"),
    ({"latentknobs": "token", "latentknobs_sede": 1}, {}, "no field 'latentknobs_sede'"),
    ({"latentknobs": "token", "latentknobs_key": "k"}, {"n": 2}, "would be the same for all"),
])  # fmt: skip
def test_refusals_are_400_in_our_words(server: Server, xargs: dict[str, Any], more: dict[str, Any], words: str) -> None:
    body = {"vllm_xargs": xargs} | more.pop("extra_body", {})
    client = openai.OpenAI(base_url=server.url + "/v1", api_key=KEY, max_retries=0)
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="testbed", prompt=[3, 4], max_tokens=3, extra_body=body, **more)
    assert words in str(caught.value)
    assert server.get("/health").status_code == 200


PROMPT, MESSAGES, EDT = "Once upon a time", [{"role": "user", "content": "2 + 3 ="}], {"latentknobs": "edt"}
CHAT = {"model": "testbed", "messages": MESSAGES, "max_tokens": 6}
PLAIN = {"model": "testbed", "prompt": PROMPT, "max_tokens": 6}


@pytest.mark.parametrize(("path", "body"), [
    ("/v1/completions", PLAIN | {"echo": True, "logprobs": 2}), ("/v1/completions", PLAIN | {"prompt_logprobs": 1}),
    ("/v1/completions", PLAIN | {"structured_outputs": {"choice": [" there", " was"]}}), ("/invocations", PLAIN),
    ("/v1/chat/completions", CHAT | {"response_format": {"type": "json_object"}}),
    ("/v1/chat/completions/batch", CHAT | {"messages": [MESSAGES]}), ("/v1/messages", CHAT),
    ("/v1/responses", {"model": "testbed", "input": PROMPT, "max_output_tokens": 6}),
    ("/inference/v1/generate", {"token_ids": [3, 4], "sampling_params": {"max_tokens": 6}}),
])  # fmt: skip
def test_policies_act_on_every_route_that_generates(server: Server, path: str, body: dict[str, Any]) -> None:
    xargs = EDT | {"latentknobs_key": f"{path} {body}"[:256], "latentknobs_seed": 1}
    if "sampling_params" in body:
        body = body | {"sampling_params": body["sampling_params"] | {"extra_args": xargs}}
    answer = server.post(path, body | ({} if "sampling_params" in body else {"vllm_xargs": xargs}))
    assert answer.status_code == 200, answer.text
    [trace] = server.choices({"keys": [xargs["latentknobs_key"]]}).json()["choices"]
    text = json.dumps(TOKENIZER.decode(trace["ids"], skip_special_tokens=True))[1:-1]
    assert text and (text in answer.text or str(trace["ids"]).replace(" ", "") in answer.text.replace(" ", ""))


@pytest.mark.parametrize(("path", "body", "words"), [
    ("/v1/completions", PLAIN | {"use_beam_search": True, "n": 2}, "and for use_beam_search, which draws none"),
    ("/v1/chat/completions", CHAT | {"use_beam_search": True, "n": 2}, "and for use_beam_search, which draws none"),
    ("/invocations", PLAIN | {"use_beam_search": True}, "and for use_beam_search, which draws none"),
    ("/inference/v1/generate", {"token_ids": [3, 4], "sampling_params": {"max_tokens": 3}}, "Write it into sampling_params"),
    ("/generative_scoring", {"query": "a", "items": ["b"], "label_token_ids": [3]}, "nothing is drawn there"),
    ("/v1/completions", PLAIN | EDT, "stands beside vllm_xargs"),
    ("/v1/completions", PLAIN | {"prompt": ["a", "b"]}, "has 2 prompts, and 'latentknobs_key' would be the same"),
])  # fmt: skip
def test_what_vllm_would_leave_out_is_refused(server: Server, path: str, body: dict[str, Any], words: str) -> None:
    answer = server.post(path, body | {"vllm_xargs": EDT | {"latentknobs_key": "left out"}})
    assert answer.status_code == 400 and words in answer.json()["error"]["message"]
    if path.startswith("/v1"):
        assert server.post(path, body | {"vllm_xargs": EDT}, Authorization="Bearer wrong").status_code == 401, "keys come first"


def test_requests_without_a_policy_are_vllms_alone(server: Server) -> None:
    assert server.post("/v1/completions", PLAIN | {"use_beam_search": True, "n": 2}).status_code == 200
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    body = json.dumps(PLAIN | {"prompt": "latentknobs " * 200_000, "truncate_prompt_tokens": 20}).encode()  # 2.4 MB
    parts = (body[n : n + 65_536] for n in range(0, len(body), 65_536))
    answer = httpx.post(server.url + "/v1/completions", content=parts, headers=headers, timeout=300)
    assert "maximum context length" in answer.text or answer.status_code == 200, answer.text


def test_keys_can_be_fetched_once_and_bad_bodies_are_refused(server: Server, adapters: dict[str, KnobAdapter]) -> None:
    job = Job("token", adapters["token"].policy(), 0, [3, 4])
    asyncio.run(together(server, [job], keyed=True))
    keys = {"keys": ["token 0", "nowhere"]}
    assert [one is None for one in server.choices(keys).json()["choices"]] == [False, True]
    assert server.choices(keys).json()["choices"] == [None, None]
    for body in ({}, {"keys": "token 0"}, [1]):
        assert server.choices(body).status_code == 400


def test_rollouts_by_policies_of_the_server(
    server: Server, adapters: dict[str, KnobAdapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    engine, reader, texts = engine_of(f"serve:{server.url}", MODEL, TOKENIZER), TransformersEngine(MODEL, TOKENIZER), prompts(8)
    for policy in (adapters["sentence"].policy("sample"), adapters["token"].policy(), policy_of(RULES["mirostat"])):
        found = engine.sample(texts, policy, max_new_tokens=TOKENS, seed=3)
        expected = reader.sample(texts, policy, max_new_tokens=TOKENS, seed=3)
        assert [row._replace(logps=None, values=()) for row in found] == [row._replace(logps=None, values=()) for row in expected]
        assert all(row.logps is not None and len(row.values) == len(row.ids) for row in found)
    with pytest.raises(ConfigError, match=r"does not have this UniformPolicy.*It has: edt, entropy"):
        engine.check(policy_of("uniform:temperature=0,1"))


def test_n_and_seeds(server: Server) -> None:
    client = openai.OpenAI(base_url=server.url + "/v1", api_key=KEY, max_retries=0)

    def texts(**more: Any) -> list[str]:
        body = {"vllm_xargs": {"latentknobs": "edt"}}
        found = client.completions.create(model="testbed", prompt="Once", max_tokens=20, extra_body=body, **more)
        return [choice.text for choice in found.choices]

    assert len(set(texts(n=6))) > 1 and texts(n=3, seed=4) == texts(n=3, seed=4) and len(set(texts(n=6, seed=4))) > 1

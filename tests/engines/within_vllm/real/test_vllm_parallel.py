"""Two data-parallel engines behind two front ends: policies act in both, and what clients fetch comes from the right one."""

from collections.abc import Iterator
from typing import Any

import pytest
from vllm_cases import MODEL, TOKENIZER, V2, prompts
from vllm_serving import Server, serving

from latentknobs.adapter import KnobAdapter
from latentknobs.engines.transformers import TransformersEngine
from latentknobs.policies.names import policy_of

pytestmark = [pytest.mark.slow, pytest.mark.skipif(V2, reason="the server is tried with runner V1")]
HOT = "constant:temperature=1.5"
ROWS, TOKENS = 6, 16


@pytest.fixture(scope="module")
def server(adapters: dict[str, KnobAdapter], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("parallel")
    specs = {"token": str(adapters["token"].save_pretrained(folder / "token")), "hot": HOT}
    with serving(folder, specs, "--data-parallel-size=2") as found:
        yield found


def ids_of(server: Server, prompt: list[int], rank: int, xargs: dict[str, Any]) -> tuple[int, ...]:
    """The response of one of the engines."""
    body = {"model": "testbed", "prompt": prompt, "max_tokens": TOKENS, "return_token_ids": True, "vllm_xargs": xargs}
    answer = server.post("/v1/completions", body, **{"X-data-parallel-rank": str(rank)})
    assert answer.status_code == 200, answer.text
    return tuple(answer.json()["choices"][0]["token_ids"])


def test_policies_act_in_both_engines(server: Server, adapters: dict[str, KnobAdapter]) -> None:
    texts, reader = prompts(ROWS), TransformersEngine(MODEL, TOKENIZER)
    for name, policy in {"token": adapters["token"].policy(), "hot": policy_of(HOT)}.items():
        expected = reader.sample(texts, policy, max_new_tokens=TOKENS, seed=5)
        for rank in (0, 1):
            keys = [f"{name} {rank} {row}" for row in range(ROWS)]
            xargs = [{"latentknobs": name, "latentknobs_seed": 5, "latentknobs_row": row, "latentknobs_key": key}
                     for row, key in enumerate(keys)]  # fmt: skip
            found = [ids_of(server, text, rank, one) for text, one in zip(texts, xargs, strict=True)]
            assert found == [response.ids for response in expected]
            traces = server.choices({"keys": keys}).json()["choices"]
            assert [tuple(trace["ids"]) for trace in traces] == found
            assert [trace["options"] and tuple(trace["options"]) for trace in traces] == [row.options for row in expected]
    busy = [line for line in server.get("/metrics").text.splitlines() if line.startswith("vllm:generation_tokens_total")]
    assert len(busy) == 2 and all(float(line.split()[-1]) > 0 for line in busy), "both engines worked"


def test_engines_draw_other_seeds_where_requests_name_none(server: Server) -> None:
    found = [ids_of(server, [3, 4], rank, {"latentknobs": "hot"}) for rank in (0, 1) for _ in range(4)]
    assert len(set(found)) == len(found)

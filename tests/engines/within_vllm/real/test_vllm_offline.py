"""vLLM in this process: every token and every choice is that of transformers, whatever the scheduler does."""

from typing import Any

import pytest
import torch
from scipy import stats
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm_cases import MODEL, TOKENIZER, V2, preemptions, prompts

from latentknobs.adapter import KnobAdapter
from latentknobs.engines.base import Response
from latentknobs.engines.record import record_of
from latentknobs.engines.transformers import TransformersEngine
from latentknobs.engines.vllm.engine import VLLMEngine
from latentknobs.heads.segmenters import Every
from latentknobs.knobs.context import Observation
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import Choice, Policy, reads
from latentknobs.policies.names import policy_of
from latentknobs.testing import EngineConformance

# so few blocks that requests wait, are cut and come back
BLOCKS = {"block_size": 32, "num_gpu_blocks_override": 24, "max_num_batched_tokens": 48}


class Interpreted(VLLMEngine):
    """Runner V2 here: Triton's interpreter cannot run vLLM's own kernels of top-k and top-p."""

    def plain(self, *args: Any, **settings: Any) -> list[Response]:
        raise NotImplementedError


ENGINE = (Interpreted if V2 else VLLMEngine)(
    MODEL, TOKENIZER, max_num_seqs=16, kv_cache_memory_bytes=2**28, enforce_eager=True, max_model_len=256,
    enable_prefix_caching=False, disable_log_stats=False, **BLOCKS,
)  # fmt: skip
READER = TransformersEngine(MODEL, TOKENIZER)
ROWS, TOKENS = (20, 24) if V2 else (14, 100)  # responses of each policy, and their length


class TestVLLM(EngineConformance):
    engine = ENGINE


class Hot(Policy):
    """The hotter, the less of the budget is left; values in no grid."""

    needs = ("remaining_N", "samples_N")

    def __init__(self) -> None:
        self.space, self.segmenter = KnobSpace.of({"temperature": [1.0]}), Every(1)

    def choose(self, seen: Observation, uniform_N: Any, state: Any = None) -> Choice:
        return Choice((seen.samples_N / (seen.remaining_N + 1.0)).double().unsqueeze(-1))


def all_policies(adapters: dict[str, KnobAdapter]) -> dict[str, Policy]:
    return {
        "token": adapters["token"].policy(), "token-sampled": adapters["token"].policy("sample"),
        "sequence-sampled": adapters["sequence"].policy("sample"), "sentence": adapters["sentence"].policy(),
        "sentence-sampled": adapters["sentence"].policy("sample"), "entropy": adapters["entropy"].policy(),
        "uniform": policy_of("uniform:temperature=0,0.7,1.2,top_k=0,3,epsilon_cutoff=0,0.01,level=sequence"),
        "penalty": policy_of("uniform:repetition_penalty=1,1.3,temperature=0.8,1.2"),
        "edt": policy_of("edt:base=1.4,theta=0.3"), "mirostat": policy_of("mirostat:tau=3.0"), "hot": Hot(),
        "values": adapters["values"].policy(),
    }  # fmt: skip


def ask(policy: str, row: int, key: str, **more: Any) -> SamplingParams:
    extra = {
        "latentknobs": policy,
        "latentknobs_seed": 5,
        "latentknobs_row": row,
        "latentknobs_samples": 3,
        "latentknobs_key": key,
    }
    return SamplingParams(max_tokens=TOKENS, extra_args=extra, detokenize=False, **more)


def test_a_mixed_batch_says_what_transformers_says(adapters: dict[str, KnobAdapter]) -> None:
    policies, llm = all_policies(adapters), ENGINE._llm()
    assert llm.llm_engine.vllm_config.use_v2_model_runner == V2, "the other model runner is tried"
    for name, policy in policies.items():
        llm.collective_rpc("latentknobs_register", args=(name, {"": policy}))
    rows = [(name, row) for row in range(ROWS) for name in [*policies, None]]
    texts = prompts(len(rows))
    plain = SamplingParams(max_tokens=TOKENS, temperature=0.0, detokenize=False)
    params = [plain if name is None else ask(name, row, f"{name} {row}") for name, row in rows]
    before = preemptions(llm)
    found = [
        list(out.outputs[0].token_ids)
        for out in llm.generate([{"prompt_token_ids": ids} for ids in texts], params, use_tqdm=False)
    ]
    assert preemptions(llm) > before, "the cache was too large to try what is claimed"
    assert max(map(len, texts)) > BLOCKS["max_num_batched_tokens"] - 16, "no prompt is read in chunks beside others"
    total = 0
    for name, policy in policies.items():
        mine = [n for n, (other, _) in enumerate(rows) if other == name]
        expected = READER.sample([texts[n] for n in mine], policy, max_new_tokens=TOKENS, seed=5, samples=3)
        traces = llm.collective_rpc("latentknobs_take", args=([f"{name} {row}" for row in range(ROWS)],))[0]
        for n, response, trace in zip(mine, expected, traces, strict=True):
            assert tuple(found[n]) == tuple(trace["ids"]) == response.ids, name
            assert (trace["options"] and tuple(trace["options"])) == response.options, name
            assert torch.allclose(torch.tensor(trace["values"]), torch.tensor(response.values), atol=1e-4), name
        total += check_logps(policy, [texts[n] for n in mine], [found[n] for n in mine], traces)
    alone = [n for n, (name, _) in enumerate(rows) if name is None]
    greedy = READER.sample([texts[n] for n in alone], policy_of("greedy"), max_new_tokens=TOKENS, seed=0)
    assert [tuple(found[n]) for n in alone] == [response.ids for response in greedy], "requests without a policy are vLLM's alone"
    print(f"\n{total} tokens of {len(policies)} policies equal, {preemptions(llm) - before} preemptions")
    assert total > 5000


def check_logps(policy: Policy, texts: list[list[int]], ids: list[list[int]], traces: list[dict[str, Any]]) -> int:
    """Reported log-probabilities are those of a reading; returns the number of tokens."""
    seen = READER.observe(texts, ids, reads(policy), max_new_tokens=TOKENS, samples=3)
    record = record_of(policy, 5, texts, ids, seen)
    for b, trace in enumerate(traces):
        read_T = record.logps_BT[b, : len(ids[b])]
        assert torch.allclose(read_T.float(), torch.tensor(trace["logps"]), atol=2e-4), "log P(token | values)"
    return sum(map(len, ids))


def test_rollouts_are_those_of_transformers(adapters: dict[str, KnobAdapter]) -> None:
    texts, policy = prompts(12), adapters["token"].policy("sample")
    count = 8 if V2 else 40
    found = ENGINE.sample(texts, policy, max_new_tokens=count, seed=8)
    expected = READER.sample(texts, policy, max_new_tokens=count, seed=8)
    assert [row._replace(logps=None, values=()) for row in found] == [row._replace(values=()) for row in expected]
    assert all(row.logps is not None and len(row.logps) == len(row.ids) == len(row.values) for row in found)


@pytest.mark.parametrize("values", [{"temperature": 1.2, "min_p": 0.1}, {"temperature": 1.6, "top_p": 0.8}, {"top_k": 4}])
def test_constants_are_distributed_as_vllms_own_parameters(values: dict[str, float]) -> None:
    """Chi-squared, of the first token of many responses to one prompt."""
    if V2 and not {"temperature", "min_p"}.issuperset(values):
        pytest.skip("see Interpreted")
    rows, text = 120 if V2 else 1000, TOKENIZER("Rule:").input_ids
    order = [name for name in ("temperature", "min_p", "top_k", "top_p") if name in values]
    space = KnobSpace.of(*({name: [value]} for name, value in values.items()), order=order)
    mine = ENGINE.sample([text] * rows, policy_of_space(space), max_new_tokens=1, seed=3)
    theirs = VLLMEngine.plain(ENGINE, [text] * rows, values, max_new_tokens=1, seed=3)
    tokens = sorted({row.ids[0] for row in (*mine, *theirs)})
    counts = [[sum(row.ids[0] == token for row in found) for token in tokens] for found in (mine, theirs)]
    often = [n for n, pair in enumerate(zip(*counts, strict=True)) if sum(pair) >= 12]
    assert len(often) > 1, "one token shows nothing"
    assert stats.chi2_contingency([[line[n] for n in often] for line in counts]).pvalue > 1e-6  # vLLM draws without a seed here


def policy_of_space(space: KnobSpace) -> Policy:
    from latentknobs.policies import ConstantPolicy

    return ConstantPolicy(space, 0)


def test_penalties_act_on_tokens_and_not_on_choices(adapters: dict[str, KnobAdapter]) -> None:
    llm, policy, texts = ENGINE._llm(), adapters["entropy"].policy(), prompts(4)
    llm.collective_rpc("latentknobs_register", args=("entropy", {"": policy}))
    params = [ask("entropy", row, f"p{row}", logit_bias={10: -100.0, 32: -100.0}, repetition_penalty=1.2) for row in range(4)]
    ids = [
        list(out.outputs[0].token_ids)
        for out in llm.generate([{"prompt_token_ids": text} for text in texts], params, use_tqdm=False)
    ]
    traces = llm.collective_rpc("latentknobs_take", args=([f"p{row}" for row in range(4)],))[0]
    record = record_of(policy, 5, texts, ids, READER.observe(texts, ids, reads(policy)))
    assert record.option_BT is not None
    for row in range(4):
        assert record.option_BT[row, : len(ids[row])].tolist() == traces[row]["options"]
        assert not {10, 32} & set(ids[row])


def test_seeds_and_chance(adapters: dict[str, KnobAdapter]) -> None:
    llm, text = ENGINE._llm(), prompts(1)[0]
    # hot: the answer to this prompt is sure, and at 1.5 six responses are the same in one run of 26
    llm.collective_rpc("latentknobs_register", args=("hot", {"": policy_of("constant:temperature=3")}))

    def texts(count: int, seed: int | None = None, n: int = 1) -> list[tuple[int, ...]]:
        params = SamplingParams(max_tokens=12, extra_args={"latentknobs": "hot"}, seed=seed, n=n, detokenize=False)
        found = llm.generate([{"prompt_token_ids": text}] * count, params, use_tqdm=False)
        return [tuple(one.token_ids) for out in found for one in out.outputs]

    assert len(set(texts(6))) > 1, "without a seed, responses to one prompt differ"
    assert len(text) < BLOCKS["max_num_batched_tokens"], "see `plain`: not in chunks"
    for _ in range(2):
        assert texts(1, seed=3) == texts(1, seed=3)


@pytest.mark.parametrize(("more", "extra", "words"), [
    ({"temperature": 0.5}, {"latentknobs": "rollouts"}, "for temperature=0.5"),
    ({"top_k": 5}, {"latentknobs": "rollouts"}, "top_k=5"),
    ({}, {"latentknobs": "nowhere"}, "no adapter 'nowhere'"),
    ({}, {"latentknobs": "rollouts", "latentknobs_seed": "x"}, "Give a whole number"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_and_the_engine_lives(more: dict[str, Any], extra: dict[str, Any], words: str) -> None:
    ENGINE.sample([[3, 4]], policy_of("greedy"), max_new_tokens=2, seed=0)
    with pytest.raises(VLLMValidationError, match=words):
        ENGINE._llm().generate([{"prompt_token_ids": [3, 4]}], SamplingParams(max_tokens=2, extra_args=extra, **more))
    found: list[Response] = ENGINE.sample([[3, 4]], policy_of("greedy"), max_new_tokens=2, seed=0)
    assert len(found[0].ids) == 2

"""bfloat16: two programs differ in the last bits, so choices may differ where two options are nearly as good; nowhere else."""

from typing import Any

import torch
from vllm_cases import MODEL, TOKENIZER, V2, preemptions, prompts

from latentknobs import testbed
from latentknobs.engines.record import record_of
from latentknobs.engines.transformers import TransformersEngine
from latentknobs.engines.vllm.engine import VLLMEngine
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Every
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import HeadPolicy
from latentknobs.policies.names import policy_of

NEAR, TOKENS = 0.02, 60  # nats
# with the cache's size given, vLLM leaves out a first run without attention: its numbers are NaN, and the interpreter ends
SETTINGS: dict[str, Any] = {
    "max_num_seqs": 16, "enforce_eager": True, "max_model_len": 256, "kv_cache_memory_bytes": 2**28, "block_size": 32,
    "num_gpu_blocks_override": 24, "max_num_batched_tokens": 48, "enable_prefix_caching": False, "disable_log_stats": False,
}  # fmt: skip


def test_in_bfloat16_every_difference_is_a_near_tie() -> None:
    model, texts = testbed.load_model().to(torch.bfloat16), prompts(32)
    space = KnobSpace.of({"temperature": [0.0, 0.5, 1.0, 1.3]}, {"min_p": [0.0, 0.05, 0.2]})
    torch.manual_seed(0)
    head = OptionHead(space, model.config.hidden_size)
    torch.nn.init.normal_(head.mlp[-1].weight, std=0.5)  # type: ignore[arg-type]
    policy = HeadPolicy(head.eval(), space, Every(1))
    engine = VLLMEngine(model, TOKENIZER, **SETTINGS)
    llm = engine._llm()
    assert llm.llm_engine.vllm_config.use_v2_model_runner == V2
    before = preemptions(llm)
    found = engine.sample(texts, policy, max_new_tokens=TOKENS, seed=2)
    ids = [row.ids for row in found]
    record = record_of(policy, 2, texts, ids, TransformersEngine(model, TOKENIZER).observe(texts, ids))
    assert preemptions(llm) > before
    assert record.option_BT is not None and record.log_pi_BTK is not None
    gaps, total, outside = list[float](), sum(map(len, ids)), 0
    for b, row in enumerate(found):
        outside += int((~record.logps_BT[b, : len(row.ids)].isfinite()).sum())
        for t, option in enumerate(row.options or ()):
            if option != record.option_BT[b, t]:
                gaps.append(float(record.log_pi_BTK[b, t].max() - record.log_pi_BTK[b, t, option]))
    print(
        f"\nbfloat16, runner V{1 + V2}: {len(gaps)} of {total} options differ, by at most {max(gaps, default=0):.4f} nats; "
        f"{outside} tokens outside; {preemptions(llm) - before} preemptions"
    )
    assert max(gaps, default=0.0) < NEAR and len(gaps) < 0.02 * total and outside < 0.02 * total


def test_another_model_takes_the_place_of_the_first() -> None:
    engine, policy = VLLMEngine(MODEL, TOKENIZER, **SETTINGS), policy_of("edt:base=1.4,theta=0.3")
    found = engine.sample(prompts(2), policy, max_new_tokens=4, seed=1)
    assert [row.ids for row in found] == [
        row.ids for row in TransformersEngine(MODEL, TOKENIZER).sample(prompts(2), policy, max_new_tokens=4, seed=1)
    ]

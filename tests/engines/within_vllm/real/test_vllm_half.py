"""bfloat16: two programs differ in the last bits, so choices may differ where two options are nearly as good; nowhere else."""

import torch
from vllm_cases import TOKENIZER, V2, preemptions, prompts

from latentknobs import testbed
from latentknobs.engines.record import record_of
from latentknobs.engines.transformers import TransformersEngine
from latentknobs.engines.vllm.engine import VLLMEngine
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Every
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import HeadPolicy

NEAR, TOKENS = 0.02, 60  # nats


def test_in_bfloat16_every_difference_is_a_near_tie() -> None:
    model, texts = testbed.load_model().to(torch.bfloat16), prompts(32)
    space = KnobSpace.of({"temperature": [0.0, 0.5, 1.0, 1.3]}, {"min_p": [0.0, 0.05, 0.2]})
    torch.manual_seed(0)
    head = OptionHead(space, model.config.hidden_size)
    torch.nn.init.normal_(head.mlp[-1].weight, std=0.5)  # type: ignore[arg-type]
    policy = HeadPolicy(head.eval(), space, Every(1))
    # with the cache's size given, vLLM leaves out a first run without attention: its numbers are NaN, and the interpreter ends
    engine = VLLMEngine(
        model, TOKENIZER, max_num_seqs=16, enforce_eager=True, max_model_len=256, kv_cache_memory_bytes=2**28, block_size=32,
        num_gpu_blocks_override=24, max_num_batched_tokens=48, enable_prefix_caching=False, disable_log_stats=False,
    )  # fmt: skip
    llm = engine._llm()
    assert llm.llm_engine.vllm_config.use_v2_model_runner == V2
    found = engine.sample(texts, policy, max_new_tokens=TOKENS, seed=2)
    ids = [row.ids for row in found]
    record = record_of(policy, 2, texts, ids, TransformersEngine(model, TOKENIZER).observe(texts, ids))
    assert preemptions(llm) > 0
    assert record.option_BT is not None and record.log_pi_BTK is not None
    gaps, total, outside = list[float](), sum(map(len, ids)), 0
    for b, row in enumerate(found):
        outside += int((~record.logps_BT[b, : len(row.ids)].isfinite()).sum())
        for t, option in enumerate(row.options or ()):
            if option != record.option_BT[b, t]:
                gaps.append(float(record.log_pi_BTK[b, t].max() - record.log_pi_BTK[b, t, option]))
    print(
        f"\nbfloat16, runner V{1 + V2}: {len(gaps)} of {total} options differ, by at most {max(gaps, default=0):.4f} nats; "
        f"{outside} tokens outside; {preemptions(llm)} preemptions"
    )
    assert max(gaps, default=0.0) < NEAR and len(gaps) < 0.02 * total and outside < 0.02 * total

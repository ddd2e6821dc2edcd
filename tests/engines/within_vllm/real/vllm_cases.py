"""What the tests of vLLM share: the testbed's model and prompts, and which model runner this process tries."""

import os
from typing import Any

from latentknobs import testbed

V2 = os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1"  # its kernels run in an interpreter here, some twenty times slower
if V2:
    from triton.backends import Backend, backends

    class Interpreter:
        """Triton's kernels are run by Triton's interpreter (TRITON_INTERPRET=1); vLLM counts the drivers that are active."""

        @staticmethod
        def is_active() -> bool:
            return True

    backends["cpu"] = Backend(compiler=None, driver=Interpreter)

MODEL, TOKENIZER = testbed.load_model(), testbed.load_tokenizer()


def prompts(count: int) -> list[list[int]]:
    """Prompts of the testbed, of several lengths."""
    return [TOKENIZER(row["prompt"]).input_ids for row in testbed.prompts("mixture", "eval", count)]


def preemptions(llm: Any) -> int:
    """How often vLLM has set a response aside; its metrics count for all engines of the process."""
    return next(int(metric.value) for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions")

"""What the tests of vLLM share: the testbed's model and prompts, and which model runner this process tries."""

import os

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

"""A tiny trained LM with three tasks, inside the package: everything can be tried, tested and taught offline.

    from latentknobs import testbed
    model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
    rows = testbed.prompts("mixture", "train", 512)

The tasks want different temperatures: math is best cold, stories are best warm, constrained stories are cold at the
beginning of sentences and warm elsewhere. `latentknobs/testbed/README.md` is the model's card.
"""

from latentknobs.testbed.model_files import load_model, load_tokenizer
from latentknobs.testbed.reward import testbed_reward
from latentknobs.testbed.tasks import MAX_NEW_TOKENS, TASKS, prompts

__all__ = ["MAX_NEW_TOKENS", "TASKS", "load_model", "load_tokenizer", "prompts", "testbed_reward"]

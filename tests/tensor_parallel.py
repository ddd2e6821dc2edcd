"""Run by test_models.py, alone or as one of two processes: read and sample with one model, and save what came out.

tensor_parallel.py MODEL_FOLDER OUTPUT_FOLDER
"""

import sys
from pathlib import Path

import torch

from latentknobs import KnobSpace
from latentknobs.config import make_config
from latentknobs.data.prompts import Prompt
from latentknobs.data.rollouts import roll_out
from latentknobs.engines.transformers.frozen import read_responses
from latentknobs.heads.segmenters import parse_level
from latentknobs.models.loading import load_model
from latentknobs.policies import UniformPolicy
from latentknobs.progress import processes


def main(folder: str, out: str) -> None:
    """Loads, reads, samples, saves."""
    several = processes() > 1
    model, tokenizer = load_model(folder, make_config({"tp_plan": "auto"} if several else {}))
    hidden_TD, logits_TV = next(read_responses(model, [[1, 5, 6]], [[7, 8, 9]]))
    policy = UniformPolicy(KnobSpace.of("temperature"), parse_level("token", tokenizer))
    prompts = [Prompt("one", (1, 5, 6)), Prompt("two", (1, 5, 8, 9))]
    rollouts = roll_out(model, tokenizer, prompts, policy, copies=3, max_new_tokens=10, batch_size=4, seed=1)
    weight = model.model.layers[0].mlp.up_proj.weight
    own = weight.to_local() if several else weight
    saved = {
        "hidden": hidden_TD, "logits": logits_TV, "rows of a weight": len(own), "responses": [list(r.ids) for r in rollouts],
    }  # fmt: skip
    rank = torch.distributed.get_rank() if several else None
    torch.save(saved, Path(out) / ("alone.pt" if rank is None else f"rank-{rank}.pt"))
    if several:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A model with prompts, a reward and heads trained on it, for the benchmark of continuous values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import latentknobs as lk
from benchmarks.stories260k import creative_reward, data_folder, load, openings, stories
from latentknobs import testbed
from latentknobs.data.prompts import Prompt, make_prompts
from latentknobs.data.rollouts import Rollout, roll_out
from latentknobs.data.scores import score_rollouts
from latentknobs.engines.transformers import TransformersEngine
from latentknobs.heads.features import read_features
from latentknobs.policies import Policy
from latentknobs.policies.controls import Choices

RUNS = Path("runs/continuous")
TOKENS = 32  # of a response
SIZES = {"train_prompts": 192, "rollouts": 8, "steps": 300}
TUNE, HELD_OUT = 96, 128  # prompts
KNOBS = ["temperature:0.1,0.5,1,1.5", "top_p:0.6,1"]
FEATURES = ("hidden", "entropy", "max_prob")
LEARNERS: dict[str, dict[str, Any]] = {
    "lpo": {"learner": "lpo", "pairs_per_prompt": 3},
    "preference": {"learner": "end_to_end", "objective": "preference", "pairs_per_prompt": 3},
    "reward_weighted": {"learner": "end_to_end", "objective": "reward_weighted"},
    "likelihood": {"learner": "end_to_end", "objective": "likelihood", "keep": "best"},
}


class World:
    """A model with prompts and a reward."""

    def __init__(self, name: str) -> None:
        self.name = name
        if name == "stories":
            folder = data_folder()
            self.model, self.tokenizer = load(folder)
            train, held_out = openings(stories(folder), self.tokenizer)
            self.reward: Any = creative_reward(folder)
        else:
            self.model, self.tokenizer = testbed.load_model(), testbed.load_tokenizer()
            task = {"testbed": "constrained"}.get(name, name)
            train, held_out = (testbed.prompts(task, split, 1024) for split in ("train", "eval"))
            self.reward = testbed.testbed_reward
        self.train, self.held_out = train[: SIZES["train_prompts"]], held_out[:HELD_OUT]

    def fit(self, name: str, seed: int) -> lk.KnobAdapter:
        """A trained head; all learners of one seed sample the same rollouts."""
        return lk.train(
            knobs=KNOBS, model=self.model, tokenizer=self.tokenizer, prompts=self.train, eval_prompts=self.held_out,
            reward=self.reward, output_dir=RUNS / f"{self.name}-{seed}-{name}", seed=seed, level="token", max_new_tokens=TOKENS,
            eval_size=0, features=FEATURES, batch_size=256, pairs_per_step=16, shard_size=2048, device="cpu",
            **SIZES | LEARNERS[name] | ({"keep": "correct"} if (name, self.name) == ("likelihood", "math") else {}),
        ).adapter  # fmt: skip

    def prompts(self, rows: Sequence[Any]) -> list[Prompt]:
        return make_prompts(list(rows), self.tokenizer)

    def answers(self, policy: Policy, rows: Sequence[Any], copies: int, seed: int) -> tuple[list[Rollout], Any]:
        """Responses, and (copies, prompts) rewards."""
        prompts = self.prompts(rows)
        found = roll_out(
            self.model, self.tokenizer, prompts, policy, copies=copies, max_new_tokens=TOKENS, batch_size=256, seed=seed
        )
        scores = [float(score.value) for score in score_rollouts(self.reward, prompts, found)]  # type: ignore[arg-type]
        return found, np.array(scores).reshape(len(prompts), copies).T

    def choices(self, rollouts: Sequence[Rollout], rows: Sequence[Any]) -> Choices:
        """What a policy chose in some of its responses, token by token."""
        prompts, engine = self.prompts(rows), TransformersEngine(self.model, self.tokenizer)
        parts: tuple[list[Tensor], list[Tensor]] = ([], [])
        for start in range(0, len(rollouts), 64):
            batch = rollouts[start : start + 64]
            for rollout, (hidden_TD, logits_TV) in zip(
                batch, engine.read([prompts[r.prompt].ids for r in batch], [r.ids for r in batch]), strict=True
            ):
                parts[0].append(torch.tensor(rollout.values, dtype=torch.float64))
                parts[1].append(read_features(["entropy", "max_prob"], hidden_TD, logits_TV))
        value_MJ, certainty_M2 = (torch.cat(part) for part in parts)
        return Choices(value_MJ, certainty_M2[:, 0], certainty_M2[:, 1])

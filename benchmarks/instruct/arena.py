"""Policies on the tuning and the held-out prompts of a task, in pieces of one batch that a second call finds finished."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.instruct.tasks import Mixture, Task
from latentknobs.content import digest
from latentknobs.data.disk import replacing
from latentknobs.data.prompts import Prompt, make_prompts
from latentknobs.data.rollouts import Rollout, batch_seed, plan_batches, roll_out_batch
from latentknobs.engines.transformers import TransformersEngine
from latentknobs.heads.features import read_features
from latentknobs.policies import Policy
from latentknobs.policies.controls import Choices
from latentknobs.policies.names import policy_of


class Arena:
    """Where policies answer the prompts of one task.

    Args:
        model, tokenizer: the LM.
        folder: of finished pieces, one file each, named by the policy's identity and what it answers.
        batch: rows of a piece.
    """

    def __init__(self, model: Any, tokenizer: Any, task: Task | Mixture, folder: Path, batch: int) -> None:
        self.task, self.model, self.tokenizer, self.folder, self.batch = task, model, tokenizer, folder, batch
        self.engine = TransformersEngine(model, tokenizer)

    def prompts(self, held_out: bool, count: int) -> list[Prompt]:
        """The first so many of a split."""
        return make_prompts(self.task.rows(held_out, count), self.tokenizer)

    def answers(self, policy: Policy, prompts: Sequence[Prompt], copies: int, seed: int = 0) -> list[Rollout]:
        """So many responses to each prompt, in their order."""
        # the format of the prepared model is not named, so that answers of before it could be chosen are found
        dtype = () if self.model.dtype == torch.bfloat16 else (str(self.model.dtype),)
        key = digest(policy.identity(), [prompt.text for prompt in prompts], copies, seed, self.task.max_new_tokens, *dtype)[:16]
        found: list[Rollout] = []
        for number, batch in enumerate(plan_batches(prompts, copies, self.batch)):
            path = self.folder / "answers" / f"{key}-{self.batch}-{number:03d}.json"
            if not path.exists():
                made = roll_out_batch(
                    self.engine, prompts, batch, policy, max_new_tokens=self.task.max_new_tokens,
                    seed=batch_seed(seed, number, self.batch), samples=copies,
                )  # fmt: skip
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as partial:
                    partial.write_text(json.dumps([[one.prompt, one.ids, one.text] for one in made]), encoding="utf-8")
            found += [Rollout(p, tuple(ids), None, text) for p, ids, text in json.loads(path.read_text(encoding="utf-8"))]
        return sorted(found, key=lambda one: one.prompt)

    def score(
        self, policy: Policy | str, *, held_out: bool, count: int, copies: int, seed: int = 0
    ) -> tuple[NDArray[np.float64], list[str]]:
        """(P, copies) rewards, and the texts."""
        prompts = self.prompts(held_out, count)
        rows = self.answers(policy_of(policy, self.tokenizer), prompts, copies, seed)
        columns = {name: [prompts[row.prompt].columns[name] for row in rows] for name in prompts[0].columns}
        rewards = self.task.reward([prompts[row.prompt].text for row in rows], [row.text for row in rows], **columns)
        return np.array(rewards).reshape(len(prompts), copies), [row.text for row in rows]

    def choices(self, policy: Policy, count: int) -> Choices:
        """What a token-level policy chooses for its own responses to training prompts, for its controls."""
        prompts = self.prompts(False, count)
        rows = self.answers(policy, prompts, 1, seed=77)
        values, certainty = [], []
        with torch.no_grad():
            for seen in self.engine.observe([prompts[row.prompt].ids for row in rows], [row.ids for row in rows]):
                values.append(policy.choose(seen, torch.zeros(len(seen.logits_NV)), None).value_NJ)
                certainty.append(read_features(["entropy", "max_prob"], seen.hidden_ND, seen.logits_NV))
        entropy_M, max_prob_M = torch.cat(certainty).unbind(-1)
        return Choices(torch.cat(values), entropy_M, max_prob_M)


def load(folder: str, dtype: str = "auto") -> tuple[Any, Any]:
    """The prepared model, on one thread."""
    from latentknobs.config import make_config
    from latentknobs.models.loading import load_model

    torch.set_num_threads(1)
    return load_model(folder, make_config({"model": folder, "dtype": dtype}))

"""What an evaluation found: the rewards of every policy on the same prompts, and the head against each, paired by prompt."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from latentknobs.data.rollouts import Rollout
from latentknobs.evaluation.statistics import Interval, bootstrap, win_share
from latentknobs.files import fit

HEAD, GREEDY, MIXTURE, ENTROPY = "learned head", "greedy decoding", "uniform mixture", "entropy-only head"
ALL = "all"


@dataclass(frozen=True)
class Comparison:
    """The head against one policy, on one task (or `all`).

    Attributes:
        reward: mean reward of the policy.
        gain: mean reward of the head minus that of the policy, paired.
        wins: share of prompts on which the head wins, ties one half.
    """

    policy: str
    task: str
    reward: Interval
    gain: Interval
    wins: Interval


class SavedReport(BaseModel):
    """What `Report.to_dict` writes and `from_dict` reads: (S, P) rewards of each policy, None where the reward failed."""

    rewards: dict[str, list[list[float | None]]]
    tasks: list[str]
    tuned: str
    tuning: dict[str, float]


@dataclass
class Report:
    """What an evaluation found.

    Attributes:
        rewards: for each policy, (seeds, prompts) rewards on the held-out prompts; NaN where the reward failed.
        tasks: the task of each prompt, `all` where the rows name none.
        tuned: name of the constant option with the best mean reward on training prompts.
        tuning: mean reward of every constant on training prompts.
        rollouts: every response on the held-out prompts, by policy, the seeds of a prompt next to each other.
    """

    rewards: dict[str, NDArray[np.float64]]
    tasks: list[str]
    tuned: str
    tuning: dict[str, float]
    rollouts: dict[str, list[Rollout]] = field(default_factory=dict)

    @cached_property
    def judged_P(self) -> NDArray[np.bool_]:
        """The prompts that count: every response of every policy to them has a score."""
        return judged(self.rewards)

    @property
    def left_out(self) -> int:
        """Number of prompts that take no part in any comparison, because a score failed on them."""
        return int((~self.judged_P).sum())

    @property
    def task_names(self) -> list[str]:
        """`all` first, then each task where there are several."""
        found = {task for task, kept in zip(self.tasks, self.judged_P, strict=True) if kept}
        return [ALL, *(sorted(found) if len(found) > 1 else [])]

    def compare(self, policy: str, task: str = ALL) -> Comparison:
        """The head against one policy on the prompts of one task."""
        keep = self._prompts(task)
        ours, theirs = self.rewards[HEAD][:, keep], self.rewards[policy][:, keep]
        return Comparison(
            policy, task, bootstrap(theirs.mean(0)), bootstrap((ours - theirs).mean(0)), bootstrap(win_share(ours, theirs))
        )

    def table(self) -> list[Comparison]:
        """Every policy (the head first) on every task."""
        return [self.compare(policy, task) for task in self.task_names for policy in self.rewards]

    def best_constant(self, task: str = ALL) -> str:
        """The constant that is best on these very prompts: not a fair baseline, but how far tuning could go."""
        keep = self._prompts(task)
        constants = [name for name in self.rewards if name in self.tuning]
        return max(constants, key=lambda name: self.rewards[name][:, keep].mean())

    def _prompts(self, task: str) -> NDArray[np.bool_]:
        return self.judged_P & np.array([task in (ALL, t) for t in self.tasks])

    def verdict(self) -> str:
        """In words: whether the head learned more than its best constant, and how many prompts could not be judged."""
        gain = self.compare(self.tuned).gain
        missing = f" {self.left_out} of {len(self.tasks)} prompts are left out: the reward failed on a response to them."
        note = missing if self.left_out else ""
        if gain.low > 0:
            return f"The head beats the tuned best constant ({self.tuned}) by {gain}.{note}"
        if gain.high < 0:
            return f"The head is worse than the tuned best constant ({self.tuned}): {gain}.{note}"
        return (
            f"The head does not differ from the tuned best constant ({self.tuned}): {gain}. It has learned nothing that a "
            f"fixed setting would not do.{note}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data: raw rewards and the table."""
        return {
            "tasks": self.tasks,
            "tuned": self.tuned,
            "tuning": self.tuning,
            "verdict": self.verdict(),
            "left_out": self.left_out,
            "rewards": {name: _plain(values) for name, values in self.rewards.items()},
            "table": [
                {
                    "policy": c.policy,
                    "task": c.task,
                    **{key: [i.mean, i.low, i.high] for key, i in (("reward", c.reward), ("gain", c.gain), ("wins", c.wins))},
                }
                for c in self.table()
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Report":
        """What `to_dict` wrote, without the rollouts.

        Raises:
            ValueError: it is damaged.
        """
        saved: SavedReport = fit(data, SavedReport)
        rewards = {name: np.array(values, dtype=float) for name, values in saved.rewards.items()}
        shapes = {values.shape for values in rewards.values()}
        if not {HEAD, saved.tuned} <= {*rewards} or len(shapes) != 1 or shapes.pop()[1:] != (len(saved.tasks),):
            raise ValueError("its policies do not have one reward for each seed and prompt")
        if not judged(rewards).any():
            raise ValueError("no prompt has a reward of every policy")
        return cls(rewards, saved.tasks, saved.tuned, saved.tuning)


def _plain(reward_SP: NDArray[np.float64]) -> list[list[float | None]]:
    return [[None if np.isnan(value) else round(value, 6) for value in row] for row in reward_SP.tolist()]


def judged(rewards: Mapping[str, NDArray[np.float64]]) -> NDArray[np.bool_]:
    """(P,) whether every response to a prompt has a score, for (seeds, P) rewards by policy."""
    return np.logical_and.reduce([np.isfinite(reward_SP).all(0) for reward_SP in rewards.values()])

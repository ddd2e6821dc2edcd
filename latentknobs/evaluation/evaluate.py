"""The head against everything a user could do instead, on held-out prompts, paired prompt by prompt.

Baselines: every constant option, the best of them tuned on training prompts, greedy decoding, the uniform mixture, and
a head that sees only the entropy. All policies answer the same prompts with the same seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentknobs.adapter import KnobAdapter
from latentknobs.data.prompts import Prompt
from latentknobs.data.rollouts import Reward, Rollout, roll_out, score
from latentknobs.evaluation.statistics import Interval, bootstrap, win_share
from latentknobs.policies import ConstantPolicy, GreedyPolicy, Pick, Policy, UniformPolicy

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


@dataclass
class Report:
    """What an evaluation found.

    Attributes:
        rewards: for each policy, (seeds, prompts) rewards on the held-out prompts.
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

    @property
    def task_names(self) -> list[str]:
        """`all` first, then each task where there are several."""
        return [ALL, *(sorted(set(self.tasks)) if len(set(self.tasks)) > 1 else [])]

    def compare(self, policy: str, task: str = ALL) -> Comparison:
        """The head against one policy on the prompts of one task."""
        keep = np.array([task in (ALL, t) for t in self.tasks])
        ours, theirs = self.rewards[HEAD][:, keep], self.rewards[policy][:, keep]
        return Comparison(
            policy, task, bootstrap(theirs.mean(0)), bootstrap((ours - theirs).mean(0)), bootstrap(win_share(ours, theirs))
        )

    def table(self) -> list[Comparison]:
        """Every policy (the head first) on every task."""
        return [self.compare(policy, task) for task in self.task_names for policy in self.rewards]

    def best_constant(self, task: str = ALL) -> str:
        """The constant that is best on these very prompts: not a fair baseline, but how far tuning could go."""
        keep = np.array([task in (ALL, t) for t in self.tasks])
        constants = [name for name in self.rewards if name in self.tuning]
        return max(constants, key=lambda name: self.rewards[name][:, keep].mean())

    def verdict(self) -> str:
        """One sentence: whether the head learned more than its best constant."""
        gain = self.compare(self.tuned).gain
        if gain.low > 0:
            return f"The head beats the tuned best constant ({self.tuned}) by {gain}."
        if gain.high < 0:
            return f"The head is worse than the tuned best constant ({self.tuned}): {gain}."
        return (
            f"The head does not differ from the tuned best constant ({self.tuned}): {gain}. It has learned nothing that a "
            "fixed setting would not do."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data: raw rewards and the table."""
        return {
            "tasks": self.tasks,
            "tuned": self.tuned,
            "tuning": self.tuning,
            "verdict": self.verdict(),
            "rewards": {name: np.round(values, 6).tolist() for name, values in self.rewards.items()},
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
        """What `to_dict` wrote, without the rollouts."""
        rewards = {name: np.array(values) for name, values in data["rewards"].items()}
        return cls(rewards, list(data["tasks"]), data["tuned"], dict(data["tuning"]))


def constants(adapter: KnobAdapter) -> dict[str, Policy]:
    """Every option as a constant policy, by its label."""
    return {adapter.space.label(k): ConstantPolicy(adapter.space, k) for k in range(adapter.space.K)}


def compare_policies(
    adapter: KnobAdapter,
    model: Any,
    tokenizer: Any,
    reward: Reward,
    train_prompts: Sequence[Prompt],
    eval_prompts: Sequence[Prompt],
    *,
    seeds: int,
    pick: Pick,
    max_new_tokens: int,
    batch_size: int,
    seed: int = 0,
    extra: Mapping[str, Policy] | None = None,
    advance: Callable[[int], None] = lambda rows: None,
) -> Report:
    """Rolls out the head and every baseline and compares them.

    Args:
        train_prompts: where the best constant is tuned, one response each.
        extra: further policies to compare with, by name.
        advance: called with the number of responses just finished.
    """
    fixed = constants(adapter)
    policies: dict[str, Policy] = {HEAD: adapter.policy(pick), **fixed, GREEDY: GreedyPolicy(adapter.space)}
    policies[MIXTURE] = UniformPolicy(adapter.space, adapter.segmenter)
    entropy = adapter.entropy_policy(pick)
    policies |= ({ENTROPY: entropy} if entropy else {}) | dict(extra or {})

    def run(policy: Policy, prompts: Sequence[Prompt], copies: int, part: int) -> tuple[list[Rollout], NDArray[np.float64]]:
        made = roll_out(
            model, tokenizer, prompts, policy, copies=copies, max_new_tokens=max_new_tokens, batch_size=batch_size,
            seed=seed + part, advance=advance,
        )  # fmt: skip
        return made, np.array(score(reward, prompts, made)).reshape(len(prompts), copies).T

    tuning = {name: float(run(policy, train_prompts, 1, 101)[1].mean()) for name, policy in fixed.items()}
    rewards, rollouts = {}, {}
    for name, policy in policies.items():
        rollouts[name], rewards[name] = run(policy, eval_prompts, seeds, 1001)
    tasks = [str(prompt.columns.get("task", ALL)) for prompt in eval_prompts]
    return Report(rewards, tasks, max(tuning, key=lambda name: tuning[name]), tuning, rollouts)


def rescore(report: Report, prompts: Sequence[Prompt], reward: Reward) -> Report:
    """The same responses under another reward; the tuned constant stays the one of the first."""
    seeds = len(next(iter(report.rewards.values())))
    rewards = {
        name: np.array(score(reward, prompts, made)).reshape(len(prompts), seeds).T for name, made in report.rollouts.items()
    }
    return Report(rewards, report.tasks, report.tuned, report.tuning, report.rollouts)


def rollouts_needed(adapter_options: int, train: int, evaluation: int, seeds: int) -> int:
    """How many responses `compare_policies` generates, for a progress bar."""
    return adapter_options * train + (adapter_options + 4) * evaluation * seeds

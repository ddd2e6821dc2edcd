"""What an evaluation found: the rewards of every policy on the same prompts, and the head against each, paired by prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from einops import reduce
from numpy.typing import NDArray
from pydantic import BaseModel

from latentknobs.data.rollouts import Rollout
from latentknobs.errors import ConfigError
from latentknobs.evaluation.accounting import Account, join_accounts
from latentknobs.evaluation.statistics import ALPHA, Floats, Interval, estimate, holm, wins
from latentknobs.files import fit

HEAD, GREEDY, MIXTURE = "learned head", "greedy decoding", "uniform mixture"
TRAINED, STATISTICS, ENTROPY, PER_TASK = (
    "head before the choice",
    "statistics-only head",
    "entropy-only head",
    "best constant per task",
)
MEAN, SHUFFLED, BINNED = "its mean", "its choices shuffled", "its choices shuffled within bins"
CONTROLS = {
    MEAN: "its own mean",
    SHUFFLED: "its choices in random places",
    BINNED: "its choices shuffled within entropy and p_max",
}
ALL = "all"


@dataclass(frozen=True)
class Comparison:
    """The head against one policy, on one task (or `all`)."""

    policy: str
    task: str
    reward: Interval  # mean reward of the policy
    gain: Interval  # mean reward of the head minus that of the policy, paired
    wins: Interval  # share of prompts on which the head wins, ties one half
    p: float  # of no gain; in the table of a report corrected for all its rows (Holm)

    @property
    def sign(self) -> int:
        """1 where the head is better, -1 where it is worse, 0 where neither is shown."""
        return 0 if self.p >= ALPHA else 1 if self.gain.mean > 0 else -1


class SavedReport(BaseModel):
    """What `Report.to_dict` writes and `from_dict` reads: (S, P) rewards of each policy, None where the reward failed."""

    rewards: dict[str, list[list[float | None]]]
    tasks: list[str]
    tuned: str
    tuning: dict[str, float]
    runs: int = 1
    level: str = "token"
    notes: dict[str, str] = {}


@dataclass
class Report:
    """What an evaluation found.

    Attributes:
        rewards: for each policy, (runs x seeds, prompts) rewards on the held-out prompts; NaN where the reward failed.
        tasks: the task of each prompt, `all` where the rows name none.
        tuned: name of the constant option with the best mean reward on training prompts.
        tuning: mean reward of every constant on training prompts.
        rollouts: every response on the held-out prompts, by policy, the seeds of a prompt next to each other.
        runs: training seeds; what depends on none has the same rewards in each.
        level: at which choices are made.
        notes: by policy, what it is in detail; under `numbers`, how many responses trained and tuned what.
        accounts: by policy, what it trades; empty where they were not read.
    """

    rewards: dict[str, NDArray[np.float64]]
    tasks: list[str]
    tuned: str
    tuning: dict[str, float]
    rollouts: dict[str, list[Rollout]] = field(default_factory=dict)
    runs: int = 1
    level: str = "token"
    notes: dict[str, str] = field(default_factory=dict)
    accounts: dict[str, Account] = field(default_factory=dict)

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
        """The head against one policy on the prompts of one task, not corrected for other comparisons."""
        keep = self._prompts(task)
        ours, theirs = self.rewards[HEAD][:, keep], self.rewards[policy][:, keep]
        low, high = self._ends
        gain = estimate(self._by_run(ours - theirs), (low - high, high - low))
        share = estimate(self._by_run(wins(ours, theirs)), (0.0, 1.0), 0.5).within(0.0, 1.0)
        return Comparison(policy, task, estimate(self._by_run(theirs), (low, high)), gain, share, gain.p)

    def table(self) -> list[Comparison]:
        """Every policy (the head first) on every task, with p-values corrected for all of these comparisons at once."""
        return self._table

    @cached_property
    def _table(self) -> list[Comparison]:
        rows = [self.compare(policy, task) for task in self.task_names for policy in self.rewards]
        tested = [n for n, row in enumerate(rows) if row.policy != HEAD]
        in_verdict = [rows[n].task == ALL and rows[n].policy in (self.tuned, *CONTROLS) for n in tested]
        share = max(len(tested) / sum(in_verdict) - 1, 1.0)  # the verdict's comparisons and all others get half of the error each
        corrected = holm([rows[n].p for n in tested], [share if is_main else 1.0 for is_main in in_verdict])
        for n, p in zip(tested, corrected, strict=True):
            rows[n] = replace(rows[n], p=p)
        return rows

    def row(self, policy: str, task: str = ALL) -> Comparison:
        """A row of the table."""
        return next(row for row in self.table() if (row.policy, row.task) == (policy, task))

    @cached_property
    def _ends(self) -> tuple[float, float]:
        """The least and the greatest reward, 1 apart where all are equal: what a prompt could still show."""
        values = np.concatenate([reward_SP[:, self.judged_P].ravel() for reward_SP in self.rewards.values()])
        low, high = float(values.min()), float(values.max())
        return (low, high) if low < high else (low - 0.5, high + 0.5)

    def _by_run(self, value_SP: Floats) -> Floats:
        """(runs, P) means over the seeds of each run."""
        return reduce(value_SP, "(runs seeds) P -> runs P", "mean", runs=self.runs)

    def best_constant(self, task: str = ALL) -> str:
        """The constant that is best on these very prompts: not a fair baseline, but how far tuning could go."""
        keep = self._prompts(task)
        constants = [name for name in self.rewards if name in self.tuning]
        return max(constants, key=lambda name: self.rewards[name][:, keep].mean())

    def _prompts(self, task: str) -> NDArray[np.bool_]:
        return self.judged_P & np.array([task in (ALL, t) for t in self.tasks])

    @property
    def constants_by_task(self) -> list[str]:
        """For each prompt the constant that is best for its task, by the notes; see `make_report`."""
        known = self.notes.get(PER_TASK, "").split("; ")
        return [next((name for name in self.tuning if f"{task}: {name}" in known), self.tuned) for task in self.tasks]

    def verdict(self) -> str:
        """In words: better than the tuned constant? than its own mean? than its choices in random places? Only then: control.

        And what the adapter holds.
        """
        return " ".join(self.sentences())

    def sentences(self) -> list[str]:
        """Those of the verdict; the first is the comparison with the tuned constant."""
        compared = {self.tuned: f"the tuned best constant ({self.tuned})"}
        compared |= {name: words + self._note(name) for name, words in CONTROLS.items() if name in self.rewards}
        sentences = [f"{'It' if n else 'The head'} {self._answer(*item)}." for n, item in enumerate(compared.items())]
        signs = {name: self.row(name).sign for name in compared}
        sentences.append(_conclusion(signs[self.tuned], {name: signs[name] for name in CONTROLS if name in signs}, self.level))
        sentences.append(f"{self.runs} training seeds." if self.runs > 1 else "One training seed; another may differ.")
        if self.left_out:
            sentences.append(
                f"{self.left_out} of {len(self.tasks)} prompts are left out: the reward failed on a response to them."
            )
        return [sentence for sentence in (*sentences, self.notes.get("choice")) if sentence]

    def _answer(self, policy: str, words: str) -> str:
        row = self.row(policy)
        return {1: f"beats {words} by {row.gain}", 0: f"does not differ from {words}: {row.gain}",
                -1: f"is worse than {words}: {row.gain}"}[row.sign]  # fmt: skip

    def _note(self, policy: str) -> str:
        return f" ({self.notes[policy]})" if policy in self.notes else ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data: raw rewards and the table."""
        return {
            "tasks": self.tasks,
            "tuned": self.tuned,
            "tuning": self.tuning,
            "verdict": self.verdict(),
            "left_out": self.left_out,
            "runs": self.runs,
            "level": self.level,
            "notes": self.notes,
            "rewards": {name: _plain(values) for name, values in self.rewards.items()},
            "table": [
                {
                    "policy": c.policy,
                    "task": c.task,
                    "p": c.p,
                    **{key: [i.mean, i.low, i.high] for key, i in (("reward", c.reward), ("gain", c.gain), ("wins", c.wins))},
                }
                for c in self.table()
            ],
        }

    @classmethod
    def join(cls, reports: Sequence["Report"]) -> "Report":
        """One report of several training seeds; ConfigError if they were not judged on the same prompts and policies."""
        first, *others = reports
        for one in others:
            if one.tasks != first.tasks or {v.shape for v in one.rewards.values()} != {v.shape for v in first.rewards.values()}:
                raise ConfigError(
                    "Runs that were judged on different prompts, or different numbers of responses, cannot be joined."
                )
        known = [one.rewards for one in reports]
        if any(MEAN in found for found in known):  # a head that always chooses the same is its own control
            known = [found if MEAN in found else found | dict.fromkeys(CONTROLS, found[HEAD]) for found in known]
        names = [name for name in known[0] if all(name in found for found in known)]
        rewards = {name: np.concatenate([found[name] for found in known]) for name in names}
        tuned = first.tuned
        if len({one.tuned for one in reports}) > 1:
            tuned = f"the constant tuned in each run: {', '.join(one.tuned for one in reports)}"
            rewards[tuned] = np.concatenate([one.rewards[one.tuned] for one in reports])
        tuning = {name: float(np.mean([one.tuning[name] for one in reports if name in one.tuning])) for name in first.tuning}
        tuning |= {tuned: float(np.mean([one.tuning[one.tuned] for one in reports]))}
        rollouts = {name: [row for one in reports for row in one.rollouts.get(name, [])] for name in names}
        notes = {key: "; ".join(dict.fromkeys(filter(None, (one.notes.get(key) for one in reports)))) for key in first.notes}
        notes |= {
            "choice": " ".join(f"Seed {n}: {one.notes['choice']}" for n, one in enumerate(reports) if "choice" in one.notes)
        }
        kept = {key: text for key, text in notes.items() if text}
        accounts = join_accounts([one.accounts for one in reports])
        return cls(rewards, first.tasks, tuned, tuning, rollouts, sum(one.runs for one in reports), first.level, kept, accounts)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Report":
        """What `to_dict` wrote, without the rollouts; ValueError if it is damaged."""
        saved: SavedReport = fit(data, SavedReport)
        rewards = {name: np.array(values, dtype=float) for name, values in saved.rewards.items()}
        " ".join([*saved.tasks, *rewards]).encode()  # half a surrogate pair is a ValueError: no file or plot can show it
        shapes = {values.shape for values in rewards.values()}
        if not {HEAD, saved.tuned} <= {*rewards} or len(shapes) != 1 or shapes.pop()[1:] != (len(saved.tasks),):
            raise ValueError("its policies do not have one reward for each seed and prompt")
        if not judged(rewards).any():
            raise ValueError("no prompt has a reward of every policy")
        if saved.runs < 1 or len(rewards[HEAD]) % saved.runs:
            raise ValueError(f"its rewards are not those of {saved.runs} training seeds")
        return cls(rewards, saved.tasks, saved.tuned, saved.tuning, {}, saved.runs, saved.level, saved.notes)


def _conclusion(constant: int, controls: Mapping[str, int], level: str) -> str:
    """What the answers come to."""
    control = {"token": "token-level control", "sequence": "control by prompt"}.get(level, f"control by segment ({level})")
    if constant <= 0:
        return "It has learned nothing that a fixed setting would not do."
    if controls.get(MEAN, 1) <= 0:
        return f"A constant at its mean does as well: no {control} is shown."
    if SHUFFLED not in controls:
        return ""
    if controls[SHUFFLED] <= 0:
        return f"Where it makes its choices does not matter: no {control} is shown."
    known = {1: ", of more than entropy and p_max say"}.get(controls.get(BINNED, 1), ", by what entropy and p_max say")
    return f"This is {control}{known if BINNED in controls else ''}."


def _plain(reward_SP: NDArray[np.float64]) -> list[list[float | None]]:
    return [[None if np.isnan(value) else round(value, 6) for value in row] for row in reward_SP.tolist()]


def judged(rewards: Mapping[str, NDArray[np.float64]]) -> NDArray[np.bool_]:
    """(P,) whether every response to a prompt has a score, for (seeds, P) rewards by policy."""
    return np.logical_and.reduce([np.isfinite(reward_SP).all(0) for reward_SP in rewards.values()])

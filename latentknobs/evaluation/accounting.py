"""The account: what each policy of an evaluation trades, in nats (see `likelihood.information`), read off its responses.

It costs one more forward pass over every response, and a second one where prompts name their evidence.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from latentknobs.content import digest
from latentknobs.data.disk import write_text
from latentknobs.data.evidence import second_prompts
from latentknobs.data.prompts import Prompt
from latentknobs.data.rollouts import Rollout
from latentknobs.engines.base import SECOND, Engine
from latentknobs.errors import RunError
from latentknobs.evaluation.statistics import Interval, estimate
from latentknobs.files import MB, read_json
from latentknobs.knobs.context import Observation
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood.apply import apply_values
from latentknobs.likelihood.information import Terms, terms
from latentknobs.tensors import pick

FILE = "evaluation/account.json"
LARGEST = 512 * MB
TERMS = ("sensibleness", "diversity", "attribution", "log_prob")
Unit = Literal["token", "response"]


class Account(BaseModel):
    """Of R responses of one policy: their prompts, tokens, and sums over these tokens in nats.

    Attributes:
        attribution: None where a prompt names no evidence.
        log_prob: of the text under the LM itself.
        runs: training seeds, whose equally many responses follow each other.
    """

    prompts: list[int] = Field(min_length=1)
    tokens: list[int]
    sensibleness: list[float]
    diversity: list[float]
    attribution: list[float] | None
    log_prob: list[float]
    runs: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> "Account":
        columns = [value for name in ("tokens", *TERMS) if (value := getattr(self, name)) is not None]
        if any(len(column) != len(self.prompts) for column in columns) or len(self.prompts) % self.runs:
            raise ValueError("its columns are not equally long, or not a whole number of runs")
        each = np.sort(np.reshape(self.prompts, (self.runs, -1)))
        if (each != each[0]).any():
            raise ValueError("its runs are not of the same prompts")
        return self

    def of(self, term: str, unit: Unit = "token") -> Interval | None:
        """The mean of a term per token or per response, with its interval over prompts (and runs); None where it was not read."""
        if getattr(self, term) is None:
            return None
        mean_C = self.by_prompt(term, unit)
        if np.ptp(mean_C) == 0:  # by what the policy is: a greedy one has no entropy anywhere
            return Interval(*[float(mean_C[0])] * 3)
        return estimate(mean_C.reshape(self.runs, -1))

    def by_prompt(self, term: str, unit: Unit = "token") -> NDArray[np.float64]:
        """(runs * P,) means of a term that was read, per token or per response, of each run and prompt in turn."""
        prompt_R = np.unique(self.prompts, return_inverse=True)[1]
        cell_R = prompt_R + (prompt_R.max() + 1) * np.repeat(np.arange(self.runs), len(prompt_R) // self.runs)
        total_C, tokens_C, responses_C = (np.bincount(cell_R, weights) for weights in (getattr(self, term), self.tokens, None))
        found: NDArray[np.float64] = total_C / (tokens_C if unit == "token" else responses_C)
        return found

    @classmethod
    def select(cls, accounts: Mapping[str, "Account"], policy_P: Sequence[str]) -> "Account":
        """The account of what answers each prompt as one of several policies does."""
        rows = {name: [r for r, p in enumerate(one.prompts) if policy_P[p] == name] for name, one in accounts.items()}
        return cls.of_rows([(accounts[name], found) for name, found in rows.items()])

    @classmethod
    def of_rows(cls, parts: Sequence[tuple["Account", Sequence[int]]], runs: int = 1) -> "Account":
        """Some responses of several accounts, one after the other."""
        columns: dict[str, Any] = {"runs": runs}
        for name in ("prompts", "tokens", *TERMS):
            lists = [getattr(part, name) for part, _ in parts]
            columns[name] = None if None in lists else [one[r] for one, (_, rows) in zip(lists, parts, strict=True) for r in rows]
        return cls(**columns)


def join_accounts(seeds: Sequence[Mapping[str, Account]]) -> dict[str, Account]:
    """The accounts, by policy, of several training seeds together."""
    names = [name for name in seeds[0] if all(name in found for found in seeds)]
    parts = {name: [(found[name], range(len(found[name].prompts))) for found in seeds] for name in names}
    return {name: Account.of_rows(parts[name], sum(part.runs for part, _ in parts[name])) for name in names}


class SavedAccounts(BaseModel):
    """What `Accounts` are on disk: one for each policy, and a digest of the rewards that they belong to."""

    key: str
    policies: dict[str, Account]


@torch.no_grad()
def token_account(
    seen: Observation, space: KnobSpace, value_TJ: Tensor, token_T: Tensor, has_evidence: bool
) -> tuple[Terms, Tensor]:
    """The terms of what each of the T tokens of a response was drawn from, and (T,) its log-probability under the LM, in nats.

    Args:
        seen: what the policy saw at each of them, second logits included where there is evidence.
        value_TJ: the values of the knobs that they were drawn with.
    """
    policy_TV = apply_values(seen.logits_NV, space, value_TJ.to(seen.logits_NV.device), seen)
    logits_TV = seen.logits_NV.to(policy_TV.dtype)
    found = terms(policy_TV, logits_TV, seen.second_NV.to(policy_TV.dtype) if has_evidence else None)
    return found, pick(logits_TV.log_softmax(-1), token_T.to(logits_TV.device))


def account_of(
    engine: Engine, prompts: Sequence[Prompt], rollouts: Sequence[Rollout], space: KnobSpace, *, batch_size: int = 64,
    advance: Callable[[int], None] = lambda rows: None,
) -> Account:  # fmt: skip
    """The account of a policy's responses, in the order of `rollouts`.

    Args:
        space: the knobs of the policy.
        advance: called with the number of responses just read.
    """
    has_evidence = all(prompts[rollout.prompt].second_ids is not None for rollout in rollouts)
    needs = tuple(dict.fromkeys([*space.needs, *([SECOND] if has_evidence else [])]))
    order = sorted(range(len(rollouts)), key=lambda r: -len(rollouts[r].ids) - len(prompts[rollouts[r].prompt].ids))
    sums: dict[int, list[float]] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        questions, answers = [prompts[rollouts[r].prompt] for r in batch], [rollouts[r] for r in batch]
        observed = engine.observe(
            [prompt.ids for prompt in questions], [rollout.ids for rollout in answers], needs,
            second_prompts=second_prompts(questions, needs),
        )  # fmt: skip
        for r, rollout, seen in zip(batch, answers, observed, strict=True):
            value_TJ = torch.tensor(rollout.values, dtype=torch.float64).view(len(rollout.ids), len(space.knobs))
            found, log_prob_T = token_account(seen, space, value_TJ, torch.tensor(rollout.ids), has_evidence)
            sums[r] = [float(one_T.double().sum()) for one_T in (*found, log_prob_T) if one_T is not None]
        advance(len(batch))
    columns = list(map(list, zip(*(sums[r] for r in range(len(rollouts))), strict=True)))
    named: dict[str, Any] = dict(zip([term for term in TERMS if has_evidence or term != "attribution"], columns, strict=True))
    tokens = [len(rollout.ids) for rollout in rollouts]
    return Account(prompts=[rollout.prompt for rollout in rollouts], tokens=tokens, **{"attribution": None, **named})


def accounts_key(rewards: Mapping[str, np.ndarray]) -> str:
    """A digest of the rewards of an evaluation: an account of another evaluation is not shown with it."""
    return str(digest(*((name, values.round(6).tolist()) for name, values in rewards.items())))


def save_accounts(folder: Path, rewards: Mapping[str, np.ndarray], accounts: dict[str, Account]) -> None:
    """Writes the accounts of an evaluation beside it."""
    write_text(folder / FILE, json.dumps(SavedAccounts(key=accounts_key(rewards), policies=accounts).model_dump()) + "\n")


def read_accounts(run: Path, rewards: Mapping[str, np.ndarray]) -> dict[str, Account]:
    """The accounts in a run directory, by policy; none if there are none of this evaluation. RunError if the file is damaged."""
    path, cure = Path(run) / FILE, "Delete it, or write it again with `latentknobs account`."
    if not path.exists():
        return {}
    found: SavedAccounts = read_json(path, SavedAccounts, RunError, cure, LARGEST)
    if found.key != accounts_key(rewards):
        return {}
    if strange := sorted(found.policies.keys() - rewards.keys()):
        raise RunError(f"{str(path)!r} accounts for {strange[0]!r}, which is not a policy of this evaluation. {cure}")
    return found.policies

"""Responses and their scores as files of a run: used for the preferences of every round and for the evaluation.

A file of rollouts is a few whole batches, so its content depends neither on when a run was interrupted nor on how many
processes share the work. Until it is complete, an engine whose responses finish one by one has them in a journal. A file of
scores belongs to one file of rollouts and is keyed by its content.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat

from latentknobs.config import TrainConfig
from latentknobs.data.evidence import check_evidence
from latentknobs.data.journal import Journal, journal_of
from latentknobs.data.prompts import Prompt
from latentknobs.data.rollouts import NOTHING, Rollout, batch_seed, plan_batches, read_lines, roll_out_batch, write_lines
from latentknobs.data.scores import score_rollouts
from latentknobs.errors import RewardError
from latentknobs.models.sources import Sources
from latentknobs.policies import Policy, reads
from latentknobs.progress import Advance
from latentknobs.rewards import Rewards, Score, ScoreCache, check_scored, failure_line
from latentknobs.training.rundir import RunDir, Task
from latentknobs.training.subject import model_input, reward_input


@dataclass(frozen=True)
class PolicyRun:
    """A policy and what its files are called."""

    name: str  # first part of the names of its files; may be empty
    policy: Policy


def sample(
    run: RunDir, config: TrainConfig, sources: Sources, stage: str, prompts: Sequence[Prompt], policies: Sequence[PolicyRun], *,
    copies: int, seed: int, key: str, samples: int | None = None, spans: Sequence[range] | None = None,
) -> list[list[Path]]:  # fmt: skip
    """For each policy the files of its rollouts, in order: `copies` responses to every prompt.

    Args:
        spans: runs of prompts that share no batch, so that the files of each depend on no other prompt; None: one of all.
        seed: of these responses; stages that must not share their draws have different ones.
        key: digest of the model and the space.
        samples: how many are sampled together, for policies that read it; None: `copies`.
    """
    for one in policies:
        check_evidence(prompts, reads(one.policy))
    size = max(1, config.shard_size // config.batch_size)
    samples = samples or copies
    for one in policies:
        sources.engine.check(one.policy)
    parts: list[tuple[str, int, list[tuple[int, list[int]]]]] = []  # key of the span, number of the file, batches
    for span in spans or [range(len(prompts))]:
        mine = [prompts[p] for p in span]
        content = f"{key} {copies} {samples} {seed} {model_input(mine)} {sources.engine.identity}"
        first = sum(len(chunk) for _, _, chunk in parts)  # of the batches: no two share their draws
        planned = enumerate(plan_batches(mine, copies, config.batch_size), first)
        batches = [(n, [span[p] for p in rows]) for n, rows in planned]
        chunks = [batches[start : start + size] for start in range(0, len(batches), size)]
        parts += [(config.digest("rollouts", content), number, chunk) for number, chunk in enumerate(chunks)]

    def task(one: PolicyRun, identity: str, place: int) -> Task:
        file = f"{stage}/rollouts/{one.name}{'-' if one.name else ''}{place:05d}.jsonl"
        span_key, number, chunk = parts[place]
        full = f"{span_key} {identity} {number}"

        def make(path: Path, advance: Advance) -> None:
            journal = None if shares_model(config) else Journal(journal_of(run.path, file), full)
            with journal or nullcontext():
                write_lines(path, _generate(config, sources, prompts, one.policy, chunk, samples, seed, advance, journal))

        return Task(file, full, make, sum(len(rows) for _, rows in chunk))

    chosen = [(one, one.policy.identity()) for one in policies]
    tasks = [task(*both, place) for both in chosen for place in range(len(parts))]
    paths = run.stage(f"{stage}/rollouts", tasks, together=shares_model(config))
    return [paths[start : start + len(parts)] for start in range(0, len(paths), len(parts))]


def _generate(
    config: TrainConfig, sources: Sources, prompts: Sequence[Prompt], policy: Policy, batches: Sequence[tuple[int, list[int]]],
    samples: int, seed: int, advance: Advance, journal: Journal | None,
) -> Iterator[Rollout]:  # fmt: skip
    for number, rows in batches:
        yield from roll_out_batch(
            sources.engine, prompts, rows, policy, max_new_tokens=config.max_new_tokens,
            seed=batch_seed(seed, number, config.batch_size), samples=samples,
            known=journal.known(number) if journal else NOTHING, keep=partial(journal.add, number) if journal else None,
        )  # fmt: skip
        advance(len(rows))


def shares_model(config: TrainConfig) -> bool:
    """Whether each process holds a part of one model, so that all must run it on the same rows."""
    return config.tp_plan is not None


def score_files(
    run: RunDir, reward: Rewards, stage: str, prompts: Sequence[Prompt], rollouts: Sequence[Path], what: str = "scores"
) -> list[Path]:
    """One file of scores for every file of rollouts; without a `version`, only a resumed run reuses finished ones.

    RewardError if nothing at all was scored; these scores are computed again by the next run.
    """
    folder = run.path / "reward_cache"
    cache = ScoreCache(folder / f"{run.processes.rank}.jsonl", sorted(folder.glob("*.jsonl")))
    key, fresh = f"{reward.key} {reward_input(prompts)}", bool(reward.unversioned) and not run.resume

    def task(path: Path, content: str) -> Task:
        def make(out: Path, advance: Advance) -> None:
            scores = score_rollouts(reward, prompts, read_lines(path, Rollout), cache, advance=advance)
            write_lines(out, map(_row, scores))

        file = f"{stage}/{what}/{path.stem}.jsonl"
        return Task(file, f"{key} {content}", make, count_lines(path), fresh=fresh)

    tasks = [task(*both) for both in zip(rollouts, run.content(rollouts), strict=True)]
    paths = run.stage(f"{stage}/{what}", tasks)
    scores = [score for path in paths for score in _scores(path)]
    try:
        check_scored(scores, reward.name)
    except RewardError:
        run.processes.barrier()
        for path in paths if run.processes.is_main else ():
            path.unlink()
        raise
    if failures := failure_line(scores):
        run.say(f"{stage}/{what}: {failures}")
    return paths


@dataclass(frozen=True)
class Answers:
    """The files of what a policy answered in a stage, and of its scores."""

    rollouts: list[Path]
    scores: list[Path]

    def pairs(self) -> list[tuple[Rollout, float | None]]:
        """Responses and their scores, in the order of the prompts."""
        return sorted(read_scored(self.rollouts, self.scores), key=lambda pair: pair[0].prompt)


def answer(
    run: RunDir, config: TrainConfig, sources: Sources, stage: str, prompts: Sequence[Prompt], policies: Sequence[PolicyRun],
    **how: Any,
) -> list[Answers]:  # fmt: skip
    """What each policy answers, scored by the reward of the run; `how` are further arguments of `sample`."""
    files = sample(run, config, sources, stage, prompts, policies, **how)
    scores = iter(score_files(run, sources.reward, stage, prompts, [path for paths in files for path in paths]))
    return [Answers(paths, list(islice(scores, len(paths)))) for paths in files]


@dataclass(frozen=True)
class ScoreRow:
    """A line of a file of scores; `parts` are those of several rewards."""

    score: FiniteFloat | None
    parts: tuple[FiniteFloat | None, ...] = ()
    error: str | None = None


def _row(score: Score) -> dict[str, Any]:
    row: dict[str, Any] = {"score": score.value}
    if len(score.parts) > 1:
        row["parts"] = list(score.parts)
    return row | ({"error": score.error} if score.error else {})


def _scores(path: Path) -> list[Score]:
    return [Score(row.score, row.parts or (row.score,), row.error) for row in read_lines(path, ScoreRow)]


def read_scores(paths: Sequence[Path]) -> list[float | None]:
    """The scores of all rollouts, in the order of the files; None where the reward failed."""
    return [score.value for path in paths for score in _scores(path)]


def read_all(paths: Sequence[Path]) -> Iterator[Rollout]:
    """All rollouts, in the order of the files, one file in memory at a time."""
    for path in paths:
        yield from read_lines(path, Rollout)


def read_scored(rollouts: Sequence[Path], scores: Sequence[Path]) -> Iterator[tuple[Rollout, float | None]]:
    """All rollouts and their scores."""
    return zip(read_all(rollouts), read_scores(scores), strict=True)


def count_lines(path: Path) -> int:
    """How many rollouts or scores a file holds."""
    with path.open("rb") as file:
        return sum(1 for _ in file)

"""What `python -m benchmarks.reinforce` runs on: prompts, policies that answer them, and short training runs of both learners."""

import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray

import latentknobs as lk
from benchmarks import stories260k
from benchmarks.families import turning_point
from benchmarks.fitting import fit_pairs
from benchmarks.instruct import arena
from benchmarks.instruct.tasks import FEW, MANY, TASKS
from benchmarks.on_policy import heads
from latentknobs import testbed
from latentknobs.config import TrainConfig, make_config
from latentknobs.data.columns import ALL
from latentknobs.data.examples import Batch, Example, Pair
from latentknobs.data.featurise import featurise
from latentknobs.data.prompts import Prompt, is_held_out, make_prompts
from latentknobs.data.rollouts import Rollout, roll_out
from latentknobs.data.scores import score_rollouts
from latentknobs.engines.base import Engine, engine_of
from latentknobs.errors import NoExamplesError
from latentknobs.evaluation.controls import choices_of
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import parse_level
from latentknobs.learners.base import Inputs
from latentknobs.learners.lpo.pairs import pick_pairs
from latentknobs.learners.reinforce.learner import Reinforce
from latentknobs.models.loading import freeze
from latentknobs.models.sources import Sources
from latentknobs.policies import ConstantPolicy, HeadPolicy, Policy, UniformPolicy
from latentknobs.policies.controls import Choices
from latentknobs.rewards import resolve_rewards
from latentknobs.rewards.spec import Rewards as AllRewards
from latentknobs.training.fitstate import device_of

JUDGED, COPIES, TUNED = 192, 2, 192
STORIES = "stories260k"  # a task of an LM of its own
SO, SUMS, BOTH = "smollm2 so", "smollm2 sums", "smollm2 mixture"
INSTRUCT = {SO: TASKS["so"], SUMS: TASKS["sums"], BOTH: TASKS["mixture"]}  # those of the instruct model
Rewards = NDArray[np.float64]  # (prompts, copies)


@cache
def lm(task: str) -> tuple[Any, Any]:
    """stories260K and its tokenizer for its own task; for all others the packaged LM."""
    torch.set_num_threads(1)
    if task in INSTRUCT:
        return _instruct()
    if task == STORIES:
        model, tokenizer = stories260k.load(stories260k.data_folder())
        return freeze(model), tokenizer
    return freeze(testbed.load_model()), testbed.load_tokenizer()


def has_instruct() -> bool:
    """Whether `make instruct` has prepared SmolLM2."""
    return (stories260k.data_folder() / "SmolLM2-135M-Instruct").exists()


@cache
def _instruct() -> tuple[Any, Any]:
    return arena.load(str(stories260k.data_folder() / "SmolLM2-135M-Instruct"))


def longest_of(task: str) -> int:
    """The most tokens of a response."""
    return INSTRUCT[task].max_new_tokens if task in INSTRUCT else 64


@cache
def reward_of(task: str) -> AllRewards:
    """Creative but well spelled words for stories260K, the task's own for the instruct model; for all others the testbed's."""
    if task in INSTRUCT:
        return resolve_rewards(INSTRUCT[task].reward)
    return resolve_rewards(stories260k.creative_reward(stories260k.data_folder()) if task == STORIES else "testbed")


def engine(task: str) -> Engine:
    """What samples and reads."""
    return engine_of("transformers", *lm(task))


def rows_of(task: str, is_held_out: bool, count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of the held-out or the training prompts, in an order of the seed."""
    if task in INSTRUCT:
        rows = INSTRUCT[task].rows(is_held_out, sys.maxsize, FEW if is_held_out else MANY)
        return random.Random(seed).sample(rows, min(count, len(rows)))
    if task != STORIES:
        return testbed.prompts(task, "eval" if is_held_out else "train", count, seed)
    rows = stories260k.openings(stories260k.stories(stories260k.data_folder()), lm(task)[1])[is_held_out]
    return random.Random(seed).sample(rows, min(count, len(rows)))


def prompts_of(task: str, split: str, count: int, seed: int) -> list[Prompt]:
    """Some prompts of a task; none is in two of: training, tuning (of training prompts), held out."""
    if split == "held out":
        return make_prompts(rows_of(task, True, count, seed), lm(task)[1])
    rows = rows_of(task, False, (12 if split == "tuning" else 3) * count, seed)
    rows = [row for row in rows if is_held_out(f"tuning {row['prompt']}") == (split == "tuning")]
    return make_prompts(rows[:count], lm(task)[1])


def answers(
    task: str, prompts: Sequence[Prompt], policy: Policy, copies: int, seed: int, longest: int | None = None
) -> list[Rollout]:
    """Responses in the order of the prompts, of at most so many tokens; by default the task's own."""
    tokens = longest or longest_of(task)
    return roll_out(*lm(task), prompts, policy, copies=copies, max_new_tokens=tokens, batch_size=256, seed=seed)


def earned(task: str, prompts: Sequence[Prompt], rollouts: Sequence[Rollout], copies: int) -> Rewards:
    """(P, C) rewards of responses in the order of the prompts."""
    values = [score.value for score in score_rollouts(reward_of(task), prompts, rollouts)]
    return rearrange(np.array(values, dtype=float), "(p c) -> p c", c=copies)


def judged(task: str, policy: Policy, longest: int | None = None) -> list[float]:
    """By held-out prompt, the same for all policies."""
    prompts = prompts_of(task, "held out", JUDGED, 3)
    return earned(task, prompts, answers(task, prompts, policy, COPIES, 1001, longest), COPIES).mean(-1).tolist()  # type: ignore[no-any-return]


def tuned(task: str, policy: Policy, longest: int | None = None) -> float:
    """Mean reward on tuning prompts."""
    prompts = prompts_of(task, "tuning", TUNED, 3)
    return float(earned(task, prompts, answers(task, prompts, policy, 1, 101, longest), 1).mean())


def both(task: str, policy: Policy) -> dict[str, Any]:
    """On both."""
    return {"tuning": tuned(task, policy), "held out": judged(task, policy)}


@dataclass(frozen=True)
class Case:
    """A training run of REINFORCE.

    Attributes:
        more: settings beside the defaults.
    """

    task: str
    seed: int
    space: lk.KnobSpace
    more: Mapping[str, Any]

    def heads(self, points: Sequence[int]) -> dict[int, HeadPolicy]:
        """The greedy policy after so many rollouts each, of one run."""
        settings = {
            "learner": "reinforce",
            "seed": self.seed,
            "steps": max(points) // 64,
            "max_new_tokens": longest_of(self.task),
        }
        config = make_config(settings | dict(self.more))
        segmenter = parse_level(config.level)
        inputs = Inputs(self.space, segmenter, config.features, seed=self.seed, rollouts=config.rollouts)
        train = prompts_of(self.task, "training", 256, self.seed)
        sources = Sources(*lm(self.task), engine(self.task), train, [], [], reward_of(self.task), None)
        with TemporaryDirectory() as folder:
            found = heads(config, inputs, sources, [size // 64 for size in points], Path(folder))
        return {64 * step: HeadPolicy(head, self.space, segmenter, config.features) for step, head in found.items()}


def lpo_heads(
    task: str, seed: int, space: lk.KnobSpace, rates: Sequence[float], sizes: Sequence[int]
) -> Iterator[tuple[int, float, HeadPolicy]]:
    """Heads of one round of LPO: of so many rollouts, 8 to a prompt, at each learning rate; other settings are defaults."""
    prompts, segmenter = prompts_of(task, "training", max(sizes) // 8, seed), parse_level("token")
    rollouts = answers(task, prompts, UniformPolicy(space, segmenter), 8, 1009 * seed + 1)
    rewards = earned(task, prompts, rollouts, 8)
    for size in sizes:
        some, flat = prompts[: size // 8], rewards[: size // 8].ravel().tolist()
        pairs = pick_pairs([r.prompt for r in rollouts[:size]], flat, "best_worst", seed=seed)
        used = sorted({n for pair in pairs for n in (pair.chosen, pair.rejected)})
        place = {n: i for i, n in enumerate(used)}
        pairs = [Pair(p.prompt, place[p.chosen], place[p.rejected]) for p in pairs]
        cached = featurise(engine(task), some, [rollouts[n] for n in used], space, segmenter, ("hidden",)).cache
        out = [is_held_out(f"validation {some[pair.prompt].text}", 0.1) for pair in pairs]
        sides = [[pair for pair, is_out in zip(pairs, out, strict=True) if is_out == wanted] for wanted in (False, True)]
        for rate in rates:
            torch.manual_seed(seed)
            head = OptionHead(space, cached.feature_NF.shape[1])
            head.fit_scaler(*cached.moments())
            fit_pairs(head, space, segmenter, cached, *sides, TrainConfig(seed=seed, learning_rate=rate))
            yield size, rate, HeadPolicy(head, space, segmenter)


def spread(case: Case, head: Any, batches: int = 32) -> dict[str, Any]:
    """By estimator, the inner products of the gradients of some batches of 8 prompts x 8 rollouts, the same for both.

    Args:
        head: where the gradient is taken; None: a new one, and rollouts of the uniform mixture.
    """
    segmenter, prompts = parse_level("token"), prompts_of(case.task, "training", 8 * batches, case.seed)
    policy = UniformPolicy(case.space, segmenter) if head is None else HeadPolicy(head, case.space, segmenter, pick="sample")
    rollouts = answers(case.task, prompts, policy, 8, 77)
    reward_N = earned(case.task, prompts, rollouts, 8).ravel().tolist()
    cached = featurise(engine(case.task), prompts, rollouts, case.space, segmenter, ("hidden",), ALL).cache
    if head is None:
        torch.manual_seed(0)
        head = OptionHead(case.space, cached.feature_NF.shape[1])
        head.fit_scaler(*cached.moments())
    found = {}
    for estimator in ("score", "marginal"):
        settings = Reinforce.Settings(estimator=estimator, normalise=False, entropy_bonus=0)
        learner = Reinforce(settings, Inputs(case.space, segmenter, ("hidden",)))
        gradients = []
        for rows in (range(64 * b, 64 * b + 64) for b in range(batches)):
            try:
                examples = learner.examples(iter([rollouts[n] for n in rows]), [reward_N[n] for n in rows])
            except NoExamplesError:  # then the gradient is zero, under both
                gradients.append(torch.zeros(sum(weight.numel() for weight in head.parameters()), dtype=torch.float64))
                continue
            batch = Batch.read(cached, [Example(e.prompt, (rows[e.responses[0]],), e.weight) for e in examples], device_of(head))
            loss = learner.loss(head, batch, None).each_B.sum() / 64
            gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(head.parameters()))]).double())
        stacked = torch.stack(gradients)
        found[estimator] = (stacked @ stacked.T).tolist()
    return found


def choices(task: str, policy: Policy, longest: Sequence[int], samples: int = 1) -> Choices:
    """What a policy chooses on tuning prompts at some token budgets, for its controls."""
    prompts, found = prompts_of(task, "tuning", 48, 3), list[Rollout]()
    for tokens in longest:
        found += roll_out(*lm(task), prompts, policy, copies=1, samples=samples, max_new_tokens=tokens, batch_size=256, seed=55)
    return choices_of(engine(task), prompts, found, policy)


def turn(task: str) -> Policy:
    """The constant temperature of TURN on tuning prompts."""
    grid = np.arange(0.1, 1.6, 0.2)
    prompts, means = prompts_of(task, "tuning", 32, 3), []
    for temperature in grid:
        policy = ConstantPolicy(lk.KnobSpace.of({"temperature": [float(temperature)]}))
        rollouts = answers(task, prompts, policy, 1, 55)
        total, count = 0.0, 0
        for _, logits_TV in engine(task).read([prompts[r.prompt].ids for r in rollouts], [r.ids for r in rollouts]):
            logp_TV = (logits_TV.float() / float(temperature)).log_softmax(-1)
            total, count = total - float((logp_TV.exp() * logp_TV).sum()), count + len(logp_TV)
        means.append(total / count)
    return ConstantPolicy(lk.KnobSpace.of({"temperature": [round(float(grid[turning_point(means)]), 1)]}))

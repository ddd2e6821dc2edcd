"""REINFORCE on the packaged testbed: estimators, LPO at equal rollouts, binding token budgets, parallel budgets.

    python -m benchmarks.reinforce            # everything, about an hour on one core; an interrupted run goes on
    python -m benchmarks.reinforce curves     # one part: variance, curves, rivals, rates, tokens, parallel

Every result is a file in runs/reinforce; `python -m benchmarks.reinforce tables` reads them alone (docs/reinforce.md).
"""

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray

import latentknobs as lk
from benchmarks.fitting import fit_pairs
from benchmarks.reinforce_tables import tables
from latentknobs import testbed
from latentknobs.config import TrainConfig, make_config
from latentknobs.data.columns import ALL
from latentknobs.data.examples import Batch, Example, Pair
from latentknobs.data.featurise import featurise
from latentknobs.data.prompts import Prompt, is_held_out, make_prompts
from latentknobs.data.rollouts import Rollout, roll_out
from latentknobs.data.scores import score_rollouts
from latentknobs.engines.base import engine_of
from latentknobs.errors import NoExamplesError
from latentknobs.evaluation.tuning import turning_point
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import parse_level
from latentknobs.learners.base import Inputs
from latentknobs.learners.lpo.pairs import pick_pairs
from latentknobs.learners.reinforce import group_rewards
from latentknobs.learners.reinforce.learner import Reinforce
from latentknobs.models.loading import freeze
from latentknobs.models.sources import Sources
from latentknobs.policies import ConstantPolicy, HeadPolicy, Policy, UniformPolicy
from latentknobs.policies.controls import Choices, MeanShift, Shuffle
from latentknobs.rewards import resolve_rewards
from latentknobs.training.checkpoint import Checkpoint
from latentknobs.training.rundir import RunDir
from latentknobs.training.steps import OnPolicy

OUT = Path("runs/reinforce")
TASKS = ("constrained", "mixture", "math")
SEEDS = (1, 2, 3, 4, 5)
POINTS = (256, 512)  # rollouts of REINFORCE, 64 in a step, after which its head is judged
PAIRED = (512, 2048)  # rollouts of LPO
RATES = {"score": (3e-3, 1e-2, 3e-2), "marginal": (3e-3, 1e-2, 3e-2), "lpo": (3e-4, 1e-3, 3e-3)}
DEFAULT = {"score": 1e-2, "marginal": 1e-2, "lpo": 1e-3}
JUDGED, COPIES, TUNED, LONGEST = 128, 2, 96, 64
Rewards = NDArray[np.float64]  # (prompts, copies)


@cache
def lm() -> tuple[Any, Any]:
    """The packaged LM and its tokenizer."""
    torch.set_num_threads(1)
    return freeze(testbed.load_model()), testbed.load_tokenizer()


def prompts_of(task: str, split: str, count: int, seed: int) -> list[Prompt]:
    """Some prompts of the testbed; none is in two of: training, tuning (of training prompts), held out."""
    rows = testbed.prompts(task, "eval" if split == "held out" else "train", 3 * count if split != "held out" else count, seed)
    if split != "held out":
        rows = [row for row in rows if is_held_out(f"tuning {row['prompt']}") == (split == "tuning")]
        rows = rows if len(rows) >= count else testbed.prompts(task, "train", 12 * count, seed)
        rows = [row for row in rows if is_held_out(f"tuning {row['prompt']}") == (split == "tuning")]
    return make_prompts(rows[:count], lm()[1])


def earned(prompts: Sequence[Prompt], rollouts: Sequence[Rollout], copies: int) -> Rewards:
    """(P, C) rewards of responses in the order of the prompts."""
    values = [score.value for score in score_rollouts("testbed", prompts, rollouts)]
    return rearrange(np.array(values, dtype=float), "(p c) -> p c", c=copies)


def answers(prompts: Sequence[Prompt], policy: Policy, copies: int, seed: int, longest: int = LONGEST) -> list[Rollout]:
    """Responses in the order of the prompts."""
    return roll_out(*lm(), prompts, policy, copies=copies, max_new_tokens=longest, batch_size=256, seed=seed)


def judged(task: str, policy: Policy, longest: int = LONGEST) -> Rewards:
    """On held-out prompts, the same for all."""
    prompts = prompts_of(task, "held out", JUDGED, 3)
    return earned(prompts, answers(prompts, policy, COPIES, 1001, longest), COPIES)


def tuned(task: str, policy: Policy, longest: int = LONGEST) -> float:
    """Mean reward on tuning prompts."""
    prompts = prompts_of(task, "tuning", TUNED, 3)
    return float(earned(prompts, answers(prompts, policy, 1, 101, longest), 1).mean())


def kept(name: str, make: Callable[[], Any]) -> Any:
    """What `make` gives, from its file if there is one."""
    path = OUT / f"{name.replace(' ', '_')}.json"
    if not path.exists():
        data = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".partial").write_text(json.dumps(data), encoding="utf-8")
        path.with_suffix(".partial").replace(path)
        print(name, flush=True)
    return json.loads(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Case:
    """A training run of REINFORCE.

    Attributes:
        more: settings beside the defaults.
    """

    task: str
    seed: int
    space: lk.KnobSpace
    more: dict[str, Any]

    def heads(self, points: Sequence[int]) -> dict[int, HeadPolicy]:
        """The greedy policy after so many rollouts each, of one run."""
        config = make_config({"learner": "reinforce", "seed": self.seed, "steps": 8, "max_new_tokens": LONGEST} | self.more)
        segmenter = parse_level(config.level)
        inputs = Inputs(self.space, segmenter, config.features, seed=self.seed, rollouts=config.rollouts)
        learner = Reinforce(config["learner"], inputs)
        train = prompts_of(self.task, "training", 256, self.seed)
        sources = Sources(*lm(), engine_of("transformers", *lm()), train, [], resolve_rewards("testbed"), None)
        found: dict[int, HeadPolicy] = {}
        with TemporaryDirectory() as folder, RunDir(folder) as run:
            lesson = OnPolicy(run, config, sources, {"main": learner}, 1)
            torch.manual_seed(self.seed)
            module = learner.module(*lesson.moments("main"))

            def log(row: dict[str, Any]) -> None:
                if row["rollouts"] in points:
                    found[row["rollouts"]] = HeadPolicy(copy.deepcopy(module).eval(), self.space, segmenter, config.features)

            lesson.learn("main", module, Checkpoint(Path(folder) / "checkpoint", ""), log)
        return found


def lpo_heads(
    task: str, seed: int, space: lk.KnobSpace, rates: Sequence[float], sizes: Sequence[int]
) -> Iterator[tuple[int, float, HeadPolicy]]:
    """Heads of one round of LPO: of so many rollouts, 8 to a prompt, at each learning rate; other settings are defaults."""
    prompts, segmenter = prompts_of(task, "training", max(sizes) // 8, seed), parse_level("token")
    rollouts = answers(prompts, UniformPolicy(space, segmenter), 8, 1009 * seed + 1)
    rewards = earned(prompts, rollouts, 8)
    for size in sizes:
        some, flat = prompts[: size // 8], rewards[: size // 8].ravel().tolist()
        pairs = pick_pairs([r.prompt for r in rollouts[:size]], flat, "best_worst", seed=seed)
        used = sorted({n for pair in pairs for n in (pair.chosen, pair.rejected)})
        place = {n: i for i, n in enumerate(used)}
        pairs = [Pair(p.prompt, place[p.chosen], place[p.rejected]) for p in pairs]
        read = [rollouts[n] for n in used]
        cached = featurise(engine_of("transformers", *lm()), some, read, space, segmenter, ("hidden",)).cache
        out = [is_held_out(f"validation {some[pair.prompt].text}", 0.1) for pair in pairs]
        sides = [[pair for pair, is_out in zip(pairs, out, strict=True) if is_out == wanted] for wanted in (False, True)]
        for rate in rates:
            torch.manual_seed(seed)
            head = OptionHead(space, cached.feature_NF.shape[1])
            head.fit_scaler(*cached.moments())
            fit_pairs(head, space, segmenter, cached, *sides, TrainConfig(seed=seed, learning_rate=rate))
            yield size, rate, HeadPolicy(head, space, segmenter)


def curves(rate: Mapping[str, float] = DEFAULT, where: str = "curves") -> None:
    """Held-out reward against rollouts for each learner at a learning rate of its own, seed by seed."""
    space = lk.KnobSpace.of("temperature")
    for seed in SEEDS:
        for task in TASKS:
            for estimator in ("score", "marginal"):
                case = Case(task, seed, space, {"estimator": estimator, "learning_rate": rate[estimator]})
                kept(f"{where}/{task} {estimator} {seed}", partial(points, case))
            kept(f"{where}/{task} lpo {seed}", partial(lpo_points, task, seed, space, rate["lpo"]))


def points(case: Case) -> dict[int, Any]:
    """Held-out rewards of one run of REINFORCE, by rollouts."""
    return {size: judged(case.task, policy).tolist() for size, policy in case.heads(POINTS).items()}


def lpo_points(task: str, seed: int, space: lk.KnobSpace, rate: float) -> dict[int, Any]:
    """Held-out rewards of LPO, by rollouts."""
    return {size: judged(task, policy).tolist() for size, _, policy in lpo_heads(task, seed, space, [rate], PAIRED)}


def rivals() -> None:
    """What needs no learning: constants on held-out and on tuning prompts, the uniform mixture."""
    space = lk.KnobSpace.of("temperature")
    for task in TASKS:
        for k in range(space.K):
            kept(f"rivals/{task} constant {k}", lambda task=task, k=k: judged(task, ConstantPolicy(space, k)).tolist())
            kept(f"tuning/{task} constant {k}", lambda task=task, k=k: tuned(task, ConstantPolicy(space, k)))
        uniform = UniformPolicy(space, parse_level("token"))
        kept(f"rivals/{task} uniform", lambda task=task, uniform=uniform: judged(task, uniform).tolist())


def rates() -> None:
    """Mean reward on tuning prompts at each learning rate, after 512 rollouts (LPO: 1,024) of a seed used for nothing else."""
    space = lk.KnobSpace.of("temperature")
    for task in TASKS:
        for estimator, rate in [(name, rate) for name in ("score", "marginal") for rate in RATES[name]]:
            case = Case(task, 100, space, {"estimator": estimator, "learning_rate": rate})
            kept(f"rates/{task} {estimator} {rate}", lambda case=case: tuned(case.task, case.heads([512])[512]))
        kept(f"rates/{task} lpo", lambda task=task: [
            tuned(task, policy) for _, _, policy in lpo_heads(task, 100, space, RATES["lpo"], [1024])])  # fmt: skip


def variance() -> None:
    """Trace of the covariance of the gradient of 8 prompts x 8 rollouts, score over marginal, on the same rollouts."""
    space, segmenter = lk.KnobSpace.of("temperature"), parse_level("token")
    for task in TASKS:
        case = Case(task, 50, space, {})
        kept(f"variance/{task} start", lambda case=case: ratio(case, None, segmenter))
        kept(f"variance/{task} later", lambda case=case: ratio(case, case.heads([512])[512].head, segmenter))


def ratio(case: Case, head: Any, segmenter: Any, batches: int = 16) -> dict[str, float]:
    """Traces of both, and their ratio, at a head (None: a new one)."""
    prompts = prompts_of(case.task, "training", 8 * batches, case.seed)
    policy = UniformPolicy(case.space, segmenter) if head is None else HeadPolicy(head, case.space, segmenter, pick="sample")
    rollouts = answers(prompts, policy, 8, 77)
    reward_N = earned(prompts, rollouts, 8).ravel().tolist()
    cached = featurise(engine_of("transformers", *lm()), prompts, rollouts, case.space, segmenter, ("hidden",), ALL).cache
    if head is None:
        torch.manual_seed(0)
        head = OptionHead(case.space, cached.feature_NF.shape[1])
        head.fit_scaler(*cached.moments())
    traces = {}
    for estimator in ("score", "marginal"):
        settings = Reinforce.Settings(estimator=estimator, normalise=False, entropy_bonus=0)
        learner = Reinforce(settings, Inputs(case.space, segmenter, ("hidden",)))
        gradients = []
        for b in range(batches):
            rows = range(64 * b, 64 * b + 64)
            try:
                examples = learner.examples(iter(rollouts[64 * b : 64 * b + 64]), [reward_N[n] for n in rows])
            except NoExamplesError:  # then the gradient is zero, under both
                gradients.append(torch.zeros(sum(weight.numel() for weight in head.parameters()), dtype=torch.float64))
                continue
            batch = Batch.read(cached, [Example(e.prompt, (rows[e.responses[0]],), e.weight) for e in examples], "cpu")
            loss = learner.loss(head, batch, None).each_B.sum() / 64
            gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(head.parameters()))]).double())
        traces[estimator] = float(torch.stack(gradients).var(0).sum())
    return traces | {"ratio": traces["score"] / traces["marginal"]}


FOUR = lk.KnobSpace.of({"temperature": [0.0, 0.5, 1.0, 1.25]})  # the paper's actions at token level
BUDGETS = (16, 32, 64)  # tokens; nearly every response of the mixture is cut by each of them, mathematics by the first
SEEN = {"with the budget": ("hidden", "remaining"), "without it": ("hidden",), "statistics": ("entropy", "max_prob")}


def tokens() -> None:
    """Token level under token budgets that bind, on the mixture: heads, controls of the first, and what needs no training."""
    at_each = {"token_budgets": list(BUDGETS)}
    for seed in SEEDS[:3]:
        for name, features in SEEN.items():
            case = Case("mixture", seed, FOUR, at_each | {"features": features})
            kept(f"tokens/{name} {seed}", partial(budgeted, case, name == "with the budget"))
    for k in range(FOUR.K):
        kept(f"tokens/constant {k}", lambda k=k: {"held out": by_budget(ConstantPolicy(FOUR, k)), "tuning": [
            tuned("mixture", ConstantPolicy(FOUR, k), longest) for longest in BUDGETS]})  # fmt: skip
    kept("tokens/uniform mixture", lambda: by_budget(UniformPolicy(FOUR, parse_level("token"))))
    kept("tokens/TURN", lambda: by_budget(ConstantPolicy(lk.KnobSpace.of({"temperature": [turn("mixture")]}))))


def by_budget(policy: Policy) -> list[Any]:
    """Held-out rewards of the mixture at each token budget."""
    return [judged("mixture", policy, longest).tolist() for longest in BUDGETS]


def budgeted(case: Case, has_controls: bool) -> dict[str, Any]:
    """Held-out rewards of a head at each budget, and of its controls, which are measured on tuning prompts."""
    [policy] = case.heads([512]).values()
    found = {"head": by_budget(policy)}
    prompts = prompts_of(case.task, "tuning", 48, 3)
    parts = []
    for longest in BUDGETS if has_controls else ():
        rollouts = answers(prompts, policy, 1, 55, longest)
        cached = featurise(
            engine_of("transformers", *lm()), prompts, rollouts, FOUR, parse_level("token"), ("entropy", "max_prob")
        )
        values = torch.tensor([value for r in rollouts for value in r.values], dtype=torch.float64)
        parts.append((values, cached.cache.feature_NF))
    if parts:
        value_MJ, seen_MF = (torch.cat(column) for column in zip(*parts, strict=True))
        choices = Choices(value_MJ, seen_MF[:, 0], seen_MF[:, 1])
        level = parse_level("token")
        found["mean shift"] = by_budget(MeanShift(FOUR, choices))
        found["shuffle"] = by_budget(Shuffle(FOUR, level, choices))
        found["shuffle within bins"] = by_budget(Shuffle(FOUR, level, choices, binned=True))
    return found


def turn(task: str) -> float:
    """The temperature of TURN on tuning prompts."""
    grid = np.arange(0.1, 1.6, 0.2)
    prompts, means = prompts_of(task, "tuning", 32, 3), []
    for temperature in grid:
        space = lk.KnobSpace.of({"temperature": [float(temperature)]})
        rollouts = answers(prompts, ConstantPolicy(space), 1, 55)
        total, count = 0.0, 0
        read = engine_of("transformers", *lm()).read([prompts[r.prompt].ids for r in rollouts], [r.ids for r in rollouts])
        for _, logits_TV in read:
            logp_TV = (logits_TV.float() / float(temperature)).log_softmax(-1)
            total, count = total - float((logp_TV.exp() * logp_TV).sum()), count + len(logp_TV)
        means.append(total / count)
    return round(float(grid[turning_point(means)]), 1)


SIX = lk.KnobSpace.of("temperature:0,0.5,0.75,1,1.25", "top_k:0,10", "top_p:0.95,1", "min_p:0,0.1").select(
    [{"temperature": t, "top_k": k, "top_p": p, "min_p": m} for t, k, p, m in (
        (0.0, 0, 1, 0), (0.5, 0, 1, 0), (1.0, 0, 1, 0), (1.25, 0, 1, 0), (0.75, 10, 1, 0), (0.75, 10, 0.95, 0.1))]
)  # fmt: skip
"""The paper's six strategies for mixed tasks."""
TOGETHER = (1, 4, 8)


def parallel() -> None:
    """Sequence level under parallel budgets, best of B, on the mixture."""
    more = {"level": "sequence", "parallel": list(TOGETHER), "steps": 16}
    for seed in SEEDS[:3]:
        for name, features in (("with the budget", ("hidden", "samples")), ("without it", ("hidden",))):
            case = Case("mixture", seed, SIX, more | {"features": features})
            kept(f"parallel/{name} {seed}", lambda case=case: [best_of(case.heads([1024])[1024], B) for B in TOGETHER])
    for k in range(SIX.K):
        kept(f"parallel/constant {k}", lambda k=k: {split: best_of(ConstantPolicy(SIX, k), None, split)
                                                    for split in ("held out", "tuning")})  # fmt: skip
    kept("parallel/uniform mixture", lambda: best_of(UniformPolicy(SIX, parse_level("sequence")), None))


def best_of(policy: Policy, samples: int | None, split: str = "held out") -> dict[str, list[float]]:
    """By prompt, the mean best reward of groups of B among 8 responses, for each B or (`samples`) for one."""
    prompts = prompts_of("mixture", split, 96 if split == "held out" else 64, 3)
    rollouts = roll_out(*lm(), prompts, policy, copies=8, samples=samples or 8, max_new_tokens=LONGEST, batch_size=256, seed=1001)
    rewards = torch.tensor(earned(prompts, rollouts, 8))
    sizes = TOGETHER if samples is None else (samples,)
    return {str(B): [float(group_rewards(reward_C, B, "best")[1].mean()) for reward_C in rewards] for B in sizes}


PARTS = {
    "variance": variance, "curves": curves, "rivals": rivals, "rates": rates, "tokens": tokens, "parallel": parallel,
}  # fmt: skip


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice([*PARTS, "tables"]))
def main(parts: tuple[str, ...]) -> None:
    """Runs what is not finished, then prints the tables."""
    for part in parts or PARTS:
        if part in PARTS:
            PARTS[part]()
    tables(TASKS)


if __name__ == "__main__":
    main()

"""Does a joint head fall behind after one round because of its first rollouts, or because of its many options?

    python -m benchmarks.coverage

Heads over 48 options (temperature x top_p x min_p) and over 4 temperatures, each fitted to rollouts of several mixtures: the loss
sums over the options, so a head may learn from responses that other options drew. `balanced` draws half of its tokens
untruncated. All are compared on held-out prompts that no other benchmark uses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

import latentknobs as lk
from benchmarks.fitting import fit_pairs, save
from benchmarks.joint import MIN_P, TEMPERATURE, TOP_P
from latentknobs import testbed
from latentknobs.config import TrainConfig
from latentknobs.data.examples import Pair
from latentknobs.data.featurise import featurise
from latentknobs.data.prompts import Prompt, is_held_out, make_prompts
from latentknobs.data.rollouts import Rollout, roll_out
from latentknobs.data.scores import score_rollouts
from latentknobs.data.segment_batches import FeatureCache
from latentknobs.engines.transformers import TransformersEngine
from latentknobs.evaluation.comparison import JUDGING, TUNING
from latentknobs.evaluation.statistics import estimate
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import parse_level
from latentknobs.knobs.context import Observation
from latentknobs.learners.lpo.pairs import pick_pairs
from latentknobs.models.loading import freeze
from latentknobs.policies import ConstantPolicy, HeadPolicy, Policy, State, UniformPolicy

TOKEN = parse_level("token")
JOINT, ALONE = lk.KnobSpace.of(TEMPERATURE, TOP_P, MIN_P), lk.KnobSpace.of(TEMPERATURE)
IS_NEUTRAL_K = (JOINT.values_KJ()[:, 1:] == torch.tensor([1.0, 0.0])).all(-1)
CUT = JOINT.index({"temperature": 1.4, "top_p": 0.95, "min_p": 0})
TAKEN = 1536  # held-out prompts of seed 0 that other benchmarks may have used
MODEL, TOKENIZER = freeze(testbed.load_model()), testbed.load_tokenizer()
Rewards = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A head, and the mixture that samples its first rollouts.

    Attributes:
        untruncated: share of the tokens that are drawn from the untruncated options alone; the others from all 48.
        is_later: whether the head also gets the later rounds.
    """

    untruncated: float
    space: lk.KnobSpace
    is_later: bool = True


CASES = {
    "joint head": Case(0.0, JOINT),
    "joint head, balanced rollouts": Case(0.5, JOINT),
    "joint head, untruncated rollouts": Case(1.0, JOINT, False),
    "temperature head": Case(1.0, ALONE),
    "temperature head, joint rollouts": Case(0.0, ALONE, False),
}


class Mixture(UniformPolicy):
    """Options of the joint space: untruncated ones with probability `untruncated`, else any."""

    def __init__(self, untruncated: float) -> None:
        super().__init__(JOINT, TOKEN)
        self.weight_K = untruncated * IS_NEUTRAL_K / IS_NEUTRAL_K.sum() + (1 - untruncated) / JOINT.K

    def log_pi(self, seen: Observation, state: State = None) -> Tensor:
        """(N, K) the same for every token."""
        return self.weight_K.log().expand(len(seen.logits_NV), -1)


def training_prompts(count: int, seed: int) -> list[Prompt]:
    """Without the fifth that experiments were tried on."""
    rows = testbed.prompts("mixture", "train", 2 * count, seed)
    return make_prompts([row for row in rows if not is_held_out(f"dev {row['prompt']}")][:count], TOKENIZER)


def held_out_prompts(count: int) -> list[Prompt]:
    """Fresh ones: none of those that other benchmarks use."""
    taken = {row["prompt"] for row in testbed.prompts("mixture", "eval", TAKEN, 0)}
    rows = testbed.prompts("mixture", "eval", 4 * count, 7)
    return make_prompts([row for row in rows if row["prompt"] not in taken][:count], TOKENIZER)


def answers(prompts: Sequence[Prompt], policy: Policy, copies: int, seed: int) -> tuple[list[Rollout], Rewards]:
    """Responses and their (prompts, copies) rewards."""
    rollouts = roll_out(MODEL, TOKENIZER, prompts, policy, copies=copies, max_new_tokens=64, batch_size=512, seed=seed)
    values = [score.value for score in score_rollouts("testbed", prompts, rollouts)]
    return rollouts, rearrange(np.array(values, dtype=float), "(p c) -> p c", c=copies)


def tails(cache: FeatureCache, pairs: Sequence[Pair], prompts: Sequence[Prompt]) -> tuple[float, float]:
    """Tokens per story beyond top_p .95 at temperature 1.4: of chosen and of rejected responses."""
    is_tail_N = cache.columns["logps_NK"][:, CUT].isneginf()
    count_R = torch.stack([part.sum() for part in is_tail_N.split(cache.start_R1.diff().tolist())]).double()
    stories = [pair for pair in pairs if prompts[pair.prompt].columns["task"] != "math"]
    return float(count_R[[p.chosen for p in stories]].mean()), float(count_R[[p.rejected for p in stories]].mean())


def learn(case: Case, policy: Policy, prompts: Sequence[Prompt], before: OptionHead | None, config: TrainConfig) -> OptionHead:
    """One round: rollouts of the policy, the best and the worst of each prompt, a head fitted to them."""
    seed = config.seed
    rollouts, reward_PC = answers(prompts, policy, 8, 1009 * seed + (1 if before is None else 2))
    pairs = pick_pairs([rollout.prompt for rollout in rollouts], reward_PC.ravel().tolist(), "best_worst", seed=seed)
    used = sorted({n for pair in pairs for n in (pair.chosen, pair.rejected)})
    place = {n: i for i, n in enumerate(used)}
    pairs = [Pair(p.prompt, place[p.chosen], place[p.rejected]) for p in pairs]
    cache = featurise(TransformersEngine(MODEL, None), prompts, [rollouts[n] for n in used], case.space, TOKEN, ("hidden",)).cache
    if case.space is JOINT:
        print("  tokens beyond top_p .95 at 1.4, chosen and rejected: {:.2f} {:.2f}".format(*tails(cache, pairs, prompts)))
    judged = [is_held_out(f"validation {prompts[pair.prompt].text}", 0.1) for pair in pairs]
    torch.manual_seed(seed)
    head = OptionHead(case.space, cache.feature_NF.shape[1], 256, factorised=case.space is JOINT)
    if before is None:
        head.fit_scaler(*cache.moments())
    else:
        head.load_state_dict(before.state_dict())
    train = [pair for pair, out in zip(pairs, judged, strict=True) if not out]
    held_out = [pair for pair, out in zip(pairs, judged, strict=True) if out]
    return fit_pairs(head, case.space, TOKEN, cache, train, held_out, config, reference=before)


def tune(prompts: Sequence[Prompt]) -> int:
    """The best of the 48 constants on training prompts."""
    means = [answers(prompts, ConstantPolicy(JOINT, k), 1, TUNING)[1].mean() for k in range(JOINT.K)]
    return int(np.argmax(means))


@click.command()
@click.option("--train-prompts", default=768, show_default=True)
@click.option("--eval-size", default=480, show_default=True, help="Held-out prompts, two responses each.")
@click.option("--tune-size", default=144, show_default=True, help="Training prompts on which the constant is tuned.")
@click.option("--seeds", default=3, show_default=True, help="Runs of the whole training.")
@click.option("--rounds", default=2, show_default=True)
@click.option("--steps", default=300, show_default=True, help="Of the optimiser, in a round.")
@click.option("--threads", default=2, show_default=True)
def main(train_prompts: int, eval_size: int, tune_size: int, seeds: int, rounds: int, steps: int, threads: int) -> None:
    """Trains every case from scratch `seeds` times, compares means over seeds, prompt by prompt."""
    torch.set_num_threads(threads)
    judge = held_out_prompts(eval_size)
    best = tune(training_prompts(train_prompts, 1)[:tune_size])
    reward_P: dict[str, list[Rewards]] = {f"constant {JOINT.label(best)}": []}
    reward_P[f"constant {JOINT.label(best)}"].append(answers(judge, ConstantPolicy(JOINT, best), 2, JUDGING)[1].mean(1))
    for seed in range(1, seeds + 1):
        prompts = training_prompts(train_prompts, seed)
        for name, case in CASES.items():
            head: OptionHead | None = None
            for number in range(1, (rounds if case.is_later else 1) + 1):
                policy = HeadPolicy(head, case.space, TOKEN, pick="sample") if head else Mixture(case.untruncated)
                print(f"seed {seed}, {name}, round {number}")
                head = learn(case, policy, prompts, head, TrainConfig(seed=seed, steps=steps))
                got = answers(judge, HeadPolicy(head, case.space, TOKEN), 2, JUDGING)[1].mean(1)
                reward_P.setdefault(f"{name}, round {number}", []).append(got)
    report({name: np.stack(runs) for name, runs in reward_P.items()})


def report(reward_SP: dict[str, Rewards]) -> None:
    """Means over seeds, and differences to the constant and to the plain heads of the same round."""
    constant, *heads = reward_SP
    rows: list[dict[str, Any]] = []
    for name in reward_SP:
        mean_P = reward_SP[name].mean(0)
        row: dict[str, Any] = {
            "policy": name,
            "reward": str(estimate(mean_P)),
            "seeds": reward_SP[name].mean(1).round(3).tolist(),
        }
        number = name.rpartition(", ")[2]
        others = {"constant": constant, "temperature head": f"temperature head, {number}", "joint head": f"joint head, {number}"}
        for label, other in others.items() if name in heads else ():
            if other != name:
                row[f"over {label}"] = str(estimate(mean_P - reward_SP[other].mean(0)))
        rows.append(row)
        print("; ".join(f"{key} {value}" for key, value in row.items()))
    (Path("runs") / "coverage").mkdir(parents=True, exist_ok=True)
    save("coverage", {"rows": rows, "rewards": {name: runs.round(6).tolist() for name, runs in reward_SP.items()}})


if __name__ == "__main__":
    main()

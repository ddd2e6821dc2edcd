"""Continuous values of knobs: what likelihood learns, and whether any objective learns more than a better mean.

    python -m benchmarks.continuous optimum                        # global optima of likelihood on self-generated text
    python -m benchmarks.continuous compare testbed                # three training seeds; or stories; into runs/continuous
    python -m benchmarks.continuous table                          # all seeds that are there
    python -m benchmarks.continuous pass                           # Pass@1 and Pass@k on arithmetic, heads of seed 0
    python -m benchmarks.continuous steering                       # control words of the testbed
    python -m benchmarks.continuous overhead                       # a step with a value head over a greedy one

stories260K and TinyStories are taken from LATENTKNOBS_DATA (default data; `make data`).
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

import latentknobs as lk
from benchmarks.stories260k import creative_reward, data_folder, load, openings, stories
from latentknobs import testbed
from latentknobs.data.prompts import Prompt, make_prompts
from latentknobs.data.rollouts import Rollout, roll_out
from latentknobs.data.scores import score_rollouts
from latentknobs.engines.transformers import Attached, TransformersEngine
from latentknobs.evaluation.statistics import estimate
from latentknobs.heads.features import read_features
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Every
from latentknobs.heads.value_head import ValueHead
from latentknobs.learners.end_to_end.learner import neutral_policy
from latentknobs.learners.end_to_end.losses import token_weights
from latentknobs.policies import ConstantPolicy, GreedyPolicy, HeadPolicy, Policy
from latentknobs.policies.continuous import ValuePolicy
from latentknobs.policies.controls import Choices, MeanShift, Shuffle

RUNS = Path("runs/continuous")
TOKENS, COPIES = 32, 2  # of a response; times that a held-out prompt is answered
SIZES = {"train_prompts": 64, "rollouts": 6, "tune_size": 48}
HELD_OUT = 56
SOME = 3  # of so many tokens one is looked at in `optimum`
KNOBS = ["temperature:0.1,0.5,1,1.5", "top_p:0.6,1"]
FEATURES = ("hidden", "entropy", "max_prob")
LEARNERS: dict[str, dict[str, Any]] = {
    "lpo": {"learner": "lpo", "pairs_per_prompt": 3},
    "preference": {"learner": "end_to_end", "objective": "preference", "pairs_per_prompt": 3},
    "reward_weighted": {"learner": "end_to_end", "objective": "reward_weighted"},
    "likelihood": {"learner": "end_to_end", "objective": "likelihood", "keep": "best"},
}
VARIANTS = {"plain": (0.0, "none"), "easy tokens masked": (0.6, "none"), "by probability": (0.0, "base"), "both": (0.6, "base")}


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

    def fit(self, name: str, seed: int, **settings: Any) -> lk.KnobAdapter:
        """A trained head; all learners of one seed share their rollouts."""
        return lk.train(
            knobs=KNOBS, model=self.model, tokenizer=self.tokenizer, prompts=self.train, eval_prompts=self.held_out,
            reward=self.reward, output_dir=RUNS / f"{self.name}-{seed}", seed=seed, level="token", max_new_tokens=TOKENS,
            eval_size=0, features=FEATURES, batch_size=256, steps=100, pairs_per_step=16, shard_size=2048, device="cpu",
            **SIZES | LEARNERS[name] | settings,
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
        parts = [[], []]  # type: list[list[Tensor]]
        for start in range(0, len(rollouts), 64):
            batch = rollouts[start : start + 64]
            for rollout, (hidden_TD, logits_TV) in zip(
                batch, engine.read([prompts[r.prompt].ids for r in batch], [r.ids for r in batch]), strict=True
            ):
                parts[0].append(torch.tensor(rollout.values, dtype=torch.float64))
                parts[1].append(read_features(["entropy", "max_prob"], hidden_TD, logits_TV))
        value_MJ, certainty_M2 = (torch.cat(part) for part in parts)
        return Choices(value_MJ, certainty_M2[:, 0], certainty_M2[:, 1])


@click.group()
@click.option("--threads", default=1, show_default=True)
def main(threads: int) -> None:
    """Experiments with continuous values."""
    torch.set_num_threads(threads)
    RUNS.mkdir(parents=True, exist_ok=True)


@main.command()
@click.option("--prompts", default=64, show_default=True)
@click.option("--fit/--no-fit", default=True, show_default=True, help="Also train a head of each variant on the text of T = 1.")
def optimum(prompts: int, fit: bool) -> None:
    """The best global temperature of each variant, and best top-p, on text that the LM itself wrote.

    Exact in the last step: at each context that the text visits, the expectation over the next token.
    """
    found: dict[str, Any] = {}
    for name in ("testbed", "stories"):
        world = World(name)
        for sampled in (1.0, 0.7):
            policy = ConstantPolicy(lk.KnobSpace.of({"temperature": [sampled]}))
            base_NV = world_logps(world, policy, prompts)
            found[f"{name}, text of T = {sampled:g}"] = best_temperatures(base_NV, (base_NV / sampled).log_softmax(-1))
            print(list(found.items())[-1], flush=True)
        for variant, (easy_mask, reweight) in VARIANTS.items() if fit else ():
            found[f"{name}, head, {variant}"] = head_on_own_text(world, easy_mask, reweight)
            print(list(found.items())[-1], flush=True)
    (RUNS / "optimum.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def world_logps(world: World, policy: Policy, prompts: int) -> Tensor:
    """(N, V) log-probabilities of the LM at the tokens of text of its own, in float64."""
    rows = world.train[:prompts]
    rollouts, _ = world.answers(policy, rows, 1, 7)
    tokenised = world.prompts(rows)
    engine = TransformersEngine(world.model, world.tokenizer)
    read = engine.read([tokenised[r.prompt].ids for r in rollouts], [r.ids for r in rollouts])
    return torch.cat([logits_TV for _, logits_TV in read])[::SOME].double().log_softmax(-1)


def best_temperatures(base_NV: Tensor, text_NV: Tensor) -> dict[str, float]:
    """For each variant, where the expected weighted log-likelihood of text drawn from `text_NV` is highest: a grid of .02."""
    is_best_NV = base_NV == base_NV.amax(-1, keepdim=True)
    grid = torch.arange(0.3, 1.6, 0.02).tolist()
    weights = {
        name: text_NV.exp() * token_weights(base_NV, base_NV, is_best_NV, easy_mask=easy_mask, reweight=reweight)
        for name, (easy_mask, reweight) in VARIANTS.items()
    }  # type: dict[str, Tensor]
    worth: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for temperature in grid:
        logp_NV = (base_NV / temperature).log_softmax(-1)
        for name, weight_NV in weights.items():
            worth[name].append(float((weight_NV * logp_NV).sum()))
    return {name: round(grid[int(np.argmax(values))], 2) for name, values in worth.items()}


def head_on_own_text(world: World, easy_mask: float, reweight: str) -> dict[str, float]:
    """Mean and standard deviation of the temperatures of a head trained on text of the LM itself, all of it."""
    settings: dict[str, Any] = {
        "learner": "end_to_end", "objective": "likelihood", "keep": "all", "first_text": "neutral", "easy_mask": easy_mask,
        "reweight": reweight, "rollouts": 4, "steps": 150, "pairs_per_step": 16, "learning_rate": 3e-3,
    }  # fmt: skip
    run = lk.train(
        knobs=["temperature:0.1,2", "top_p:0.5,1"], model=world.model, tokenizer=world.tokenizer, prompts=world.train,
        eval_prompts=world.held_out, reward=world.reward, output_dir=RUNS / f"own-{world.name}", max_new_tokens=TOKENS,
        eval_size=0, train_prompts=SIZES["train_prompts"], device="cpu", **settings,
    )  # fmt: skip
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [row for row in rows if row["head"] == "main" and "temperature_mean" in row][-1]
    return {name: round(last[name], 3) for name in ("temperature_mean", "temperature_std", "top_p_mean", "top_p_std")}


@main.command()
@click.argument("world", type=click.Choice(["testbed", "stories"]))
@click.option("--seed", "seeds", default=(0, 1, 2), show_default=True, multiple=True)
def compare(world: str, seeds: tuple[int, ...]) -> None:
    """All learners on the same rollouts, with their controls, against every rival, on held-out prompts."""
    here = World(world)
    for seed in seeds:
        compare_seed(here, world, seed)


def compare_seed(here: World, world: str, seed: int) -> None:
    """One training seed; its file is written after each learner."""
    path = RUNS / f"{world}-{seed}.json"
    rewards: dict[str, Any] = {}
    chosen: dict[str, Any] = {}
    tune = here.train[: SIZES["tune_size"]]
    for name in LEARNERS:
        policy = here.fit(name, seed).policy()
        tuning, _ = here.answers(policy, tune, 1, 101 + seed)
        choices = here.choices(tuning, tune)
        shift = MeanShift(policy.space, choices)
        spread = choices.value_MJ.std(0).tolist()
        chosen[name] = {"mean": shift.value_J.tolist(), "std": spread}
        compared: dict[str, Policy] = {name: policy, f"{name}: mean shift": shift}
        compared |= {f"{name}: shuffle": Shuffle(policy.space, policy.segmenter, choices, seed=seed)}
        compared |= {f"{name}: shuffle in bins": Shuffle(policy.space, policy.segmenter, choices, binned=True, seed=seed)}
        for label, one in compared.items():
            rewards[label] = here.answers(one, here.held_out, COPIES, 1001 + seed)[1].mean(0).tolist()
            print(f"{label}: {np.mean(rewards[label]):.4f} {chosen[name] if label == name else ''}", flush=True)
        path.write_text(json.dumps({"rewards": rewards, "chosen": chosen}) + "\n", encoding="utf-8")
    space = lk.KnobSpace.of(*KNOBS)
    constants = {space.label(k): ConstantPolicy(space, k) for k in range(space.K)}
    worth = {label: here.answers(policy, tune, 1, 101 + seed)[1].mean() for label, policy in constants.items()}
    rivals: dict[str, Policy] = {"greedy": GreedyPolicy(), "default": neutral_policy(space), **constants}
    for label, one in rivals.items():
        rewards[label] = here.answers(one, here.held_out, COPIES, 1001 + seed)[1].mean(0).tolist()
        print(f"{label}: {np.mean(rewards[label]):.4f}", flush=True)
    tuned = max(worth, key=lambda label: worth[label])
    path.write_text(json.dumps({"rewards": rewards, "chosen": chosen, "tuned": tuned}) + "\n", encoding="utf-8")


@main.command()
def table() -> None:
    """Gains over the tuned constant and of each head over its controls: means, and 95 % intervals over prompts and seeds."""
    for world in ("testbed", "stories"):
        data = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RUNS.glob(f"{world}-?.json"))]
        data = [one for one in data if "tuned" in one]
        if not data:
            continue
        print(f"\n{world}: {len(data)} training seeds; tuned constants: {', '.join(one['tuned'] for one in data)}\n")
        for one in data:
            one["rewards"]["tuned"] = one["rewards"][one["tuned"]]
        labels = list(data[0]["rewards"])
        print("| policy | reward | over the tuned constant | mean (spread) of temperature, top-p |\n|---|---|---|---|")
        for label in labels:
            own_SP, tuned_SP = (np.array([one["rewards"][name] for one in data]) for name in (label, "tuned"))
            means = [one["chosen"][label] for one in data] if label in LEARNERS else []
            words = ", ".join(
                f"{np.mean([m['mean'][j] for m in means]):.2f} ({np.mean([m['std'][j] for m in means]):.2f})" for j in range(2)
            ) if means else ""  # fmt: skip
            print(f"| {label} | {own_SP.mean():.3f} | {estimate(own_SP - tuned_SP)} | {words} |")
        print("\n| head | over its mean shift | over its shuffle | over its shuffle in bins |\n|---|---|---|---|")
        for name in LEARNERS:
            head_SP = np.array([one["rewards"][name] for one in data])
            cells = [estimate(head_SP - np.array([one["rewards"][f"{name}: {control}"] for one in data]))
                     for control in ("mean shift", "shuffle", "shuffle in bins")]  # fmt: skip
            print(f"| {name} | {' | '.join(cells)} |")


@main.command("pass")
@click.option("--copies", default=8, show_default=True)
@click.option("--prompts", default=128, show_default=True)
def pass_at_k(copies: int, prompts: int) -> None:
    """Pass@1 and Pass@k on arithmetic (unbiased estimator of Chen et al. 2021, arXiv 2107.03374), heads of seed 0."""
    here = World("math")
    space = lk.KnobSpace.of(*KNOBS)
    tune = here.train[: SIZES["tune_size"]]
    constants = {space.label(k): ConstantPolicy(space, k) for k in range(space.K)}
    worth = {label: here.answers(policy, tune, 1, 101)[1].mean() for label, policy in constants.items()}
    tuned = max(worth, key=lambda label: worth[label])
    compared: dict[str, Policy] = {
        "greedy": GreedyPolicy(),
        "default": neutral_policy(space),
        f"tuned ({tuned})": constants[tuned],
    }
    for name in ("preference", "reward_weighted", "likelihood"):
        policy = here.fit(name, 0, **{"keep": "correct"} if name == "likelihood" else {}).policy()
        choices = here.choices(here.answers(policy, tune, 1, 101)[0], tune)
        compared |= {name: policy, f"{name}: mean shift": MeanShift(policy.space, choices)}
    print("| policy | Pass@1 | Pass@4 | Pass@8 |\n|---|---|---|---|", flush=True)
    for label, one in compared.items():
        right_P = here.answers(one, here.held_out[:prompts], copies, 1001)[1].sum(0)
        cells = [str(estimate([unbiased(copies, int(c), k) for c in right_P])) for k in (1, 4, 8)]
        print(f"| {label} | {' | '.join(cells)} |", flush=True)


def unbiased(n: int, c: int, k: int) -> float:
    """The probability that one of k of n responses, c of which are right, is right."""
    return 1.0 if n - c < k else 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


@main.command()
@click.option("--prompts", default=768, show_default=True, help="To steer on.")
@click.option("--copies", default=4, show_default=True, help="Responses whose mean values are compared.")
@click.option("--margin", default=0.15, show_default=True)
def steering(prompts: int, copies: int, margin: float) -> None:
    """Control words of the testbed as commands: on how many of 100 held-out prompts they move the mean values the right way."""
    model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
    run = lk.train(
        knobs=["temperature:0.2,1,2", "top_p:0.5,1"], learner="end_to_end", model=model, tokenizer=tokenizer,
        prompts=testbed.prompts("stories", "train", 48), eval_prompts=testbed.prompts("stories", "eval", 4), eval_size=0,
        output_dir=RUNS / "steering", train_prompts=48, rollouts=4, max_new_tokens=32, steps=40, pairs_per_step=16, device="cpu",
    )  # fmt: skip
    commands = {"low": "Rule: Then\n{prompt}", "plain": "{prompt}", "high": "Rule: So\n{prompt}"}
    steered = lk.steer(
        run.adapter, testbed.prompts("stories", "train", prompts, seed=1), low=commands["low"], high=commands["high"],
        model=model, tokenizer=tokenizer, max_new_tokens=48, margin=margin,
    )  # fmt: skip
    texts = [row["prompt"] for row in testbed.prompts("stories", "eval", 100)]
    for name, adapter in (("before", run.adapter), ("after", steered)):
        mean_CPJ = []
        for command in commands.values():
            commanded = make_prompts([command.replace("{prompt}", text) for text in texts], tokenizer)
            found = roll_out(
                model, tokenizer, commanded, adapter.policy(), copies=copies, max_new_tokens=48, batch_size=256, seed=5
            )  # fmt: skip
            mean_CPJ.append(np.array([np.mean(rollout.values, 0) for rollout in found]).reshape(len(texts), copies, -1).mean(1))
        low_PJ, plain_PJ, high_PJ = mean_CPJ
        shares = [(low_PJ < plain_PJ).mean(0), (plain_PJ < high_PJ).mean(0), (low_PJ < high_PJ).mean(0)]
        print(
            f"{name}: means {np.mean(mean_CPJ, 1).round(3).tolist()}; low < plain, plain < high, low < high {np.round(shares, 2)}"
        )


@main.command()
@click.option("--repeats", default=7, show_default=True)
def overhead(repeats: int) -> None:
    """A step of decoding with each kind of head, over a greedy one, in processor time, on a random Llama: d = 512, V = 32,000."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=32000, hidden_size=512, intermediate_size=1376, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=256,
    )).eval()  # fmt: skip
    model.generation_config.eos_token_id = None
    space = lk.KnobSpace.of("temperature:0.1,2", "top_p:0.5,1")
    policies: dict[str, Policy | None] = {
        "greedy": None, "constant": ConstantPolicy(lk.KnobSpace.of({"temperature": [0.8], "top_p": [0.9]})),
        "option head": HeadPolicy(OptionHead(space, 512, hidden=256).eval(), space, Every(1)),
        "value head": ValuePolicy(ValueHead(space, 512, hidden=256).eval(), space, Every(1)),
        "value head, statistics": ValuePolicy(ValueHead(space, 512, hidden=256, statistics=True).eval(), space, Every(1)),
    }  # fmt: skip
    for rows in (1, 8):
        ids = torch.randint(5, 32000, (rows, 16))
        times: dict[str, list[float]] = {name: [] for name in policies}
        for _ in range(repeats):
            for name, policy in policies.items():
                begun = time.process_time()
                if policy is None:
                    model.generate(ids, max_new_tokens=32, do_sample=False)
                else:
                    with Attached(model, policy, seed=0):
                        model.generate(ids, max_new_tokens=32)
                times[name].append(time.process_time() - begun)
        base = median(times["greedy"])
        print(f"B = {rows}: " + ", ".join(f"{name} {median(own) / base:.3f}" for name, own in times.items()), flush=True)


if __name__ == "__main__":
    main()

"""The open experiments of arXiv 2311.10083 on a grounded task: what each rule trades, and whether that predicts what one gets.

    python -m tools.testbed.grounded --out runs/grounded
    python -m tools.testbed.grounded --out runs/corrupted --start runs/grounded --corrupted --steps 20
    python -m benchmarks.guidance                       # or one process for each --seed, with a folder --out of its own, and then
    python -m benchmarks.guidance --from runs/guidance-0 --from runs/guidance-1 --from runs/guidance-2      # the tables alone

Every member of every family answers held-out prompts; a family's member is tuned on training prompts, once for each training
seed, by reward (attribution, 0 or 1, and novelty, 0 to 1), on a grid that grows until the best is not on its edge. Learned
options are trained with the same seeds on the same prompts. Results are kept one by one in a file, so that the command goes on
where it stopped.

What would refute the claims, written down before the runs. That KL-guided temperature is worth its second reading: its tuned
member does not beat the tuned static temperature, or the tuned EDT, with a corrected p below .05. That learned options add
to it: they do not beat the tuned KL-guided member, or only as much as the mean of their own choices does. That the account
predicts the outcome: the interval of its rank correlation holds 0.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

import latentknobs as lk
from benchmarks.families import tuned
from latentknobs.config import TrainConfig
from latentknobs.data.prompts import Prompt, make_prompts
from latentknobs.data.rollouts import Rollout, roll_out
from latentknobs.engines.transformers import TransformersEngine
from latentknobs.evaluation.accounting import TERMS, account_of
from latentknobs.evaluation.statistics import estimate, holm
from latentknobs.evaluation.tuning import members
from latentknobs.models.loading import load_model
from latentknobs.policies import Policy
from latentknobs.policies.controls import Choices, MeanShift
from latentknobs.policies.names import policy_of
from tools.testbed import grounded

SEEDS, TOKENS = (0, 1, 2), 24
JOINT = "learned temperature x guidance x half-life"
FAMILIES = {
    "static temperature": members("constant", temperature=[0, 0.3, 0.5, 0.7, 0.85, 1, 1.15, 1.3, 1.6]),
    "min-p": members("constant", temperature=[1, 1.3, 1.6], min_p=[0.05, 0.1, 0.2]),
    "EDT": members("edt", base=[1, 1.4, 1.8, 2.4], theta=[0.3, 1, 3]),
    "confidence gate": members("confidence_gate", threshold=[0.3, 0.5, 0.8], hot=[1, 1.3, 1.6]),
    "CFG": members("cfg", scale=[1.5, 2, 3], temperature=[0.7, 1, 1.3, 1.6]),
    "KL-guided": members("kl_guided", base=[1, 1.3, 1.6], half_life=[0.25, 0.5, 1, 2, 4]),
    "Mirostat": members("mirostat", tau=[0.5, 1, 2, 3, 5], eta=[0.1, 0.3]),
    "dynatemp": members("dynatemp", low=[0, 0.4, 0.8], high=[1.2, 2, 3], exponent=[0.3, 0.6, 1]),
    "classifier": members("classifier", scale=[0.25, 0.5, 1, 2, 4], temperature=[0.7, 1, 1.3, 1.6]),
}
LEARNED = {
    "learned temperature": ["temperature:0,0.5,1,1.3,1.6"],
    JOINT: ["temperature:0.5,1,1.6", "guidance_scale:1,2,3", "kl_half_life:0.5,2,inf"],
}
MEAN = "mean of the learned choices"
ALIGNED = [
    "constant:temperature=0", "constant:temperature=0.7", "constant:temperature=1", "cfg:scale=2,temperature=1",
    "cfg:scale=3,temperature=0.7", "kl_guided:base=1,half_life=0.5",
]  # fmt: skip


class Lab:
    """One LM, its prompts, and a folder of results."""

    def __init__(self, model: Path, out: Path, prompts: int, known: dict[str, Any] | None = None) -> None:
        self.path, self.out, self.known = model, out, {} if known is None else known
        self.model, self.tokenizer = load_model(str(model), TrainConfig())
        self.engine = TransformersEngine(self.model, self.tokenizer)
        self.held_out = make_prompts(grounded.rows("eval", prompts, 9), self.tokenizer)
        out.mkdir(parents=True, exist_ok=True)
        self.known |= results_of(out)

    def training_rows(self, seed: int) -> list[dict[str, Any]]:
        """Prompts of one training seed."""
        return grounded.rows("train", len(self.held_out), seed)

    def outcome(self, name: str, make: Callable[[], Policy] | None = None) -> dict[str, Any]:
        """What a policy gets on held-out prompts, twice each, and its account; kept in a file."""
        return self._kept(f"held_out {name}", lambda: self._outcome(self.rule(name) if make is None else make()))

    def rule(self, name: str) -> Policy:
        """A rule by name; one of classifier guidance gets the discriminator of this folder."""
        path = f",discriminator={self.out / 'discriminator.safetensors'}" if name.startswith("classifier:") else ""
        return policy_of(name + path, self.tokenizer)

    def tuned(self, family: str, seed: int) -> str:
        """The member with the best mean reward on the training prompts of a seed, kept with the members tried."""
        prompts = make_prompts(self.training_rows(seed), self.tokenizer)

        def earned(spec: str) -> float:
            rollouts = self._responses(prompts, self.rule(spec), 1, 100 + seed)
            return float(np.mean([sum(scores(prompts[one.prompt], one)[:2]) for one in rollouts]))

        def score(spec: str, _: int) -> float:
            return float(self._kept(f"train {seed} {spec}", lambda: earned(spec)))

        best, tried = self._kept(f"tuned {seed} {family}", lambda: tuned(FAMILIES[family], len(prompts), score))
        for spec in tried:
            self.outcome(spec)
        return str(best)

    def learned(self, name: str, seed: int) -> Policy:
        """Options chosen by a head that LPO trained on the prompts of a seed."""
        run = self.out / f"{name.replace(' ', '_')}-{seed}"
        rows = run.with_suffix(".jsonl")
        rows.write_text("".join(json.dumps(row) + "\n" for row in self.training_rows(seed)))
        lk.train(
            knobs=LEARNED[name], model=str(self.path), prompts=str(rows), eval_prompts=str(rows), eval_size=0,
            reward=grounded.reward, output_dir=str(run), seed=seed, train_prompts=len(self.held_out), rollouts=8,
            max_new_tokens=TOKENS, hidden=64, steps=200, features=["hidden", "entropy"], factorised=len(LEARNED[name]) > 1,
        )  # fmt: skip
        return lk.KnobAdapter.from_pretrained(run / "adapter").policy("greedy")

    def discriminate(self, run: Path) -> None:
        """Trains a discriminator of grounded and novel responses on the rollouts of a run."""
        path = self.out / "discriminator.safetensors"
        if not path.exists():
            print(lk.discriminator(run, path, threshold=1.0), flush=True)

    def mean_of(self, policy: Policy, seed: int) -> Policy:
        """The constant that is the mean of what a policy chooses on the training prompts of a seed."""
        prompts = make_prompts(self.training_rows(seed), self.tokenizer)
        rollouts = self._responses(prompts, policy, 1, 200 + seed)
        values = torch.tensor([value for one in rollouts for value in one.values], dtype=torch.float64)
        return MeanShift(policy.space, Choices(values))

    def run(self, seeds: Sequence[int]) -> dict[str, Any]:
        """All outcomes of some training seeds."""
        for seed in seeds:
            heads = {name: self.learned(name, seed) for name in LEARNED}
            self.discriminate(self.out / f"learned_temperature-{seed}")
            for family in FAMILIES:
                self.tuned(family, seed)
            for name, head in heads.items():
                self.outcome(f"{name} {seed}", lambda head=head: head)
            self.outcome(f"{MEAN} {seed}", lambda head=heads[JOINT], seed=seed: self.mean_of(head, seed))
        return self.known

    def _outcome(self, policy: Policy) -> dict[str, Any]:
        rollouts = self._responses(self.held_out, policy, 2, 1)
        found = account_of(self.engine, self.held_out, rollouts, policy.space, batch_size=512)
        grounded_R, novelty_R, fluent_R = zip(*(scores(self.held_out[one.prompt], one) for one in rollouts), strict=True)
        per_token = {term: float(np.sum(getattr(found, term)) / np.sum(found.tokens)) for term in TERMS}
        by_prompt = {term: found.by_prompt(term).tolist() for term in TERMS}
        return {
            "by_prompt": by_prompt,
            "grounded": grounded_R, "novelty": novelty_R, "fluent": fluent_R, "distinct": distinct_2(rollouts), **per_token,
        }  # fmt: skip

    def _responses(self, prompts: Sequence[Prompt], policy: Policy, copies: int, seed: int) -> list[Rollout]:
        return roll_out(
            self.model, self.tokenizer, prompts, policy, copies=copies, max_new_tokens=TOKENS, batch_size=512, seed=seed
        )

    def _kept(self, name: str, make: Any) -> Any:
        if name not in self.known:
            self.known[name] = make()
            with (self.out / "results.jsonl").open("a") as file:
                file.write(json.dumps([name, self.known[name]]) + "\n")
            print(name, flush=True)
        return self.known[name]


def results_of(out: Path) -> dict[str, Any]:
    """What was found so far in a folder, by name."""
    path = out / "results.jsonl"
    return dict(json.loads(line) for line in path.read_text().splitlines()) if path.exists() else {}


def scores(prompt: Prompt, rollout: Rollout) -> tuple[float, float, float]:
    """Attribution (0 or 1), novelty (0 to 1), and whether the free sentence is one (0 or 1)."""
    is_grounded = grounded.is_grounded(rollout.text, prompt.columns["answer"])
    return float(is_grounded), grounded.novelty(rollout.text), float(grounded.free_words(rollout.text) is not None)


def distinct_2(rollouts: Sequence[Rollout]) -> float:
    """Different pairs of neighbouring words, as a share of all (distinct-2: Li et al. 2016, arXiv 1510.03055)."""
    pairs = [pair for one in rollouts for pair in zip(one.text.split(), one.text.split()[1:], strict=False)]
    return len(set(pairs)) / max(len(pairs), 1)


def reward_P(outcome: dict[str, Any]) -> NDArray[np.float64]:
    """(P,) mean reward of each prompt."""
    return (np.array(outcome["grounded"]) + np.array(outcome["novelty"])).reshape(-1, 2).mean(1)


def ranks(value_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean ranks of ties, as Spearman's correlation takes them."""
    _, inverse, counts = np.unique(value_N, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def correlation(x_N: NDArray[np.float64], y_N: NDArray[np.float64]) -> tuple[float, float, float]:
    """Spearman's rank correlation over N policies, with a 95 % bootstrap interval over policies."""
    rng, found = np.random.default_rng(0), list[float]()
    whole = float(np.corrcoef(ranks(x_N), ranks(y_N))[0, 1])
    for _ in range(1000):
        some = rng.integers(len(x_N), size=len(x_N))
        found.append(float(np.corrcoef(ranks(x_N[some]), ranks(y_N[some]))[0, 1]))
    low, high = np.nanquantile(found, [0.025, 0.975])
    return whole, float(low), float(high)


def line(name: str, outcome: dict[str, Any]) -> str:
    """A row of a Markdown table."""
    shares = [np.mean(outcome[key]) for key in ("grounded", "fluent", "novelty")]
    numbers = [*shares, outcome["distinct"], *(outcome[term] for term in TERMS)]
    return f"| {name} | {np.mean(reward_P(outcome)):.3f} | " + " | ".join(f"{number:.2f}" for number in numbers) + " |"


HEADER = (
    "| policy | reward | grounded | fluent | novelty | distinct-2 | sensibleness | diversity | attribution | log P |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


@click.command()
@click.option("--model", default="runs/grounded", show_default=True, type=click.Path(path_type=Path))
@click.option("--corrupted", default="runs/corrupted", show_default=True, type=click.Path(path_type=Path))
@click.option("--out", default="runs/guidance", show_default=True, type=click.Path(path_type=Path))
@click.option("--prompts", default=96, show_default=True, help="Held-out prompts, and training prompts of each seed.")
@click.option("--seed", "seeds", default=SEEDS, show_default=True, multiple=True)
@click.option("--from", "folders", type=click.Path(exists=True, path_type=Path), multiple=True, help="Print what these hold.")
def main(model: Path, corrupted: Path, out: Path, prompts: int, seeds: tuple[int, ...], folders: tuple[Path, ...]) -> None:
    """Runs what is missing, and prints the tables of docs/guidance.md."""
    known: dict[str, Any] = {}
    own = [results_of(folder) for folder in folders or (out,)]
    for one in own:
        known |= one
    bad = {name: value for folder in folders or (out,) for name, value in results_of(folder / "corrupted").items()}
    if not folders:
        own = [Lab(model, out, prompts, known).run(seeds)]
        if corrupted.exists():
            badly = Lab(corrupted, out / "corrupted", prompts, bad)
            for spec in ALIGNED:
                badly.outcome(spec)
    every = {name.removeprefix("held_out "): value for name, value in known.items() if name.startswith("held_out ")}
    found = [(seed, one) for seed in SEEDS for one in own if f"held_out {MEAN} {seed}" in one]  # a classifier is of its folder
    print(f"\n1 and 2: temperature against greedy decoding, and the trade-off of guidance\n\n{HEADER}")
    for spec in (spec for family in ("static temperature", "CFG", "classifier") for spec in FAMILIES[family]):
        print(line(f"`{spec}`", every[spec]))
    cold, hot, guided, wide = (ALIGNED[n] for n in (0, 2, 3, 4))
    some = [(cold, every[cold], hot, every[hot]), (guided, every[guided], hot, every[hot])]
    some += [("classifier:scale=4,temperature=1", every["classifier:scale=4,temperature=1"], hot, every[hot])]
    if bad:
        some.append((f"corrupted {wide}", bad[f"held_out {wide}"], f"corrupted {hot}", bad[f"held_out {hot}"]))
    paired("1, 2 and 5", some)
    picked = {family: [one[f"tuned {seed} {family}"][0] for seed, one in found] for family in FAMILIES}
    chosen = {
        family: [one[f"held_out {spec}"] for (_, one), spec in zip(found, specs, strict=True)] for family, specs in picked.items()
    }
    chosen |= {name: [one[f"held_out {name} {seed}"] for seed, one in found] for name in (*LEARNED, MEAN)}
    compared(chosen, picked)
    plot(every, chosen)
    predicted(list(every.values()))
    if bad:
        print(f"\n5: the LM after corrupted text, and before\n\n{HEADER}")
        for spec in ALIGNED:
            print(line(f"`{spec}`, corrupted", bad[f"held_out {spec}"]))
            print(line(f"`{spec}`, before", every[spec]))


def paired(title: str, pairs: Sequence[tuple[str, dict[str, Any], str, dict[str, Any]]]) -> None:
    """What one fixed policy has more than another, by prompt: of answers, and of the account in nats per token."""
    keys = ("grounded", "novelty", "diversity", "sensibleness", "attribution")

    def of(outcome: dict[str, Any], key: str) -> NDArray[np.float64]:
        return np.array(outcome[key]).reshape(-1, 2).mean(1) if key in keys[:2] else np.array(outcome["by_prompt"][key])

    gains = [[estimate(of(ours, key) - of(theirs, key)) for key in keys] for _, ours, _, theirs in pairs]
    corrected = iter(holm([gain.p for row in gains for gain in row]))
    print(f"\n{title}: differences [95 %, prompts], p corrected by Holm\n")
    print("| | minus | " + " | ".join(keys) + " |\n|---|---|" + "---|" * len(keys))
    for (ours, _, theirs, _), row in zip(pairs, gains, strict=True):
        cells = [f"{gain.mean:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}], p {next(corrected):.2g}" for gain in row]
        print(f"| `{ours}` | `{theirs}` | " + " | ".join(cells) + " |")


def compared(chosen: dict[str, list[dict[str, Any]]], picked: dict[str, list[str]]) -> None:
    """3: tuned rules and learned options, and their differences."""
    print(f"\n3: tuned on training prompts ; means over the seeds\n\n{HEADER}")
    for name, outcomes in chosen.items():
        mean = {key: np.mean([one[key] for one in outcomes], axis=0) for key in outcomes[0] if key != "by_prompt"}
        print(line(name, mean) + (f" <!-- {sorted(set(picked[name]))} -->" if name in picked else ""))
    pairs = [
        ("KL-guided", other)
        for other in ("static temperature", "EDT", "CFG", "classifier", "min-p", "confidence gate", "Mirostat", "dynatemp")
    ]
    pairs += [(JOINT, other) for other in ("KL-guided", "CFG", "EDT", "static temperature", "learned temperature", MEAN)]
    gains = [estimate(np.stack(list(map(reward_P, chosen[a]))) - np.stack(list(map(reward_P, chosen[b])))) for a, b in pairs]
    print("\n| | against | gain in reward [95 %, prompts and seeds] | p, corrected by Holm |\n|---|---|---|---|")
    for (ours, theirs), gain, p in zip(pairs, gains, holm([gain.p for gain in gains]), strict=True):
        print(f"| {ours} | {theirs} | {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] | {p:.3g} |")


def plot(every: dict[str, Any], chosen: dict[str, list[dict[str, Any]]]) -> None:
    """Trade-off curves along the temperature: guidance at each scale, and what tuning and learning chose."""
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    hot = (0.7, 1, 1.3, 1.6)
    curves = {"temperature": (FAMILIES["static temperature"], "black", "-")}
    curves |= {f"CFG {scale:g}": ([f"cfg:scale={scale:g},temperature={t}" for t in hot], colour, "-")
               for scale, colour in ((1.5, "#9ecae1"), (2, "#4292c6"), (3, "#08519c"))}  # fmt: skip
    curves |= {f"classifier {scale:g}": ([f"classifier:scale={scale:g},temperature={t}" for t in hot], colour, "--")
               for scale, colour in ((1, "#fdae6b"), (4, "#d94801"))}  # fmt: skip
    for axis, key, label in zip(
        axes, ("attribution", "grounded"), ("attribution, nats per token", "share grounded"), strict=True
    ):
        for name, (specs, colour, style) in curves.items():
            points = [(every[spec]["diversity"], np.mean(every[spec][key])) for spec in specs]
            axis.plot(*zip(*points, strict=True), style, marker=".", color=colour, linewidth=1, label=name)
        for name, mark in (("KL-guided", "s"), ("learned temperature", "^"), (JOINT, "*")):
            means = [np.mean([np.mean(one[term]) for one in chosen[name]]) for term in ("diversity", key)]
            axis.plot(*means, mark, color="#31a354", markersize=7, label=name.replace(" temperature x guidance", " T x guidance"))
        axis.set(xlabel="diversity, nats per token", ylabel=label)
    axes[1].legend(frameon=False, fontsize=6)
    figure.savefig("docs/images/guidance.png", dpi=160)


def predicted(outcomes: list[dict[str, Any]]) -> None:
    """4: whether the account predicts the outcome."""
    results = {"grounded": "grounded", "fluent": "fluent", "distinct-2": "distinct"}
    print(f"\n4: Spearman's rank correlation over {len(outcomes)} policies [95 %]\n")
    print("| term | " + " | ".join(results) + " |\n|---|---|---|---|")
    for term in TERMS:
        cells = [
            correlation(np.array([one[term] for one in outcomes]), np.array([np.mean(one[key]) for one in outcomes]))
            for key in results.values()
        ]
        print(f"| {term} | " + " | ".join(f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]" for mean, low, high in cells) + " |")


if __name__ == "__main__":
    main()

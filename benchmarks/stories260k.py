"""Learned temperatures on a real pretrained LM: stories260K, on openings of TinyStories.

    python -m benchmarks.stories260k repetition     # 3-gram repeats against greedy
    python -m benchmarks.stories260k creative       # creative but well spelled: every baseline, a hand rule, three objectives
    python -m benchmarks.stories260k headroom       # would adapting pay there? What `latentknobs headroom` says

The folder with the model and the text is taken from LATENTKNOBS_DATA (default data, see `make data`).
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import click
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import latentknobs as lk
from benchmarks.paper.hand import InsideWords
from benchmarks.testbed import WIDTH
from latentknobs.data.prompts import is_held_out
from latentknobs.evaluation.report import GREEDY, HEAD, Report
from latentknobs.evaluation.statistics import estimate
from latentknobs.policies import Policy
from latentknobs.reporting import print_report
from latentknobs.rewards import Lexicon, NgramRepetition, WordSurprise

HELD_OUT = 0.23  # of 2,317 stories: 1,705 different openings to train, 545 to judge
PROMPT_TOKENS = 24


def data_folder() -> Path:
    """The folder of real data; ends the program, saying so, when it is absent."""
    folder = Path(os.environ.get("LATENTKNOBS_DATA", "data"))
    if not (folder / "stories260K").exists():
        sys.exit(f"Skipped: there is no stories260K in {folder}. Set LATENTKNOBS_DATA to the folder of real data.")
    return folder


def load(folder: Path) -> tuple[Any, Any]:
    """The model and its tokenizer. Stories end with BOS (id 1), as in its training."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "stories260K", padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder / "stories260K")
    model.generation_config.eos_token_id = 1
    return model, tokenizer


def stories(folder: Path) -> list[str]:
    """The TinyStories sample."""
    text = (folder / "tinystories" / "tinystories_sample.txt").read_text(encoding="utf-8")
    return [story.strip() for story in text.split("<|endoftext|>") if len(story) > 200]


def openings(texts: list[str], tokenizer: Any) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training and held-out prompts: the first tokens of each story, split by a hash of the prompt."""
    made = dict.fromkeys(
        tokenizer.decode(tokenizer(text)["input_ids"][: PROMPT_TOKENS + 1], skip_special_tokens=True) for text in texts
    )
    train = [{"prompt": text} for text in made if not is_held_out(text, HELD_OUT)]
    return train, [{"prompt": text} for text in made if is_held_out(text, HELD_OUT)]


class Experiment:
    """Training and held-out openings, one space, one reward; everything goes to `runs/NAME`."""

    def __init__(self, name: str, reward: Any, knobs: list[str], **settings: Any) -> None:
        folder = data_folder()
        self.name, self.reward, self.knobs = name, reward, knobs
        self.model, self.tokenizer = load(folder)
        self.train, self.held_out = openings(stories(folder), self.tokenizer)
        sizes = {"train_prompts": len(self.train), "eval_size": len(self.held_out), "tune_size": 512, "batch_size": 512}
        self.settings = {"level": "token", "max_new_tokens": 80, "hidden": WIDTH} | sizes | settings

    def fit(self, **settings: Any) -> lk.KnobAdapter:
        """Trains a head. A changed objective redoes the optimisation alone: rollouts and pairs are shared."""
        return lk.train(
            knobs=self.knobs, model=self.model, tokenizer=self.tokenizer, prompts=self.train,
            eval_prompts=self.held_out, reward=self.reward, output_dir=f"runs/{self.name}",
            **(self.settings | {"eval_size": 0} | settings),
        ).adapter  # fmt: skip

    def judge(self, adapter: lk.KnobAdapter, extra: dict[str, Policy], seeds: int = 3) -> Report:
        """Evaluates, prints the table and each policy's gain over the tuned constant, writes `summary.json`."""
        names = ("eval_size", "tune_size", "max_new_tokens", "batch_size", "train_prompts")
        report = lk.evaluate(
            adapter, model=self.model, tokenizer=self.tokenizer, tune_prompts=self.train, prompts=self.held_out,
            reward=self.reward, seeds=seeds, extra=extra, **{name: self.settings[name] for name in names},
        )  # fmt: skip
        print_report(report)
        tuned_SP = report.rewards[report.tuned]
        gains = {name: str(estimate((values - tuned_SP).mean(0))) for name, values in report.rewards.items()}
        for name, gain in gains.items():
            print(f"{name}: {report.rewards[name].mean():.3f}, over the tuned constant ({report.tuned}) {gain}")
        data = report.to_dict() | {"gains over tuned": gains}
        (Path("runs") / self.name / "summary.json").write_text(json.dumps(data), encoding="utf-8")
        return report


def creative_reward(folder: Path) -> WordSurprise:
    """Mean surprisal of well-spelled words, by the TinyStories lexicon, in nats."""
    return WordSurprise(Lexicon.from_text("\n".join(stories(folder))))


@click.group()
@click.option("--threads", default=2, show_default=True)
def main(threads: int) -> None:
    """Experiments on stories260K."""
    torch.set_num_threads(threads)


@main.command()
def headroom() -> None:
    """Creative but well spelled: `latentknobs headroom` at its default size."""
    folder = data_folder()
    model, tokenizer = load(folder)
    train, held_out = openings(stories(folder), tokenizer)
    found = lk.headroom(
        knobs=["temperature:0,0.2,0.4,0.6,0.8,1,1.2"], model=model, tokenizer=tokenizer, prompts=[*train, *held_out],
        reward=creative_reward(folder), max_new_tokens=80, output_dir="runs/headroom-stories260k",
    )  # fmt: skip
    print(found.verdict)


@main.command()
def repetition() -> None:
    """3-gram repeats of 200 tokens, options {0, .1, .2, .4, .6}, token level (arXiv 2411.09661, section 4.2)."""
    sizes = {"max_new_tokens": 200, "train_prompts": 384, "rollouts": 10, "tune_size": 128, "eval_size": 256}
    experiment = Experiment("stories-repetition", NgramRepetition(3), ["temperature:0,0.1,0.2,0.4,0.6"], **sizes)
    report = experiment.judge(experiment.fit(), {})
    head_SP, greedy_SP = report.rewards[HEAD], report.rewards[GREEDY]
    print(
        f"repeats: head {-head_SP.mean():.4f}, greedy {-greedy_SP.mean():.4f}: {1 - head_SP.mean() / greedy_SP.mean():.0%} fewer"
    )


@main.command()
@click.option("--rollouts", default=12, show_default=True, help="Responses per prompt in each round.")
@click.option("--pairs", default=3, show_default=True, help="Pairs per prompt.")
@click.option("--steps", default=300, show_default=True)
@click.option("--beta", default=0.1, show_default=True)
@click.option("--lr", default=5e-4, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--knobs", default=("temperature:0,0.2,0.4,0.6,0.8,1,1.2",), show_default=True, multiple=True)
@click.option("--seeds", default=3, show_default=True, help="Answers of every policy to every held-out prompt.")
@click.option("--compare/--alone", default=True, show_default=True, help="Also fit nll and tokens_separate.")
@click.option("--name", default="stories-creative", show_default=True)
def creative(
    rollouts: int, pairs: int, steps: int, beta: float, lr: float, rounds: int, knobs: tuple[str, ...], seeds: int,
    compare: bool, name: str,
) -> None:  # fmt: skip
    """Creative but well spelled, token level: baselines, a hand rule, and three objectives on the pairs of round one."""
    features = ("hidden", "entropy", "max_prob", "top5_mass", "log_collision", "margin")
    experiment = Experiment(
        name, creative_reward(data_folder()), list(knobs), features=features, rollouts=rollouts, pairs_per_prompt=pairs,
        steps=steps, beta=beta, learning_rate=lr,
    )  # fmt: skip
    objectives = ("nll", "tokens_separate", "latent") if compare else ()
    others = {f"{name}, round 1": experiment.fit(objective=name, rounds=1).policy() for name in objectives}
    adapter = experiment.fit(objective="latent", rounds=rounds)
    others["sampled options"] = adapter.policy("sample")
    experiment.judge(adapter, {"hand rule": InsideWords(experiment.tokenizer, 0.4, 1.2), **others}, seeds)


if __name__ == "__main__":
    main()

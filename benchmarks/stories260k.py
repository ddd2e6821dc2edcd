"""Learned temperatures on a real pretrained LM: stories260K, on openings of TinyStories.

    python -m benchmarks.stories260k repetition     # 3-gram repeats against greedy
    python -m benchmarks.stories260k creative       # creative but well spelled, against every baseline and a hand rule
    python -m benchmarks.stories260k objectives     # latent, tokens_separate and nll on the same pairs

The folder with the model and the text is taken from LATENTKNOBS_DATA (default ../shared/data).
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import latentknobs as lk
from latentknobs.data.prompts import is_held_out
from latentknobs.evaluation.evaluate import Report
from latentknobs.policies import Policy
from latentknobs.reporting import print_report
from latentknobs.rewards import Lexicon, NgramRepetition, WordSurprise
from latentknobs.segments import Every

HELD_OUT = 0.23  # of 2,316 stories: 1,788 to train, 528 to judge
PROMPT_TOKENS = 24


def data_folder() -> Path:
    """The folder of real data; ends the program, saying so, when it is absent."""
    folder = Path(os.environ.get("LATENTKNOBS_DATA", "../shared/data"))
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


class HandRule(Policy):
    """Hot when the next token probably begins a word, cold otherwise: what a person who knows the tokenizer would write."""

    def __init__(self, space: lk.KnobSpace, tokenizer: Any, hot: float = 1.2, cold: float = 0.4) -> None:
        super().__init__(space, Every(1), "greedy")
        tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        self.is_start_V = torch.tensor([token.startswith("▁") for token in tokens])
        self.hot, self.cold = space.index({"temperature": hot}), space.index({"temperature": cold})

    def log_pi(self, hidden_ND: Tensor, logits_NV: Tensor) -> Tensor:
        """(N, K) one-hot."""
        starts_N = logits_NV.softmax(-1)[:, self.is_start_V].sum(-1) > 0.5
        option_N = torch.where(starts_N, self.hot, self.cold)
        return torch.nn.functional.one_hot(option_N, self.space.K).double().log()


def run(name: str, reward: Any, grid: tuple[float, ...], settings: dict[str, Any], hand_rule: bool) -> Report:
    """Trains and evaluates on the story openings; writes the run to `runs/NAME`."""
    folder = data_folder()
    model, tokenizer = load(folder)
    train, held_out = openings(stories(folder), tokenizer)
    defaults: dict[str, Any] = {
        "level": "token", "max_new_tokens": 80, "train_prompts": len(train), "eval_size": len(held_out), "eval_seeds": 3,
        "tune_size": 512, "batch_size": 512,
    }  # fmt: skip
    settings = defaults | settings
    seeds = settings.pop("eval_seeds")
    trained = lk.train(
        knobs=[{"temperature": grid}], model=model, tokenizer=tokenizer, prompts=train, eval_prompts=held_out, reward=reward,
        output_dir=f"runs/{name}", **(settings | {"eval_size": 0}),
    )  # fmt: skip
    space = trained.adapter.space
    report = lk.evaluate(
        trained.adapter, model=model, tokenizer=tokenizer, tune_prompts=train, prompts=held_out, reward=reward, seeds=seeds,
        extra={"hand rule": HandRule(space, tokenizer)} if hand_rule else {},
        **{key: settings[key] for key in ("eval_size", "tune_size", "max_new_tokens", "batch_size", "train_prompts")},
    )  # fmt: skip
    (Path("runs") / name / "summary.json").write_text(json.dumps(report.to_dict()), encoding="utf-8")
    print_report(report)
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
def repetition() -> None:
    """3-gram repeats of 200 tokens, options {0, .1, .2, .4, .6}, token level (arXiv 2411.09661, section 4.2)."""
    settings = {"max_new_tokens": 200, "train_prompts": 512, "rollouts": 10, "tune_size": 128, "eval_size": 256}
    report = run("stories-repetition", NgramRepetition(3), (0.0, 0.1, 0.2, 0.4, 0.6), settings, hand_rule=False)
    head, greedy = report.rewards["learned head"].mean(), report.rewards["greedy decoding"].mean()
    print(f"repeats: head {-head:.4f}, greedy {-greedy:.4f}: {100 * (1 - head / greedy):.0f} % fewer")


@main.command()
@click.option("--rounds", default=1)
@click.option("--steps", default=300)
@click.option("--beta", default=0.1)
@click.option("--rollouts", default=8)
@click.option("--pairs", default=1)
@click.option("--lr", default=1e-3)
@click.option("--name", default="stories-creative")
def creative(rounds: int, steps: int, beta: float, rollouts: int, pairs: int, lr: float, name: str) -> None:
    """Creative but well spelled, token level."""
    features = ("hidden", "entropy", "max_prob", "top5_mass", "log_collision", "margin")
    settings = {
        "features": features, "rounds": rounds, "steps": steps, "beta": beta, "rollouts": rollouts,
        "pairs_per_prompt": pairs, "learning_rate": lr,
    }  # fmt: skip
    grid = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
    run(name, creative_reward(data_folder()), grid, settings, hand_rule=True)


@main.command()
@click.option("--seeds", default=3, show_default=True, help="Seeds of the head, and answers to every prompt.")
def objectives(seeds: int) -> None:
    """`latent`, `tokens_separate` and `nll` on the same rollouts and pairs, each over several seeds of the head."""
    grid, reward = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2), creative_reward(data_folder())
    gains: dict[str, list[Any]] = {}
    for objective in ("latent", "tokens_separate", "nll"):
        # One run directory: a changed objective redoes the optimisation alone, so rollouts and pairs are shared.
        report = run("stories-objectives", reward, grid, {"objective": objective}, hand_rule=False)
        gains[objective] = [report.compare(report.tuned).gain, report.rewards["learned head"]]
    for objective, (gain, _) in gains.items():
        print(f"{objective}: gain over the tuned constant {gain}")


if __name__ == "__main__":
    main()

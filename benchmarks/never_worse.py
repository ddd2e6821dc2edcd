"""Does anybody lose who adapts? Twelve rewards on the testbed, three training seeds each; half of them leave nothing to adapt.

    python -m benchmarks.never_worse            # about 30 minutes of processor time; a run that was stopped goes on
    python -m benchmarks.never_worse --only "noise|math"

For each reward the adapter that `train` saves, and the head before the choice, against the constant that was tuned on the same
dev prompts: means over held-out prompts of other templates, with intervals over prompts and training seeds.
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import latentknobs as lk
from benchmarks.testbed import save
from latentknobs.evaluation.report import HEAD, TRAINED, Report
from latentknobs.evaluation.statistics import Interval, estimate, holm

SMALL = {
    "train_prompts": 96, "eval_size": 96, "eval_seeds": 2, "tune_size": 64, "max_new_tokens": 48, "steps": 150, "shard_size": 256,
}  # fmt: skip
SEEDS = (0, 1, 2)


def _reward(score: Callable[[str, str], float]) -> Callable[..., list[float]]:
    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [score(*both) for both in zip(prompts, completions, strict=True)]

    reward.__name__ = score.__name__
    reward.version = "1"  # type: ignore[attr-defined]
    return reward


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def noise(prompt: str, text: str) -> float:
    """Nothing that any policy could influence."""
    return int.from_bytes(hashlib.sha256(f"{prompt} {text}".encode()).digest()[:4]) / 2**32


def distinct(prompt: str, text: str) -> float:
    """Different words: the hotter, the better."""
    return len(set(_words(text))) / 40


def short_words(prompt: str, text: str) -> float:
    """Letters per word, fewer being better."""
    words = _words(text)
    return 2 - sum(map(len, words)) / max(len(words), 1) / 4


def sentences(prompt: str, text: str) -> float:
    """Finished sentences."""
    return len(re.findall(r"[.!?]", text)) / 6


def quiet(prompt: str, text: str) -> float:
    """Whether nobody speaks: a rare event at some temperatures."""
    return float('"' not in text)


CASES: dict[str, dict[str, Any]] = {
    "mixture": {"prompts": "testbed:mixture"},
    "mixture, by prompt": {"prompts": "testbed:mixture", "level": "sequence"},
    "constrained": {"prompts": "testbed:constrained"},
    "constrained, by sentence": {"prompts": "testbed:constrained", "level": "delimiter:.!?"},
    "constrained, top-p": {"prompts": "testbed:constrained", "knobs": ["top_p:0.1,0.5,0.8,0.95,1"]},
    "stories": {"prompts": "testbed:stories"},
    "math": {"prompts": "testbed:math"},
    "distinct": {"prompts": "testbed:stories", "reward": _reward(distinct)},
    "short words": {"prompts": "testbed:stories", "reward": _reward(short_words)},
    "sentences": {"prompts": "testbed:stories", "reward": _reward(sentences)},
    "quiet": {"prompts": "testbed:stories", "reward": _reward(quiet)},
    "noise": {"prompts": "testbed:mixture", "reward": _reward(noise)},
}  # the last six leave nothing to adapt: one temperature is best for every token, or none matters


def gains(reports: list[Report], ours: str, theirs: str) -> Interval:
    """Of one policy over another, over prompts and training seeds; `tuned` is each seed's own tuned constant."""
    rows = []
    for report in reports:
        names = [report.tuned if name == "tuned" else name for name in (ours, theirs)]
        a, b = (report.rewards.get(name, report.rewards[HEAD]) for name in names)
        rows.append((a - b).mean(0))
    values = np.concatenate([values.ravel() for report in reports for values in report.rewards.values()])
    reach = float(values.max() - values.min()) or 1.0
    return estimate(np.stack(rows), (-reach, reach))


@click.command()
@click.option("--only", default="", help="Some of the rewards, by name, with | between.")
@click.option("--folder", default="runs/never_worse", show_default=True)
def main(only: str, folder: str) -> None:
    """Trains what is not there yet, and prints a line for each reward."""
    torch.set_num_threads(1)
    names = only.split("|") if only else list(CASES)
    rows, lines = [], []
    for name in names:
        runs = []
        for seed in SEEDS:
            place = Path(folder) / re.sub(r"\W+", "_", name) / str(seed)
            settings = {"knobs": ["temperature"]} | SMALL | CASES[name]
            runs.append(lk.train(**settings, seed=seed, output_dir=place))
        reports = [run.report for run in runs if run.report is not None]
        held = [str(run.adapter.training["choice"]).partition(":")[0].removeprefix("The adapter holds the ") for run in runs]
        found = {
            "adapter over constant": gains(reports, HEAD, "tuned"), "head over constant": gains(reports, TRAINED, "tuned"),
            "adapter over head": gains(reports, HEAD, TRAINED),
        }  # fmt: skip
        rows.append({"reward": name, "held": held, "tuned": [report.tuned for report in reports]}
                    | {key: [i.mean, i.low, i.high, i.p] for key, i in found.items()})  # fmt: skip
        lines.append(f"{name}: {'; '.join(f'{key} {value}' for key, value in found.items())}; holds {', '.join(held)}")
        print(lines[-1], flush=True)
    for row, p in zip(rows, holm([float(row["adapter over constant"][3]) for row in rows]), strict=True):
        row["p, corrected"] = p
    save(Path(folder).name, {"rows": rows})
    print("\n".join(lines))


if __name__ == "__main__":
    main()

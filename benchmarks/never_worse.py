"""Does anybody lose who adapts? Twelve rewards on the testbed, three training seeds each; half of them leave nothing to adapt.

    python -m benchmarks.never_worse            # about 15 minutes of processor time; a run that was stopped goes on
    python -m benchmarks.never_worse --only "noise|math" --seed 0      # a part; parts may run side by side, the last call sums up

For each reward the adapter that `train` saves, and the head before the choice, against the constant that was tuned on the same
dev prompts: means over held-out prompts of other templates, with intervals over prompts and training seeds.
"""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import latentknobs as lk
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


def part(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """One training: what its adapter holds and what the evaluation found; kept as a file."""
    stem = re.sub(r"\W+", "_", name)
    path = folder / f"{stem}-{seed}.json"
    if not path.exists():
        settings = {"knobs": ["temperature"]} | SMALL | CASES[name]
        run = lk.train(**settings, seed=seed, draws=0, output_dir=folder / stem / str(seed))
        assert run.report is not None
        data = {"choice": run.adapter.training["choice"], "report": run.report.to_dict()}
        path.with_suffix(".partial").write_text(json.dumps(data), encoding="utf-8")
        path.with_suffix(".partial").replace(path)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@click.command()
@click.option("--only", default="", help="Some of the rewards, by name, with | between.")
@click.option("--seed", type=int, multiple=True, default=SEEDS, show_default=True, help="Some of the training seeds.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("runs/never_worse"), show_default=True)
def main(only: str, seed: tuple[int, ...], folder: Path) -> None:
    """Trains what is not there yet, and prints a table of the rewards."""
    torch.set_num_threads(1)
    rows = []
    for name in only.split("|") if only else CASES:
        parts = [part(name, one, folder) for one in seed]
        reports = [Report.from_dict(one["report"]) for one in parts]
        held = [str(one["choice"]).partition(":")[0].removeprefix("The adapter holds the ") for one in parts]
        over = [gains(reports, *both) for both in ((HEAD, "tuned"), (TRAINED, "tuned"), (HEAD, TRAINED))]
        rows.append((name, over, ", ".join(held), ", ".join(report.tuned for report in reports)))
    p = holm([over[0].p for _, over, *_ in rows])
    print("| reward | adapter over tuned constant | p, corrected | head over tuned constant | adapter over head | it holds |")
    print("|---|---|---|---|---|---|")
    for (name, over, held, tuned), corrected in zip(rows, p, strict=True):
        print(f"| {name} ({tuned}) | {over[0]} | {corrected:.3f} | {over[1]} | {over[2]} | {held} |")


if __name__ == "__main__":
    main()

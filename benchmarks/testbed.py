"""Learned temperatures on the packaged testbed, where every number can be made again offline.

python -m benchmarks.testbed mixture        # sequence level, three tasks in one, against every baseline
python -m benchmarks.testbed constrained    # token level: cold at the constraint, warm elsewhere
"""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import latentknobs as lk
from latentknobs import testbed
from latentknobs.data.prompts import Prompt, make_prompts
from latentknobs.evaluation.api import rescore
from latentknobs.evaluation.report import HEAD, Report
from latentknobs.evaluation.statistics import Interval, estimate
from latentknobs.heads.segmenters import parse_level
from latentknobs.reporting import print_report
from latentknobs.rewards import SentenceConstraint
from latentknobs.testbed.reward import story_reward

WIDTH = 256  # of the heads of the published figures; what is chosen by itself is narrower now, and level (docs/log.md)


def save(name: str, data: dict[str, Any]) -> None:
    """Writes the figures of an experiment to `runs/NAME/summary.json`."""
    (Path("runs") / name).mkdir(parents=True, exist_ok=True)
    (Path("runs") / name / "summary.json").write_text(json.dumps(data, indent=1), encoding="utf-8")


def mean_temperature(report: Report, adapter: lk.KnobAdapter, task: str) -> Interval:
    """Mean over prompts of the temperature that the head chose, averaged over tokens and seeds."""
    grid_K = adapter.space.values_KJ()[:, 0].numpy()
    seeds = report.rewards[HEAD].shape[0]
    chosen = [float(grid_K[list(r.options)].mean()) for r in report.rollouts[HEAD]]
    by_prompt = np.array(chosen).reshape(-1, seeds).mean(1)
    return estimate(by_prompt[[t == task for t in report.tasks]])


@click.group()
@click.option("--threads", default=2, show_default=True)
def main(threads: int) -> None:
    """Experiments on the packaged testbed."""
    torch.set_num_threads(threads)


@main.command()
@click.option("--train-prompts", default=1536, show_default=True)
@click.option("--eval-size", default=768, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--name", default="testbed-mixture", show_default=True)
def mixture(train_prompts: int, eval_size: int, seeds: int, name: str) -> None:
    """The mixture at sequence level: win rates and gains against every constant temperature."""
    run = lk.train(
        knobs=["temperature:0,0.2,0.4,0.6,0.8,1,1.2"], level="sequence", train_prompts=train_prompts, eval_size=0,
        batch_size=512, hidden=WIDTH, output_dir=f"runs/{name}",
    )  # fmt: skip
    report = lk.evaluate(
        run.adapter, seeds=seeds, eval_size=eval_size, tune_size=768, batch_size=512, train_prompts=train_prompts
    )
    print_report(report)
    temperatures = {task: mean_temperature(report, run.adapter, task) for task in report.task_names[1:]}
    for task, temperature in temperatures.items():
        print(f"mean temperature on {task}: {temperature}")
    save(name, report.to_dict() | {"temperatures": {task: str(value) for task, value in temperatures.items()}})


def sentence_starts(report: Report, adapter: lk.KnobAdapter, prompts: list[Prompt]) -> tuple[Interval, Interval, Interval]:
    """Mean temperature at the first token of a sentence, elsewhere, and the paired difference, over responses."""
    segmenter = parse_level("delimiter:.!?", testbed.load_tokenizer())
    grid_K = adapter.space.values_KJ()[:, 0]
    first, rest = [], []
    for rollout in report.rollouts[HEAD]:
        previous_T = torch.tensor([prompts[rollout.prompt].ids[-1], *rollout.ids[:-1]])
        position_T = torch.arange(1, len(rollout.ids) + 1)  # 0 would count as a start whatever came before
        starts_T = segmenter.begins(position_T.unsqueeze(0), previous_T.unsqueeze(0)).squeeze(0)
        chosen_T = grid_K[list(rollout.options)]
        if starts_T.any() and not starts_T.all():
            first.append(float(chosen_T[starts_T].mean()))
            rest.append(float(chosen_T[~starts_T].mean()))
    return estimate(first), estimate(rest), estimate(np.array(rest) - np.array(first))


@main.command()
@click.option("--train-prompts", default=1024, show_default=True)
@click.option("--eval-size", default=512, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--name", default="testbed-constrained", show_default=True)
def constrained(train_prompts: int, eval_size: int, seeds: int, name: str) -> None:
    """Constrained stories at token level, with the pair rule of arXiv 2411.09661, section 4.4."""
    settings: dict[str, Any] = {"prompts": "testbed:constrained", "train_prompts": train_prompts, "batch_size": 512}
    run = lk.train(
        knobs=["temperature:0,0.2,0.4,0.6,0.8,1,1.2"], level="token", reward=story_reward(), second_reward=SentenceConstraint(),
        pair_rule="top_bottom", top=4, rollouts=16, hidden=WIDTH, eval_size=0, output_dir=f"runs/{name}", **settings,
    )  # fmt: skip
    both = lk.evaluate(run.adapter, seeds=seeds, eval_size=eval_size, tune_size=512, **settings)
    prompts = make_prompts(testbed.prompts("constrained", "eval", eval_size, 0), testbed.load_tokenizer())
    keeps, stories = rescore(both, prompts, SentenceConstraint()), rescore(both, prompts, story_reward())
    print_report(both)
    rows = []
    for policy in both.rewards:
        kept, story = keeps.compare(policy), stories.compare(policy)
        rows.append({"policy": policy, "constraint": kept.reward.mean, "story": story.reward.mean})
        print(f"{policy}: constraint {kept.reward}, head {kept.gain}; story {story.reward}, head {story.gain}")
    print(f"tuned best constant: {both.tuned}")
    first, rest, difference = sentence_starts(both, run.adapter, prompts)
    print(f"temperature at sentence starts {first}, elsewhere {rest}, difference {difference}")
    save(name, both.to_dict() | {"front": rows, "starts": str(first), "rest": str(rest), "difference": str(difference)})


if __name__ == "__main__":
    main()

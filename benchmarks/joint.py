"""Is it worth learning more knobs than temperature? A joint head over temperature x top_p x min_p on the testbed mixture.

    python -m benchmarks.joint

Against the best of all its 48 constants, tuned on training prompts, and against a head that learned temperature alone from as
many rollouts.
"""

from typing import Any

import click
import torch

import latentknobs as lk
from benchmarks.fitting import WIDTH, save
from latentknobs.evaluation.report import HEAD
from latentknobs.evaluation.statistics import estimate
from latentknobs.reporting import print_report

TEMPERATURE, TOP_P, MIN_P = "temperature:0,0.6,1,1.4", "top_p:0.8,0.9,0.95,1", "min_p:0,0.05,0.15"
ALONE = "temperature alone"


@click.command()
@click.option("--level", default="token", show_default=True)
@click.option("--train-prompts", default=1024, show_default=True)
@click.option("--rollouts", default=8, show_default=True, help="Responses per training prompt.")
@click.option("--pairs", default=1, show_default=True, help="Pairs per training prompt.")
@click.option("--rounds", default=1, show_default=True, help="Of both heads.")
@click.option("--eval-size", default=384, show_default=True)
@click.option("--seeds", default=2, show_default=True)
@click.option("--factorised/--joint", default=True, show_default=True, help="One categorical per knob, or one over all options.")
@click.option("--threads", default=2, show_default=True)
def main(
    level: str, train_prompts: int, rollouts: int, pairs: int, rounds: int, eval_size: int,
    seeds: int, factorised: bool, threads: int
) -> None:  # fmt: skip
    """Trains both heads, compares them with everything, prints the tables."""
    torch.set_num_threads(threads)
    name = f"joint-{level}-{rollouts}-{rounds}"
    settings: dict[str, Any] = {
        "level": level, "train_prompts": train_prompts, "rollouts": rollouts, "pairs_per_prompt": pairs, "rounds": rounds,
        "eval_size": 0, "batch_size": 512, "hidden": WIDTH,
    }  # fmt: skip
    knobs = [TEMPERATURE, TOP_P, MIN_P]
    alone = lk.train(knobs=[TEMPERATURE], output_dir=f"runs/{name}/temperature", **settings).adapter
    both = lk.train(knobs=knobs, factorised=factorised, output_dir=f"runs/{name}/joint", **settings).adapter
    report = lk.evaluate(
        both, seeds=seeds, eval_size=eval_size, tune_size=256, batch_size=512, train_prompts=train_prompts,
        extra={ALONE: alone.policy()},
    )  # fmt: skip
    print_report(report)
    gains = {}
    for task in report.task_names:
        for policy in (report.tuned, ALONE, report.best_constant(task)):
            gains[f"{task}: over {policy}"] = str(report.compare(policy, task).gain)
    alone_gain = estimate((report.rewards[ALONE] - report.rewards[report.tuned]).mean(0))
    gains[f"all: {ALONE} over {report.tuned}"] = str(alone_gain)
    for label, gain in gains.items():
        print(f"{label} {gain}")
    chosen = torch.tensor([r.options[0] for r in report.rollouts[HEAD]])
    counts = torch.bincount(chosen, minlength=both.space.K)
    for k in counts.argsort(descending=True)[:8].tolist():
        print(f"{int(counts[k])} responses began with {both.space.label(k)}")
    save(f"{name}/joint", report.to_dict() | {"gains": gains})


if __name__ == "__main__":
    main()

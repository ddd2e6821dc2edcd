"""A few strategies out of many: every option of a pool answers the same prompts, and greedy coverage chooses among them.

arXiv 2603.09065 chooses its actions so, from a pool of 180. Coverage is a mean of maxima of noisy rewards, so on the prompts that
chose it flatters; here one half of the prompts chooses, and the other half says what the choice is worth.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentknobs.config import TrainConfig
from latentknobs.data.disk import write_text
from latentknobs.data.prompts import is_held_out
from latentknobs.errors import ConfigError, DataError
from latentknobs.heads.segmenters import Every
from latentknobs.knobs.space import KnobSpace
from latentknobs.knobs.strategies import coverage, greedy_cover, reward_table
from latentknobs.models.sources import Sources, gather
from latentknobs.models.world import left_as_it_was
from latentknobs.policies import ConstantPolicy
from latentknobs.progress import say
from latentknobs.training.rundir import RunDir
from latentknobs.training.sampling import PolicyRun, answer
from latentknobs.training.subject import subject
from latentknobs.training.train import settle

POOL = ("temperature:0.3,0.5,0.75,1,1.25", "top_k:0,5,10,50", "top_p:0.9,0.95,1", "min_p:0,0.1,0.2")
DEFAULTS: dict[str, Any] = {"train_prompts": 64, "eval_size": 0, "output_dir": "runs/strategies"}
FILE = "strategies.json"


@dataclass(frozen=True)
class Strategies:
    """What `find_strategies` returns.

    Attributes:
        space: the pool.
        chosen: its options in the order in which greedy coverage added them.
        best: as many, by their mean reward on the prompts that chose.
        reward_PK: mean reward of each option on each prompt.
        chooses_P: the prompts that chose; the others judge.
        path: the file that `strategies=` of `train` takes.
    """

    space: KnobSpace
    chosen: list[int]
    best: list[int]
    reward_PK: Tensor
    chooses_P: Tensor
    path: Path

    def coverages(self, options: Sequence[int], judging: bool) -> list[float]:
        """Mean over prompts of the best reward of the first 1, 2, ... of some options, on the half that judges or chooses."""
        reward_PK = self.reward_PK[~self.chooses_P if judging else self.chooses_P]
        return [coverage(reward_PK, options[: n + 1]) for n in range(len(options))]

    def rows(self) -> list[tuple[str, float, float, float]]:
        """For N = 1, 2, ...: the strategy added, coverage where it was chosen and on the other half, and of the N best means."""
        columns = (self.coverages(self.chosen, False), self.coverages(self.chosen, True), self.coverages(self.best, True))
        return list(zip([self.space.label(k) for k in self.chosen], *columns, strict=True))


def find_strategies(
    count: int = 6,
    *,
    knobs: Sequence[Any] | str = POOL,
    copies: int = 1,
    model: Any = None,
    tokenizer: Any = None,
    prompts: str | Path | Iterable[Any] | None = None,
    reward: str | Callable[..., Any] | Sequence[str | Callable[..., Any]] | None = None,
    resume: bool = False,
    **settings: Any,
) -> Strategies:
    """Chooses `count` options of a pool by greedy coverage, and writes them to `strategies.json` of `output_dir`.

    Every option answers the same `train_prompts` prompts (64 by default), `copies` times each: an interrupted call goes on.

    Args:
        knobs: the pool, as in `train`; by default the 180 options of arXiv 2603.09065.
        model, tokenizer, prompts, reward, resume, settings: as in `train`.

    Raises:
        SpaceError: there are not so many options.
        DataError: too few prompts have a reward for every option.
        LatentKnobsError: otherwise as `train`.
    """
    if copies < 1:
        raise ConfigError(f"copies={copies}: every option must answer each prompt at least once. Give 1 or more.")
    named = {"model": model, "prompts": prompts, "reward": reward}
    config, space, objects = settle(knobs, None, DEFAULTS | settings, named)
    greedy_cover(torch.zeros(1, space.K), count)  # refuses a count before anything is sampled
    with left_as_it_was(model):
        sources = gather(config, tokenizer=tokenizer, **objects)
        with closing(sources.engine):
            return _find(config, space, sources, count, copies, resume)


def _find(config: TrainConfig, space: KnobSpace, sources: Sources, count: int, copies: int, resume: bool) -> Strategies:
    prompts = sources.train
    say(f"{space!r}: {space.K * len(prompts) * copies:,} responses")
    with RunDir(config.output_dir, say, resume=resume) as run:
        key = subject(sources.model, sources.tokenizer, space, Every(1))
        policies = [PolicyRun(f"{k:05d}", ConstantPolicy(space, k)) for k in range(space.K)]
        found = answer(run, config, sources, "pool", prompts, policies, copies=copies, seed=config.seed + 101, key=key)
        cells = [
            (rollout.prompt, k, torch.nan if score is None else score)
            for k, one in enumerate(found)
            for rollout, score in one.pairs()
        ]
        prompt_R, option_R, reward_R = (torch.tensor(column) for column in zip(*cells, strict=True))
        reward_PK = reward_table(prompt_R, option_R, reward_R, len(prompts), space.K)
        is_known_P = reward_PK.isfinite().all(-1)
        chooses_P = torch.tensor([is_held_out(f"strategies {prompt.text}", 0.5) for prompt in prompts])[is_known_P]
        if lost := int((~is_known_P).sum()):
            say(f"{lost} of {len(prompts)} prompts are left out: the reward failed on a response to them.")
        if chooses_P.all() or not chooses_P.any():
            raise DataError(
                f"{len(chooses_P)} prompts with a reward for every option are too few for two halves, one that chooses and one "
                "that judges. Give more prompts (train_prompts), or repair the reward."
            )
        reward_PK = reward_PK[is_known_P]
        chosen = greedy_cover(reward_PK[chooses_P], count)
        best = reward_PK[chooses_P].mean(0).argsort(descending=True, stable=True)[:count].tolist()
        result = Strategies(space, chosen, best, reward_PK, chooses_P, run.path / FILE)
        data = {"knobs": config.flat()["knobs"], "order": config.order, "strategies": [space.options[k] for k in chosen]}
        write_text(result.path, json.dumps(data, indent=1))
    return result

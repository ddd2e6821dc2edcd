"""Would adapting pay here, and how? Minutes on a few dozen prompts, before anybody trains.

Every constant, the mixture that training would explore with, and families of simple rules answer the same prompts; from a few
places inside responses each option is tried for one token, and the best constant goes on. What each kind of adapting adds to the
best constant has an interval, without the optimism of choosing (`evaluation.headroom`).
"""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from latentknobs.config import TrainConfig, fields, write_yaml
from latentknobs.data.disk import write_text
from latentknobs.data.prompts import Prompt
from latentknobs.data.rollouts import Rollout
from latentknobs.data.scores import score_rollouts
from latentknobs.errors import ConfigError, LatentKnobsError, RewardError
from latentknobs.evaluation.comparison import Stage, constant_of, fixed, lineup, most_wider, rewards_of, task_of, widen
from latentknobs.evaluation.headroom import choosing_among, choosing_by_group, recommendation
from latentknobs.evaluation.report import judged
from latentknobs.evaluation.statistics import Floats, Interval, estimate, holm
from latentknobs.evaluation.tuning import members
from latentknobs.files import path_of
from latentknobs.heads.segmenters import parse_level
from latentknobs.knobs.space import KnobSpace
from latentknobs.models.sources import Sources, gather
from latentknobs.models.world import left_as_it_was
from latentknobs.policies import Branch, Policy
from latentknobs.policies.names import policy_of
from latentknobs.progress import say
from latentknobs.training.choice import with_option
from latentknobs.training.judging import Scorer
from latentknobs.training.modules import MAIN
from latentknobs.training.rundir import HEADROOM, RunDir
from latentknobs.training.sampling import PolicyRun, read_all, sample, score_files
from latentknobs.training.subject import subject
from latentknobs.training.train import make_learners, settle

SAMPLES = "samples.md"
DEFAULTS: dict[str, Any] = {"output_dir": "runs/headroom"}
RULES = {
    "cold at the beginnings of sentences": members("sentence_start", cold=[0, 0.4], hot=[0.8, 1, 1.3]),
    "temperature by entropy (EDT)": members("edt", base=[1, 1.4], theta=[0.3, 1, 3]),
    "cold where the model is sure": members("confidence_gate", threshold=[0.5, 0.9], cold=[0], hot=[0.8, 1, 1.3]),
    "hot where the model is sure": members("confidence_gate", threshold=[0.5], cold=[1, 1.3], hot=[0, 0.4]),
    "cold at the start": members("opening", cold=[0, 0.4], hot=[0.8, 1.2]),
    "hot at the start": members("opening", cold=[1, 1.3], hot=[0, 0.6]),
}  # fmt: skip
SEED = 3001  # added to that of the settings
PREFIXES, BRANCHES, SHOWN = 16, 4, 3  # places that are branched, responses of each branch, prompts whose responses are written
BRANCHED, BY_TASK, BY_PROMPT = "one choice at the right place", "a constant for each task", "a constant for each prompt"


@dataclass(frozen=True)
class Headroom:
    """What `headroom` found.

    Attributes:
        path: its folder, for `after=` of `train`.
        constants: mean reward of each constant.
        best: the one with the highest.
        gains: by the kind of adapting, what it adds to the best constant; `p` corrected for all of them (Holm).
        rules: the best member of each family of rules.
        verdict: what to do, in words.
    """

    path: Path
    constants: dict[str, Interval]
    best: str
    gains: dict[str, Interval]
    p: dict[str, float]
    rules: dict[str, str]
    verdict: str


def headroom(
    count: int = 32,
    *,
    samples: int = 8,
    knobs: Sequence[Any] | str | None = None,
    model: Any = None,
    tokenizer: Any = None,
    prompts: str | Path | Iterable[Any] | None = None,
    reward: str | Callable[..., Any] | Sequence[str | Callable[..., Any]] | None = None,
    config: str | Path | TrainConfig | None = None,
    resume: bool = False,
    **settings: Any,
) -> Headroom:
    """Asks whether adapting would pay on the first `count` training prompts, `samples` responses each, and how.

    Writes `headroom.json` and responses to read to `output_dir`, runs/headroom by default. An interrupted call goes on.

    Args:
        knobs, model, tokenizer, prompts, reward, config, resume, settings: as in `train`, which then takes `after=` this folder.

    Raises:
        ConfigError: fewer than 4 prompts or 2 samples.
        LatentKnobsError: otherwise as `train`.
    """
    if count < 4 or samples < 2:
        raise ConfigError(
            f"count={count}, samples={samples}: to choose on some and judge on others takes 4 prompts and 2 samples."
        )
    named = {"model": model, "prompts": prompts, "reward": reward}
    chosen, space, objects = settle(knobs, config, DEFAULTS | settings, named)
    if ((folder := path_of(chosen.output_dir)) / "adapter").exists():
        raise ConfigError(f"{str(folder)!r} holds a run, whose settings would be lost. Choose another output_dir.")
    with left_as_it_was(model):
        sources = gather(chosen, tokenizer=tokenizer, **objects)
        with closing(sources.engine), RunDir(chosen.output_dir, say, resume=resume) as run:
            return _Study(run, chosen, space, sources, min(count, len(sources.train)), samples).result()


@dataclass(frozen=True)
class _Study:
    run: RunDir
    config: TrainConfig
    space: KnobSpace
    sources: Sources
    count: int
    samples: int

    @property
    def prompts(self) -> list[Prompt]:
        return self.sources.train[: self.count]

    def result(self) -> Headroom:
        """Samples what it says first, judges it, and recommends."""
        rules = {family: self._policies(names) for family, names in RULES.items()}
        few, P, K = max(2, self.samples // 2), len(self.prompts), self.space.K
        constant = [one for one in lineup(self.space) if one.role == "constant"]
        options = Stage("constants", constant, self.prompts, self.samples, SEED)
        parts = {f"{K} constants": options.responses, "values beyond their edge": most_wider(self.space, options),
                 "rules": P * few * sum(map(len, rules.values())),
                 "the mixture that training begins with": P * self.config.rollouts,
                 "branches": min(PREFIXES, P) * (K + 1) * BRANCHES}  # fmt: skip
        listed = ", ".join(f"{what} {number:,}" for what, number in parts.items())
        say(f"At most {sum(parts.values()):,} responses of at most {self.config.max_new_tokens} tokens: {listed}")
        scorer = Scorer(self.run, self.config, self.sources, self._key("token"))
        rate = partial(scorer.scored, None)
        constants = widen(self.space, options, rate(options), rate, self.sources.engine)
        ruled = [fixed(name, policy) for part in rules.values() for name, policy in part.items()]
        found = rate(Stage("rules", ruled, self.prompts, few, SEED))
        texts = {name: sorted(read_all(paths), key=lambda row: row.prompt) for (_, name), paths in scorer.files.items()}
        kept = judged({**constants, **found})
        if not kept.any():
            raise RewardError("No prompt has a reward for every response, so nothing can be compared. Repair the reward.")
        reward_CSP = np.stack([reward_SP[:, kept] for reward_SP in constants.values()])
        shown = {name: estimate(reward_SP[:, kept].mean(0)) for name, reward_SP in constants.items()}
        best = max(shown, key=lambda name: shown[name].mean)
        tasks = [task_of(prompt) for prompt, is_kept in zip(self.prompts, kept, strict=True) if is_kept]
        gains = {BY_TASK: choosing_by_group(reward_CSP, tasks)} if len(set(tasks)) > 1 else {}
        gains[BY_PROMPT] = choosing_by_group(reward_CSP, range(len(tasks)))
        families = {family: np.stack([found[name][:, kept] for name in part]) for family, part in rules.items() if part}
        gains |= {family: choosing_among(reward_CSP, member_MSP) for family, member_MSP in families.items()}
        space, option = with_option(self.space, constant_of(self.space, best).space.values_KJ()[0].tolist())
        gains[BRANCHED] = self._branches(space, option, texts[best])
        intervals = {name: estimate(gain_P, _reach(reward_CSP)) for name, gain_P in gains.items()}
        p = dict(zip(intervals, holm([one.p for one in intervals.values()]), strict=True))
        top = {family: max(rules[family], key=lambda name: float(found[name][:, kept].mean())) for family in families}
        verdict, level = recommendation(intervals, p, best, [*families, BRANCHED])
        config, instead = self._at(level) if level else (self.config, "")
        write_yaml(config, path := self.run.path / "config.yaml", {*fields(config.learner)} - {"output_dir"})
        if level:
            what = f"{', '.join(self.space.names)} at level {config.level} with the learner {config.learner}"
            verdict += (
                f"{instead} Train {what}: latentknobs train --config {quote(str(path))} --after {quote(str(self.run.path))}"
            )
        result = Headroom(self.run.path, shown, best, intervals, p, top, verdict)
        self._write(result, texts)
        self._explore(config.level)
        return result

    def _at(self, level: str) -> tuple[TrainConfig, str]:
        """The settings at a level, or those of the user where the learner cannot choose at it, and why in a sentence."""
        config = self.config.replace(level=level)
        try:
            make_learners(config, self.space, parse_level(level, self.sources.tokenizer))
        except ConfigError as error:
            return self.config, f" The learner cannot choose at level {level}: {error}"
        return config, ""

    def _policies(self, names: Sequence[str]) -> dict[str, Policy]:
        """The rules that can run here: a tokenizer may have no ends of sentences, an engine may choose once for a response."""
        found = {}
        for name in names:
            try:
                policy = policy_of(name, self.sources.tokenizer)
                self.sources.engine.check(policy)
            except LatentKnobsError:
                continue
            found[name] = policy
        return found

    def _explore(self, level: str) -> None:
        """The rollouts of the first round of a training that comes after, on these prompts."""
        segmenter = parse_level(level, self.sources.tokenizer)
        policy = make_learners(self.config, self.space, segmenter)[MAIN].explorer(None)
        if policy is not None:
            how = {"copies": self.config.rollouts, "seed": self.config.seed * 1009 + 1, "key": self._key(level)}
            [files] = sample(self.run, self.config, self.sources, "mixture", self.prompts, [PolicyRun("", policy)], **how)
            score_files(self.run, self.sources.reward, "mixture", self.prompts, files)

    def _branches(self, space: KnobSpace, best: int, answers: Sequence[Rollout]) -> Floats:
        """(N,) what the best option at each of N places adds to the best one at all; before and after, the best constant acts."""
        first = {rollout.prompt: rollout for rollout in reversed(answers)}
        some = [first[p] for p in sorted(first)][:: max(1, self.count // PREFIXES)][:PREFIXES]
        draw = np.random.default_rng(self.config.seed)
        cuts = [int(draw.integers(len(rollout.ids))) for rollout in some]
        original = [self.prompts[rollout.prompt] for rollout in some]
        before = [rollout.ids[:cut] for rollout, cut in zip(some, cuts, strict=True)]
        begun = [replace(prompt, ids=(*prompt.ids, *ids)) for prompt, ids in zip(original, before, strict=True)]
        how = {"copies": BRANCHES, "seed": self.config.seed + 4001, "key": self._key("token"), "samples": 1}
        parts = []
        for k in range(space.K):
            runs = [PolicyRun("", Branch(space, k, best))]
            [files] = sample(self.run, self.config, self.sources, f"branch-{k}", begun, runs, **how)
            rows = sorted(read_all(files), key=lambda row: row.prompt)
            whole = [[*before[row.prompt], *row.ids][: self.config.max_new_tokens] for row in rows]
            texts = self.sources.tokenizer.batch_decode(whole, skip_special_tokens=True)
            answers = [replace(row, ids=tuple(ids), text=text) for row, ids, text in zip(rows, whole, texts, strict=True)]
            scores = [score.value for score in score_rollouts(self.sources.reward, original, answers)]
            parts.append(rewards_of(scores, len(original)))
        reward_KSN = np.stack(parts)
        reward_KSN = reward_KSN[:, :, np.isfinite(reward_KSN).all((0, 1))]
        return choosing_by_group(reward_KSN, range(reward_KSN.shape[2])) if reward_KSN.shape[2] else np.zeros(1)

    def _key(self, level: str) -> str:
        return subject(self.sources.model, self.sources.tokenizer, self.space, parse_level(level, self.sources.tokenizer))

    def _write(self, found: Headroom, answers: dict[str, list[Rollout]]) -> None:
        data = {
            "prompts": self.count, "samples": self.samples, "best": found.best, "verdict": found.verdict, "rules": found.rules,
            "constants": {name: [i.mean, i.low, i.high] for name, i in found.constants.items()},
            "gains": {name: [i.mean, i.low, i.high, found.p[name]] for name, i in found.gains.items()},
        }  # fmt: skip
        write_text(self.run.path / HEADROOM, json.dumps(data, indent=1) + "\n")
        names = list(
            dict.fromkeys([found.best, *list(found.constants)[:: max(1, len(found.constants) - 1)], *found.rules.values()])
        )
        lines = ["# Responses to read", ""]
        for p, prompt in enumerate(self.prompts[:SHOWN]):
            lines += [f"## {prompt.text}", ""]
            lines += [f"* **{name}**: {next(r.text for r in answers[name] if r.prompt == p)}" for name in names] + [""]
        write_text(self.run.path / SAMPLES, "\n".join(lines) + "\n")


def _reach(reward_CSP: Floats) -> tuple[float, float]:
    """The least and the greatest gain that a prompt could show."""
    reach = float(reward_CSP.max() - reward_CSP.min()) or 1.0
    return -reach, reach

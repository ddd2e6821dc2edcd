"""Training on policy: every step samples responses with the module of now, scores them, and moves the module on these alone.

A step leaves a checkpoint and a row of metrics, nothing else. Its prompts, budget and random numbers depend on the seed and on
its number, so that a run that was killed goes on as if nothing had happened. The LM answers and reads each response once; the
gradient never runs it.
"""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from latentknobs.config import TrainConfig
from latentknobs.data.columns import Column
from latentknobs.data.examples import Example
from latentknobs.data.featurise import featurise
from latentknobs.data.rollouts import Rollout, batch_seed, roll_out_batch
from latentknobs.data.scores import score_rollouts
from latentknobs.data.segment_batches import FeatureCache
from latentknobs.errors import ConfigError, NoExamplesError
from latentknobs.learners.base import Budget, Count, Learner
from latentknobs.models.sources import Sources
from latentknobs.policies import Policy
from latentknobs.rewards import Score, ScoreCache, check_scored
from latentknobs.training.checkpoint import Checkpoint
from latentknobs.training.fit import SEGMENTS, resume, update
from latentknobs.training.fitstate import FitState
from latentknobs.training.imitation import RESPONSES, VALUES, imitate, imitated, nearest, thinned
from latentknobs.training.rundir import RunDir
from latentknobs.training.sampling import shares_model

SILENT = 8  # steps in a row with nothing to learn from: at the beginning the run gives up, later it says so and goes on


@dataclass(frozen=True)
class Step:
    """What a step learns from."""

    reward_N: list[float | None]  # of all responses; None where the reward failed
    learner: Learner  # under the budget of the step
    dropped: Count  # prompts without an example, because their rewards do not vary or failed
    examples: list[Example]  # those of this process, of responses of `features`; `count` in all processes
    count: int
    features: FeatureCache | None
    why: str = ""  # in words, if there is nothing to learn from


@dataclass(frozen=True)
class OnPolicy:
    """The lesson of a round (see `Fitting`) for learners on policy."""

    run: RunDir
    config: TrainConfig
    sources: Sources
    learners: Mapping[str, Learner]
    number: int  # of the round

    def check(self) -> None:
        """Refuses settings that no step can keep: a ConfigError names the setting."""
        config, who = self.config, f"The learner {self.config.learner!r}"
        if config.validation or config.patience is not None:
            raise ConfigError(f"{who} samples at every step, so nothing is held out. Leave out validation and patience.")
        if config.first_round != "uniform":
            raise ConfigError(f"{who} samples with its own head from the first step on. Leave out first_round.")
        if config.pairs_per_step % config.rollouts:
            raise ConfigError(
                f"{who} samples pairs_per_step={config.pairs_per_step} responses in a step, which are not whole groups of "
                f"rollouts={config.rollouts} responses to a prompt. Make pairs_per_step a multiple of rollouts."
            )
        for learner in self.learners.values():
            learner.budgets(config.max_new_tokens, config.steps)
            if learner.imitates is not None:
                imitated(learner.imitates, learner.inputs, self.sources)

    @property
    def start(self) -> str:
        """Identities of what the modules imitate first: a file that a name leads to may change, and then other heads are due."""
        names = {learner.imitates: learner.inputs for learner in self.learners.values() if learner.imitates is not None}
        return "".join(f" {imitated(name, inputs, self.sources).identity()}" for name, inputs in names.items())

    def moments(self, part: str) -> tuple[Tensor, Tensor]:
        """Over as many responses as a step has, one to a prompt, by what explores first; they are not scored."""
        learner = self.learners[part]
        policy = learner.explorer(None)
        assert policy is not None
        return self._unscored(part, policy, self.config.pairs_per_step, "moments").moments()

    def _unscored(
        self, part: str, policy: Policy, count: int, what: str, columns: Mapping[str, Column] | None = None
    ) -> FeatureCache:
        """So many responses of a policy to the first prompts, budgets taking turns; `columns` as in `_read`."""
        config, learner, caches = self.config, self.learners[part], []
        budgets, rows = learner.budgets(config.max_new_tokens, config.steps), self._prompts(part, 0, count)
        for n, budget in enumerate(budgets):
            if mine := rows[n :: len(budgets)]:
                rollouts = self._answers(mine, policy, budget, self._seed(part, f"{what} {n}"))
                caches.append(self._read(learner, rollouts, budget, columns))
        return FeatureCache.join(caches)

    def learn(self, part: str, module: nn.Module, checkpoint: Checkpoint, log: Callable[[dict[str, Any]], None]) -> nn.Module:
        """See `Lesson`; NoExamplesError if the first eight steps had nothing to learn from."""
        config, silent = self.config, 0
        state = FitState(module, config, self.learners[part].updates)
        resume(state, checkpoint, self.run.processes)
        if state.step == 0 and self.number == 1:
            self._imitate(part, module)
        while state.step < config.steps:
            step = self._step(part, module, state.step)
            silent = silent + 1 if step.why else 0
            if silent == min(SILENT, config.steps):
                if silent == state.step + 1:
                    raise NoExamplesError(f"In the first {silent} steps: {step.why}")
                self.run.say(f"round-{self.number}/heads: in {silent} steps in a row no rewards differed; the run goes on")
            row = {"step": state.step + 1, "loss": 0.0} | ({} if step.why else self._update(state, step))
            state.step += 1
            log(row | self._facts(step, state.step))
            if self.run.processes.is_main and (state.step % config.checkpoint_every == 0):
                state.save(checkpoint)
        return module.eval()

    def _imitate(self, part: str, module: nn.Module) -> None:
        """Moves a new module towards a policy, if the learner names one; all processes go on with that of the first."""
        inputs, name, processes = self.learners[part].inputs, self.learners[part].imitates, self.run.processes
        if name is not None:
            policy = imitated(name, inputs, self.sources)
            cache = thinned(self._unscored(part, policy, RESPONSES, "imitation", VALUES))
            columns = [[knob.name for knob in policy.space.knobs].index(knob.name) for knob in inputs.space.knobs]
            option_N = nearest(cache.columns["value_NJ"][:, columns], inputs.space, name)
            imitate(module, cache, option_N, inputs.space.K, self._seed(part, "imitation"))
            weights = {key: value.cpu() for key, value in module.state_dict().items()}
            module.load_state_dict(processes.gather(weights)[0])

    def _step(self, part: str, module: nn.Module, number: int) -> Step:
        config, processes = self.config, self.run.processes
        budget = self.learners[part].budget(config.max_new_tokens, number)
        learner = self.learners[part]
        learner = type(learner)(learner.settings, replace(learner.inputs, samples=budget.samples))
        policy = learner.explorer(module)
        assert policy is not None
        prompts = self._prompts(part, number, config.pairs_per_step // config.rollouts)
        apart = 1 if shares_model(config) else processes.size
        place = processes.rank % apart
        rows = [p for p in prompts[place::apart] for _ in range(config.rollouts)]
        rollouts = self._answers(rows, policy, budget, self._seed(part, f"{number} {place}"))
        parts = processes.gather((rollouts, self._scores(rollouts)))[:apart]
        rollouts, scores = ([item for one in column for item in one] for column in zip(*parts, strict=True))
        check_scored(scores, self.sources.reward.name)  # in all processes alike
        reward_N = [score.value for score in scores]
        try:
            examples = learner.examples(iter(rollouts), reward_N)
        except NoExamplesError as error:
            return Step(reward_N, learner, Count(len({*prompts}), len({*prompts})), [], 0, None, str(error))
        mine = examples[processes.rank :: processes.size]
        used = sorted({n for example in (mine or examples[:1]) for n in example.responses})
        index = {n: r for r, n in enumerate(used)}
        local = [Example(e.prompt, tuple(index[n] for n in e.responses), e.weight) for e in mine]
        features = self._read(learner, [rollouts[n] for n in used], budget)
        dropped = Count(len({*prompts} - {example.prompt for example in examples}), len({*prompts}))
        return Step(reward_N, learner, dropped, local, len(examples), features)

    def _update(self, state: FitState, step: Step) -> dict[str, Any]:
        """Moves the module, once or several times, on the responses of a step; metrics of the last time."""
        assert step.features is not None
        row, sampler = dict[str, Any](), copy.deepcopy(state.module) if step.learner.updates > 1 else None
        for n in range(step.learner.updates):
            reference = sampler if n else None
            row = update(
                step.learner, state, step.features, step.examples, step.count, self.config, reference, self.run.processes
            )
        return row | step.learner.summary(state.module, step.features.sample(SEGMENTS).to(self.sources.engine.device))

    def _facts(self, step: Step, number: int) -> dict[str, Any]:
        """Of the responses of a step: their mean reward, how many taught anything, how many there were up to now; its prompts."""
        known = [reward for reward in step.reward_N if reward is not None]
        return {
            "reward": fmean(known), "examples": step.count, "rollouts": number * self.config.pairs_per_step,
            "failed": len(step.reward_N) - len(known), "dropped": step.dropped.some, "prompts": step.dropped.of,
        }  # fmt: skip

    def _prompts(self, part: str, step: int, count: int) -> list[int]:
        """The prompts of a step: all take turns, in an order of their own each time around."""
        total, places = len(self.sources.train), range(step * count, (step + 1) * count)

        def order(turn: int) -> list[int]:
            generator = torch.Generator().manual_seed(self._seed(part, f"turn {turn}"))
            return torch.randperm(total, generator=generator).tolist()

        orders = {turn: order(turn) for turn in {place // total for place in places}}
        return [orders[place // total][place % total] for place in places]

    def _seed(self, part: str, what: str) -> int:
        """Of one kind of random numbers."""
        text = f"{self.config.seed} {self.number} {part} {what}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:5], "big")

    def _answers(self, rows: Sequence[int], policy: Policy, budget: Budget, seed: int) -> list[Rollout]:
        """One response to each of some prompts."""
        size, prompts, engine = self.config.batch_size, self.sources.train, self.sources.engine
        engine.check(policy)
        batches = [list(rows[start : start + size]) for start in range(0, len(rows), size)]
        return [
            rollout for n, batch in enumerate(batches)
            for rollout in roll_out_batch(engine, prompts, batch, policy, max_new_tokens=budget.tokens,
                                          seed=batch_seed(seed, n, size), samples=budget.samples)
        ]  # fmt: skip

    def _scores(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """New ones, and those of earlier runs where the reward has a version."""
        folder, reward = self.run.path / "reward_cache", self.sources.reward
        cache = ScoreCache(folder / f"{self.run.processes.rank}.jsonl", sorted(folder.glob("*.jsonl")))
        return score_rollouts(reward, self.sources.train, rollouts, cache)

    def _read(
        self, learner: Learner, rollouts: Sequence[Rollout], budget: Budget, columns: Mapping[str, Column] | None = None
    ) -> FeatureCache:
        """Features of responses, with the columns and the segments that the learner learns from.

        With other columns: of all segments, without responses that no option can produce.
        """
        config, inputs, is_own = self.config, learner.inputs, columns is None
        found = featurise(
            self.sources.engine, self.sources.train, rollouts, inputs.space, inputs.segmenter, inputs.features,
            learner.columns(learner.settings) if columns is None else columns, floor=config.floor,
            min_spread=config.min_spread if is_own else None, unreachable="refuse" if is_own else "drop",
            batch_size=config.read_batch, max_new_tokens=budget.tokens, samples=budget.samples,
        )  # fmt: skip
        return found.cache

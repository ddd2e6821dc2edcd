"""One round of LPO: roll out -> score -> pair -> featurise -> optimise, each a stage that can be reused."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from latentknobs.config import GIVEN, TrainConfig
from latentknobs.data.features import FeatureCache, featurise
from latentknobs.data.pairs import Pair, pick_pairs
from latentknobs.data.prompts import is_held_out
from latentknobs.data.rollouts import Rollout, read_rollouts, roll_out, score, write_lines
from latentknobs.heads import OptionHead
from latentknobs.policies import HeadPolicy, Policy, UniformPolicy
from latentknobs.progress import progress
from latentknobs.segments import Segmenter
from latentknobs.sources import Sources
from latentknobs.space import KnobSpace
from latentknobs.training.optimise import fit_head
from latentknobs.training.rundir import RunDir

BASELINE = "entropy"  # the one feature of the baseline head, always the last column of the cache
SAMPLING = ("train_prompts", "rollouts", "max_new_tokens", "batch_size", "seed", "knobs", "order", "level", "model", "dtype")
PAIRING = ("pair_rule", "top", "pairs_per_prompt")
READING = ("features", "floor")
FITTING = ("objective", "beta", "length_norm", "hidden", "factorised", "steps", "pairs_per_step", "learning_rate",
           "weight_decay", "validation")  # fmt: skip


@dataclass
class Heads:
    """The learned head and the entropy-only baseline, trained on the same pairs."""

    main: OptionHead
    entropy: OptionHead


class Round:
    """Round `number` of a run. `previous` holds the heads that sample, are refined, and are referred to."""

    def __init__(
        self, run: RunDir, config: TrainConfig, sources: Sources, space: KnobSpace, segmenter: Segmenter, number: int,
        key: str, previous: Heads | None,
    ) -> None:  # fmt: skip
        self.run, self.config, self.sources, self.space, self.segmenter = run, config, sources, space, segmenter
        self.name = f"round-{number}"
        self.number, self.key, self.previous = number, key, previous

    def play(self) -> tuple[Heads, str]:
        """The heads after this round, and the key of its last stage."""
        config = self.config
        key = config.digest(*SAMPLING, then=self.key)
        rollouts = self._stage("rollouts.jsonl", key, self._roll_out, read_rollouts)
        key = config.digest("reward", "second_reward", then=key)
        if any(str(name).endswith(GIVEN) for name in (config.reward, config.second_reward)):
            self.run.forget(f"{self.name}/scores")  # code has no digest: ask it again, and key what follows by its answers
        rewards, second = self._stage("scores.jsonl", key, lambda path: self._score(path, rollouts), read_scores)
        key = config.digest(*PAIRING, then=f"{key} {rewards} {second}")
        pairs = self._stage("pairs.jsonl", key, lambda path: self._pair(path, rollouts, rewards, second), read_pairs)
        key = config.digest(*READING, then=key)
        used, local = _renumber(pairs)
        picked = [rollouts[n] for n in used]
        cache = self._stage("features.safetensors", key, lambda path: self._featurise(path, picked), FeatureCache.load)
        key = config.digest(*FITTING, then=key)
        heads = self._stage("heads.safetensors", key, lambda path: self._fit(path, cache, local), self._load_heads)
        return heads, key

    def _stage(self, file: str, key: str, make: Any, load: Any) -> Any:
        path = self.run.path / self.name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        stage = f"{self.name}/{file.partition('.')[0]}"
        return self.run.stage(stage, key, [f"{self.name}/{file}"], lambda: make(path), lambda: load(path))

    def _policy(self) -> Policy:
        if self.previous is None:
            return UniformPolicy(self.space, self.segmenter)
        return HeadPolicy(self.previous.main, self.space, self.segmenter, self.config.features, "sample")

    def _roll_out(self, path: Path) -> None:
        config, prompts = self.config, self.sources.train
        with progress(f"{self.name}: rollouts", len(prompts) * config.rollouts) as advance:
            rollouts = roll_out(
                self.sources.model, self.sources.tokenizer, prompts, self._policy(), copies=config.rollouts,
                max_new_tokens=config.max_new_tokens, batch_size=config.batch_size,
                seed=config.seed * 1009 + self.number, advance=advance,
            )  # fmt: skip
        write_lines(path, rollouts)

    def _score(self, path: Path, rollouts: list[Rollout]) -> None:
        rewards = score(self.sources.reward, self.sources.train, rollouts)
        second = score(self.sources.second, self.sources.train, rollouts) if self.sources.second else None
        write_lines(path, ({"reward": r, "second": second[n] if second else None} for n, r in enumerate(rewards)))

    def _pair(self, path: Path, rollouts: list[Rollout], rewards: list[float], second: list[float] | None) -> None:
        config = self.config
        prompts = [rollout.prompt for rollout in rollouts]
        write_lines(
            path,
            pick_pairs(
                prompts, rewards, config.pair_rule, second_N=second, top=config.top, per_prompt=config.pairs_per_prompt,
                seed=config.seed,
            ),
        )  # fmt: skip

    def _featurise(self, path: Path, rollouts: list[Rollout]) -> None:
        config, sources = self.config, self.sources
        with progress(f"{self.name}: features", len(rollouts)) as advance:
            cache = featurise(
                sources.model, sources.train, rollouts, self.space, self.segmenter, (*config.features, BASELINE),
                floor=config.floor, batch_size=min(64, config.batch_size), advance=advance,
            )  # fmt: skip
        cache.save(path)

    def _fit(self, path: Path, cache: FeatureCache, pairs: list[Pair]) -> None:
        train, held_out = self._validation_split(pairs)
        self.run.forget_metrics(lambda row: bool(row.get("round") == self.number))
        torch.manual_seed(self.config.seed)
        cache = cache.to(self._device)
        heads = self._new_heads(cache.feature_NF.shape[1] - 1)
        with progress(f"{self.name}: head", self.config.steps * (1 if self.previous else 2)) as advance:

            def fit(part: str, columns: slice, before: OptionHead | None) -> None:
                head: OptionHead = getattr(heads, part)
                seen = FeatureCache(**(cache.__dict__ | {"feature_NF": cache.feature_NF[:, columns]}))
                if before is None:
                    head.fit_scaler(seen.feature_NF)
                else:
                    head.load_state_dict(before.state_dict())

                def log(row: dict[str, Any]) -> None:
                    self.run.log({"round": self.number, "head": part, **row})
                    advance(1)

                fit_head(head, seen, train, held_out, self.config, reference=before, log=log)

            fit("main", slice(0, -1), self.previous.main if self.previous else None)
            if self.previous is None:
                fit("entropy", slice(-1, None), None)
            else:  # later rounds are sampled by the main head: off-policy for the baseline, which keeps its first fit
                heads.entropy = self.previous.entropy
        tensors = {f"{part}.{n}": v for part in ("main", "entropy") for n, v in getattr(heads, part).state_dict().items()}
        partial = path.with_suffix(".partial")
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, partial)
        partial.replace(path)

    def _validation_split(self, pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
        texts = [prompt.text for prompt in self.sources.train]
        held_out = [p for p in pairs if is_held_out(f"validation {texts[p.prompt]}", self.config.validation)]
        train = [p for p in pairs if not is_held_out(f"validation {texts[p.prompt]}", self.config.validation)]
        return (train, held_out) if train else (pairs, [])

    def _new_heads(self, inputs: int) -> Heads:
        shape = (self.config.hidden, self.config.factorised)
        heads = (OptionHead(self.space, size, *shape).to(self._device) for size in (inputs, 1))
        return Heads(*heads)

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.sources.model.parameters()).device
        return device

    def _load_heads(self, path: Path) -> Heads:
        tensors = load_file(path)
        heads = self._new_heads(len(tensors["main.shift_F"]))
        for part in ("main", "entropy"):
            state = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{part}.")}
            getattr(heads, part).load_state_dict(state)
            getattr(heads, part).eval()
        return heads


def read_scores(path: Path) -> tuple[list[float], list[float] | None]:
    """Rewards and second scores, in the order of the rollouts."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    second = [row["second"] for row in rows]
    return [row["reward"] for row in rows], None if None in second else second


def read_pairs(path: Path) -> list[Pair]:
    """Pairs of indices into the rollouts."""
    return [Pair(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _renumber(pairs: list[Pair]) -> tuple[list[int], list[Pair]]:
    """The rollouts that pairs use, and the pairs as indices into those."""
    used = sorted({n for pair in pairs for n in (pair.chosen, pair.rejected)})
    place = {n: i for i, n in enumerate(used)}
    return used, [Pair(p.prompt, place[p.chosen], place[p.rejected]) for p in pairs]

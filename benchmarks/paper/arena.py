"""Everything that costs time, done once: heads are fitted and policies play, and both are kept under a digest of what they are.

Rollouts are compressed JSONL. A run that is started again skips whatever is there.
"""

import gzip
import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

import latentknobs as lk
from benchmarks.paper.credit import spread_credit
from benchmarks.paper.fresh import FreshDraws
from benchmarks.paper.rewards import Reward, make_reward
from benchmarks.paper.worlds import World, load_world
from latentknobs.config import fields
from latentknobs.data.prompts import Prompt
from latentknobs.data.rollouts import Rollout, roll_out
from latentknobs.data.scores import score_rollouts
from latentknobs.errors import RewardError
from latentknobs.evaluation.comparison import JUDGING, TUNING
from latentknobs.files import fit
from latentknobs.policies import Policy
from latentknobs.rewards.scoring import failure_line

SEEDS = {"dev": TUNING, "held_out": JUDGING}  # all policies answer a part with the same seed
ONE_CALL = 1024  # completions that latentknobs gives to one call of a reward
OURS = ("pick", "credit", "trained_on")  # settings of a head that are not latentknobs'


@dataclass(frozen=True)
class Player:
    """A policy, the name it has in tables, and what it is, for the cache."""

    name: str
    policy: Policy
    key: str
    settings: dict[str, Any] = field(default_factory=dict)


def digest(*things: Any) -> str:
    """Twelve hex digits of plain data."""
    return hashlib.sha256(json.dumps(things, sort_keys=True, default=str).encode()).hexdigest()[:12]


class Arena:
    """One world, one folder, one way of generating.

    Args:
        folder: where everything is kept.
        settings: fields of `TrainConfig` that all heads share; `max_new_tokens` and `batch_size` count for every policy.
    """

    def __init__(self, world: World, folder: Path, settings: Mapping[str, Any], seed: int = 0) -> None:
        self.world, self.folder, self.seed = world, folder, seed
        self.settings = {"batch_size": 512, "max_new_tokens": 64, "hidden": 128} | dict(settings)
        self._prompts = {part: world.prompts(part) for part in SEEDS}
        self.seconds: dict[str, float] = {"fits": 0.0, "rollouts": 0.0}  # of processor time
        self.generated = 0  # responses generated, those of training not counted
        self._rewards: dict[str, Reward] = {}
        self._played: dict[Path, list[Rollout]] = {}

    def prompts(self, part: str, limit: int | None = None) -> list[Prompt]:
        """The first prompts of `dev` or `held_out`."""
        return self._prompts[part][:limit]

    def reward(self, name: str) -> Reward:
        """A reward by its name in recipes."""
        if name not in self._rewards:
            self._rewards[name] = make_reward(name, self.world)
        return self._rewards[name]

    def fit(self, name: str, overrides: Mapping[str, Any]) -> Player:
        """A head with the arena's settings, some of them changed. Heads that sample alike share rollouts."""
        settings = self.settings | dict(overrides)
        ours = {key: settings.pop(key, None) for key in OURS}
        world = self._other(str(ours["trained_on"])) if ours["trained_on"] else self.world
        rows = world.train
        key = digest(settings, ours["credit"], [row["prompt"] for row in rows], world.name)
        path = self.folder / "heads" / key
        if not (path / "knob_config.json").exists():
            started = time.process_time()
            adapter = self._train(settings, world)
            if ours["credit"] == "token":
                adapter = spread_credit(adapter, self._run_of(settings, world), world, settings)
            partial = path.with_name(f"{key}.partial")
            adapter.save_pretrained(partial)
            partial.replace(path)
            self.seconds["fits"] += time.process_time() - started
        adapter = lk.KnobAdapter.from_pretrained(path)
        device = next(self.world.model.parameters()).device
        adapter.head.to(device)
        pick: Any = ours["pick"] or "greedy"
        policy = FreshDraws(adapter.policy("sample")) if pick == "fresh" else adapter.policy(pick)
        return Player(name, policy, f"{key} {pick}", settings)

    def rival(self, player: Player) -> Player:
        """The rival that sees statistics of the logits alone, fitted to the same pairs as a head."""
        adapter = lk.KnobAdapter.from_pretrained(self.folder / "heads" / player.key.partition(" ")[0])
        policy = adapter.rival_policy()
        assert policy is not None
        policy.head.to(next(self.world.model.parameters()).device)
        return Player(f"statistics-only head ({player.name})", policy, f"{player.key} rival")

    def play(self, player: Player, part: str, copies: int, limit: int | None = None) -> list[Rollout]:
        """`copies` responses of a policy to each of the first prompts of a part."""
        prompts = self.prompts(part, limit)
        texts = [prompt.text for prompt in prompts]
        sizes = {name: self.settings[name] for name in ("batch_size", "max_new_tokens")}
        key = digest(player.policy.identity(), self.world.name, texts, copies, sizes, self.seed)
        path = self.folder / "plays" / f"{part}-{key}.jsonl.gz"
        if not path.exists():
            started = time.process_time()
            rollouts = roll_out(
                self.world.model, self.world.tokenizer, prompts, player.policy, copies=copies,
                seed=self.seed + SEEDS[part], **sizes,
            )  # fmt: skip
            write_rollouts(path, player.name, rollouts)
            self.seconds["rollouts"] += time.process_time() - started
            self.generated += len(rollouts)
        if path not in self._played:
            self._played[path] = read_rollouts(path)
        return self._played[path]

    def scores(self, reward: Reward, part: str, rollouts: list[Rollout], copies: int) -> NDArray[np.float64]:
        """(copies, P) rewards of rollouts of `play`."""
        prompts = self.prompts(part, len(rollouts) // copies)
        size = max(1, ONE_CALL // copies) * copies  # all responses to a prompt in one call
        chunks = [rollouts[start : start + size] for start in range(0, len(rollouts), size)]
        scores = [score for chunk in chunks for score in score_rollouts(reward, prompts, chunk)]
        if failure := failure_line(scores):
            raise RewardError(failure)
        return rearrange(np.array([score.value for score in scores]), "(p c) -> c p", c=copies)

    def _train(self, settings: dict[str, Any], world: World) -> lk.KnobAdapter:
        rewards = {name: make_reward(settings[name], world) for name in ("reward", "second_reward") if settings.get(name)}
        return lk.train(
            **(settings | whole_prompts(settings) | rewards), model=world.model, tokenizer=world.tokenizer, prompts=world.train,
            eval_prompts=world.held_out, eval_size=0, train_prompts=len(world.train),
            output_dir=str(self._run_of(settings, world)),
        ).adapter  # fmt: skip

    def _run_of(self, settings: Mapping[str, Any], world: World) -> Path:
        """The run directory that heads share whose first rounds sample alike."""
        alike = [settings.get(name) for name in ("knobs", "order", "level", "rollouts", "max_new_tokens", "seed")]
        return self.folder / "fit" / digest(alike, world.name, [row["prompt"] for row in world.train])

    def _other(self, name: str) -> World:
        sizes = {part: len(getattr(self.world, part)) for part in ("train", "dev", "held_out")}
        other = load_world(name, sizes)
        return World(other.name, self.world.model, self.world.tokenizer, other.train, other.dev, other.held_out)


def whole_prompts(settings: Mapping[str, Any]) -> dict[str, int]:
    """Sizes of batches and shards that never part the rollouts of a prompt: some rewards compare them with each other.

    Training sorts prompts, generates batch by batch, and scores file by file, at most `ONE_CALL` completions in a call.
    """
    rollouts = int(settings.get("rollouts", fields()["rollouts"].info.default))
    size = max(1, min(int(settings["batch_size"]), ONE_CALL) // rollouts) * rollouts
    return {"batch_size": size, "shard_size": size}


def write_rollouts(path: Path, name: str, rollouts: list[Rollout]) -> None:
    """Compressed JSONL, complete or not at all; the first line names the policy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with gzip.GzipFile(partial, "wb", compresslevel=6, mtime=0) as file:
        for row in ({"policy": name}, *map(asdict, rollouts)):
            file.write(json.dumps(row).encode() + b"\n")
    shutil.move(partial, path)


def read_rollouts(path: Path) -> list[Rollout]:
    """What `write_rollouts` wrote."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        next(file)
        rows = [json.loads(line) for line in file]
    found: list[Rollout] = fit(rows, list[Rollout])
    return found

"""Every setting of `train()`, the YAML file and the command line: one pydantic model, each field with its own help.

Nothing here is built by an argument parser; the command line and the YAML file are merged and validated here.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from latentknobs.data.disk import replacing
from latentknobs.errors import ConfigError, did_you_mean
from latentknobs.learners.lpo import LengthNorm, Objective, PairRule
from latentknobs.policies import Pick

GIVEN = "(given as an object)"
Schedule = Literal["linear", "cosine", "constant"]


class TrainConfig(BaseModel):
    """Settings of a run. Everything has a default; the defaults train on the packaged testbed, offline."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True, allow_inf_nan=False)

    # what is decoded
    model: str = "testbed"
    """Folder or hub id of a causal LM; `testbed` is the packaged one."""
    trust_remote_code: bool = False
    """Let a hub model run its own code."""
    device: str = "auto"
    """Where the model runs: `auto`, `cpu`, `cuda`, `cuda:1`, ..."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the model's weights."""
    device_map: str | None = None
    """How transformers spreads a model that fits no single device, e.g. `auto`."""
    tp_plan: str | None = None
    """Tensor parallel plan of transformers, e.g. `auto`; start with torchrun or accelerate."""
    prompts: str = "testbed:mixture"
    """A JSONL file with a `prompt` column, `dataset:NAME[:CONFIG][:SPLIT]`, or `testbed:` and math, stories, constrained or
    mixture."""
    eval_prompts: str | None = None
    """Held-out prompts, as for `prompts`; without them a fifth of `prompts`, chosen by hash, is held out."""
    reward: str | tuple[str, ...] = "testbed"
    """Name of a registered reward, optionally with settings: `repetition:n=3`; several are added up (see reward_weights)."""
    reward_weights: tuple[float, ...] | None = None
    """One weight for each of several rewards; none is 1 for each."""
    second_reward: str | None = None
    """A second score, for the pair rule top_bottom."""

    # what is learned
    knobs: tuple[str | dict[str, tuple[float, ...] | dict[str, Any]], ...] = ("temperature",)
    """Knob names, each optionally with a grid: `temperature`, `top_p:0.5,0.9,1`; in YAML also with all of its settings."""
    order: str | tuple[str, ...] = "transformers"
    """In which order knobs act: an engine's (transformers, vllm, llama.cpp), or the knob names in order."""
    level: str = "token"
    """How long one choice lasts: token, sequence, every:N, delimiter:CHARS."""
    objective: Objective = "latent"
    """Which loss: latent (Eq. 11), tokens_separate (Eq. 10), tokens (Eq. 9) or nll."""
    beta: float = Field(default=0.1, gt=0)
    """Sharpness of the preference loss."""
    length_norm: LengthNorm = "none"
    """`mean` divides a response's score by its number of segments, `none` sums (the paper)."""
    features: tuple[str, ...] = ("hidden",)
    """What the head reads: hidden, entropy, max_prob, top5_mass, log_collision, margin."""
    hidden: int | None = Field(default=None, ge=1)
    """Width of the head's hidden layers (paper: 2048, for an 8B model); none is a quarter of its features, from 16 to 128."""
    rank: int | None = Field(default=None, ge=0)
    """Width of a linear layer in front of the head: quicker training, a smaller head; 0 is no such layer, none is 16 for 2,048
    features and more."""
    factorised: bool = False
    """One categorical per knob instead of one over all combinations."""

    # how preferences are collected
    train_prompts: int = Field(default=256, ge=1)
    """Prompts to roll out in each round."""
    rollouts: int = Field(default=8, ge=2)
    """Responses sampled per prompt (paper: 8 to 16)."""
    first_round: Literal["uniform", "balanced"] = "uniform"
    """What samples first: all options alike, or half of the segments untruncated, for several knobs that truncate."""
    rounds: int = Field(default=1, ge=1)
    """A later round samples with, starts from, and refers to the head of the round before."""
    preferences: str | None = None
    """Pairs from elsewhere, in TRL's preference format, in place of the first round's rollouts: as for `prompts`."""
    pair_rule: PairRule = "best_worst"
    """best_worst; correct_incorrect (reward at least 0.5 or below); top_bottom (see `top`)."""
    top: int = Field(default=4, ge=1)
    """For top_bottom: chosen has the best second_reward among this many highest rewards, rejected mirrors it."""
    pairs_per_prompt: int = Field(default=1, ge=1)
    """For best_worst: also pair second best with second worst, and so on."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Longest response, in tokens."""
    batch_size: int = Field(default=256, ge=1)
    """Responses generated together."""
    read_batch: int = Field(default=64, ge=1)
    """Responses that the model reads together for features; lower it where memory is short, results stay the same."""
    floor: float | None = Field(default=None, lt=0)
    """Least log-probability (nats) of a token under an option; needed only where no option can produce a token."""

    min_spread: float | None = Field(default=None, ge=0)
    """Leave out segments whose log-likelihood differs by at most this (nats) between options; 0 loses nothing with `latent`
    and length_norm none."""

    # how the head is trained
    steps: int = Field(default=300, ge=1)
    """Optimiser steps per round."""
    pairs_per_step: int = Field(default=64, ge=1)
    """Preference pairs in a step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of AdamW, at its peak."""
    schedule: Schedule = "linear"
    """How the learning rate decays: linear or cosine to 0, or constant."""
    warmup: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW."""
    clip: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; longer ones are scaled down."""
    entropy_bonus: float = Field(default=0.0, ge=0)
    """Weight of the head's mean entropy (nats), added to what is maximised: keeps it from deciding too early."""
    kl: float = Field(default=0.0, ge=0)
    """Weight of the mean KL(head, reference) per segment (nats), added to the loss: keeps it near what sampled the pairs."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many validation points (20 in a run) without a better held-out preference accuracy; none never stops."""
    validation: float = Field(default=0.1, ge=0, lt=1)
    """Share of prompts whose pairs choose the best step instead of training."""

    # how it is judged
    eval_size: int = Field(default=192, ge=0)
    """Held-out prompts to evaluate on; 0 skips the evaluation."""
    eval_seeds: int = Field(default=2, ge=1)
    """Times that every policy answers every held-out prompt."""
    tune_size: int = Field(default=96, ge=1)
    """Training prompts on which the best constant option is chosen."""
    pick: Pick = "greedy"
    """How options are taken from the head at evaluation: greedy (Eq. 4) or sample (Eq. 5)."""

    # the run
    shard_size: int = Field(default=512, ge=1)
    """Responses in one file of a stage; what an interruption can cost."""
    feature_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format in which features of pairs are kept on disk."""
    feature_ram: float = Field(default=4.0, gt=0)
    """GB of features held in memory; a larger store is streamed from disk."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Steps of the head's training between two points from which it can be resumed."""
    trackers: tuple[str, ...] = ()
    """Where metrics also go, through accelerate: tensorboard, wandb, trackio, ..."""
    output_dir: str = "runs/latest"
    """Where everything is written; a run that was interrupted goes on from its last finished stage."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of everything random."""

    def digest(self, *fields: str, then: str = "") -> str:
        """A hash of some settings and of an earlier digest: equal digests mean that a stage's output can be reused."""
        data = json.dumps([{name: getattr(self, name) for name in fields}, then], sort_keys=True, default=str)
        return hashlib.sha256(data.encode()).hexdigest()[:16]


def make_config(settings: Mapping[str, Any]) -> TrainConfig:
    """The validated config.

    Raises:
        ConfigError: an unknown setting (with the nearest known one) or a bad value, naming it.
    """
    for name in settings:
        if name not in TrainConfig.model_fields:
            raise ConfigError(f"There is no setting {name!r}. {did_you_mean(str(name), TrainConfig.model_fields)}")
    plain: dict[str, Any] = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    try:
        return TrainConfig(**plain)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc'][:1]))}={e['input']!r}: {e['msg'].lower()}" for e in error.errors())
        raise ConfigError(f"The settings do not fit: {told}. `latentknobs train --help` explains each one.") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping of settings.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, TypeError) as error:
        raise ConfigError(f"The config file {str(path)!r} cannot be read: {error}. Give the path of a YAML file.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"The config file {str(path)!r} is not YAML: {error}.") from None
    if not isinstance(data or {}, dict):
        raise ConfigError(f"The config file {str(path)!r} must hold `setting: value` lines, not {type(data).__name__}.")
    return dict(data or {})


def write_yaml(config: TrainConfig, path: Path) -> None:
    """Writes all settings, defaults included, with their help as comments."""
    lines = []
    for name, field in TrainConfig.model_fields.items():
        value = config.model_dump(mode="json")[name]
        text = yaml.safe_dump({name: value}, default_flow_style=False, width=1000).strip()
        lines += [f"# {' '.join(str(field.description).split())}", text, ""]
    with replacing(path) as partial:
        partial.write_text("\n".join(lines), encoding="utf-8")

"""The sections of a config. Each field has its own help, and its type says where it matters (`latentknobs.stages`)."""

import os.path
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from latentknobs.heads.features import PORTABLE
from latentknobs.policies import Pick
from latentknobs.stages import ByContent, Enters, Harmless, Stage

Schedule = Literal["linear", "cosine", "constant"]
PathText = Annotated[str, AfterValidator(os.path.expanduser)]
Knob = str | dict[str, tuple[float, ...] | dict[str, Any]]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Few = Annotated[int, Field(ge=1, le=10_000)]  # of what is listed one by one before anything runs


class Section(BaseModel):
    """Settings that belong together; `stages` are those whose keys hold a field that does not say otherwise."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True, allow_inf_nan=False)
    stages: ClassVar[tuple[Stage, ...]]


class Model(Section):
    """The frozen language model."""

    stages = ("rollouts", "features")

    name: ByContent[PathText] = "testbed"
    """Folder, hub id or .gguf file of a causal LM; `testbed` is the packaged one."""
    gguf_file: ByContent[str | None] = None
    """Name of the GGUF file in the model's folder, if the model is in one; its weights are unpacked."""
    trust_remote_code: Harmless[bool] = False
    """Let a hub model run its own code."""
    device: Harmless[str] = "auto"
    """Where the model runs: `auto`, `cpu`, `cuda`, `cuda:1`, ..."""
    dtype: ByContent[Literal["auto", "float32", "bfloat16", "float16"]] = "auto"
    """Number format of the model's weights."""
    device_map: Harmless[str | None] = None
    """How transformers spreads a model that fits no single device, e.g. `auto`."""
    tp_plan: Harmless[str | None] = None
    """Tensor parallel plan of transformers, e.g. `auto`; start with torchrun or accelerate."""


class Data(Section):
    """Prompts and rewards."""

    stages = ("rollouts",)

    prompts: ByContent[PathText] = "testbed:mixture"
    """A JSONL file with a `prompt` column, `dataset:NAME[:CONFIG][:SPLIT]`, or `testbed:` and math, stories, constrained or
    mixture."""
    eval_prompts: ByContent[PathText | None] = None
    """Held-out prompts, as for `prompts`; without them a fifth of `prompts`, chosen by hash, is held out."""
    preferences: ByContent[PathText | None] = None
    """Pairs from elsewhere, in TRL's preference format, in place of the first round's rollouts: as for `prompts`. For the
    objective likelihood also texts: rows of `prompt` and `completion`."""
    train_prompts: ByContent[Count] = 256
    """Prompts to roll out in each round."""
    reward: ByContent[str | tuple[str, ...]] = "testbed"
    """A Python file of yours, `score.py` or `score.py:name`, or a registered reward, optionally with settings: `repetition:n=3`;
    several are added up (see reward_weights)."""
    reward_weights: ByContent[tuple[float, ...] | None] = None
    """One weight for each of several rewards; by default 1 for each."""
    second_reward: ByContent[str | None] = None
    """A second score, for the pair rule top_bottom."""


class Space(Section):
    """What is chosen, and how long one choice lasts."""

    stages = ("rollouts", "features", "fit")

    knobs: ByContent[tuple[Knob, ...]] = ("temperature",)
    """Knob names, each optionally with a grid: `temperature`, `top_p:0.5,0.9,1`; in YAML also with all of its settings."""
    strategies: ByContent[PathText | tuple[dict[str, float], ...] | None] = None
    """Only some options of the grids: the file of `latentknobs strategies`, whose knobs are then the default; in YAML also a list
    such as [{temperature: 1, top_p: 0.9}], where a knob that is left out is neutral. By default all."""
    order: ByContent[str | tuple[str, ...]] = "transformers"
    """In which order knobs act: an engine's (transformers, vllm, llama.cpp), or the knob names in order."""
    level: ByContent[str] = "token"
    """How long one choice lasts: token, sequence, every:N, delimiter:CHARS."""


class Head(Section):
    """What the head reads, and its shape."""

    stages = ("features", "fit")

    features: tuple[str, ...] = ("hidden",)
    """What the head reads: hidden, entropy, max_prob, top5_mass, log_collision, margin; then the budgets remaining, samples."""
    rival_features: tuple[str, ...] = PORTABLE
    """What the rival head reads, a head of the same kind that sees no hidden states; `entropy` for that alone."""
    feature_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format in which features of pairs are kept on disk."""
    floor: float | None = Field(default=None, lt=0)
    """Least log-probability (nats) of a token under an option; needed only where no option can produce a token."""
    min_spread: float | None = Field(default=None, ge=0)
    """Leave out segments whose log-likelihood differs by at most this (nats) between options; 0 loses nothing with `latent`
    and length_norm none."""
    read_batch: Harmless[Count] = 64
    """Responses that the model reads together for features; lower it where memory is short; results agree up to rounding."""
    feature_ram: Harmless[float] = Field(default=4.0, gt=0)
    """GB of features held in memory; a larger store is streamed from disk."""
    hidden: Annotated[int | None, Enters("fit")] = Field(default=None, ge=1, le=2**16)
    """Width of the head's hidden layers (paper: 2048, for an 8B model); by default a quarter of its features, from 16 to 128."""
    rank: Annotated[int | None, Enters("fit")] = Field(default=None, ge=0, le=2**16)
    """Width of a linear layer in front of the head: quicker training, a smaller head; 0 leaves it out; by default 16 for
    2,048 features and more."""
    factorised: Annotated[bool, Enters("fit")] = False
    """One categorical per knob instead of one over all combinations."""


class Rollout(Section):
    """How responses are sampled."""

    stages = ("rollouts",)

    engine: ByContent[str] = "transformers"
    """What samples; an installed engine, optionally with settings: `name:key=value`, `name:http://host:port`."""
    rollouts: ByContent[int] = Field(default=8, ge=2, le=10_000)
    """Responses sampled per prompt (paper: 8 to 16)."""
    first_round: ByContent[Literal["uniform", "balanced"]] = "uniform"
    """What samples first: all options alike, or half of the segments untruncated, for several knobs that truncate."""
    rounds: Annotated[Few, Enters("evaluation")] = 1
    """A later round samples with, starts from, and refers to the head of the round before."""
    max_new_tokens: Count = 64
    """Longest response, in tokens."""
    batch_size: Count = 256
    """Responses generated together."""
    shard_size: Annotated[Count, Enters("rollouts", "features")] = 512
    """Responses in one file of a stage. An interruption costs a batch of rollouts, or a file of features."""


class Fit(Section):
    """How the head is trained."""

    stages = ("fit",)

    steps: Count = 300
    """Optimiser steps per round; a learner on policy samples in each."""
    pairs_per_step: Count = 64
    """Preference pairs in a step; of a learner on policy, the responses that it samples."""
    learning_rate: float = Field(default=1e-3, gt=0, le=1e6)
    """Of AdamW, at its peak."""
    schedule: Schedule = "linear"
    """How the learning rate decays: linear or cosine to 0, or constant."""
    warmup: int = Field(default=0, ge=0, lt=2**31)
    """Steps over which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.01, ge=0, le=1e6)
    """Of AdamW."""
    clip: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; longer ones are scaled down."""
    patience: int | None = Field(default=None, ge=1, lt=2**31)
    """Stop after this many validation points (20 in a run) without a better held-out preference accuracy; by default never."""
    validation: float = Field(default=0.1, ge=0, lt=1)
    """Share of prompts whose pairs choose the best step instead of training."""
    checkpoint_every: Harmless[Count] = 100
    """Steps of the head's training between two points from which it can be resumed."""


class Evaluate(Section):
    """How the head is evaluated."""

    stages = ("evaluation",)

    eval_size: ByContent[int] = Field(default=192, ge=0, lt=2**31)
    """Held-out prompts to evaluate on; 0 skips the evaluation."""
    eval_seeds: ByContent[Few] = 2
    """Times that every policy answers every held-out prompt."""
    draws: ByContent[int | None] = None
    """Seed of the random numbers of the evaluation, so that runs of several seeds answer alike; by default `seed`."""
    tune_size: ByContent[Count] = 96
    """Dev prompts, on which the best constant and what the adapter holds are chosen: others than those that train, as far as
    there are any."""
    account: Harmless[bool] = False
    """Also account for every policy in nats, as `latentknobs account` does: its held-out responses are read once more, or twice
    where prompts name their evidence."""
    keep_head: bool = False
    """Save the trained head even where something simpler did better on dev prompts."""
    pick: ByContent[Pick] = "greedy"
    """How options are taken from the head at evaluation: greedy (Eq. 4) or sample (Eq. 5)."""


class Run(Section):
    """The run itself."""

    stages = ("examples", "fit")

    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of everything random; each stage of rollouts has a seed of its own, derived from it."""
    trackers: Harmless[tuple[str, ...]] = ()
    """Where metrics also go, through accelerate: tensorboard, wandb, trackio, ..."""
    output_dir: Harmless[Annotated[PathText, Field(min_length=1)]] = "runs/latest"
    """Where everything is written; a run that was interrupted goes on from its last finished stage."""


LEARNER = "learner"
LEARNER_STAGES: tuple[Stage, ...] = ("examples", "features", "fit")  # of a learner's settings that do not say otherwise
SECTIONS: Mapping[str, type[Section] | None] = {
    "model": Model, "data": Data, "space": Space, "head": Head, "rollout": Rollout, LEARNER: None, "fit": Fit,
    "evaluate": Evaluate, "run": Run,
}  # fmt: skip
"""In the order in which they are written; the fields of the learner's section are those of the learner."""

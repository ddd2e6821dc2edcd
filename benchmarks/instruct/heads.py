"""Heads of the instruct model: a run of `train`, or the head of such a run without its rival."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import latentknobs as lk
from benchmarks.instruct.arena import Arena
from benchmarks.instruct.tasks import FEW
from benchmarks.on_policy import heads
from latentknobs.adapter import describe_model
from latentknobs.config import TrainConfig, make_config
from latentknobs.data.prompts import Prompt, make_prompts
from latentknobs.data.rollouts import roll_out_batch
from latentknobs.heads.features import read_features
from latentknobs.heads.segmenters import parse_level
from latentknobs.learners.base import Inputs
from latentknobs.models.sources import Sources
from latentknobs.policies import Policy
from latentknobs.policies.names import policy_of
from latentknobs.rewards import resolve_rewards
from latentknobs.training.fitstate import device_of


def trained(arena: Arena, name: str, seed: int, variant: dict[str, Any]) -> lk.KnobAdapter:
    """The adapter of a variant (`rivals.VARIANTS`) and a training seed; an interrupted run goes on."""
    own = dict(variant)
    is_alone, breadth, start = own.pop("alone", False), own.pop("breadth", FEW), own.pop("start", None)
    settings = {"level": "token", "rollouts": 8, "max_new_tokens": arena.task.max_new_tokens, "seed": seed} | own
    rows = arena.task.rows(False, settings["train_prompts"], breadth)
    folder = arena.folder / name
    if is_alone:
        return alone(arena, settings, rows, folder, start)
    run = lk.train(
        model=arena.model, tokenizer=arena.tokenizer, prompts=rows, eval_prompts=arena.task.rows(True, 16), eval_size=0,
        reward=arena.task.reward, feature_dtype="bfloat16", output_dir=str(folder), **settings,
    )  # fmt: skip
    return run.adapter


def alone(arena: Arena, settings: dict[str, Any], rows: list[dict[str, Any]], folder: Path, start: str | None) -> lk.KnobAdapter:
    """The head of a run of REINFORCE, which differs from that of `train` in its random numbers alone, without a rival.

    Args:
        start: a rule that the head imitates before the first step.
    """
    knobs = settings.pop("knobs")
    space = lk.KnobSpace.of(*([knobs] if isinstance(knobs, str) else knobs))
    prompts, rewards = make_prompts(rows, arena.tokenizer), resolve_rewards(arena.task.reward)
    config = make_config(settings)
    sources = Sources(arena.model, arena.tokenizer, arena.engine, prompts, [], [], rewards, None)
    inputs = Inputs(space, parse_level(config.level), config.features, seed=config.seed, rollouts=config.rollouts)

    def prepare(module: nn.Module) -> None:
        if start:
            imitate(module, arena, prompts, policy_of(start, arena.tokenizer), space, config)

    head = heads(config, inputs, sources, [config.steps], folder, prepare)[config.steps]
    return lk.KnobAdapter(space, head, inputs.segmenter, config.features, describe_model(arena.model))


def imitate(
    module: nn.Module, arena: Arena, prompts: Sequence[Prompt], rule: Policy, space: lk.KnobSpace, config: TrainConfig
) -> None:
    """Moves a head towards what a rule chooses on 256 responses of its own; each other option keeps a probability of .05."""
    some = random.Random(config.seed).sample(range(len(prompts)), min(256, len(prompts)))
    seed = 7919 + config.seed
    rollouts = roll_out_batch(arena.engine, prompts, some, rule, max_new_tokens=config.max_new_tokens, seed=seed)
    value_KJ = torch.tensor([[*option.values()] for option in space.options], dtype=torch.float64)
    value_NJ = torch.cat([torch.tensor(row.values, dtype=torch.float64) for row in rollouts])
    with torch.no_grad():
        features = [
            read_features(config.features, hidden_TD, logits_TV).float()
            for hidden_TD, logits_TV in arena.engine.read(
                [prompts[row.prompt].ids for row in rollouts], [row.ids for row in rollouts]
            )
        ]
    device = device_of(module)
    feature_NF, option_N = torch.cat(features).to(device), torch.cdist(value_NJ, value_KJ).argmin(-1).to(device)
    optimiser = torch.optim.Adam(module.parameters(), 1e-3)
    loss = nn.CrossEntropyLoss(label_smoothing=space.K / 20)
    for _ in range(30):
        for rows_B in torch.randperm(len(option_N)).split(512):
            optimiser.zero_grad()
            loss(module(feature_NF[rows_B]), option_N[rows_B]).backward()
            optimiser.step()

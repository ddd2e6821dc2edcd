"""Heads of the instruct model: a run of `train`, or the head of such a run without its rival."""

from pathlib import Path
from typing import Any

import latentknobs as lk
from benchmarks.instruct.arena import Arena
from benchmarks.instruct.tasks import FEW
from benchmarks.on_policy import heads
from latentknobs.adapter import describe_model
from latentknobs.config import make_config
from latentknobs.data.prompts import make_prompts
from latentknobs.heads.segmenters import parse_level
from latentknobs.learners.base import Inputs
from latentknobs.models.sources import Sources
from latentknobs.rewards import resolve_rewards


def trained(arena: Arena, name: str, seed: int, variant: dict[str, Any]) -> lk.KnobAdapter:
    """The adapter of a variant (`rivals.VARIANTS`) and a training seed; an interrupted run goes on."""
    own = dict(variant)
    is_alone, breadth = own.pop("alone", False), own.pop("breadth", FEW)
    settings = {"level": "token", "rollouts": 8, "max_new_tokens": arena.task.max_new_tokens, "seed": seed} | own
    rows = arena.task.rows(False, settings["train_prompts"], breadth)
    folder = arena.folder / name
    if is_alone:
        return alone(arena, settings, rows, folder)
    run = lk.train(
        model=arena.model, tokenizer=arena.tokenizer, prompts=rows, eval_prompts=arena.task.rows(True, 16), eval_size=0,
        reward=arena.task.reward, feature_dtype="bfloat16", output_dir=str(folder), **settings,
    )  # fmt: skip
    return run.adapter


def alone(arena: Arena, settings: dict[str, Any], rows: list[dict[str, Any]], folder: Path) -> lk.KnobAdapter:
    """The head of a run of REINFORCE, which differs from that of `train` in its random numbers alone, without a rival."""
    knobs = settings.pop("knobs")
    space = lk.KnobSpace.of(*([knobs] if isinstance(knobs, str) else knobs))
    prompts, rewards = make_prompts(rows, arena.tokenizer), resolve_rewards(arena.task.reward)
    config = make_config(settings)
    sources = Sources(arena.model, arena.tokenizer, arena.engine, prompts, [], [], rewards, None)
    inputs = Inputs(space, parse_level(config.level), config.features, seed=config.seed, rollouts=config.rollouts)
    head = heads(config, inputs, sources, [config.steps], folder)[config.steps]
    return lk.KnobAdapter(space, head, inputs.segmenter, config.features, describe_model(arena.model))

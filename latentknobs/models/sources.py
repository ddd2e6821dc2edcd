"""What a run works on: the model, the prompts and the rewards that the config names, or the objects that a caller passes."""

import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from latentknobs import testbed
from latentknobs.config import TrainConfig
from latentknobs.data.preferences import Preferences, prompt_rows, read_preferences
from latentknobs.data.prompts import Prompt, check_disjoint, check_lengths, group_of, is_held_out, make_prompts, split_prompts
from latentknobs.data.tables import read_rows
from latentknobs.data.trl import SIDES
from latentknobs.engines.base import Engine, engine_of
from latentknobs.engines.transformers.frozen import context_length, output_embeddings
from latentknobs.engines.transformers.record import stop_ids
from latentknobs.errors import ConfigError, DataError, did_you_mean
from latentknobs.learners.base import find_learner
from latentknobs.models.loading import TESTBED, load_model
from latentknobs.rewards import Rewards, RewardSpec, resolve_rewards

Prompts = str | Iterable[Any]
DEV = 1 << 20  # apart from the seeds that people choose


@dataclass(frozen=True)
class Sources:
    """Everything a run reads. The prompts that judge share none with the others."""

    model: Any
    tokenizer: Any
    engine: Engine  # runs policies on the model
    train: list[Prompt]
    dev: list[Prompt]  # those that tune and choose; training prompts only where there are too few others
    evaluation: list[Prompt]  # those that judge
    reward: Rewards
    second: Rewards | None  # the second score, if any
    preferences: Preferences | None = None  # pairs from elsewhere that take the place of the first round's rollouts

    @property
    def dev_trained(self) -> int:
        """How many of the prompts that tune also train."""
        trained = {prompt.text for prompt in self.train}
        return sum(prompt.text in trained for prompt in self.dev)


def gather(
    config: TrainConfig,
    *,
    model: Any = None,
    tokenizer: Any = None,
    prompts: Iterable[Any] | None = None,
    eval_prompts: Iterable[Any] | None = None,
    preferences: Iterable[Any] | None = None,
    reward: RewardSpec | None = None,
    second_reward: RewardSpec | None = None,
) -> Sources:
    """The sources of a run; objects passed here take the place of what the config names.

    Raises:
        ConfigError: a model without its tokenizer or with another one's, or an unknown name; data that the learner cannot use.
        DataError: prompts that are missing, malformed, too long, too few, or shared by both splits; malformed preferences.
        NoPairsError: no preference can be used.
    """
    pairs = preferences if preferences is not None else config.preferences
    has_second = second_reward is not None or config.second_reward is not None
    find_learner(config.learner).check(config["learner"], has_preferences=pairs is not None, has_second=has_second)
    first = resolve_rewards(reward if reward is not None else config.reward, config.reward_weights)
    other = second_reward if second_reward is not None else config.second_reward
    second = resolve_rewards(other) if other is not None else None
    if model is None:
        model, loaded = load_model(config.model, config)
        tokenizer = tokenizer or loaded
    elif tokenizer is None:
        raise ConfigError("A model object needs its tokenizer: pass tokenizer=..., or give the model by name.")
    if not (callable(tokenizer) and hasattr(tokenizer, "get_vocab")):
        shown = reprlib.repr(tokenizer)
        raise ConfigError(f"tokenizer={shown} is not a tokenizer. Pass what AutoTokenizer.from_pretrained(...) returned.")
    output_embeddings(model)  # refuses what is not a causal LM
    held_out: set[str] = set()
    if alone := pairs is not None and prompts is None and "prompts" not in config.changed:
        pairs = list(read_rows(pairs, SIDES, "preferences"))
        prompts = prompt_rows(pairs)  # the run is judged on what they are about, unless it names other prompts
        if eval_prompts is None and not config.eval_prompts:
            held_out = {prompt.text for prompt in make_prompts(prompts, tokenizer) if is_held_out(prompt.text)}
    train, rest, evaluation = _splits(config, prompts, eval_prompts, tokenizer)
    held_out |= {prompt.text for prompt in evaluation}
    train = [prompt for prompt in train if prompt.text not in held_out] if alone else train
    dev = dev_prompts(train, rest, config)
    check_disjoint([*train, *dev], evaluation)
    check_lengths([*train, *dev, *evaluation], config.max_new_tokens, context_length(model))
    supplied = None if pairs is None else read_preferences(
        pairs, tokenizer, max_new_tokens=config.max_new_tokens, context=context_length(model),
        stops=stop_ids(model.generation_config), held_out=held_out,
    )  # fmt: skip
    if supplied and supplied.alone and not find_learner(config.learner).learns_alone(config["learner"]):
        raise ConfigError(
            f"{supplied.alone} of {len(supplied.pairs)} rows of the preferences have a `completion` and nothing to compare it "
            "with. Give rows with chosen and rejected, or set learner='end_to_end' and objective='likelihood'."
        )
    check_vocabulary(model, [*train, *dev, *evaluation, *(supplied.prompts + supplied.rollouts if supplied else [])])
    return Sources(model, tokenizer, engine_of(config.engine, model, tokenizer), train, dev, evaluation, first, second, supplied)


def dev_prompts(train: Sequence[Prompt], rest: Sequence[Prompt], config: TrainConfig) -> list[Prompt]:
    """The prompts that tune constants and choose what an adapter holds: `rest`, and where these are too few, training prompts.

    Of these first the ones whose examples choose the step of the fit, as no gradient is taken of them.
    """
    held = {False: list[Prompt](), True: list[Prompt]()}
    for prompt in train:
        held[is_held_out(f"validation {group_of(prompt)}", config.validation)].append(prompt)
    return [*rest, *held[True], *held[False]][: config.tune_size]


def check_vocabulary(model: Any, texts: Iterable[Any]) -> None:
    """Refuses prompts and responses with ids that the model has no embedding for: a ConfigError names the first such text."""
    size = model.get_input_embeddings().weight.shape[0]
    for text in texts:
        if max(text.ids) >= size:
            raise ConfigError(
                f"The tokenizer writes {text.text[:60]!r} with the id {max(text.ids)}, but the model knows only {size} ids. "
                "Pass the tokenizer that belongs to the model."
            )


def _splits(
    config: TrainConfig, prompts: Iterable[Any] | None, eval_prompts: Iterable[Any] | None, tokenizer: Any
) -> tuple[list[Prompt], list[Prompt], list[Prompt]]:
    """Training prompts, others of the same pool, and held-out ones."""
    own_evaluation = eval_prompts is not None or bool(config.eval_prompts)
    if prompts is None and config.prompts.startswith(f"{TESTBED}:"):
        task = config.prompts.partition(":")[2]
        if task not in testbed.TASKS:
            raise ConfigError(f"The testbed has no task {task!r}. {did_you_mean(task, testbed.TASKS)}")
        rows = testbed.prompts(task, "train", config.train_prompts, config.seed)
        others = testbed.prompts(task, "train", 2 * config.tune_size, config.seed + DEV)
        taken = {row["prompt"] for row in rows}
        pool = make_prompts([*rows, *(row for row in others if row["prompt"] not in taken)], tokenizer)
        if not own_evaluation:
            evaluation = make_prompts(testbed.prompts(task, "eval", config.eval_size, 0), tokenizer)
            return pool[: len(rows)], pool[len(rows) :], evaluation
    else:
        pool = make_prompts(read_rows(prompts if prompts is not None else config.prompts), tokenizer)
    if own_evaluation:
        rows = read_rows(eval_prompts if eval_prompts is not None else str(config.eval_prompts))
        train, evaluation = pool, make_prompts(rows, tokenizer)
    else:
        train, evaluation = split_prompts(pool)
    train, rest, evaluation = train[: config.train_prompts], train[config.train_prompts :], evaluation[: config.eval_size]
    if not train or (config.eval_size and not evaluation):
        raise DataError(
            f"{len(pool)} prompts leave {len(train)} for training and {len(evaluation)} held out. Give more prompts, or "
            "eval_prompts of their own, or set eval_size=0 to train without an evaluation."
        )
    return train, rest, evaluation

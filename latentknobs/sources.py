"""What a run works on: the model, the prompts and the rewards that the config names, or the objects a caller gave."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentknobs import testbed
from latentknobs.config import TrainConfig
from latentknobs.data.prompts import Prompt, check_disjoint, check_lengths, make_prompts, read_jsonl, split_prompts
from latentknobs.data.rollouts import Reward
from latentknobs.decoding.frozen import context_length, output_embeddings
from latentknobs.errors import ConfigError, DataError, did_you_mean
from latentknobs.rewards import resolve_reward

TESTBED = "testbed"
Prompts = str | Sequence[Any]


@dataclass(frozen=True)
class Sources:
    """Everything a run reads.

    Attributes:
        train, evaluation: disjoint prompts.
        second: the second score of the pair rule top_bottom, if any.
    """

    model: Any
    tokenizer: Any
    train: list[Prompt]
    evaluation: list[Prompt]
    reward: Reward
    second: Reward | None


def load_model(name: str, config: TrainConfig) -> tuple[Any, Any]:
    """A frozen causal LM in evaluation mode and its tokenizer, padded on the left.

    Raises:
        ConfigError: transformers cannot load it.
    """
    device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        cause = str(error).splitlines()[0]
        raise ConfigError(f"The device {device!r} cannot be used: {cause} Use auto, cpu or cuda.") from None
    if name == TESTBED:
        model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
        if config.dtype != "auto":
            model = model.to(getattr(torch, config.dtype))
    else:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        trust = config.trust_remote_code
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust, padding_side="left")
            model = AutoModelForCausalLM.from_pretrained(name, dtype=config.dtype, trust_remote_code=trust)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"The model {name!r} cannot be loaded: {str(error).splitlines()[0]} Give a folder or hub id of a causal LM, "
                "or `testbed` for the packaged one."
            ) from error
    return freeze(model.to(device)), tokenizer


def freeze(model: Any) -> Any:
    """The model in evaluation mode, without gradients."""
    output_embeddings(model)  # refuses what is no causal LM
    return model.eval().requires_grad_(False)


def gather(
    config: TrainConfig,
    *,
    model: Any = None,
    tokenizer: Any = None,
    prompts: Sequence[Any] | None = None,
    eval_prompts: Sequence[Any] | None = None,
    reward: Callable[..., Any] | None = None,
    second_reward: Callable[..., Any] | None = None,
) -> Sources:
    """The sources of a run; arguments given as objects take the place of what the config names.

    Raises:
        ConfigError: a model without its tokenizer, or a name nobody knows.
        DataError: prompts that are missing, malformed, too long, too few, or shared by both splits.
    """
    if model is None:
        model, loaded = load_model(config.model, config)
        tokenizer = tokenizer or loaded
    elif tokenizer is None:
        raise ConfigError("A model object needs its tokenizer: pass tokenizer=..., or give the model by name.")
    if not callable(tokenizer):
        raise ConfigError(f"The tokenizer {tokenizer!r} is none: pass what AutoTokenizer.from_pretrained(...) returned.")
    freeze(model)
    first = resolve_reward(reward if reward is not None else config.reward)
    other = second_reward if second_reward is not None else config.second_reward
    second = resolve_reward(other) if other is not None else None
    if config.pair_rule == "top_bottom" and second is None:
        raise ConfigError("The pair rule top_bottom compares two scores. Set second_reward, or use best_worst.")
    train, evaluation = _splits(config, prompts, eval_prompts, tokenizer)
    check_disjoint(train, evaluation)
    check_lengths([*train, *evaluation], config.max_new_tokens, context_length(model))
    return Sources(model, tokenizer, train, evaluation, first, second)


def _splits(
    config: TrainConfig, prompts: Sequence[Any] | None, eval_prompts: Sequence[Any] | None, tokenizer: Any
) -> tuple[list[Prompt], list[Prompt]]:
    own_evaluation = eval_prompts is not None or bool(config.eval_prompts)
    if prompts is None and config.prompts.startswith(f"{TESTBED}:"):
        task = config.prompts.partition(":")[2]
        if task not in testbed.TASKS:
            raise ConfigError(f"The testbed has no task {task!r}. {did_you_mean(task, testbed.TASKS)}")
        pool = make_prompts(testbed.prompts(task, "train", config.train_prompts, config.seed), tokenizer)
        if not own_evaluation:
            return pool, make_prompts(testbed.prompts(task, "eval", config.eval_size, 0), tokenizer)
    else:
        pool = make_prompts(prompts if prompts is not None else read_jsonl(Path(config.prompts)), tokenizer)
    if own_evaluation:
        rows = eval_prompts if eval_prompts is not None else read_jsonl(Path(str(config.eval_prompts)))
        train, evaluation = pool, make_prompts(rows, tokenizer)
    else:
        train, evaluation = split_prompts(pool)
    train, evaluation = train[: config.train_prompts], evaluation[: config.eval_size]
    if not train or (config.eval_size and not evaluation):
        raise DataError(
            f"{len(pool)} prompts leave {len(train)} for training and {len(evaluation)} held out. Give more prompts, or "
            "eval_prompts of their own, or set eval_size=0 to train without an evaluation."
        )
    return train, evaluation

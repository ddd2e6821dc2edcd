"""`evaluate()`: judge a saved adapter on prompts of your own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentknobs.adapter import KnobAdapter, check_base, describe_model
from latentknobs.config import make_config
from latentknobs.engines.base import engine_of
from latentknobs.errors import ConfigError
from latentknobs.evaluation.evaluate import Report, compare_policies, rollouts_needed
from latentknobs.models.sources import gather
from latentknobs.policies import HeadPolicy, Policy
from latentknobs.progress import progress
from latentknobs.rewards import RewardSpec


def evaluate(
    adapter: KnobAdapter | str | Path,
    *,
    model: Any = None,
    tokenizer: Any = None,
    prompts: str | Path | Sequence[Any] | None = None,
    tune_prompts: str | Path | Sequence[Any] | None = None,
    reward: RewardSpec | None = None,
    seeds: int = 3,
    extra: Mapping[str, Policy] | None = None,
    **settings: Any,
) -> Report:
    """The head against every constant option, the tuned best constant, greedy, the uniform mixture and an entropy-only head.

    Args:
        adapter: an adapter, or the folder of one.
        model, tokenizer, reward: as in `train`; the defaults are the packaged testbed's.
        prompts: held-out prompts; by default the testbed's.
        tune_prompts: prompts on which the best constant is tuned. None splits `prompts` by hash: a fifth judges, the
            rest tunes.
        seeds: times that every policy answers every prompt.
        extra: further policies to compare with, by name.
        settings: fields of `TrainConfig` that concern evaluation: `eval_size`, `tune_size`, `pick`, `max_new_tokens`,
            `batch_size`, `seed`, `device`, `dtype`, `reward_weights`.

    Raises:
        AdapterError: the adapter cannot be read, or was trained on a model of another shape.
        ConfigError, DataError, RewardError: as in `train`.
    """
    adapter = adapter if isinstance(adapter, KnobAdapter) else KnobAdapter.from_pretrained(adapter)
    named: dict[str, Any] = {"model": model, "reward": reward}
    named |= {"prompts": prompts if tune_prompts is None else tune_prompts}
    named |= {"eval_prompts": None if tune_prompts is None else prompts}
    objects = {name: value for name, value in named.items() if value is not None and not isinstance(value, str | Path)}
    paths = {name: str(value) for name, value in named.items() if isinstance(value, str | Path)}
    config = make_config({**paths, **settings, "eval_seeds": seeds})
    seeds = config.eval_seeds
    sources = gather(config, tokenizer=tokenizer, **objects)
    if not sources.evaluation:
        raise ConfigError("There are no held-out prompts to judge on. Set eval_size to at least 1, or give more prompts.")
    check_base(adapter.base, describe_model(sources.model), strict=False)
    policies = dict(extra or {})
    device = engine_of(config.engine, sources.model, sources.tokenizer).device
    for head in (
        adapter.head,
        adapter.entropy_head,
        *(policy.head for policy in policies.values() if isinstance(policy, HeadPolicy)),
    ):
        if head is not None:
            head.to(device)
    tune = sources.train[: config.tune_size]
    total = rollouts_needed(adapter.space.K, len(tune), len(sources.evaluation), seeds) + len(policies) * seeds * len(
        sources.evaluation
    )
    with progress("evaluation", total) as advance:
        return compare_policies(
            adapter, sources.model, sources.tokenizer, sources.reward, tune, sources.evaluation, seeds=seeds,
            pick=config.pick, max_new_tokens=config.max_new_tokens, batch_size=config.batch_size, seed=config.seed,
            extra=policies, engine=config.engine, advance=advance,
        )  # fmt: skip

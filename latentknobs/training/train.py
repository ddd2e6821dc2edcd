"""`train()`: from knobs, prompts and a reward to an adapter with its evidence."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentknobs.adapter import KnobAdapter, describe_model
from latentknobs.config import GIVEN, TrainConfig, make_config, read_yaml, write_yaml
from latentknobs.data.prompts import Prompt
from latentknobs.data.rollouts import write_lines
from latentknobs.errors import ConfigError, RunError
from latentknobs.evaluation.evaluate import Report, compare_policies, rollouts_needed
from latentknobs.features import check_features
from latentknobs.knob import DecodingKnob
from latentknobs.progress import progress, say
from latentknobs.ranks import check_ranks
from latentknobs.reporting import write_report, write_samples
from latentknobs.segments import Segmenter, parse_level
from latentknobs.sources import Sources, gather
from latentknobs.space import KnobSpace
from latentknobs.training.rounds import FITTING, PAIRING, READING, SAMPLING, Heads, Round
from latentknobs.training.rundir import RunDir

EVALUATING = ("eval_size", "eval_seeds", "tune_size", "pick", "max_new_tokens", "batch_size", "reward")


@dataclass
class Run:
    """What `train` returns.

    Attributes:
        path: the run directory.
        adapter: the learned adapter.
        report: the evaluation, None when `eval_size` is 0.
        report_path: the same as HTML, for people.
    """

    path: Path
    adapter: KnobAdapter
    report: Report | None
    report_path: Path | None = None


def train(
    *,
    knobs: Sequence[Any] | str | None = None,
    model: Any = None,
    tokenizer: Any = None,
    prompts: str | Path | Sequence[Any] | None = None,
    eval_prompts: str | Path | Sequence[Any] | None = None,
    reward: str | Callable[..., Any] | None = None,
    second_reward: str | Callable[..., Any] | None = None,
    config: str | Path | TrainConfig | None = None,
    **settings: Any,
) -> Run:
    """Learns to choose decoding options and shows whether that was worth it.

    Every argument has a default: `train(knobs=["temperature"])` trains on the packaged testbed, offline.

    Args:
        knobs: names, `"name:grid"`, `{name: grid}` or knob objects.
        model: a name, or a transformers causal LM with its `tokenizer`; it stays on its device and in its dtype, and is left in
            evaluation mode without gradients.
        prompts, eval_prompts: JSONL files, or lists of texts or rows.
        reward, second_reward: names, or callables with TRL's signature `reward(prompts, completions, **columns)`.
        config: a YAML file or a `TrainConfig`; arguments given here win over it.
        settings: any field of `TrainConfig`.

    Raises:
        LatentKnobsError: one of its kinds, for whatever is wrong with the input. Finished stages stay on disk.
    """
    base = config.model_dump(exclude_unset=True) if isinstance(config, TrainConfig) else read_yaml(config) if config else {}
    objects: dict[str, Any] = {}
    named = {"model": model, "prompts": prompts, "eval_prompts": eval_prompts, "reward": reward, "second_reward": second_reward}
    for name, value in named.items():
        if isinstance(value, str | Path):
            settings[name] = str(value)
        elif value is not None:
            objects[name], settings[name] = value, _name_of(value)
    specs = [knobs] if isinstance(knobs, str | DecodingKnob | Mapping) else knobs
    if specs is not None and not isinstance(specs, Iterable):
        raise ConfigError(f"knobs={knobs!r} is no list of knobs. Write e.g. knobs=['temperature', 'top_p:0.9,1'].")
    if specs is not None:
        settings["knobs"] = [_spec(knob) for knob in specs]
    made = make_config(base | settings)
    space = KnobSpace.of(*(specs if specs is not None else made.knobs), order=made.order)
    return run_training(made, space, gather(made, tokenizer=tokenizer, **objects))


def run_training(config: TrainConfig, space: KnobSpace, sources: Sources) -> Run:
    """All stages of a run, on sources that are already loaded. See `train`."""
    segmenter = parse_level(config.level, sources.tokenizer)
    check_features(config.features)
    check_ranks(space)
    say(f"{space!r}")
    say(f"{len(sources.train)} training prompts x {config.rollouts} rollouts, {len(sources.evaluation)} held-out prompts")
    with RunDir(config.output_dir, say) as run:
        write_yaml(config, run.path / "config.yaml")
        _explain(run.path)
        key = config.digest(then=_digest_of(sources, space))
        heads: Heads | None = None
        for number in range(1, config.rounds + 1):
            heads, key = Round(run, config, sources, space, segmenter, number, key, heads).play()
        assert heads is not None
        adapter = _adapter(config, space, segmenter, sources, heads)
        report = _evaluate(run, config, sources, adapter, key) if sources.evaluation else None
        run.forget_metrics(lambda row: bool(row["round"] > config.rounds))
        if report is None:  # what an earlier head earned says nothing about this one
            run.forget("evaluation")
            for stale in ("evaluation/summary.json", "report.html"):
                (run.path / stale).unlink(missing_ok=True)
        else:
            adapter.training |= {"held-out result": report.verdict()}
        adapter.save_pretrained(run.path / "adapter")
        report_path = _write_report(run.path, report, sources, space) if report is not None else None
    return Run(run.path, adapter, report, report_path)


def _write_report(path: Path, report: Report, sources: Sources, space: KnobSpace) -> Path:
    write_samples(path, space, sources.evaluation, report.tasks, sources.tokenizer)
    return write_report(path, report)


def _adapter(config: TrainConfig, space: KnobSpace, segmenter: Segmenter, sources: Sources, heads: Heads) -> KnobAdapter:
    keys = (*SAMPLING, *PAIRING, *READING, *FITTING, "rounds", "prompts", "reward")
    training = {name: str(getattr(config, name)) for name in keys if name not in ("features", "level", "knobs", "order", "model")}
    base = describe_model(sources.model)
    return KnobAdapter(space, heads.main, segmenter, config.features, base, heads.entropy, training)


def _evaluate(run: RunDir, config: TrainConfig, sources: Sources, adapter: KnobAdapter, key: str) -> Report:
    file = "evaluation/summary.json"
    tune = sources.train[: config.tune_size]

    def make() -> None:
        total = rollouts_needed(adapter.space.K, len(tune), len(sources.evaluation), config.eval_seeds)
        with progress("evaluation", total) as advance:
            report = compare_policies(
                adapter, sources.model, sources.tokenizer, sources.reward, tune, sources.evaluation,
                seeds=config.eval_seeds, pick=config.pick, max_new_tokens=config.max_new_tokens,
                batch_size=config.batch_size, seed=config.seed, advance=advance,
            )  # fmt: skip
        for name, rollouts in report.rollouts.items():
            write_lines(run.path / "evaluation" / f"{name.replace(' ', '_').replace(',', '')}.jsonl", rollouts)
        (run.path / file).write_text(json.dumps(report.to_dict()) + "\n", encoding="utf-8")

    texts = str([_told(prompt) for prompt in (*tune, *sources.evaluation)])
    key = config.digest(*EVALUATING, then=f"{key} {texts}")
    return run.stage("evaluation", key, [file], make, lambda: read_report(run.path))


def read_report(path: Path) -> Report:
    """The evaluation in a run directory.

    Raises:
        RunError: there is none.
    """
    file = path / "evaluation" / "summary.json"
    try:
        return Report.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise RunError(f"There is no readable evaluation in {str(path)!r}: {error}. Train with eval_size above 0.") from None


def _digest_of(sources: Sources, space: KnobSpace) -> str:
    """What a run is about: the model (by its description and checksums of its weights), the knobs, the prompts."""
    prompts = [_told(prompt) for prompt in sources.train]
    model = sources.model
    norms = [(p.sum(dtype=torch.float64), torch.linalg.vector_norm(p, dtype=torch.float64)) for p in model.parameters()]
    weights = [f"{total.item():.6e} {norm.item():.6e}" for total, norm in norms]
    return (
        f"{describe_model(model)} {model.dtype} {weights} {model.generation_config.eos_token_id} {space.fingerprint()} {prompts}"
    )


def _told(prompt: Prompt) -> tuple[Any, ...]:
    return prompt.text, prompt.ids, sorted(prompt.columns.items(), key=lambda item: str(item[0]))


def _name_of(value: Any) -> str:
    return f"{getattr(value, '__name__', type(value).__name__)} {GIVEN}"


def _spec(knob: Any) -> Any:
    return {knob.name: list(knob.options)} if isinstance(knob, DecodingKnob) else knob


def _explain(path: Path) -> None:
    lines = (
        "# A latentknobs run",
        "",
        "| file | what |",
        "|---|---|",
        "| `config.yaml` | every setting; `latentknobs train --config config.yaml` runs it again |",
        "| `round-N/rollouts.jsonl` | sampled responses: token ids, the option of each token, text |",
        "| `round-N/scores.jsonl` | their rewards |",
        "| `round-N/pairs.jsonl` | which was chosen over which, as line numbers of the rollouts from 0 |",
        "| `round-N/features.safetensors` | what the head is trained on: features and likelihood tables of the pairs |",
        "| `round-N/heads.safetensors` | the learned head and the entropy-only baseline |",
        "| `metrics.jsonl` | loss of every step, validation of about every twentieth part of them |",
        "| `evaluation/` | responses of every policy on held-out prompts, and `summary.json` |",
        "| `adapter/` | the result: `latentknobs.KnobAdapter.from_pretrained(...)` |",
        "| `report.html` | the same for people |",
        "| `manifest.json` | finished stages; a changed setting redoes only the stages that depend on it |",
    )
    (path / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")

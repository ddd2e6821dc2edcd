"""What likelihood learns, steering by commands, and the cost of a step: the other parts of `benchmarks.continuous`."""

import json
import time
from statistics import median
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

import latentknobs as lk
from benchmarks.continuous_world import RUNS, TOKENS, World
from latentknobs import testbed
from latentknobs.data.prompts import make_prompts
from latentknobs.data.rollouts import roll_out
from latentknobs.data.scores import score_rollouts
from latentknobs.engines.transformers import Attached, TransformersEngine
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Every
from latentknobs.heads.value_head import ValueHead
from latentknobs.learners.end_to_end.losses import token_weights
from latentknobs.policies import ConstantPolicy, HeadPolicy, Policy
from latentknobs.policies.continuous import ValuePolicy

SOME = 3  # of so many tokens one is looked at in `optimum`
VARIANTS = {"plain": (0.0, "none"), "easy tokens masked": (0.6, "none"), "by probability": (0.0, "base"), "both": (0.6, "base")}


@click.command()
@click.option("--prompts", default=64, show_default=True)
@click.option("--fit/--no-fit", default=True, show_default=True, help="Also train a head of each variant on the text of T = 1.")
@click.option("--world", "worlds", default=("testbed", "stories"), show_default=True, multiple=True)
def optimum(prompts: int, fit: bool, worlds: tuple[str, ...]) -> None:
    """The best global temperature of each variant, and best top-p, on text that the LM itself wrote.

    Exact in the last step: at each context that the text visits, the expectation over the next token.
    """
    for name in worlds:
        found: dict[str, Any] = {}
        world = World(name)
        for sampled in (1.0, 0.7):
            policy = ConstantPolicy(lk.KnobSpace.of({"temperature": [sampled]}))
            base_NV = world_logps(world, policy, prompts)
            found[f"{name}, text of T = {sampled:g}"] = best_temperatures(base_NV, (base_NV / sampled).log_softmax(-1))
            print(list(found.items())[-1], flush=True)
        for variant, (easy_mask, reweight) in VARIANTS.items() if fit else ():
            found[f"{name}, head, {variant}"] = head_on_own_text(world, easy_mask, reweight)
            print(list(found.items())[-1], flush=True)
        (RUNS / f"optimum-{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def world_logps(world: World, policy: Policy, prompts: int) -> Tensor:
    """(N, V) log-probabilities of the LM at the tokens of text of its own, in float64."""
    rows = world.train[:prompts]
    rollouts, _ = world.answers(policy, rows, 1, 7)
    tokenised = world.prompts(rows)
    engine = TransformersEngine(world.model, world.tokenizer)
    read = engine.read([tokenised[r.prompt].ids for r in rollouts], [r.ids for r in rollouts])
    return torch.cat([logits_TV for _, logits_TV in read])[::SOME].double().log_softmax(-1)


def best_temperatures(base_NV: Tensor, text_NV: Tensor) -> dict[str, float]:
    """For each variant, where the expected weighted log-likelihood of text drawn from `text_NV` is highest: a grid of .02."""
    is_best_NV = base_NV == base_NV.amax(-1, keepdim=True)
    grid = torch.arange(0.3, 1.6, 0.02).tolist()
    weights = {
        name: text_NV.exp() * token_weights(base_NV, base_NV, is_best_NV, easy_mask=easy_mask, reweight=reweight)
        for name, (easy_mask, reweight) in VARIANTS.items()
    }  # type: dict[str, Tensor]
    worth: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for temperature in grid:
        logp_NV = (base_NV / temperature).log_softmax(-1)
        for name, weight_NV in weights.items():
            worth[name].append(float((weight_NV * logp_NV).sum()))
    return {name: round(grid[int(np.argmax(values))], 2) for name, values in worth.items()}


def head_on_own_text(world: World, easy_mask: float, reweight: str) -> dict[str, float]:
    """Mean and standard deviation of the temperatures of a head trained on text of the LM itself, all of it."""
    settings: dict[str, Any] = {
        "learner": "end_to_end", "objective": "likelihood", "keep": "all", "first_text": "neutral", "easy_mask": easy_mask,
        "reweight": reweight, "rollouts": 4, "steps": 300, "pairs_per_step": 16, "learning_rate": 3e-3,
    }  # fmt: skip
    run = lk.train(
        knobs=["temperature:0.1,2", "top_p:0.5,1"], model=world.model, tokenizer=world.tokenizer, prompts=world.train[:64],
        eval_prompts=world.held_out, reward=world.reward, output_dir=RUNS / f"own-{world.name}", max_new_tokens=TOKENS,
        eval_size=0, train_prompts=64, device="cpu", **settings,
    )  # fmt: skip
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [row for row in rows if row["head"] == "main" and "temperature_mean" in row][-1]
    return {name: round(last[name], 3) for name in ("temperature_mean", "temperature_std", "top_p_mean", "top_p_std")}


COMMANDS = {"low": "Rule: Then\n{prompt}", "plain": "{prompt}", "high": "Rule: So\n{prompt}"}


@click.command()
@click.option("--prompts", default=768, show_default=True, help="To steer on.")
@click.option("--copies", default=4, show_default=True, help="Responses whose mean values are compared.")
@click.option("--margin", default=0.5, show_default=True)
@click.option("--anchor", default=1.0, show_default=True)
@click.option("--seed", default=0, show_default=True)
def steering(prompts: int, copies: int, margin: float, anchor: float, seed: int) -> None:
    """Control words of the testbed as commands: on how many of 200 held-out prompts they move the mean values the right way.

    Those 200 chose no setting. Also the reward at plain prompts, before and after.
    """
    model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
    name = f"steering-{prompts}-{margin:g}-{anchor:g}-{seed}"
    run = lk.train(
        knobs=["temperature:0.2,1,2", "top_p:0.5,1"], learner="end_to_end", model=model, tokenizer=tokenizer,
        prompts=testbed.prompts("stories", "train", 48), eval_prompts=testbed.prompts("stories", "eval", 4), eval_size=0,
        output_dir=RUNS / name, train_prompts=48, rollouts=4, max_new_tokens=32, steps=40, pairs_per_step=16, device="cpu",
        seed=seed,
    )  # fmt: skip
    steered = lk.steer(
        run.adapter, testbed.prompts("stories", "train", prompts, seed=1), low=COMMANDS["low"], high=COMMANDS["high"],
        model=model, tokenizer=tokenizer, max_new_tokens=48, margin=margin, anchor=anchor, seed=seed,
    )  # fmt: skip
    found: dict[str, Any] = {}
    for when, adapter in (("before", run.adapter), ("after", steered)):
        found[when] = moved(adapter, testbed.prompts("stories", "eval", 400)[200:], copies, 5 + seed)
        print(f"{when}: {found[when]}", flush=True)
    (RUNS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def moved(adapter: lk.KnobAdapter, rows: list[Any], copies: int, seed: int) -> dict[str, Any]:
    """Mean values after each command, shares of prompts that these order, by all responses and by one, and the plain reward."""
    model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
    mean_CPNJ, found = [], {}
    for command, text in COMMANDS.items():
        prompts = make_prompts([row | {"prompt": text.replace("{prompt}", row["prompt"])} for row in rows], tokenizer)
        answers = roll_out(
            model, tokenizer, prompts, adapter.policy(), copies=copies, max_new_tokens=48, batch_size=256, seed=seed
        )  # fmt: skip
        mean_CPNJ.append(np.array([np.mean(one.values, 0) for one in answers]).reshape(len(rows), copies, -1))
        if command == "plain":
            scores = score_rollouts(testbed.testbed_reward, prompts, answers)  # type: ignore[arg-type]
            found["reward, plain"] = round(float(np.mean([score.value for score in scores])), 4)
    found["means of low, plain, high"] = np.mean(mean_CPNJ, (1, 2)).round(3).tolist()
    for words, used in ((f"{copies} responses", slice(None)), ("1 response", slice(1))):
        low_PJ, plain_PJ, high_PJ = (mean_PNJ[:, used].mean(1) for mean_PNJ in mean_CPNJ)
        for order, less_PJ, more_PJ in (("low < plain", low_PJ, plain_PJ), ("plain < high", plain_PJ, high_PJ)):
            found[f"{order}, {words}"] = (less_PJ < more_PJ).mean(0).round(3).tolist()
    return found


@click.command()
@click.option("--repeats", default=7, show_default=True)
def overhead(repeats: int) -> None:
    """A step of decoding with each kind of head, over a greedy one, in processor time, on a random Llama: d = 512, V = 32,000."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=32000, hidden_size=512, intermediate_size=1376, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=256,
    )).eval()  # fmt: skip
    model.generation_config.eos_token_id = None
    space = lk.KnobSpace.of("temperature:0.1,2", "top_p:0.5,1")
    policies: dict[str, Policy | None] = {
        "greedy": None, "constant": ConstantPolicy(lk.KnobSpace.of({"temperature": [0.8], "top_p": [0.9]})),
        "option head": HeadPolicy(OptionHead(space, 512, hidden=256).eval(), space, Every(1)),
        "value head": ValuePolicy(ValueHead(space, 512, hidden=256).eval(), space, Every(1)),
        "value head, statistics": ValuePolicy(ValueHead(space, 512, hidden=256, statistics=True).eval(), space, Every(1)),
    }  # fmt: skip
    for rows in (1, 8):
        ids = torch.randint(5, 32000, (rows, 16))
        times: dict[str, list[float]] = {name: [] for name in policies}
        for _ in range(repeats):
            for name, policy in policies.items():
                begun = time.process_time()
                if policy is None:
                    model.generate(ids, max_new_tokens=32, do_sample=False)
                else:
                    with Attached(model, policy, seed=0):
                        model.generate(ids, max_new_tokens=32)
                times[name].append(time.process_time() - begun)
        base = median(times["greedy"])
        print(f"B = {rows}: " + ", ".join(f"{name} {median(own) / base:.3f}" for name, own in times.items()), flush=True)

"""Measure the testbed: the reward of each task at constant temperatures, and how far apart the best ones are.

    python -m tools.testbed.measure --prompts 256 --seed 0 --json measured.json

The intervals come from resampling the prompts; the same resampled prompts serve all temperatures of a task.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from latentknobs.rewards.constraint import SentenceConstraint
from latentknobs.testbed.model_files import load_model, load_tokenizer
from latentknobs.testbed.reward import story_reward, testbed_reward
from latentknobs.testbed.tasks import MAX_NEW_TOKENS, SINGLE_TASKS, Row, prompts

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
RESAMPLES = 2_000
TABLE_WIDTH = 100


@dataclass(frozen=True)
class Cell:
    """One task at one temperature: mean reward with its 95 % bootstrap interval, over prompts.

    `constraint` and `words` are the two halves of the constrained task's reward, None for other tasks.
    """

    task: str
    temperature: float
    reward: float
    low: float
    high: float
    constraint: float | None
    words: float | None
    tokens_per_s: float


@dataclass(frozen=True)
class Measurement:
    """All cells, and for each task the interval of the temperature that is best."""

    cells: list[Cell]
    best: dict[str, tuple[float, float, float]]
    """Task to (best temperature, 2.5 % and 97.5 % quantile of the best temperature when prompts are resampled)."""
    math_stories_gap: tuple[float, float, float]
    """Best temperature of stories minus that of math, with the same quantiles."""


@torch.inference_mode()
def complete(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], *, temperature: float,
    max_new_tokens: int = MAX_NEW_TOKENS, batch_size: int = 256,
) -> tuple[list[str], int]:  # fmt: skip
    """One completion of each text at a constant temperature (0 = greedy), and the number of tokens generated."""
    settings = {"do_sample": False} if temperature == 0 else {"do_sample": True, "temperature": temperature, "top_k": 0}
    completions, tokens = [], 0
    for first in range(0, len(texts), batch_size):
        inputs = tokenizer(list(texts[first : first + batch_size]), return_tensors="pt", padding=True)
        ids, attention = inputs["input_ids"], inputs["attention_mask"]
        output = model.generate(input_ids=ids, attention_mask=attention, max_new_tokens=max_new_tokens, **settings)
        new = output[:, ids.shape[1] :]
        tokens += int((new != tokenizer.pad_token_id).sum())
        completions += tokenizer.batch_decode(new, skip_special_tokens=True)
    return completions, tokens


def measure(n: int = 256, temperatures: Sequence[float] = TEMPERATURES, seed: int = 0) -> Measurement:
    """Reward of every task on `n` eval prompts at every temperature; one completion a prompt, seeded."""
    torch.manual_seed(seed)
    model, tokenizer = load_model(), load_tokenizer()
    cells: list[Cell] = []
    rewards: dict[str, np.ndarray] = {}
    for task in SINGLE_TASKS:
        rows = prompts(task, "eval", n, seed)
        scored = [_cell(model, tokenizer, rows, temperature, seed) for temperature in temperatures]
        cells += [cell for cell, _ in scored]
        rewards[task] = np.array([values for _, values in scored])
    best_of = {task: _best_temperatures(values, temperatures, seed) for task, values in rewards.items()}
    gaps = best_of["stories"] - best_of["math"]
    return Measurement(cells, {task: _summary(values) for task, values in best_of.items()}, _summary(gaps))


def _cell(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[Row], temperature: float, seed: int
) -> tuple[Cell, list[float]]:
    texts = [row["prompt"] for row in rows]
    columns = {key: [row[key] for row in rows] for key in ("task", "answer", "opener")}
    started = time.perf_counter()
    completions, tokens = complete(model, tokenizer, texts, temperature=temperature)
    elapsed = time.perf_counter() - started
    values = testbed_reward(texts, completions, **columns)
    kept = words = None
    if rows[0]["task"] == "constrained":
        kept = float(np.mean(SentenceConstraint()(texts, completions, opener=columns["opener"])))
        words = float(np.mean(story_reward()(texts, completions)))
    low, high = np.quantile(_resampled_means(np.array([values]), seed)[:, 0], (0.025, 0.975))
    cell = Cell(rows[0]["task"], temperature, float(np.mean(values)), float(low), float(high), kept, words, tokens / elapsed)
    return cell, values


def _resampled_means(rewards_CP: np.ndarray, seed: int) -> np.ndarray:
    """Means of C conditions over P prompts, the same resampled prompts for all: (RESAMPLES, C)."""
    n = rewards_CP.shape[1]
    chosen = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    return np.asarray(rewards_CP[:, chosen].mean(axis=2).T)


def _best_temperatures(rewards_CP: np.ndarray, temperatures: Sequence[float], seed: int) -> np.ndarray:
    """The best temperature (the lowest of equals) of the data, first entry, and of every resample of its prompts."""
    means = np.vstack([rewards_CP.mean(axis=1), _resampled_means(rewards_CP, seed)])
    return np.asarray(temperatures)[means.argmax(axis=1)]


def _summary(values: np.ndarray) -> tuple[float, float, float]:
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return float(values[0]), float(low), float(high)


def table(result: Measurement) -> Table:
    """The measurement as a rich table, one row a temperature; "rule" and "words" are the halves of constrained."""
    shown = Table(title="Testbed: mean reward at constant temperatures [95 % bootstrap interval]")
    for heading in ("T", *SINGLE_TASKS, "rule", "words"):
        shown.add_column(heading, justify="right")
    cells = {(cell.task, cell.temperature): cell for cell in result.cells}
    for temperature in sorted({cell.temperature for cell in result.cells}):
        row = [cells[task, temperature] for task in SINGLE_TASKS]
        means = [f"{cell.reward:.3f} [{cell.low:.3f}, {cell.high:.3f}]" for cell in row]
        halves = [f"{row[-1].constraint:.3f}", f"{row[-1].words:.3f}"]
        shown.add_row(f"{temperature:g}", *means, *halves)
    shown.add_section()
    shown.add_row("best", *(f"{best:g} [{low:g}, {high:g}]" for best, low, high in result.best.values()), "", "")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=256, help="eval prompts per task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the measurement to this file")
    args = parser.parse_args()
    result = measure(args.prompts, seed=args.seed)
    console = Console(width=TABLE_WIDTH)
    console.print(table(result))
    gap, low, high = result.math_stories_gap
    console.print(f"best temperature of stories minus math: {gap:.1f} [{low:.1f}, {high:.1f}]")
    if args.json:
        args.json.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

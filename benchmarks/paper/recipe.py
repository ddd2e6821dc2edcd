"""A recipe: one YAML file that says what an experiment of the paper is here. Parts share everything that they do not change."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict

FOLDER = Path(__file__).parent / "recipes"
Size = Literal["smoke", "reduced", "full"]
Expectation = Literal["better", "not_worse", "wins", "never_loses", "above", "below"]


class Numbers(BaseModel):
    """How large a part is: prompts, samples of each held-out and each dev prompt, changed settings, fewer baselines or heads.

    `static`: all settings of the joint grid answer the held-out prompts, for the front.
    """

    model_config = ConfigDict(extra="forbid")
    train: int
    dev: int
    held_out: int
    copies: int = 2
    dev_copies: int = 1
    settings: dict[str, Any] = {}
    baselines: list[str] | None = None
    heads: list[str] | None = None
    static: bool = False


class Claim(BaseModel):
    """A conclusion and how to see whether it holds.

    `better`: the gain's interval lies above 0. `not_worse`: it reaches 0 and does not go further down than `margin`. `wins`: the
    win rate's interval lies above one half against every rival but the task's best constants (those that do not differ from the
    best); `never_loses`: nowhere below one half. `above` and `below`: the interval of the subject's own mean against `value`.
    An interval on the other side refutes a claim; anything between leaves it open.
    """

    model_config = ConfigDict(extra="forbid")
    say: str
    expect: Expectation
    measure: str = "reward"
    head: str | None = None
    over: list[str] = []
    task: str = "all"
    value: float = 0.0
    margin: float = 0.02


class Part(BaseModel):
    """One world and the heads that are trained and compared on it."""

    model_config = ConfigDict(extra="forbid")
    world: str
    prefix_tokens: int = 50
    train: dict[str, Any]
    heads: dict[str, dict[str, Any]]
    subjects: list[str] = []  # heads with a table of their own; empty: the first
    baselines: list[str] = []
    hand: str | None = None
    tune_on: list[str] = []  # measures for which constants and rules are tuned; empty: the first measure
    measures: list[str]
    describe: list[str] = []
    curve: list[int] = []  # votes
    front: tuple[str, str] | None = None  # measures on the axes
    sizes: dict[Size, Numbers]
    claims: list[Claim] = []


class Recipe(BaseModel):
    """An experiment: its texts for docs/paper.md, and its parts.

    `minutes`: what it took where it was measured, of processor time: the rivals, and one training seed, of all parts.
    """

    model_config = ConfigDict(extra="forbid")
    title: str
    section: str
    did: str
    found: str
    ours: str
    agrees: str = ""
    minutes: dict[Size, tuple[float, float]] = {}
    parts: dict[str, Part]


def names() -> list[str]:
    """All recipes, in the order of the page."""
    return [str(name) for name in yaml.safe_load((FOLDER / "order.yaml").read_text(encoding="utf-8"))]


def read_recipe(name: str) -> Recipe:
    """A recipe with its parts filled up from what they share."""
    data = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    shared = data.pop("shared", {})
    data["parts"] = {part: merged(shared, own or {}) for part, own in data["parts"].items()}
    return Recipe(**data)


def forecast(recipes: list[str], size: Size, seeds: int, piece: str | None = None) -> str:
    """What recipes took where they were measured, as a sentence."""
    took = {name: minutes for name in recipes if (minutes := read_recipe(name).minutes.get(size))}
    shares = {None: (1, seeds), "rivals": (1, 0)}.get(piece, (0, 1))
    total = sum(share * part for minutes in took.values() for share, part in zip(shares, minutes, strict=True))
    known = f"About {total:.0f} minutes of processor time where it was measured, less what is there already."
    unknown = [name for name in recipes if name not in took]
    return " ".join([*([known] if took else []), *([f"Not measured at this size: {', '.join(unknown)}."] if unknown else [])])


def merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`base` with `own` over it; mappings are merged one level deep, except `heads`, which replace."""
    out = dict(base)
    for key, value in own.items():
        deep = isinstance(value, dict) and isinstance(out.get(key), dict) and key != "heads"
        out[key] = out[key] | value if deep else value
    return out

"""The recipes: they can be read, their claims can be judged, and no held-out prompt is ever used to train or to tune."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

import benchmarks.paper.arena as arena_module
import latentknobs.training.sampling as sampling_module
from benchmarks.paper.arena import Arena
from benchmarks.paper.baselines import SOURCES
from benchmarks.paper.document import write_page
from benchmarks.paper.experiment import RIVALS, correct, play_part, put_together, summary
from benchmarks.paper.recipe import Numbers, Part, names, read_recipe
from benchmarks.paper.worlds import MissingData, load_world, part_of
from latentknobs.data.prompts import group_of
from latentknobs.errors import NoPairsError

PARTS = [(name, label) for name in names() for label in read_recipe(name).parts]
FIXED = {"train": "Problem: Mia has 3", "dev": "Problem: Tom has 4", "held_out": "Problem: Tom has 3"}
LABELS = {
    "statistics": "statistics-only head",
    "hand": "hand rule",
    "hand_min_p": "hand rule with min-p",
    "joint": "best joint constant",
}
GROUPS = {"heads", "constants", "rules", "standard", "tuned", "greedy decoding", "uniform mixture"}


def part(name: str, label: str) -> Part:
    return read_recipe(name).parts[label]


@pytest.mark.parametrize(("name", "label"), PARTS)
def test_claims_and_baselines_name_what_the_part_has(name: str, label: str) -> None:
    recipe = part(name, label)
    assert set(recipe.baselines) <= {"statistics", *SOURCES}
    assert recipe.hand or not {"hand", "hand_min_p"} & set(recipe.baselines)
    known = GROUPS | set(recipe.heads) | {LABELS.get(baseline, baseline) for baseline in recipe.baselines}
    for claim in recipe.claims:
        assert set(claim.over) <= known, claim
        assert (claim.head or next(iter(recipe.heads))) in recipe.heads, claim
        assert claim.measure in ("reward", *recipe.measures, *recipe.describe), claim
    assert {"reduced", "full"} <= set(recipe.sizes)
    for size in recipe.sizes.values():
        assert set(size.heads or []) <= set(recipe.heads)


@pytest.mark.parametrize("world", sorted({p.world for n, label in PARTS if (p := part(n, label)).world.startswith("testbed:")
                                          and "wiki" not in p.world}))  # fmt: skip
def test_the_parts_of_every_offline_world_are_disjoint_and_as_the_hash_says(world: str) -> None:
    made = load_world(world, {"train": 200, "dev": 60, "held_out": 60})
    parts = {name: made.prompts(name) for name in ("train", "dev", "held_out")}
    assert {name: len({p.text for p in prompts}) for name, prompts in parts.items()} == {"train": 200, "dev": 60, "held_out": 60}
    assert all(part_of(group_of(prompt)) == name for name, prompts in parts.items() for prompt in prompts)


def test_a_head_for_transfer_never_sees_a_held_out_prompt_of_the_other_task() -> None:
    sizes = {"train": 200, "dev": 50, "held_out": 50}
    trained, judged = load_world("testbed:math+stories", sizes), load_world("testbed:mixture", sizes)
    assert not {row["prompt"] for row in trained.train} & {row["prompt"] for row in judged.held_out}


def test_the_split_is_fixed() -> None:
    assert {name: part_of(text) for name, text in FIXED.items()} == {name: name for name in FIXED}


@pytest.fixture(scope="module")
def tiny() -> tuple[Part, Numbers]:
    recipe = part("ultra", "sequence level").model_copy(update={"baselines": ["statistics", "edt"], "describe": ["temperature"]})
    settings = {"rollouts": 4, "steps": 4, "hidden": 8, "max_new_tokens": 12, "batch_size": 64}
    return recipe, Numbers(train=24, dev=16, held_out=9, copies=2, settings=settings)


def test_a_run_asks_held_out_prompts_only_to_judge_and_is_not_repeated(
    tiny: tuple[Part, Numbers], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, set[str]] = defaultdict(set)
    order: list[str] = []

    def spy(module: Any, name: str, stage: str) -> None:
        real = getattr(module, name)

        def roll_out(*args: Any, **settings: Any) -> Any:
            prompts = next(arg for arg in args if isinstance(arg, list))
            parts = {part_of(group_of(prompt)) for prompt in prompts}
            asked[stage] |= parts
            order.extend(parts)
            return real(*args, **settings)

        monkeypatch.setattr(module, name, roll_out)

    spy(sampling_module, "roll_out_batch", "training")
    spy(arena_module, "roll_out", "arena")

    def play(piece: str) -> dict[str, Any]:
        order.clear()
        found = play_part(*tiny, tmp_path / piece, piece, lambda text: None)
        last_choice = max((i for i, name in enumerate(order) if name != "held_out"), default=0)
        assert "held_out" not in order[:last_choice]  # everything is chosen before the first held-out prompt is asked
        return found

    pieces = [play(piece) for piece in (RIVALS, "0", "1")]
    assert asked == {"training": {"train"}, "arena": {"dev", "held_out"}}
    assert pieces[1]["values"]["testbed"]["sequence"] != pieces[2]["values"]["testbed"]["sequence"]

    asked.clear()
    for piece, first in zip((RIVALS, "0", "1"), pieces, strict=True):
        repeated = play(piece)
        assert not asked and repeated["cost"]["responses"] == 0
        assert {k: v for k, v in repeated.items() if k != "cost"} == {k: v for k, v in first.items() if k != "cost"}
    pieces = json.loads(json.dumps(pieces))  # as they are kept
    field = put_together(pieces[0], pieces[1:])
    assert field.values["testbed"]["sequence"].shape == (2, 2, 9) and field.values["testbed"]["temperature 0"].shape == (1, 2, 9)
    correct([(*tiny, field)])
    again = summary(*tiny, field, pieces[0], pieces[1:])

    about = {"size": "smoke", "commit": "c", "date": "d", "command": "x"}
    kept = {"recipe": "ultra", "parts": {"a b": about | again}}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "ultra.json").write_text(json.dumps(kept))
    write_page(tmp_path / "results", tmp_path / "paper.md")
    summary_page, page = (tmp_path / "paper.md").read_text(), (tmp_path / "paper/ultra.md").read_text()
    assert summary_page.count("Not run yet.") == len(names()) - 1 and "[All tables](paper/ultra.md)" in summary_page
    assert "Smoke size: the figures mean nothing" in page
    rivals_of_voting, seed_of_voting = read_recipe("voting").minutes["reduced"]
    assert f"| `voting` | {rivals_of_voting:g} + {seed_of_voting:g} |" in summary_page
    assert (tmp_path / "images/paper/ultra-a-b.png").stat().st_size > 5000
    assert f"{again['tables'][0]['rows'][0]['gain'][0]:.3f}" in page
    rivals = [row["policy"] for row in again["tables"][0]["rows"]]
    assert len(again["tables"]) == 4 and len(rivals) == 6 + 3 + 2 + 3  # constants, standard, rules, controls
    assert {"its mean", "its choices shuffled", "best constant per task", "statistics-only head"} <= set(rivals)
    assert "2 training seeds" in page


@pytest.mark.parametrize("batch_size", [64, 4096])
def test_a_reward_sees_all_responses_to_a_prompt_in_one_call(
    batch_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Novelty compares them with each other; files and batches of training must not part them."""
    calls: list[Counter[str]] = []

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        calls.append(Counter(prompts))
        return [float(len(text)) for text in completions]

    monkeypatch.setattr(arena_module, "make_reward", lambda name, world: reward)
    monkeypatch.setattr(arena_module, "ONE_CALL", 40)
    world = load_world("testbed:mixture", {"train": 15, "dev": 3, "held_out": 3})
    settings = {"rollouts": 6, "steps": 2, "hidden": 4, "max_new_tokens": 4, "batch_size": batch_size, "reward": "x"}
    arena = Arena(world, tmp_path, settings | {"knobs": ["temperature:0,1"]})
    player = arena.fit("head", {})
    assert len(calls) == 3 and sum(len(call) for call in calls) == 15 and all(set(call.values()) == {6} for call in calls)

    calls.clear()
    arena.scores(arena.reward("x"), "dev", arena.play(player, "dev", 25), 25)
    assert len(calls) == 3 and all(set(call.values()) == {25} for call in calls)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "label"), PARTS)
def test_every_part_of_every_recipe_runs(name: str, label: str, tmp_path: Path) -> None:
    """With hardly any prompts; the figures mean nothing, but every head, rule, measure and claim is gone through."""
    recipe = part(name, label)
    settings = {"rollouts": 8, "steps": 3, "hidden": 8, "max_new_tokens": 24, "batch_size": 256}
    numbers = Numbers(train=40, dev=6, held_out=6, copies=8, dev_copies=8, settings=settings, baselines=["statistics", "hand"])
    try:
        rival, *seeds = (play_part(recipe, numbers, tmp_path / piece, piece, lambda text: None) for piece in (RIVALS, "0"))
    except (MissingData, NoPairsError) as reason:
        pytest.skip(str(reason))
    field = put_together(rival, seeds)
    correct([(recipe, numbers, field)])
    result = summary(recipe, numbers, field, rival, seeds)
    assert result["groups"]["heads"] == list(recipe.heads)
    assert [claim["say"] for claim in result["claims"]] == [claim.say for claim in recipe.claims]
    json.dumps(result)

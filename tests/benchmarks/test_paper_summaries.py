"""Summaries: what is kept for the page, and where it comes from."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.paper.__main__ import commit, main
from benchmarks.paper.archive import unpacked
from benchmarks.paper.recipe import forecast, names, read_recipe


def write(folder: Path, name: str, size: str, parts: dict[str, int]) -> None:
    path = folder / f"{name}-{size}" / "summary.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"recipe": name, "parts": {label: {"size": size, "n": n} for label, n in parts.items()}}))


def kept(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((folder / "results" / f"{name}.json").read_text())["parts"])


def test_the_full_size_of_a_part_is_kept_before_the_reduced_one(tmp_path: Path) -> None:
    write(tmp_path, "ultra", "reduced", {"token level": 1, "sequence level": 2})
    write(tmp_path, "ultra", "full", {"token level": 3})
    write(tmp_path, "voting", "reduced", {"up to 1": 4, "a part of an older recipe": 5})
    told = CliRunner().invoke(main, ["keep", "--out", str(tmp_path), "--results", str(tmp_path / "results")])
    assert told.exit_code == 0, told.output
    assert kept(tmp_path, "ultra") == {"sequence level": {"size": "reduced", "n": 2}, "token level": {"size": "full", "n": 3}}
    assert list(kept(tmp_path, "ultra")) == ["sequence level", "token level"]  # as the recipe orders them
    assert kept(tmp_path, "voting") == {"up to 1": {"size": "reduced", "n": 4}}
    assert "ultra: sequence level (reduced), token level (full)" in told.output
    assert len(list((tmp_path / "results").iterdir())) == 2


def test_the_commit_is_named_and_unsaved_changes_are_marked() -> None:
    told = commit()
    assert told.rstrip("+") == "unknown" or all(c in "0123456789abcdef" for c in told.rstrip("+"))
    assert told.count("+") <= 1


def test_an_unknown_recipe_or_part_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    runner = CliRunner()
    told = runner.invoke(main, ["run", "ultr", "--out", str(tmp_path)])
    assert told.exit_code and "There is no recipe 'ultr'" in told.output and "repetition" in told.output
    told = runner.invoke(main, ["run", "ultra", "--part", "tokens", "--out", str(tmp_path)])
    assert told.exit_code and "no part 'tokens'" in told.output and "token level" in told.output
    assert not list(tmp_path.iterdir())


def test_the_forecast_adds_up_rivals_and_training_seeds_and_names_what_was_not_measured() -> None:
    rivals, seed = read_recipe("voting").minutes["reduced"]
    assert f"About {rivals + 3 * seed:.0f} minutes" in forecast(["voting"], "reduced", 3)
    assert f"About {rivals:.0f} minutes" in forecast(["voting"], "reduced", 3, "rivals")
    assert f"About {seed:.0f} minutes" in forecast(["voting"], "reduced", 3, "0")
    assert forecast(["voting"], "smoke", 3) == "Not measured at this size: voting."
    assert forecast(names(), "smoke", 1) == f"Not measured at this size: {', '.join(names())}."


def test_training_rollouts_are_compressed_while_nobody_trains(tmp_path: Path) -> None:
    plain = tmp_path / "fit" / "a" / "round-1" / "rollouts" / "00000.jsonl"
    plain.parent.mkdir(parents=True)
    plain.write_text("x\n" * 1000)
    other = tmp_path / "fit" / "a" / "round-1" / "pairs.jsonl"
    other.write_text("y\n")
    for _ in range(2):
        with unpacked(tmp_path):
            assert plain.read_text() == "x\n" * 1000 and [p.name for p in plain.parent.iterdir()] == ["00000.jsonl"]
        assert [p.name for p in plain.parent.iterdir()] == ["00000.jsonl.gz"]
        assert (plain.parent / "00000.jsonl.gz").stat().st_size < 200 and other.exists()
    with pytest.raises(KeyboardInterrupt), unpacked(tmp_path):
        raise KeyboardInterrupt  # an interrupted recipe goes on with plain files
    assert [p.name for p in plain.parent.iterdir()] == ["00000.jsonl"]

"""`find_strategies` and its command: a pool answers, greedy coverage chooses, the other half of the prompts judges, and `train`
takes the file."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import latentknobs as lk
from latentknobs.cli import cli
from latentknobs.errors import ConfigError, DataError, SpaceError
from latentknobs.training.strategies import POOL, Strategies

SMALL: dict[str, Any] = {
    "knobs": ["temperature:0,0.7,1.2", "top_k:0,5"], "prompts": "testbed:mixture", "train_prompts": 8, "max_new_tokens": 8,
    "batch_size": 8,
}  # fmt: skip


def longer(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [float(len(set(completion))) for completion in completions]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Strategies:
    return lk.find_strategies(3, **SMALL, reward=longer, output_dir=tmp_path_factory.mktemp("pool"))


def test_the_pool_of_the_paper_has_180_options() -> None:
    space = lk.KnobSpace.of(*POOL)
    assert space.K == 180 and {knob.name: knob.neutral for knob in space.knobs}.keys() == {
        "temperature", "top_k", "top_p", "min_p",
    }  # fmt: skip
    neutral = [all(option[k.name] == k.neutral for k in space.knobs) for option in space.options]
    assert sum(neutral) == 1, "untruncated temperature 1 is among them"


def test_coverage_grows_where_it_was_chosen_and_both_halves_are_shown(found: Strategies) -> None:
    rows = found.rows()
    assert [row[0] for row in rows] == [found.space.label(k) for k in found.chosen] and len(set(found.chosen)) == 3
    where_chosen = [row[1] for row in rows]
    assert where_chosen == sorted(where_chosen) and 0 < int(found.chooses_P.sum()) < len(found.chooses_P) == 8
    means_K = found.reward_PK[found.chooses_P].mean(0)
    assert found.chosen[0] == found.best[0] and means_K[found.best[0]] == means_K.max()
    judging_PK = found.reward_PK[~found.chooses_P]
    assert rows[2][2] == pytest.approx(float(judging_PK[:, found.chosen].amax(-1).mean()))
    assert rows[2][3] == pytest.approx(float(judging_PK[:, found.best].amax(-1).mean()))


def test_train_takes_the_file_and_lists(found: Strategies, tmp_path: Path) -> None:
    more = {"train_prompts": 4, "rollouts": 2, "eval_size": 0, "steps": 1, "pairs_per_step": 2, "max_new_tokens": 4}
    options = [found.space.options[k] for k in found.chosen]
    run = lk.train(**more, strategies=str(found.path), prompts="testbed:stories", output_dir=tmp_path / "one")
    assert run.adapter.space.options == options and run.adapter.space.names == ("temperature", "top_k")
    listed = [{"temperature": 0.7}, {"temperature": 1.2, "top_k": 5}]
    run = lk.train(**more, knobs=SMALL["knobs"], strategies=listed, prompts="testbed:stories", output_dir=tmp_path / "two")
    assert run.adapter.space.options == [{"temperature": 0.7, "top_k": 0.0}, {"temperature": 1.2, "top_k": 5.0}]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"strategies": [{"temperature": 0.3}]}, SpaceError, r"There is no option \{'temperature': 0\.3"),
        ({"strategies": [{"warmth": 1.0}]}, SpaceError, r"There is no option"),
        ({"strategies": "nowhere.json"}, SpaceError, r"There is no file of strategies 'nowhere.json'"),
    ],
)
def test_strategies_that_are_not_in_the_space_are_refused(settings: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        lk.train(knobs=SMALL["knobs"], **settings)


def test_a_pool_that_cannot_give_so_many_and_too_few_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match="7 strategies cannot be chosen from 6 options"):
        lk.find_strategies(7, **SMALL, output_dir=tmp_path)
    with pytest.raises(ConfigError, match="copies=0"):
        lk.find_strategies(1, copies=0, **SMALL, output_dir=tmp_path)
    with pytest.raises(DataError, match="too few for two halves"):
        lk.find_strategies(1, **SMALL | {"train_prompts": 1}, reward=longer, output_dir=tmp_path)


def test_the_command_shows_a_table_draws_a_plot_and_names_the_next_step(tmp_path: Path) -> None:
    flags = ["--count=2", "--knobs=temperature:0,1", "--prompts=testbed:stories", "--train-prompts=6", "--max-new-tokens=6"]
    result = CliRunner().invoke(cli, ["strategies", *flags, f"--output-dir={tmp_path}"])
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert "2 of 2 options" in result.stdout and f"latentknobs train --strategies {tmp_path / 'strategies.json'}" in result.stdout
    assert (tmp_path / "coverage.png").read_bytes()[:4] == b"\x89PNG"
    assert [sorted(option) for option in json.loads((tmp_path / "strategies.json").read_text())["strategies"]] == [
        ["temperature"]
    ] * 2
    again = CliRunner().invoke(cli, ["strategies", *flags, f"--output-dir={tmp_path}"])
    assert again.exit_code == 0 and "pool/rollouts: already done, reused" in again.stderr

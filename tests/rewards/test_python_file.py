"""A Python file as a reward."""

import sys
from pathlib import Path

import pytest

from latentknobs.errors import ConfigError
from latentknobs.rewards import resolve_reward, resolve_rewards, score_all

ONE = "def longest(completions, **columns):\n    return [len(text) for text in completions]\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "score.py"
    path.write_text(ONE)
    return path


def scored(spec: str) -> list[float]:
    return list(resolve_reward(spec)(prompts=["a", "b"], completions=["one", "three"]))


def test_the_only_function_needs_no_name_and_a_name_chooses_one_of_several(file: Path) -> None:
    assert scored(str(file)) == [3, 5]
    file.write_text(ONE + "def reward(completions, **_):\n    return [1] * len(completions)\n")
    assert scored(str(file)) == [1, 1] and scored(f"{file}:longest") == [3, 5]


def test_it_imports_what_lies_beside_it_and_leaves_the_path_alone(file: Path) -> None:
    (file.parent / "lengths_beside.py").write_text("def length(text):\n    return len(text) + 1\n")
    file.write_text("from lengths_beside import length\ndef reward(completions, **_):\n    return [*map(length, completions)]\n")
    before = list(sys.path)
    assert scored(str(file)) == [4, 6] and sys.path == before


def test_it_may_hold_dataclasses_and_be_called_like_another_module(file: Path) -> None:
    path, json = file.with_name("json.py"), sys.modules.get("json")
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Weight:\n    each: float = 2\n"
        "def reward(completions, **_):\n    return [Weight().each * len(text) for text in completions]\n"
    )
    assert scored(str(path)) == [6, 10] and sys.modules.get("json") is json


def test_its_scores_are_kept_until_the_file_changes(file: Path) -> None:
    first = resolve_rewards(str(file))
    assert not first.unversioned and resolve_rewards(str(file)).key == first.key
    file.write_text(ONE.replace("len(text)", "len(text) + 1"))
    assert resolve_rewards(str(file)).key != first.key
    assert [score.value for score in score_all(str(file), ["a"], ["one"], {})] == [4]


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        (None, "", "there is no '.*score.py'. Correct its path"),
        (ONE, ":longer", "has no function 'longer' to be the reward. Did you mean \"longest\""),
        ("limit = 3\n", "", "has no function 'reward' to be the reward. It has none: write `def reward"),
        ("class reward:\n    pass\n", ":reward", "has no function 'reward'"),
        ("def a(x):\n    pass\ndef b(x):\n    pass\n", "", "has no function 'reward'.*Known: a, b"),
        ("def reward(:\n", "", "cannot be imported: SyntaxError: .*line 1"),
        ("import nothing_of_this_name\n", "", "cannot be imported: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("raise SystemExit(3)\n", "", "cannot be imported: SystemExit: 3"),
        (b"\xff\xfe", "", "cannot be imported: SyntaxError"),
    ],
)
def test_what_cannot_be_the_reward_is_refused_by_name(
    file: Path, code: str | bytes | None, name: str, message: str
) -> None:  # fmt: skip
    file.unlink() if code is None else file.write_bytes(code.encode() if isinstance(code, str) else code)
    with pytest.raises(ConfigError, match=message):
        resolve_reward(f"{file}{name}")

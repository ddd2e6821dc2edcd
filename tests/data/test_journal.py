"""A finished response is on disk at once, and no later run samples it again."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from table_engine import TableEngine

from latentknobs.data.journal import Journal
from latentknobs.data.prompts import Prompt
from latentknobs.data.rollouts import Rollout, roll_out_batch
from latentknobs.engines.base import Ids, Response
from latentknobs.heads.segmenters import Every
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import Policy, UniformPolicy

PROMPTS = [Prompt("a", (3,)), Prompt("b", (4, 5)), Prompt("c", (6,))]
POLICY = UniformPolicy(KnobSpace.of({"temperature": [0.5, 1.5]}), Every(1))


class OneByOne(TableEngine):
    """Gives the last response first, and stops after `left` of them."""

    def __init__(self, left: int = 1000) -> None:
        super().__init__()
        self.left = left

    def stream(self, prompts: Sequence[Ids], policy: Policy, **settings: Any) -> Iterator[tuple[int, Response]]:
        for row, response in reversed(list(super().stream(prompts, policy, **settings))):
            if self.left == 0:
                raise ConnectionError
            self.left -= 1
            yield row, response


def roll_out(engine: TableEngine, journal: Journal) -> list[Rollout]:
    with journal:
        known, keep = journal.known(7), lambda place, rollout: journal.add(7, place, rollout)
        return roll_out_batch(engine, PROMPTS, [1, 0, 2], POLICY, max_new_tokens=6, seed=0, known=known, keep=keep)


def test_what_was_finished_before_a_failure_is_not_sampled_again(tmp_path: Path) -> None:
    whole = roll_out(OneByOne(), Journal(tmp_path / "other" / "journal", "key"))
    path = tmp_path / "journal"
    with pytest.raises(ConnectionError):
        roll_out(OneByOne(2), Journal(path, "key"))
    assert len(path.read_text().splitlines()) == 3  # the key, and two responses
    assert roll_out(OneByOne(1), Journal(path, "key")) == whole
    assert not path.exists()


@pytest.mark.parametrize("tail", ['{"batch": 7, "place": 2, "rol', "", "{}\n", "5\n"])
def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "journal"
    for left in (1, 1):  # the second line follows the damaged one
        with pytest.raises(ConnectionError):
            roll_out(OneByOne(left), Journal(path, "key"))
        with path.open("a") as file:
            file.write(tail)
    assert len(roll_out(OneByOne(1), Journal(path, "key"))) == 3


def test_a_journal_of_other_settings_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with pytest.raises(ConnectionError):
        roll_out(OneByOne(2), Journal(path, "before"))
    with pytest.raises(ConnectionError):
        roll_out(OneByOne(2), Journal(path, "now"))
    assert path.read_text().startswith("now\n") and "before" not in path.read_text()

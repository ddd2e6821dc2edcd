"""Tasks of the instruct model: rewards that word salad does not earn, and splits that share nothing."""

import pytest

from benchmarks.instruct.__main__ import rules
from benchmarks.instruct.tasks import TASKS, Ideas, Names, Opener
from latentknobs.policies.names import policy_of
from latentknobs.testbed import load_tokenizer

GOOD = (
    " the old man went to the river with his dog. So they sat under a big tree and looked at the water. So the little dog "
    "jumped in and found a red ball. So they were happy and walked home."
)


@pytest.mark.parametrize("task", TASKS)
def test_held_out_prompts_share_neither_template_nor_subject_with_training_prompts(task: str) -> None:
    train, held_out = (TASKS[task].rows(is_held_out, 1000) for is_held_out in (False, True))
    for column in ("group", "subject"):
        assert not {row[column] for row in train} & {row[column] for row in held_out}
    assert len({row["prompt"][0]["content"] for row in train}) == len(train) >= 12 and len(held_out) >= 12


def test_an_opener_is_worth_nothing_without_sentences_and_little_with_salad_or_repetition() -> None:
    good, none, salad, again = Opener("So")(
        ["p"] * 4, [GOOD, GOOD.replace("So ", "Then "), " Blix florp. So Grawn thoil zib. So qua.", " it was. So" * 10]
    )
    assert good > 0.5 and none == 0 and salad < 0.2 and again < 0.2


def test_names_must_be_lines_of_their_own_distinct_and_not_the_usual_ones() -> None:
    texts = [
        " Zephyra\n2. Orin\n3. Kaela\n4. Thorn\n5. Ysolde\n", " Zephyra\n2. Zephyra\n3. Zephyra\n", " Emily\n2. Jack\n",
        " Zephyra, who was born in a storm\n2. xx\n", " Bcd\n2. Grm\n",
    ]  # fmt: skip
    assert Names("1.")(["p"] * 5, texts) == [1, 0.2, 0, 0, 0]


def test_ideas_earn_by_words_that_no_earlier_line_has_used() -> None:
    fresh, again, salad = Ideas("1.")(["p"] * 3, [
        " play in the park\n2. eat red apples\n3. sing old songs\n4. swim with friends\n5. draw your house\n",
        " play in the park\n2. play in the park\n3. play in the park\n", " zib florp grawn\n2. thoil quax\n",
    ])  # fmt: skip
    assert fresh > 0.9 and again == pytest.approx(0.2) and salad == 0


@pytest.mark.parametrize("task", TASKS)
def test_hand_rules_are_policies(task: str) -> None:
    assert len({policy_of(name, load_tokenizer()).identity() for name in rules(task)}) == len(rules(task)) >= 6

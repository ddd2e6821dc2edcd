"""Tasks of the instruct model: rewards that word salad does not earn, and splits that share nothing."""

import pytest

from benchmarks.instruct.rewards import Ideas, Names, Opener, Questions, Spread, last_number
from benchmarks.instruct.rivals import CONSTANTS, VARIANTS, rules
from benchmarks.instruct.tasks import MANY, MIXTURE, MORE, SUMS, TASKS
from latentknobs.config import make_config
from latentknobs.policies.names import policy_of
from latentknobs.testbed import load_tokenizer

GOOD = (
    " the old man went to the river with his dog. So they sat under a big tree and looked at the water. So the little dog "
    "jumped in and found a red ball. So they were happy and walked home."
)
WRITTEN = sorted(set(TASKS) - {"repeats"})  # the others come from a file


@pytest.mark.parametrize("task", WRITTEN)
def test_held_out_prompts_share_neither_template_nor_text_with_training_prompts(task: str) -> None:
    train, held_out = (TASKS[task].rows(is_held_out, 64) for is_held_out in (False, True))
    train += [row for breadth in (MORE, MANY) for row in TASKS[task].rows(False, 20_000, breadth)]
    assert len({str(row["prompt"]) for row in train}) >= 12
    assert not {row["group"] for row in train} & {row["group"] for row in held_out}
    texts = [{message["content"] for row in rows for message in row["prompt"]} - {"1."} for rows in (train, held_out)]
    assert not texts[0] & texts[1] and len(held_out) >= 12


def test_an_opener_is_worth_nothing_without_sentences_and_little_with_salad_or_repetition() -> None:
    good, none, salad, again = Opener("So")(
        ["p"] * 4, [GOOD, GOOD.replace("So ", "Then "), " Blix florp. So Grawn thoil zib. So qua.", " it was. So" * 10]
    )
    assert good > 0.5 and none == 0 and salad < 0.2 and again < 0.2


def test_an_opener_of_lines_counts_lines() -> None:
    wishes = Opener("I wish", by_line=True)
    lines = (
        " to see the sea.\nI wish the birds would sing for me again.\nI wish that every door was open and that people smiled.\n"
    )
    kept, broken = wishes(["p"] * 2, [lines, lines.replace("I wish the", "And the")])
    assert kept > 0.6 and broken == pytest.approx(kept / 2, abs=0.05)


def test_names_must_be_lines_of_their_own_distinct_and_not_the_usual_ones() -> None:
    texts = [
        " Zephyra\n2. Orin\n3. Kaela\n4. Thorn\n5. Ysolde\n", " Zephyra\n2. Zephyra\n3. Zephyra\n", " Emily\n2. Jack\n",
        " Zephyra, who was born in a storm\n2. xx\n", " Bcd\n2. Grm\n",
    ]  # fmt: skip
    assert Names("1.")(["p"] * 5, texts) == [1, 0.2, 0, 0, 0]


def test_ideas_and_questions_earn_by_words_that_no_earlier_line_has_used() -> None:
    lines = " play in the park\n2. eat red apples\n3. sing old songs\n4. swim with friends\n5. draw your house\n"
    fresh, again, salad = Ideas("1.")(["p"] * 3, [
        lines, " play in the park\n2. play in the park\n3. play in the park\n", " zib florp grawn\n2. thoil quax\n",
    ])  # fmt: skip
    assert fresh > 0.9 and again == pytest.approx(0.2) and salad == 0
    assert Questions("1.")(["p"] * 2, [lines.replace("\n", "?\n"), lines]) == [pytest.approx(fresh), 0]


def test_sums_and_the_mixture_score_each_prompt_by_its_own_task() -> None:
    assert last_number(["p"] * 2, ["7 and 5 make 12.", "It is 11"], answer=["12", "12"]) == [1, 0]
    assert all(4 <= int(row["answer"]) <= 20 for row in SUMS.rows(True, 60))
    rows = MIXTURE.rows(False, 8)
    texts = [GOOD if row["task"] == "so" else f"It is {row['answer']}." for row in rows]
    columns = {name: [row[name] for row in rows] for name in ("task", "answer", "group")}
    assert min(MIXTURE.reward(["p"] * 8, texts, **columns)) > 0.5 and {row["task"] for row in rows} == {"so", "sums"}


def test_repeats_and_unknown_words_lower_the_spread() -> None:
    good, again, salad = Spread()(["p"] * 3, [GOOD, "it was a day and " * 8, " ".join(f"zqb{n}x" for n in range(30))])
    assert good > 0.9 and again < 0.3 and salad < 0.05


@pytest.mark.parametrize("kind", sorted({task.kind for task in TASKS.values()}))
def test_rivals_are_policies(kind: str) -> None:
    names = [*CONSTANTS, *rules(kind)]
    assert len({policy_of(name, load_tokenizer()).identity() for name in names}) == len(names) >= 40


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_configs(variant: str) -> None:
    settings = {name: value for name, value in VARIANTS[variant].items() if name not in ("alone", "breadth")}
    knobs = settings["knobs"]
    config = make_config(settings | {"knobs": [knobs] if isinstance(knobs, str) else knobs})
    assert settings.keys() <= config.changed

"""Tasks for an instruct model that a user would recognise: prompts by template, and rewards that word salad does not earn.

Templates, beginnings and subjects of held-out prompts never occur in training prompts. The column `group` names the template.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.instruct import openers, words
from benchmarks.instruct.rewards import Ideas, Names, Opener, Questions, Spread, last_number
from latentknobs.data.prompts import is_held_out
from latentknobs.rewards.text import Texts

Row = dict[str, Any]
Reward = Callable[..., list[float]]
FEW, MORE, MANY = "few", "more", "many"
Templates = tuple[Sequence[tuple[str, str]], Sequence[tuple[str, str]]]


@dataclass(frozen=True)
class Task:
    """Prompts and their reward; of each pair the first part trains and tunes, the second is held out.

    Attributes:
        templates: what the user writes, and how the answer begins; `{}` is a subject in both.
        kind: which hand rules are tried, see `rivals.RULES`.
        more, many: further templates, for heads that train on `MORE` or `MANY` prompts; nothing else sees them.
    """

    name: str
    templates: Templates
    subjects: tuple[Sequence[Any], Sequence[Any]]
    reward: Reward
    kind: str
    max_new_tokens: int = 48
    more: Sequence[tuple[str, str]] = ()
    many: Sequence[tuple[str, str]] = ()

    def rows(self, held_out: bool, count: int, breadth: str = FEW) -> list[Row]:
        """The first so many prompts, each a conversation, in an order that mixes templates and subjects.

        Args:
            breadth: of training prompts: FEW, or MORE and MANY: with further templates, MANY also with further subjects.
        """
        further = {FEW: (), MORE: self.more, MANY: self.many}[breadth]
        subjects = [*self.subjects[held_out], *(openers.subjects() if further and breadth == MANY else ())]
        pairs = [(template, subject) for template in (*self.templates[held_out], *further) for subject in subjects]
        random.Random(0).shuffle(pairs)
        rows = {str(row["prompt"]): row for row in (self._row(*template, subject) for template, subject in pairs)}
        return list(rows.values())[:count]

    def _row(self, template: str, beginning: str, subject: str) -> Row:
        begun = [{"role": "assistant", "content": beginning.format(subject)}] if beginning else []
        prompt = [{"role": "user", "content": template.format(subject)}, *begun]
        return {"prompt": prompt, "group": template, "task": self.name, "answer": ""}


class Sums(Task):
    """Sums of two small numbers."""

    def _row(self, template: str, beginning: str, subject: Any) -> Row:
        a, b = subject
        prompt = [{"role": "user", "content": template.format(a=a, b=b)}]
        return {"prompt": prompt, "group": template, "task": self.name, "answer": str(a + b)}


@dataclass(frozen=True)
class Mixture:
    """Prompts of several tasks in turn, each with its own reward."""

    tasks: tuple[Task, ...]
    name: str = "mixture"
    kind: str = "sentences"
    max_new_tokens: int = 48

    def rows(self, held_out: bool, count: int, breadth: str = FEW) -> list[Row]:
        """The same number of each task."""
        each = [task.rows(held_out, count // len(self.tasks), breadth) for task in self.tasks]
        return [row for rows in zip(*each, strict=False) for row in rows]

    def reward(
        self, prompts: Texts, completions: Texts, *, task: Sequence[str], answer: Sequence[str], **columns: Any
    ) -> list[float]:
        """The reward of each prompt's own task."""
        own = {each.name: each.reward for each in self.tasks}
        rows = zip(prompts, completions, task, answer, strict=True)
        return [own[name]([prompt], [text], answer=[right])[0] for prompt, text, name, right in rows]


@dataclass(frozen=True)
class Texts50(Task):
    """Paragraphs of WikiText-2, of which the model goes on from the first 50 tokens; no conversation."""

    def rows(self, held_out: bool, count: int, breadth: str = FEW) -> list[Row]:
        """The first so many paragraphs of a split."""
        texts = [text for text in words.paragraphs() if is_held_out(text) == held_out]
        return [{"prompt": text, "group": text[:40], "task": self.name, "answer": ""} for text in texts[:count]]


def stories(opener: str) -> Task:
    """Stories in which every sentence must begin with a word; the answer begins with two such sentences."""
    templates: Templates = (
        [
            (f"Write a short story about {{}}. Every sentence must begin with the word {opener}.",
             f"{opener} this is a story about {{}}. {opener} it began one morning. {opener}"),
            (f"Tell a story about {{}} in which each sentence starts with {opener}.",
             f"{opener} here is the story of {{}}. {opener} everybody was there. {opener}"),
            (f"Begin every sentence with \"{opener}\". Write a few sentences about {{}}.",
             f"{opener} it was all about {{}}. {opener} the day was bright. {opener}"),
        ],
        [
            (f"Please write about {{}}. Start all of your sentences with {opener}.",
             f"{opener} we heard about {{}}. {opener} nothing was the same again. {opener}"),
            (f"{{}}: a story. Each sentence begins with {opener}.",
             f"{opener} a tale of {{}} was told. {opener} the evening came. {opener}"),
        ],
    )  # fmt: skip
    more = [(text.replace("OPENER", opener), start.replace("OPENER", opener)) for text, start in openers.MORE]
    many = [*more, *((text.replace("OPENER", opener), start.replace("OPENER", opener)) for text, start in openers.MANY)]
    return Task(opener.lower(), templates, words.SUBJECTS, Opener(opener), "sentences", more=more, many=many)


def listed(name: str, train: Sequence[str], held_out: Sequence[str], subjects: Any, reward: Reward, kind: str = "items") -> Task:
    """A task whose answer is a numbered list."""
    return Task(name, ([(text, "1.") for text in train], [(text, "1.") for text in held_out]), subjects, reward, kind)


SO = stories("So")
SUMS = Sums(
    "sums", ([(text, "") for text in words.PROBLEMS[0]], [(text, "") for text in words.PROBLEMS[1]]),
    (words.sums(False), words.sums(True)), last_number, "sentences",
)  # fmt: skip
WISHES = Task(
    "wishes",
    (
        [
            ("Write a poem about {}. Begin every line with \"I wish\".", "I wish for {}.\nI wish I were there.\nI wish"),
            ("A poem on {}, please, whose lines all start with I wish.", "I wish you knew {}.\nI wish it were mine.\nI wish"),
        ],
        [("Write some lines about {}. Each line begins with I wish.", "I wish to speak of {}.\nI wish we could stay.\nI wish")],
    ),
    words.SUBJECTS, Opener("I wish", by_line=True), "lines",
)  # fmt: skip
IDEAS = listed(
    "ideas", ["Give five very different ideas for {}. Write a numbered list with a few words in each line."],
    ["I need five short ideas for {}, as different as possible. Number them."], words.OCCASIONS, Ideas("1."),
)  # fmt: skip
NAMES = listed(
    "names",
    [
        "Invent five unusual first names for {}. One name in each line.",
        "Five new first names for {}, please, one in each line.",
        "Number five first names for {} that nobody has heard before.",
    ],
    ["List five rare first names for {}, one per line.", "I need five unusual names for {}. Write one in each line."],
    words.CHARACTERS, Names("1."),
)  # fmt: skip
QUESTIONS = listed(
    "questions",
    [
        "Write five different questions about {}. Number them.",
        "What could one ask about {}? Give five short questions in a numbered list.",
    ],
    ["Please list five questions on {}, each one about something else."], words.SUBJECTS, Questions("1."),
)  # fmt: skip
REPEATS = Texts50("repeats", ([], []), ([], []), Spread(), "sentences", 64)
MIXTURE = Mixture((SO, SUMS))
TASKS = {task.name: task for task in (SO, stories("Then"), SUMS, MIXTURE, WISHES, IDEAS, NAMES, QUESTIONS, REPEATS)}

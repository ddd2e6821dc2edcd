"""What the prompts are about: in each pair, subjects of training prompts, then those of held-out prompts."""

import os
import random
from functools import cache
from pathlib import Path

SUBJECTS = (
    (
        "a dog", "a lost key", "an old clock", "two brothers", "a storm", "a garden", "a small boat", "a birthday", "the moon",
        "a bakery", "a red kite", "a farmer", "a long walk", "the first snow", "a tired teacher", "a broken cup", "a train",
        "a hidden door", "a young king", "a quiet village", "a blue bird", "a school trip", "a market", "a singer",
        "a tall tower",        "a lazy fox", "a letter", "the harvest", "an empty house", "a brave girl",
        "a journey", "the river", "a strange guest",
    ),
    (
        "a cat", "the sea", "a forgotten song", "a doctor", "a hot summer", "a mountain", "an apple tree", "a new friend",
        "a horse", "a bridge", "a painter", "a dark forest", "a wedding", "a lost child", "a secret map", "a winter night",
        "a sailor", "the last bus", "a rainy day", "an island", "a clever mouse", "the baker's son", "a golden ring", "a dream",
        "a noisy street", "the old mill", "a wolf", "a promise", "a picnic", "the library", "a wooden toy", "a giant",
        "a hungry bear", "a candle", "the desert", "a football match", "a little robot", "a thief", "the clouds", "a race",
        "a strict aunt", "the night train", "a spider", "a silver coin", "a lonely star", "the camp", "a farm", "a concert",
        "a cold lake", "a parrot", "the museum", "a mirror", "a shy boy", "a heavy bag", "the kitchen", "a lighthouse",
        "a fish", "a neighbour", "the fair", "a snowman", "a puzzle", "a balloon", "the forest path", "a nurse",
    ),
)  # fmt: skip
OCCASIONS = (
    (
        "a picnic", "a school party", "saving money", "a rainy day", "a small garden", "learning a language",
        "helping a neighbour", "a birthday present", "better sleep", "a quiet evening", "a family trip", "cooking with eggs",
        "a long winter", "an empty room", "using old paper", "a new club", "a local fair", "a healthy breakfast",
    ),
    (
        "a summer party", "a long train ride", "a gift for a teacher", "staying healthy", "a cold winter day", "making friends",
        "a lunch box", "an old bicycle", "a day at the beach", "a class project", "decorating a room", "a surprise visit",
        "a small balcony", "a lazy Sunday", "old clothes", "a book club", "a street party", "a simple dinner",
    ),
)  # fmt: skip
CHARACTERS = (
    (
        "a hero", "a villain", "a robot", "a dragon", "a princess", "a wizard", "a pirate", "a captain", "a farmer",
        "a detective", "a bear", "a dancer", "a baker", "a cowboy", "a fairy", "a judge", "a monkey", "a nurse", "an owl",
        "a painter", "a sheriff", "a spy", "a teacher", "a tiger",
    ),
    (
        "an elf", "a ghost", "a queen", "a knight", "a giant", "a sailor", "a witch", "a thief", "a soldier", "a prince",
        "a cat", "a doctor", "a gardener", "a hunter", "a mermaid", "a singer", "a wolf", "a goblin", "a pilot", "a king",
        "a fisherman", "a horse", "a blacksmith", "a monk", "a duchess", "a fox", "a miner", "a poet", "a rabbit", "a ranger",
        "a shepherd", "a troll",
    ),
)  # fmt: skip
PROBLEMS = (  # of one step
    ("Calculate {a} + {b}.", "Find the sum {a} + {b}.", "Please calculate {a} + {b} and explain."),
    ("Compute {a} + {b}.", "Work out {a} + {b}, please."),
)


def sums(held_out: bool) -> list[tuple[int, int]]:
    """Pairs of numbers from 2 to 10, half of them for training prompts."""
    pairs = [(a, b) for a in range(2, 11) for b in range(2, 11)]
    random.Random(0).shuffle(pairs)
    return pairs[held_out::2]


@cache
def paragraphs() -> tuple[str, ...]:
    """The beginnings of the paragraphs of WikiText-2 (LATENTKNOBS_DATA or `data/`), about 50 tokens each."""
    file = Path(os.environ.get("LATENTKNOBS_DATA", "data")) / "wikitext-2" / "valid.txt"
    text = file.read_text(encoding="utf-8")
    for mark, plain in {" @-@ ": "-", " @,@ ": ",", " @.@ ": ".", " <unk>": "", " ,": ",", " .": ".", " 's": "'s"}.items():
        text = text.replace(mark, plain)
    lines = [line.strip() for line in text.splitlines() if not line.startswith(" =")]
    return tuple(" ".join(line.split()[:38]) for line in lines if len(line.split()) > 60)

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
MORE_SUBJECTS = (  # of training prompts, beside those
    "a bus driver", "the mayor", "an old photograph", "a swarm of bees", "the dentist", "a cracked bell", "an orange cat",
    "a rusty bicycle", "the circus", "a pair of shoes", "a windmill", "the ferry", "a pumpkin", "a shopkeeper", "the playground",
    "a wise owl", "a carpet", "the tailor", "a muddy road", "an umbrella", "the postman", "a glass of milk", "the orchestra",
    "a stubborn donkey", "a flood", "the twins", "an attic", "a spelling contest", "the elevator", "a fire in the hills",
    "a stray puppy", "the violin", "a stone wall", "the cook", "a frozen pond", "an uncle from abroad", "the telescope",
    "a chess game", "a basket of plums", "the ticket", "a sleepy guard", "the waterfall", "a kind stranger", "an argument",
    "the barber", "a caravan", "a wet coat", "the choir", "a nest", "the judge", "a paper plane", "an earthquake",
    "the fisherman's daughter", "a power cut", "the soup", "a tunnel", "a jealous queen", "the radio", "a cave", "the swing",
    "a plumber", "an early bird", "the jar of buttons", "a traffic jam", "the vineyard", "a false alarm", "a ladder",
    "the new student", "a hotel by the road", "an old soldier", "the pharmacy", "a burnt cake", "the sunflower", "a joke",
    "a pair of glasses", "the drummer", "a hedgehog", "an unpaid bill", "the airport", "a blanket", "the last match", "a cousin",
    "a roof that leaks", "the goat", "a phone call", "an invention", "the swimming pool", "a pocket watch", "the miller",
    "a foreign coin", "a broken promise", "the sheep dog", "a visit to grandmother", "an old tractor", "the curtain",
    "a bottle in the waves", "the hunter", "a cheap hat", "a haunted barn", "the referee", "a slow turtle", "a bag of flour",
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

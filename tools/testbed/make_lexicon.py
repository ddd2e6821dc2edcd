"""The packaged lexicon: counts of the words of the recipe's stories.

    python -m tools.testbed.make_lexicon --data $LATENTKNOBS_DATA --sampled sampled.jsonl --out lexicon.json

Every word of the real TinyStories counts. A word that only the sampled stories have may be misspelled, so it counts only if
ordinary English text (WikiText-2, GSM8K) has it too, or it is the possessive of a known word. Words of the prompts'
templates are always in.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from latentknobs.rewards import Lexicon
from latentknobs.rewards.text import words_of
from latentknobs.testbed import words
from tools.testbed.recipe import read_sampled
from tools.testbed.sample_stories import read_stories

TRUSTED_TEXTS = ("wikitext-2/valid.txt", "gsm8k/train.jsonl")


def recipe_lexicon(data: Path, sampled: Path) -> Lexicon:
    """Counts over real and sampled stories of all words that are spelled correctly as far as we can tell."""
    real = Lexicon.from_text(read_stories(data)).counts
    trusted_text = "\n".join((data / name).read_text(encoding="utf-8") for name in TRUSTED_TEXTS)
    known = {*real, *Lexicon.from_text(trusted_text).counts, *_template_words()}
    counts = Counter(real)
    for word, count in Lexicon.from_text(story.text for story in read_sampled(sampled)).counts.items():
        if word in known or word.removesuffix("'s") in known:
            counts[word] += count
    for word in _template_words():
        counts[word] = max(counts[word], 1)
    return Lexicon(counts)


def _template_words() -> set[str]:
    lists = (value for name, value in vars(words).items() if name.isupper())
    return {word.lower() for entries in lists for entry in entries for word in words_of(entry)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with tinystories/, wikitext-2/ and gsm8k/")
    parser.add_argument("--sampled", type=Path, required=True, help="what sample_stories wrote")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    args = parser.parse_args()
    recipe_lexicon(args.data, args.sampled).save(args.out)


if __name__ == "__main__":
    main()

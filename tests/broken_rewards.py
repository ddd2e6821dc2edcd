"""One broken reward for each conformance check: it does its job except for the one fault that its check is there to find."""

import random

import numpy as np


def good(prompts, completions, **columns):
    return [float(len(text)) for text in completions]


def wants_another_column(completions, solution):
    return [float(text == wanted) for text, wanted in zip(completions, solution, strict=True)]


def drops_duplicates(completions, **columns):
    return {float(len(text)) for text in completions}


def answers_with_text(completions, **columns):
    return [f"{len(text)}/10" for text in completions]


def best_first(completions, **columns):
    return sorted((float(len(text)) for text in completions), reverse=True)


def squeezes(completions, **columns):
    return np.array([[len(text)] for text in completions]).squeeze()


def counts_columns(completions, **columns):
    return [float(len(text) * len(columns)) for text in completions]


def share_of_words(completions, **columns):
    return [len({*text.split()}) / len(text.split()) for text in completions]


def strips_in_place(completions, **columns):
    for n, text in enumerate(completions):
        completions[n] = text.strip()
    return [float(len(text)) for text in completions]


class VersionOfTwo:
    version = ("1", 2)

    def __call__(self, completions, **columns):
        return good(None, completions)


class Noisy:
    version = "1"

    def __call__(self, completions, **columns):
        return [len(text) + random.random() for text in completions]


class Centred:
    version = "1"

    def __call__(self, completions, **columns):
        lengths = np.array(good(None, completions))
        return lengths - lengths.mean()


BROKEN = {
    "can_be_called": wants_another_column,
    "gives_one_answer_for_each": drops_duplicates,
    "answers_with_numbers": answers_with_text,
    "keeps_the_order": best_first,
    "accepts_a_single_completion": squeezes,
    "accepts_extra_columns": counts_columns,
    "survives_odd_texts": share_of_words,
    "does_not_change_inputs": strips_in_place,
    "version_can_be_used": VersionOfTwo(),
    "is_repeatable": Noisy(),
    "judges_each_alone": Centred(),
}

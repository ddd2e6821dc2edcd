"""Exact match of a final number: the verifiable reward of word problems."""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from latentknobs.errors import RewardError
from latentknobs.rewards.text import Texts, text_of

_MAGNITUDE = r"(?:\d[\d,]*(?:\.\d+|/0*[1-9]\d*)?|\.\d+)"
# A minus belongs to the number only where no operand stands before it: "19-5" ends in 5, "= -5" in -5.
_NUMBER = re.compile(rf"(?<![\w.)])-{_MAGNITUDE}|{_MAGNITUDE}")


def final_number(text: str, marker: str | None = "####") -> Fraction | None:
    """The last number of `text`, of the part after the last `marker` if the marker is there; None without a number.

    Thousands commas, decimals and fractions such as `3/4` are understood, and compare by value (`2.50 == 5/2`).
    """
    numbers = _NUMBER.findall(text.rpartition(marker)[2] if marker else text)
    return Fraction(numbers[-1].replace(",", "")) if numbers else None


class ExactMatch:
    """1.0 where the final number of the completion equals the column `answer`, else 0.0.

    The answer may be a number or a text that holds one; a whole GSM8K solution ending in `#### 72` works as it is.
    An answer without a number is a RewardError that names its prompt.
    """

    def __init__(self, marker: str | None = "####") -> None:
        self.marker = marker
        self.example_columns = {"answer": [72, "#### 42"]}
        self.__name__ = "exact_match"

    def __call__(self, prompts: Texts, completions: Texts, answer: Sequence[Any], **columns: Any) -> list[float]:
        expected = [final_number(str(each), self.marker) for each in answer]
        if None in expected:
            n = expected.index(None)
            raise RewardError(
                f"The reward 'exact_match' found no number in the answer {str(answer[n])[:80]!r} of the prompt "
                f"{text_of(prompts[n])[:60]!r}. Give each row of the column 'answer' a number, or a text that ends in one."
            )
        return [float(final_number(text_of(c), self.marker) == right) for c, right in zip(completions, expected, strict=True)]

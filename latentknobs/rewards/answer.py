"""Exact match of a final number: the verifiable reward of word problems."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from latentknobs.errors import BrokenRewardError, RewardError
from latentknobs.rewards.text import Messages, text_of

_MAGNITUDE = r"(?:\d[\d,]*(?:\.\d+|/0*[1-9]\d*)?|\.\d+)"
# A minus belongs to the number only where no operand stands before it: "19-5" ends in 5, "= -5" in -5.
_NUMBER = re.compile(rf"(?<![\w.)])-{_MAGNITUDE}|{_MAGNITUDE}")


def final_number(text: str, marker: str | None = "####") -> Fraction | None:
    """The last number of `text`, of the part after the last `marker` if the marker is there; None without a number.

    Thousands commas, decimals and fractions such as `3/4` are understood, and compare by value (`2.50 == 5/2`).
    """
    part = text.rpartition(marker)[2] if marker else text
    numbers = _NUMBER.findall(part)
    return Fraction(numbers[-1].replace(",", "")) if numbers else None


class ExactMatch:
    """1.0 where the final number of the completion equals the column `answer`, else 0.0.

    The answer may be a number or a text that holds one; a whole GSM8K solution ending in `#### 72` works as it is.
    An answer without a number is a RewardError that names its prompt.
    """

    def __init__(self, marker: str | None = "####") -> None:
        self.marker = marker
        self.__name__ = "exact_match"

    def __call__(
        self,
        prompts: Sequence[str | Messages],
        completions: Sequence[str | Messages],
        answer: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float]:
        if answer is None:
            raise BrokenRewardError("The reward 'exact_match' needs a column 'answer' in the prompts: add it to every row.")
        return [
            float(final_number(text_of(completion), self.marker) == self._expected(prompt, expected))
            for prompt, completion, expected in zip(prompts, completions, answer, strict=True)
        ]

    def _expected(self, prompt: str | Messages, answer: Any) -> Fraction:
        number = final_number(str(answer), self.marker)
        if number is None:
            raise RewardError(
                f"The reward 'exact_match' found no number in the answer {str(answer)[:80]!r} of the prompt "
                f"{text_of(prompt)[:60]!r}. Give each row of the column 'answer' a number, or a text that ends in one."
            )
        return number

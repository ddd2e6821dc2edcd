"""Whether the final answer of a completion is right: numbers, fractions, LaTeX. The mathematics is that of `math-verify`."""

import re
import threading
from itertools import product
from typing import Any

from latentknobs.errors import BrokenRewardError, ConfigError
from latentknobs.rewards.returned import Failed
from latentknobs.rewards.text import Texts, text_of

MARKER = "####"
_DELIMITER = re.compile(r"\$|\\\(|\\\[|\\boxed|\\begin")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{2,}")


class MathAnswer:
    """1.0 where the final answer of the completion equals the column `answer` as mathematics, else 0.0.

    `0.5`, `1/2` and `\\boxed{\\frac{1}{2}}` are the same answer. The column may hold a number, LaTeX with or without `$`, or a
    whole solution that ends in `#### 72` or a box. A row without an answer (None) gives None: the reward does not apply.

    Some answers take very long to compare, for example towers of powers. The time limit is a signal (SIGALRM), which Python
    delivers to the main thread only; in another thread the reward refuses to work, unless `timeout` is 0.

    Args:
        column: the column with the right answers.
        timeout: whole seconds for reading, and again for comparing, one answer; 0 is no limit. What takes longer has no score.
    """

    def __init__(self, column: str = "answer", timeout: int = 5) -> None:
        if not isinstance(timeout, int) or timeout < 0:
            raise ConfigError(f"The reward 'math_answer' has timeout={timeout!r}: give whole seconds, or 0 for no limit.")
        try:
            import math_verify
        except ImportError as error:
            raise ConfigError(
                f"The reward 'math_answer' needs the library math-verify ({error}). Install it: pip install latentknobs[math]"
            ) from None
        self._library: Any = math_verify
        self.column, self.timeout = column, timeout
        self.example_columns = {column: [72, r"\frac{1}{2}"]}
        self.__name__ = "math_answer"

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        if self.column not in columns:
            raise BrokenRewardError(
                f"The reward 'math_answer' needs a column {self.column!r} in the prompts: add it to every row, or name "
                "another one, as in 'math_answer:column=solution'."
            )
        if self.timeout and threading.current_thread() is not threading.main_thread():
            raise BrokenRewardError(
                "The reward 'math_answer' keeps its time limit by a signal, which reaches only the main thread, and it was "
                "called in another one. Call it in the main thread, or set 'math_answer:timeout=0' for no limit."
            )
        pairs = zip(columns[self.column], completions, strict=True)
        return [None if gold is None else self._judge(str(gold), text_of(completion)) for gold, completion in pairs]

    def _judge(self, gold: str, completion: str) -> float:
        from math_verify.errors import TimeoutException  # a BaseException: it would end the run

        try:
            expected = self._parsed(bare_answer(gold))
            if not expected:
                return Failed(f"It found no mathematics in the answer {gold[:80]!r}.")
            return float(self._equal(expected, self._parsed(completion)))
        except TimeoutException:
            return Failed(f"It took longer than {self.timeout} s to read or compare {completion[-80:]!r} with {gold[:80]!r}.")

    def _parsed(self, text: str) -> list[Any]:
        return list(self._library.parse(text, parsing_timeout=self.timeout, raise_on_error=True))

    def _equal(self, expected: list[Any], found: list[Any]) -> bool:
        """Whether any reading of the one equals any of the other; what cannot be compared is not equal."""
        from math_verify.errors import TimeoutException

        late: TimeoutException | None = None
        for one, other in product(expected, found):
            try:
                if self._library.verify(one, other, timeout_seconds=self.timeout, raise_on_error=True):
                    return True
            except TimeoutException as error:
                late = error
            except Exception:
                continue
        if late is not None:
            raise late
        return False


def bare_answer(gold: str) -> str:
    """A right answer so that the library reads all of it: what follows the last `####`, and bare LaTeX between `$`.

    Without the `$` it would take `2\\sqrt{3}` for 2.
    """
    text = gold.rpartition(MARKER)[2].strip()
    is_prose = _WORD.search(_COMMAND.sub("", text)) is not None
    return text if not text or _DELIMITER.search(text) or is_prose else f"${text}$"

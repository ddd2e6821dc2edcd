"""A reward: short answers that say enough."""

from typing import Any


class Brevity:
    """1 for a completion of at most `words` words and of at least one, less in proportion for longer ones."""

    version = "1"  # its scores are kept as long as this stays

    def __init__(self, words: int = 20) -> None:
        self.words = words

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        counts = [len(text.split()) for text in completions]
        return [min(1.0, self.words / count) if count else 0.0 for count in counts]

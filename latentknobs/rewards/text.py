"""Texts of chat messages, sentences and words, the same way for every reward and for the testbed's corpus."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

Messages = Sequence[Mapping[str, Any]]
"""A conversation: chat messages with a `role` and a `content`."""
Texts = Sequence[str | Messages]
"""What a reward receives as prompts or completions."""

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*(?:\s+|$)")
_ENDS_SENTENCE = re.compile(r"[.!?][\"')\]]*$")
_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*")


def text_of(item: str | Messages) -> str:
    """The text of a prompt or a completion: itself, or the contents of its chat messages, one below the other."""
    return item if isinstance(item, str) else "\n".join(_content(message.get("content")) for message in item)


def _content(content: Any) -> str:
    """The text of a message's content, which is a text, nothing, or a list of parts of which some are texts."""
    if isinstance(content, list | tuple):
        return "".join(str(part.get("text") or "") for part in content)
    return content or ""


def split_sentences(text: str) -> list[str]:
    """The sentences of `text`, without surrounding space or closing quotes; the last one may be incomplete.

    A sentence ends at `.`, `!` or `?`, with any closing quotes, before space or the end. Abbreviations are not known.
    """
    return [part for part in (piece.strip() for piece in _SENTENCE_END.split(text)) if part]


def ends_sentence(text: str) -> bool:
    """Whether what follows `text` begins a new sentence (also true for empty text)."""
    stripped = text.rstrip()
    return not stripped or _ENDS_SENTENCE.search(stripped) is not None


def words_of(text: str) -> list[str]:
    """The words of `text`: runs of ASCII letters with inner apostrophes ("don't"), as written."""
    return _WORD.findall(text)


def complete_words(completion: str) -> list[str]:
    """The words of a completion, lower case, without a last word that the length limit may have cut.

    A last word counts only when something (a full stop, a space) follows it.
    """
    found = [word.lower() for word in words_of(completion)]
    return found[:-1] if completion[-1:].isalpha() or completion[-1:] == "'" else found

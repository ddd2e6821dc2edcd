"""What an error from below says in our messages."""

import pytest

from latentknobs.errors import first_line


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("It failed.\nThe rest."), "It failed"),
        (ValueError("\n  One of:  \n\n  (1) a file,\n(2) a folder"), "One of: (1) a file,"),
        (ValueError("One of:"), "One of"),
        (KeyError(), "KeyError"),
        (ValueError("x" * 400), "x" * 300),
    ],
)
def test_it_is_one_line(error: Exception, words: str) -> None:
    assert first_line(error) == words


def test_text_in_another_encoding_is_said_without_the_words_of_the_codec() -> None:
    with pytest.raises(UnicodeDecodeError) as caught:
        "café".encode("latin-1").decode()
    assert first_line(caught.value) == "it is not text in UTF-8: byte 4 of what was read is 0xe9"

"""The heat map as a picture: lines wrap like text, and the ending decides the kind of file."""

from pathlib import Path

import pytest

from latentknobs.errors import ConfigError
from latentknobs.reporting import write_picture
from latentknobs.reporting.picture import wrap


def lines(text: str, columns: int) -> list[str]:
    return ["".join(c for c, _ in line) for line in wrap([(c, "") for c in text], columns)]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("one two three", ["one two", "three"]),
        ("one\ntwo", ["one", "two"]),
        ("one\n\n two", ["one", " two"]),
        ("abcdefghijklmn op", ["abcdefgh", "ijklmn", "op"]),
        ("exactly8 x", ["exactly8", "x"]),
        ("", []),
    ],
)
def test_wrapping(text: str, expected: list[str]) -> None:
    assert lines(text, 8) == expected


def test_wrapping_keeps_colours() -> None:
    assert wrap([("a", "red"), (" ", "blue"), ("b", "blue")], 2) == [[("a", "red")], [("b", "blue")]]


@pytest.mark.parametrize("kind, magic", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_pictures_of_all_kinds(run: Path, tmp_path: Path, kind: str, magic: bytes) -> None:
    path = write_picture(run, tmp_path / "images" / f"map.{kind}")
    content = path.read_bytes()
    assert content.startswith(magic) and len(content) < 150_000


def test_another_ending_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"map\.gif.*png"):
        write_picture(run, "map.gif")

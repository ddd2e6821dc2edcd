"""The heat map as a picture: lines wrap like text, and the ending decides the kind of file."""

from pathlib import Path

import pytest
from rich.text import Text

from latentknobs.errors import ConfigError
from latentknobs.reporting import write_picture
from latentknobs.reporting.picture import runs, wrap


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
    assert [line.plain.rstrip() for line in wrap(Text(text), 8)] == expected


def test_wrapping_keeps_colours_and_neighbours_of_one_colour_are_one_run() -> None:
    red, blue = "black on #ff0000", "black on #0000ff"
    text = Text.assemble(("a", red), ("b", red), " ", ("c", blue), ("dd", red))
    first, second = wrap(text, 3)
    assert list(runs(first)) == [(0, 2, "#ff0000")] and first.plain.startswith("ab")
    assert list(runs(second)) == [(0, 1, "#0000ff"), (1, 3, "#ff0000")]


@pytest.mark.parametrize("kind, magic", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_pictures_of_all_kinds(run: Path, tmp_path: Path, kind: str, magic: bytes) -> None:
    path = write_picture(run, tmp_path / "images" / f"map.{kind}")
    content = path.read_bytes()
    assert content.startswith(magic) and len(content) < 150_000


def test_another_ending_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"map\.gif.*png"):
        write_picture(run, "map.gif")

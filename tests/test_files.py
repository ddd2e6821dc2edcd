"""Reading what may have come from anywhere, and what is shown of this machine."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentknobs.errors import ConfigError, RunError
from latentknobs.files import DEEPEST, fit, parse_json, path_of, public_name, read_text, without_folders

CACHED = "/home/mia/.cache/huggingface/hub/models--HuggingFaceTB--SmolLM2-135M/snapshots/93ab"


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def test_data_may_be_as_deep_as_said_and_no_deeper() -> None:
    assert isinstance(parse_json(nested(DEEPEST)), list)
    for depth in (DEEPEST + 1, 5_000, 200_000):
        with pytest.raises(ValueError, match="nested more than"):
            parse_json(nested(depth))


LEAVES = st.none() | st.floats() | st.text() | st.integers()


@given(st.text() | st.dictionaries(st.text(), st.recursive(LEAVES, lambda inner: st.lists(inner))))
def test_what_does_not_fit_is_told_in_few_words(data: Any) -> None:
    with pytest.raises(ValueError, match="valid list") as caught:
        fit(data, list[int])
    assert len(str(caught.value)) < 200


def test_a_file_is_read_up_to_its_largest_size(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"x" * 10)
    assert read_text(path, RunError, "Delete it.", 10) == "x" * 10
    with pytest.raises(RunError, match=r"notes\.txt' cannot be read: it is larger than .* MB\. Delete it\."):
        read_text(path, RunError, "Delete it.", 9)
    with pytest.raises(RunError, match="cannot be read: it is not a file"):
        read_text(Path("/dev/zero"), RunError, "Delete it.")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match="it is not text in UTF-8: byte 1 of what was read is 0xff"):
        read_text(path, RunError, "Delete it.")


@pytest.mark.parametrize(("path", "name"), [
    ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"), ("gpt2", "gpt2"), (CACHED, "HuggingFaceTB/SmolLM2-135M"),
    ("/home/mia/models/tiny-lm", "tiny-lm"), ("/home/mia/models/tiny-lm/", "tiny-lm"), ("~/tiny-lm", "tiny-lm"),
    ("./tiny-lm", "tiny-lm"), ("a/b/tiny-lm", "tiny-lm"), ("", ""),
])  # fmt: skip
def test_a_folder_is_called_by_its_own_name(path: str, name: str) -> None:
    assert public_name(path) == name


def test_a_relative_folder_is_not_taken_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret" / "tiny-lm").mkdir(parents=True)
    assert public_name("secret/tiny-lm") == "tiny-lm"


@pytest.mark.parametrize(("text", "shown"), [
    ("/home/mia/p.jsonl", "p.jsonl"), ("~/data/p.jsonl", "p.jsonl"), ("dataset:/home/mia/rows:train", "dataset:rows:train"),
    ("command:/opt/judge.sh --at /tmp/x/y", "command:judge.sh --at y"), ('["/a/b.jsonl", "x"]', '["b.jsonl", "x"]'),
    ("runs/p.jsonl", "runs/p.jsonl"), ("somebody/some-model", "somebody/some-model"), ("https://a.b/c/d", "https://a.b/c/d"),
    ("1/2", "1/2"), ("delimiter:/", "delimiter:/"), ("a / b", "a / b"),
])  # fmt: skip
def test_settings_are_shown_without_the_folders_of_this_machine(text: str, shown: str) -> None:
    assert without_folders(text) == shown


def test_a_tilde_is_the_home_folder_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/mia")
    assert path_of("~/runs") == Path("/home/mia/runs") and path_of("a~/b") == Path("a~/b")
    assert path_of("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")


@pytest.mark.parametrize("path", ["runs/\0", "\ud800", b"\0", 3, None])
def test_what_no_file_can_be_called_is_refused(path: Any) -> None:
    with pytest.raises(ConfigError, match="is not a path"):
        path_of(path)

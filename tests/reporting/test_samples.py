"""Token texts: together they are the response, and nobody chose which responses are shown."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from latentknobs.errors import RunError
from latentknobs.reporting.samples import PER_TASK, read_samples, token_texts
from latentknobs.testbed import load_tokenizer


class ByteTokenizer:
    """Each id is one byte of UTF-8, so that a character may need several tokens."""

    all_special_ids = (0,)

    def decode(self, ids: list[int], **_: Any) -> str:
        return bytes(ids).decode("utf-8", errors="replace")

    def convert_ids_to_tokens(self, token: int) -> str:
        return "<end>"


def test_pieces_join_to_the_text_of_the_packaged_tokenizer() -> None:
    tokenizer = load_tokenizer()
    text = 'Once upon a time, Lily\'s cat ran.\n"Oh!" she said: 12 + 7 = 19.'
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces, special = token_texts(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids) and len(pieces) == len(ids) and not any(special)


def test_half_a_character_adds_nothing_until_it_is_whole() -> None:
    pieces, _ = token_texts(ByteTokenizer(), list("aé€b".encode()))
    assert pieces == ("a", "", "é", "", "", "€", "b")


def test_behind_its_prompt_a_response_keeps_its_first_space() -> None:
    end = Tokenizer(models.WordLevel({"saw": 0, "▁a": 1, "▁frog": 2}, unk_token="saw"))
    end.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])  # as Llama's
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=end)
    assert token_texts(tokenizer, [1, 2]) == (("a", " frog"), (False, False))
    assert token_texts(tokenizer, [1, 2], after=[0]) == ((" a", " frog"), (False, False))


def test_special_tokens_show_their_name_and_are_marked() -> None:
    assert token_texts(ByteTokenizer(), [*b"ab", 0]) == (("a", "b", "<end>"), (False, False, True))


def test_samples_survive_the_disk_and_are_the_first_answers_of_each_task(run: Path) -> None:
    samples = read_samples(run)
    assert samples.knobs == ("temperature", "top_p") and samples.labels[5] == "temperature 1, top_p 1"
    assert [s.prompt for s in samples.shown if s.task == "math"] == [3 * n for n in range(PER_TASK)]
    first = samples.shown[0]
    assert first.text == "Prompt 0 <i>" and first.options == (0, 0, 0, 5, 5, 5, 5) and first.special[-1]
    assert samples.options[5]["temperature"] == 1.0


GOOD = {"prompt": 0, "task": "a", "text": "b", "pieces": ["c"], "special": [False], "options": [0]}
FRAME = {"knobs": ["temperature"], "options": [{"temperature": 0.5}], "labels": ["temperature 0.5"]}


@pytest.mark.parametrize("content", [
    None, "", "{", "[]", '{"knobs": []}', "[" * 100_000, {**FRAME, "shown": [{"x": 1}]},
    {**FRAME, "shown": [GOOD | {"options": [1]}]},
    {**FRAME, "shown": [GOOD | {"options": [-1]}]}, {**FRAME, "shown": [GOOD | {"options": [0, 0]}]},
    {**FRAME, "shown": [GOOD | {"special": "no"}]}, {**FRAME, "labels": [], "shown": []}, {**FRAME, "knobs": [], "shown": []},
    {**FRAME, "options": [{"top_p": 1.0}], "shown": []}, {**FRAME, "options": [{"temperature": "hot"}], "shown": []},
])  # fmt: skip
def test_missing_or_damaged_samples_are_refused_with_the_remedy(tmp_path: Path, content: Any) -> None:
    (tmp_path / "evaluation").mkdir()
    if content is not None:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "evaluation" / "samples.json").write_text(text)
    with pytest.raises(RunError, match=r"samples\.json' (is damaged|cannot be read): .*latentknobs train") as caught:
        read_samples(tmp_path)
    assert len(str(caught.value)) < 500


def test_what_is_not_damaged_is_read(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "samples.json").write_text(json.dumps({**FRAME, "shown": [GOOD]}))
    assert read_samples(tmp_path).shown[0].pieces == ("c",)

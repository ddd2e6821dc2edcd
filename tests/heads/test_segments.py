"""Segmenters: where segments begin, never looking ahead, the same step by step as over whole responses."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from latentknobs.errors import ConfigError
from latentknobs.heads.segmenters import Delimiter, Every, Segmenter, WholeResponse, parse_level

WORDS = ["</s>", "a", "b", ".", "!", " .", "c.", "\n", ".\n", ". ", "?\t", ".b", " "]
IDS = {word: i for i, word in enumerate(WORDS)}
V = len(WORDS)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Words are tokens; decoding one token gives exactly its text."""
    core = Tokenizer(WordLevel(IDS, unk_token="a"))
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")


SEGMENTERS = [Every(1), Every(2), Every(3), WholeResponse(), Delimiter(".", (IDS["."], IDS["c."]))]
every_segmenter = pytest.mark.parametrize("segmenter", SEGMENTERS, ids=lambda s: s.level)
responses = st.integers(1, 9).flatmap(
    lambda T: st.lists(st.lists(st.integers(0, V - 1), min_size=T + 1, max_size=T + 1), min_size=1, max_size=3)
)  # the last prompt token and T response tokens


def by_hand(segmenter: Segmenter, row: list[int]) -> list[int]:
    """Segment ids from the definitions, one token at a time."""
    ids = []
    for t in range(len(row) - 1):
        match segmenter:
            case Every(n=n):
                ids.append(t // n)
            case WholeResponse():
                ids.append(0)
            case Delimiter(token_ids=cuts):
                ids.append(0 if t == 0 else ids[-1] + (row[t] in cuts))
    return ids


@every_segmenter
@given(rows=responses)
def test_segments_are_those_of_the_definition(segmenter: Segmenter, rows: list[list[int]]) -> None:
    previous_BT = torch.tensor(rows)[:, :-1]
    assert segmenter.segments(previous_BT).tolist() == [by_hand(segmenter, row) for row in rows]


@every_segmenter
@given(rows=responses)
def test_deciding_step_by_step_equals_deciding_at_once(segmenter: Segmenter, rows: list[list[int]]) -> None:
    previous_BT = torch.tensor(rows)[:, :-1]
    steps = []
    for t in range(previous_BT.shape[1]):
        position_B1 = torch.full((len(rows), 1), t)
        steps.append(segmenter.begins(position_B1, previous_BT[:, t : t + 1]))
    assert torch.equal(torch.cat(steps, 1).long().cumsum(-1) - 1, segmenter.segments(previous_BT))


@every_segmenter
@given(rows=responses, data=st.data())
def test_a_segment_never_depends_on_its_own_token_or_later_ones(
    segmenter: Segmenter, rows: list[list[int]], data: st.DataObject
) -> None:
    t = data.draw(st.integers(0, len(rows[0]) - 2))
    changed = [row[: t + 1] + [data.draw(st.integers(0, V - 1)) for _ in row[t + 1 :]] for row in rows]
    before_BT = segmenter.segments(torch.tensor(rows)[:, :-1])
    after_BT = segmenter.segments(torch.tensor(changed)[:, :-1])
    assert torch.equal(before_BT[:, : t + 1], after_BT[:, : t + 1])


@every_segmenter
def test_position_zero_always_begins_a_segment(segmenter: Segmenter) -> None:
    previous_BT = torch.arange(V).unsqueeze(1)
    assert (segmenter.segments(previous_BT) == 0).all()
    assert segmenter.begins(torch.zeros(V, 1, dtype=torch.long), previous_BT).all()


@pytest.mark.parametrize("level", ["token", "sequence", "every:2", "every:17", "delimiter:.!?"])
def test_a_level_reads_back_as_it_was_written(level: str, tokenizer: PreTrainedTokenizerFast) -> None:
    segmenter = parse_level(level, tokenizer)
    assert segmenter.level == level
    assert parse_level(segmenter.level, token_ids=getattr(segmenter, "token_ids", None)) == segmenter


def test_every_one_is_the_token_level() -> None:
    assert parse_level("every:1") == parse_level("token") == Every(1)
    assert Every(1).level == "token"


def cuts(level: str, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return [WORDS[i] for i in parse_level(level, tokenizer).token_ids]


def test_delimiters_are_the_tokens_that_end_in_a_character_blanks_aside(tokenizer: PreTrainedTokenizerFast) -> None:
    assert cuts("delimiter:.", tokenizer) == [".", " .", "c.", ".\n", ". "]
    assert cuts("delimiter:.!?", tokenizer) == [".", "!", " .", "c.", ".\n", ". ", "?\t"]
    assert cuts("delimiter:\n", tokenizer) == ["\n", ".\n"]
    assert cuts("delimiter:b\n", tokenizer) == ["b", "\n", ".\n", ".b"]


def test_special_tokens_never_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    assert "</s>" not in cuts("delimiter:>.", tokenizer)


def test_a_sentence_begins_after_its_full_stop(tokenizer: PreTrainedTokenizerFast) -> None:
    words = ["a", "b", "c.", "a", ".", "!", "b", "a"]  # the last prompt token first
    segmenter = parse_level("delimiter:.!", tokenizer)
    previous_BT = torch.tensor([[IDS[word] for word in words[:-1]]])
    assert segmenter.segments(previous_BT).tolist() == [[0, 0, 1, 1, 2, 3, 3]]


def test_delimiters_need_a_tokenizer_only_to_find_their_tokens() -> None:
    assert parse_level("delimiter:.", token_ids=[9, 3]) == Delimiter(".", (3, 9))
    with pytest.raises(ConfigError, match="needs the model's tokenizer"):
        parse_level("delimiter:.")


def test_a_delimiter_that_would_never_cut_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match=r"No token of this vocabulary ends in any of ';', so level 'delimiter:;'"):
        parse_level("delimiter:;", tokenizer)


@pytest.mark.parametrize(
    "level", ["tokens", "every:0", "every:-1", "every:", "every:2.5", "every:²", "delimiter:", "delimiter", ""]
)
def test_unknown_levels_are_refused_with_the_forms_there_are(level: str) -> None:
    with pytest.raises(ConfigError, match=r"There is no level .*Known: delimiter:CHARS, every:N, sequence, token") as caught:
        parse_level(level)
    assert repr(level) in str(caught.value)

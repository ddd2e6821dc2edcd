"""Prompts files: what is read, what is refused, and that the splits never meet."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentknobs import testbed
from latentknobs.data.prompts import (
    Prompt,
    check_disjoint,
    check_lengths,
    is_held_out,
    make_prompts,
    read_jsonl,
    split_prompts,
)
from latentknobs.errors import DataError


@pytest.fixture(scope="module")
def tokenizer():
    return testbed.load_tokenizer()


def test_rows_keep_their_columns_and_blank_lines_are_skipped(tmp_path, tokenizer):
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"prompt": "Story: Once", "answer": 3}) + "\n\n" + json.dumps({"prompt": "Problem: Tom"}) + "\n")
    first, second = make_prompts(read_jsonl(file), tokenizer)
    assert first.columns == {"answer": 3}
    assert tokenizer.decode(first.ids, skip_special_tokens=True) == "Story: Once"
    assert second.columns == {}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"prompt": "a"}\n{"prompt": \n', "Line 2 .* is not JSON"),
        ('{"prompt": "a"}\n\n{"text": "a"}\n', "Line 3 .* has no `prompt`"),
        ('["a"]\n', "Line 1 .* has no `prompt`"),
        ("\n", "is empty"),
    ],
)
def test_a_malformed_file_names_the_line(tmp_path, content, told):
    file = tmp_path / "p.jsonl"
    file.write_text(content)
    with pytest.raises(DataError, match=told):
        read_jsonl(file)


def test_line_separators_inside_a_text_and_a_byte_order_mark_are_no_trouble(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text("\ufeff" + json.dumps({"prompt": "one\u2028two"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_jsonl(file) == [{"prompt": "one\u2028two"}]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jsonl.*cannot be read"):
        read_jsonl(tmp_path / "nowhere.jsonl")


def test_conversations_need_a_chat_template(tokenizer):
    with pytest.raises(DataError, match="no chat template"):
        make_prompts([{"prompt": [{"role": "user", "content": "hi"}]}], tokenizer)


def test_conversations_go_through_the_chat_template():
    tokenizer = testbed.load_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}{% endfor %}"
    (prompt,) = make_prompts([{"prompt": [{"role": "user", "content": "hi"}]}], tokenizer)
    assert prompt.text == "<user> hi"


@pytest.mark.parametrize("row", [{"prompt": 3}, {"prompt": None}, {"text": "a"}])
def test_prompts_that_are_no_text_are_refused(row, tokenizer):
    with pytest.raises(DataError, match="must be text or a list"):
        make_prompts([row], tokenizer)


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers():
    prompts = [Prompt("short", (1, 2)), Prompt("long one", tuple(range(60)))]
    check_lengths(prompts, 40, 100)
    check_lengths(prompts, 4000, None)
    with pytest.raises(DataError, match=r"Prompt 2 has 60 tokens and the response may have 41, .* holds 100"):
        check_lengths(prompts, 41, 100)


@given(st.lists(st.text(min_size=1), max_size=60))
def test_the_split_is_a_partition_that_depends_on_the_text_alone(texts):
    prompts = [Prompt(text, (1,)) for text in texts]
    train, held_out = split_prompts(prompts)
    assert sorted(p.text for p in train + held_out) == sorted(texts)
    assert all(is_held_out(p.text) for p in held_out)
    assert not {p.text for p in train} & {p.text for p in held_out}
    check_disjoint(train, held_out)


def test_about_a_fifth_is_held_out():
    share = sum(is_held_out(f"prompt {i}") for i in range(5000)) / 5000
    assert 0.17 < share < 0.23


def test_a_prompt_on_both_sides_is_refused():
    with pytest.raises(DataError, match="'again' is also a training prompt"):
        check_disjoint([Prompt("again", (1,))], [Prompt("new", (1,)), Prompt("again", (1,))])

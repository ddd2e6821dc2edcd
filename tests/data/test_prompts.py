"""Prompts files: what is read, what is refused, and that the splits never meet."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from latentknobs import testbed
from latentknobs.data.preferences import read_preferences
from latentknobs.data.prompts import (
    Prompt,
    check_disjoint,
    check_lengths,
    is_held_out,
    make_prompts,
    split_prompts,
)
from latentknobs.data.tables import read_rows
from latentknobs.errors import DataError

USER, ANSWER = {"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "It is"}
CALL = {"type": "function", "function": {"name": "look_up", "arguments": {}}}
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}


def test_rows_keep_their_columns_and_blank_lines_are_skipped(tmp_path, tokenizer):
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"prompt": "Story: Once", "answer": 3}) + "\n\n" + json.dumps({"prompt": "Problem: Tom"}) + "\n")
    first, second = make_prompts(read_rows(file), tokenizer)
    assert first.columns == {"answer": 3}
    assert tokenizer.decode(first.ids, skip_special_tokens=True) == "Story: Once"
    assert second.columns == {}


def test_conversations_need_a_chat_template(tokenizer):
    with pytest.raises(DataError, match="no chat template"):
        make_prompts([{"prompt": [{"role": "user", "content": "hi"}]}], tokenizer)


def test_conversations_go_through_the_chat_template_and_are_kept(chatml):
    system = {"role": "system", "content": "Be brief."}
    (prompt,) = make_prompts([{"prompt": [system, USER], "answer": "2"}], chatml)
    turns = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.text == turns
    assert list(prompt.ids) == chatml.apply_chat_template([system, USER], add_generation_prompt=True)["input_ids"]
    assert (prompt.messages, prompt.columns) == ((system, USER), {"answer": "2"})
    assert make_prompts(["plain"], chatml)[0].messages is None


def test_the_model_goes_on_with_an_assistant_message_at_the_end(chatml):
    (prompt,) = make_prompts([{"prompt": [USER, ANSWER]}], chatml)
    assert prompt.text.endswith("<|im_start|>assistant\nIt is")
    assert prompt.messages == (USER, ANSWER)


def test_empty_fields_that_tables_add_to_messages_are_left_out(chatml):
    (prompt,) = make_prompts([{"prompt": [USER | {"tool_calls": None, "name": None}]}], chatml)
    assert prompt.messages == (USER,)


def test_settings_of_the_template_come_with_the_row_and_reach_the_reward(chatml):
    settings = {"enable_thinking": True, "unused": None}
    (prompt,) = make_prompts([{"prompt": [USER], "chat_template_kwargs": settings}], chatml)
    assert prompt.text.endswith("assistant\n<think>\n")
    assert prompt.columns == {"chat_template_kwargs": settings}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": []}, "conversation without messages"),
        ({"prompt": ["hi"]}, "holds 'hi', which is not a chat message. Write each as"),
        (
            {"prompt": [{"role": "user"}]},
            "'user' with content None, which is not text; only a message with tool_calls",
        ),
        ({"prompt": [{"content": "hi"}]}, "which is not a chat message"),
        ({"prompt": [USER, {"role": "assistant", "content": ""}]}, "ends in an assistant message without text. Leave it out"),
        ({"prompt": [USER], "chat_template_kwargs": "fast"}, "chat_template_kwargs='fast'; it must be a dict"),
        ({"prompt": [USER], "chat_template_kwargs": {"tokenize": 1}}, "does not fit the tokenizer's chat template"),
        ({"prompt": [USER | {"content": 3}]}, "a message of 'user' with content 3, which is not text"),
        ({"prompt": [USER | {"content": None}]}, "a message of 'user' with content None, which is not text"),
        ({"prompt": [USER | {"content": [IMAGE]}]}, r"the part \{'image_url'.*only text can be read"),
        ({"prompt": [USER | {"content": ["hi"]}]}, "the part 'hi'; only text can be read"),
        ({"prompt": [USER, {"role": "assistant", "tool_calls": [CALL]}]}, "ends in an assistant message without text"),
        (
            {"prompt": [USER, {"role": "assistant", "tool_calls": [CALL]}, USER]},
            "template: .*content.* Its roles are: user, a",
        ),
        ({"prompt": [USER | {"content": "Hi \ud83d"}]}, r"half a character: '\\ud83d' behind '.*Hi '"),
    ],
)
def test_conversations_that_make_no_prompt_are_refused(row, told, chatml):
    with pytest.raises(DataError, match=f"Prompt 1 .*{told}|Prompt 1 is a {told}"):
        make_prompts([row], chatml)


def test_what_the_template_itself_refuses_is_told(chatml, monkeypatch):
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('Begin with the user.') }}{% endif %}x"
    monkeypatch.setattr(chatml, "chat_template", strict)
    with pytest.raises(DataError, match=r"Begin with the user\. Its roles are: system, user\."):
        make_prompts([{"prompt": [{"role": "system", "content": "s"}, USER]}], chatml)


@pytest.mark.parametrize("row", [{"prompt": 3}, {"prompt": None}, {"text": "a"}])
def test_prompts_that_are_no_text_are_refused(row, tokenizer):
    with pytest.raises(DataError, match=rf"columns: {next(iter(row))}.*must be text or a list"):
        make_prompts([row], tokenizer)


@pytest.mark.parametrize("name", ["prompts", "completions", 3])
def test_columns_that_no_reward_could_receive_are_refused(name, tokenizer):
    with pytest.raises(DataError, match=f"Prompt 1 has a column {name!r}, which the reward could not receive. Rename it"):
        make_prompts([{"prompt": "a", name: 1}], tokenizer)


def test_a_message_that_calls_a_tool_needs_no_content(chatml, monkeypatch):
    monkeypatch.setattr(
        chatml, "chat_template", "{% for m in messages %}{{ m['content'] or m.tool_calls[0].function.name }} {% endfor %}"
    )
    result = {"role": "tool", "content": "5"}
    for call in ({"tool_calls": [CALL]}, {"tool_calls": [CALL], "content": None}, {"tool_calls": [CALL], "content": ""}):
        (prompt,) = make_prompts([{"prompt": [USER, {"role": "assistant", **call}, result]}], chatml)
        assert prompt.text == "1 + 1? look_up 5 "


def test_a_list_of_text_parts_is_one_text(chatml):
    parts = [{"type": "text", "text": "1 + "}, {"type": "text", "text": "1?"}]
    assert make_prompts([{"prompt": [USER | {"content": parts}]}], chatml) == make_prompts([{"prompt": [USER]}], chatml)


@pytest.mark.parametrize("kind", [ValueError, ZeroDivisionError, RecursionError, AttributeError])
def test_whatever_a_template_raises_is_told_as_its_refusal(chatml, monkeypatch, kind):
    def raises(*_, **__):
        raise kind("x" * 10_000)

    monkeypatch.setattr(chatml, "apply_chat_template", raises)
    with pytest.raises(DataError, match=r"Prompt 1 does not fit the tokenizer's chat template: x+ Its roles are: user") as caught:
        make_prompts([{"prompt": [USER]}], chatml)
    assert len(str(caught.value)) < 500


def test_half_a_character_is_refused_by_row_and_a_whole_one_is_read(tmp_path, tokenizer):
    (tmp_path / "p.jsonl").write_text('{"prompt": "Story \\ud83d\\ude00"}\n{"prompt": "Story \\ud83d"}\n')
    rows = read_rows(tmp_path / "p.jsonl")
    assert make_prompts(rows[:1], tokenizer)[0].text == "Story \U0001f600"
    with pytest.raises(DataError, match=r"Prompt 2 holds half a character: '\\ud83d' behind 'Story '\. .*errors='ignore'"):
        make_prompts(rows, tokenizer)


def test_half_a_character_in_a_column_is_refused_too(tokenizer):
    with pytest.raises(DataError, match=r"The column 'task' of prompt 1 holds half a character: '\\ud83d' behind 'm'"):
        make_prompts([{"prompt": "Story: Once", "task": "m\ud83d"}], tokenizer)


class TestEndsBehindPrompts:
    """Some tokenizers end every text; a prompt is to be continued."""

    @pytest.fixture
    def ending(self):
        made = testbed.load_tokenizer()
        both = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", made.bos_token_id), ("</s>", made.eos_token_id)])
        made.backend_tokenizer.post_processor = both
        assert made("Story: Once")["input_ids"][-1] == made.eos_token_id
        return made

    def test_the_end_that_the_tokenizer_appends_is_left_out(self, ending, tokenizer):
        assert make_prompts(["Story: Once", "So"], ending) == make_prompts(["Story: Once", "So"], tokenizer)

    def test_an_end_in_the_text_itself_stays(self, ending, tokenizer):
        ours, theirs = (make_prompts(["Once</s>", "</s>", "</s></s>"], each) for each in (ending, tokenizer))
        assert ours == theirs and ours[0].ids[-1] == tokenizer.eos_token_id and len(ours[2].ids) == 3

    def test_an_answer_is_ended_once(self, ending, tokenizer):
        rows = [{"prompt": "The sky is", "chosen": " blue.", "rejected": " red."}]
        ours, theirs = (read_preferences(rows, each, max_new_tokens=20) for each in (ending, tokenizer))
        assert ours == theirs and ours.rollouts[0].ids.count(tokenizer.eos_token_id) == 1

    def test_a_text_of_nothing_but_the_beginning_stays(self, ending):
        assert make_prompts([""], ending)[0].ids == (ending.bos_token_id,)


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

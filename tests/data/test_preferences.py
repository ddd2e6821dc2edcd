"""Preferences from elsewhere: every form of TRL, the tokens they become, and what is counted and left out."""

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentknobs.data.examples import Pair
from latentknobs.data.preferences import read_preferences
from latentknobs.errors import DataError, NoPairsError

USER = {"role": "user", "content": "What color is the sky?"}
BLUE, GREEN = {"role": "assistant", "content": "It is blue."}, {"role": "assistant", "content": "It is green."}
SKY = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}


def read(rows, tokenizer, **settings):
    return read_preferences(rows, tokenizer, **{"max_new_tokens": 32} | settings)


class TestPlain:
    def test_a_row_is_a_pair_of_its_own_tokens_with_the_end_of_the_sequence(self, tokenizer):
        got = read([SKY | {"topic": "air", "score_chosen": 1.0}], tokenizer)
        (prompt,), (chosen, rejected), (pair,) = got.prompts, got.rollouts, got.pairs
        assert (prompt.text, prompt.columns, prompt.messages) == ("The sky is", {"topic": "air"}, None)
        assert list(prompt.ids + chosen.ids) == [*tokenizer("The sky is blue.")["input_ids"], tokenizer.eos_token_id]
        assert (chosen.text, rejected.text) == (" blue.", " green.")
        assert chosen.options == (-1,) * len(chosen.ids)
        assert pair == Pair(0, 0, 1)
        assert got.summary == "1 usable pair of 1 prompt."

    def test_an_end_that_is_written_already_is_not_written_twice(self, tokenizer):
        ended = SKY | {"chosen": " blue." + tokenizer.eos_token}
        assert read([ended], tokenizer).rollouts == read([SKY], tokenizer).rollouts

    def test_where_prompt_and_response_merge_the_response_keeps_its_own_tokens(self, tokenizer):
        row = {"prompt": "Story: Once up", "chosen": "on a time", "rejected": "stairs"}
        joint, own = tokenizer(row["prompt"] + row["chosen"]), tokenizer(row["chosen"], add_special_tokens=False)
        got = read([row], tokenizer)
        size = len(got.prompts[0].ids)
        assert tuple(joint["input_ids"][:size]) != got.prompts[0].ids  # " upon" is one token
        assert list(got.rollouts[0].ids) == [*own["input_ids"], tokenizer.eos_token_id]

    def test_prompts_and_responses_are_kept_once(self, tokenizer):
        rows = [SKY, SKY | {"rejected": " red."}, {"prompt": "Snow is", "chosen": " white.", "rejected": " blue."}]
        got = read(rows, tokenizer)
        assert [prompt.text for prompt in got.prompts] == ["The sky is", "Snow is"]
        assert [(r.prompt, r.text) for r in got.rollouts] == [
            (0, " blue."), (0, " green."), (0, " red."), (1, " white."), (1, " blue."),
        ]  # fmt: skip
        assert got.pairs == [Pair(0, 0, 1), Pair(0, 0, 2), Pair(1, 3, 4)]

    @given(st.text(min_size=1, max_size=12), st.text(min_size=1, max_size=12), st.text(min_size=1, max_size=12))
    def test_tokens_stand_for_the_texts_whatever_these_are(self, tokenizer, prompt, chosen, rejected):
        try:
            got = read([{"prompt": prompt, "chosen": chosen, "rejected": rejected}], tokenizer, max_new_tokens=200)
        except NoPairsError as error:
            assert "chosen and rejected are the same" in str(error)
            return
        assert got.rollouts[0].text == tokenizer.decode(tokenizer(chosen)["input_ids"], skip_special_tokens=True)
        assert all(rollout.ids[-1] == tokenizer.eos_token_id for rollout in got.rollouts)


class TestConversations:
    def test_an_answer_is_what_the_template_adds_up_to_the_end_of_its_turn(self, chatml):
        got = read([{"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]}], chatml)
        (prompt,), (chosen, rejected) = got.prompts, got.rollouts
        assert prompt.messages == (USER,)
        assert chatml.decode(prompt.ids + chosen.ids) + "\n" == chatml.apply_chat_template([USER, BLUE], tokenize=False)
        assert chosen.ids[-1] == rejected.ids[-1] == chatml.eos_token_id
        assert (chosen.text, rejected.text) == ("It is blue.", "It is green.")

    def test_other_ends_of_a_turn_are_told_by_the_model(self, chatml):
        period = chatml(".", add_special_tokens=False)["input_ids"][-1]
        got = read([{"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]}], chatml, stops=[period])
        assert {rollout.ids[-1] for rollout in got.rollouts} == {period}

    @pytest.mark.parametrize("prompt", [{}, {"prompt": USER["content"]}])
    def test_a_prompt_may_be_what_both_conversations_begin_with(self, chatml, prompt):
        explicit = read([{"prompt": [USER, BLUE, USER], "chosen": [BLUE], "rejected": [GREEN]}], chatml)
        implicit = read([prompt | {"chosen": [USER, BLUE, USER, BLUE], "rejected": [USER, BLUE, USER, GREEN]}], chatml)
        assert implicit == explicit

    def test_an_answer_goes_on_with_its_beginning_in_the_prompt(self, chatml):
        begun = {"role": "assistant", "content": "It is"}
        ends = [[{"role": "assistant", "content": text}] for text in (" blue.", " green.")]
        got = read([{"prompt": [USER, begun], "chosen": ends[0], "rejected": ends[1]}], chatml)
        whole = read([{"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]}], chatml)
        assert [r.text for r in got.rollouts] == [" blue.", " green."]
        assert got.prompts[0].ids + got.rollouts[0].ids == whole.prompts[0].ids + whole.rollouts[0].ids

    def test_a_template_that_writes_the_prompt_differently_is_counted_and_its_settings_help(self, chatml):
        row = {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]}
        rows = [row | {"chat_template_kwargs": {"enable_thinking": on}} for on in (True, False)]
        got = read(rows, chatml)
        assert len(got.pairs) == 1
        assert "1 because the chat template writes their prompt differently once it is answered" in got.summary
        assert "chat_template_kwargs" in got.summary

    def test_a_dataset_of_conversations(self, chatml):
        rows = [{"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN | {"name": "x"}]}]
        assert read(datasets.Dataset.from_list(rows), chatml) == read(
            [{"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]}], chatml
        )


class TestLeftOut:
    def test_every_reason_is_counted_and_nothing_is_cut(self, tokenizer):
        long = {"prompt": "The sky is", "chosen": " blue and" * 10, "rejected": " red."}
        rows = [SKY, SKY, SKY | {"chosen": " green."}, long, {"prompt": "It is " * 20, "chosen": "a", "rejected": "b"}]
        got = read([*rows, {"prompt": "Held out", "chosen": "a", "rejected": "b"}], tokenizer, max_new_tokens=8, context=40,
                   held_out={"Held out"})  # fmt: skip
        assert got.pairs == [Pair(0, 0, 1)]
        assert got.summary.startswith("1 usable pair of 1 prompt. 5 of 6 rows are left out: ")
        for reason in (
            "1 because they stand in an earlier row",
            "1 because chosen and rejected are the same",
            "1 because a response is longer than max_new_tokens (8)",
            "1 because prompt and response are longer than the model's context (40)",
            "1 because their prompt is kept for the evaluation",
        ):
            assert reason in got.summary

    @pytest.mark.parametrize("completion", [[USER], [BLUE, USER, BLUE], [BLUE | {"content": None, "tool_calls": [{}]}]])
    def test_completions_that_are_not_one_text_of_the_assistant(self, chatml, completion):
        with pytest.raises(NoPairsError, match="1 because a completion is not one text of the assistant"):
            read([{"prompt": [USER], "chosen": completion, "rejected": [GREEN]}], chatml)

    def test_if_nothing_is_left_the_reasons_are_told(self, tokenizer):
        with pytest.raises(NoPairsError, match=r"None of the 2 preferences can be used: 2 because chosen and rejected are the"):
            read([SKY | {"rejected": " blue."}] * 2, tokenizer)
        with pytest.raises(NoPairsError, match="None of the 0 preferences can be used: there are none"):
            read([], tokenizer)


class TestRefused:
    @pytest.mark.parametrize(
        ("row", "told"),
        [
            ("text", "Row 1 of the preferences is 'text'. It needs `prompt`, `chosen` and `rejected`"),
            ({"prompt": "a", "chosen": "b"}, "It needs `prompt`, `chosen` and `rejected`"),
            ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "would be a guess.*extract_prompt of TRL"),
            ({"prompt": "a", "chosen": "b", "rejected": [GREEN]}, "has no known form: `prompt` is 'a', `chosen` is 'b'"),
            ({"prompt": "other", "chosen": [USER, BLUE], "rejected": [USER, GREEN]}, "has no known form"),
            ({"chosen": [BLUE], "rejected": [GREEN]}, "two conversations that begin alike"),
            ({"prompt": [USER], "chosen": ["b"], "rejected": [GREEN]}, "holds 'b', which is not a chat message"),
        ],
    )
    def test_rows_of_another_form_are_named(self, chatml, row, told):
        with pytest.raises(DataError, match=told):
            read([row], chatml)

    def test_conversations_need_a_chat_template(self, tokenizer):
        with pytest.raises(DataError, match=r"Row 1 .* is a conversation, but this tokenizer has no chat template"):
            read([{"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]}], tokenizer)

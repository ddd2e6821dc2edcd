"""Pairs written in TRL's preference format, and the way back: rows that TRL reads, and the same tokens again."""

import json

import datasets
import pytest

from latentknobs import KnobSpace, testbed
from latentknobs.data.preferences import read_preferences
from latentknobs.data.prompts import make_prompts
from latentknobs.data.rollouts import Rollout, roll_out
from latentknobs.data.trl import Pair, preference_rows, write_preferences
from latentknobs.errors import DataError
from latentknobs.heads.segmenters import parse_level
from latentknobs.learners.lpo.pairs import pick_pairs
from latentknobs.policies import UniformPolicy

USER = {"role": "user", "content": "1 + 1?"}


@pytest.fixture(scope="module")
def played(tokenizer):
    """Real responses of the testbed's model, some of them cut by max_new_tokens, and pairs of them."""
    prompts = make_prompts(testbed.prompts("mixture", "train", 12, 0), tokenizer)
    policy = UniformPolicy(KnobSpace.of("temperature"), parse_level("token", tokenizer))
    rollouts = roll_out(
        testbed.load_model(), tokenizer, prompts, policy, copies=4, max_new_tokens=24, batch_size=48, seed=3
    )  # fmt: skip
    scores = [float(sum(rollout.ids) % 11) for rollout in rollouts]  # the same for the same response
    return prompts, rollouts, pick_pairs([r.prompt for r in rollouts], scores, "best_worst"), scores


def tokens(prompts, rollouts, pairs):
    return [(prompts[p.prompt].ids, rollouts[p.chosen].ids, rollouts[p.rejected].ids) for p in pairs]


class TestRoundTrip:
    def test_the_same_tokens_come_back_from_the_file(self, played, tokenizer, tmp_path):
        write_preferences(tmp_path / "p.jsonl", preference_rows(*played))
        got = read_preferences(tmp_path / "p.jsonl", tokenizer, max_new_tokens=24)
        assert tokens(got.prompts, got.rollouts, got.pairs) == tokens(*played[:3])
        assert [prompt.columns for prompt in got.prompts] == [played[0][pair.prompt].columns for pair in played[2]]
        assert any(ids[-1] != tokenizer.eos_token_id for _, ids, _ in tokens(*played[:3]))  # cut ones are among them

    def test_through_a_dataset_as_trl_reads_it(self, played, tokenizer, tmp_path, monkeypatch):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        write_preferences(tmp_path / "p.jsonl", preference_rows(*played))
        got = read_preferences(f"dataset:{tmp_path / 'p.jsonl'}", tokenizer, max_new_tokens=24)
        assert tokens(got.prompts, got.rollouts, got.pairs) == tokens(*played[:3])

    def test_ids_of_another_tokenizer_are_not_believed(self, played, chatml):
        rows = [row | {"chosen_ids": [5, 6, 7], "rejected_ids": [10**9]} for row in preference_rows(*played)]
        plain = [{k: v for k, v in row.items() if not k.endswith("_ids")} for row in rows]
        read = [read_preferences(given, chatml, max_new_tokens=30) for given in (rows, plain)]
        assert read[0] == read[1]

    def test_ids_behind_another_prompt_are_not_believed(self, tokenizer):
        apart = [tokenizer(letter)["input_ids"][-1] for letter in " blue"]
        row = {"prompt": "The sky is", "chosen": " blue", "rejected": " red", "chosen_ids": apart, "rejected_ids": apart[:1]}
        own = {"prompt_ids": tokenizer(row["prompt"])["input_ids"]}
        read = [read_preferences([row | ids], tokenizer, max_new_tokens=9).rollouts[0].ids for ids in (own, {"prompt_ids": [5]})]
        assert read == [tuple(apart), (*tokenizer(" blue", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)]

    def test_finished_responses_are_the_same_without_ids(self, played, tokenizer):
        finished = [p for p in played[2] if all(played[1][n].ids[-1] == tokenizer.eos_token_id for n in (p.chosen, p.rejected))]
        rows = [
            {k: row[k] for k in ("prompt", "chosen", "rejected")} for row in preference_rows(*played[:2], finished, played[3])
        ]
        got = read_preferences(rows, tokenizer, max_new_tokens=24)
        assert len(finished) > 0 and tokens(got.prompts, got.rollouts, got.pairs) == tokens(*played[:2], finished)


class TestRows:
    def test_a_row_has_texts_scores_ids_and_columns(self, played):
        prompts, rollouts, pairs, scores = played
        row = next(preference_rows(*played))
        chosen, rejected = rollouts[pairs[0].chosen], rollouts[pairs[0].rejected]
        assert row == prompts[0].columns | {
            "prompt": prompts[0].text, "chosen": chosen.text, "rejected": rejected.text,
            "score_chosen": scores[pairs[0].chosen], "score_rejected": scores[pairs[0].rejected],
            "prompt_ids": list(prompts[0].ids), "chosen_ids": list(chosen.ids), "rejected_ids": list(rejected.ids),
        }  # fmt: skip
        assert list(row)[:3] == ["prompt", "chosen", "rejected"]

    def test_conversations_stay_messages_and_come_back_with_their_tokens(self, chatml):
        prompts = make_prompts([{"prompt": [USER], "chosen": "a column that must not win"}], chatml)
        given = read_preferences(
            [{"prompt": [USER], "chosen": [answer("2")], "rejected": [answer("3")]}], chatml, max_new_tokens=9
        )  # fmt: skip
        (row,) = preference_rows(prompts, given.rollouts, given.pairs, [None, 0.5])
        assert (row["prompt"], row["chosen"], row["rejected"]) == ([USER], [answer("2")], [answer("3")])
        assert (row["score_chosen"], row["score_rejected"]) == (None, 0.5)
        assert read_preferences([json.loads(json.dumps(row))], chatml, max_new_tokens=9) == given

    def test_the_beginning_of_an_answer_moves_into_both_answers(self, chatml):
        prompts = make_prompts([{"prompt": [USER, answer("It is")]}], chatml)
        rollouts = [Rollout(0, tuple(chatml(text)["input_ids"]), (), text) for text in (" 2.", " 3.")]
        (row,) = preference_rows(prompts, rollouts, [Pair(0, 0, 1)], [1.0, 0.0])
        assert row == {
            "prompt": [USER], "chosen": [answer("It is 2.")], "rejected": [answer("It is 3.")],
            "score_chosen": 1.0, "score_rejected": 0.0,
        }  # fmt: skip
        assert read_preferences([row], chatml, max_new_tokens=20).rollouts[0].text == "It is 2."

    @pytest.mark.parametrize("value", [{1, 2}, float("nan")])
    def test_columns_that_json_cannot_hold_are_named(self, tokenizer, value, tmp_path):
        prompts = make_prompts([{"prompt": "a", "tags": value}], tokenizer)
        rows = preference_rows(prompts, [Rollout(0, (5,), (), "x"), Rollout(0, (6,), (), "y")], [Pair(0, 0, 1)], [1.0, 0.0])
        with pytest.raises(DataError, match=r"The column 'tags' of a prompt cannot be written as JSON: .* Leave it out"):
            write_preferences(tmp_path / "p.jsonl", rows)
        assert not (tmp_path / "p.jsonl").exists()

    def test_a_file_that_cannot_be_written_is_named(self, played, tmp_path):
        (tmp_path / "taken").write_text("")
        with pytest.raises(DataError, match=r"cannot be written to '.*p\.jsonl': .*Choose another file"):
            write_preferences(tmp_path / "taken" / "p.jsonl", preference_rows(*played))


def answer(text):
    return {"role": "assistant", "content": text}

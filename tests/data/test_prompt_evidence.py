"""Prompts that name their evidence: how it is marked, what is refused, and that training and decoding leave it out alike."""

from typing import Any

import pytest
import torch
from click.testing import CliRunner

import latentknobs as lk
from latentknobs import testbed
from latentknobs.cli import cli
from latentknobs.data.evidence import check_evidence, second_prompts
from latentknobs.data.featurise import featurise
from latentknobs.data.prompts import check_lengths, make_prompts
from latentknobs.data.rollouts import roll_out
from latentknobs.engines.transformers import Attached, TransformersEngine
from latentknobs.errors import DataError
from latentknobs.heads.segmenters import Every
from latentknobs.policies import GreedyPolicy, UniformPolicy
from latentknobs.training.subject import model_input

FACT, ASK = "Story: Tom has a ball.", " Tom has a"
ROW = {"prompt": FACT + ASK, "prompt_without_evidence": "Story:" + ASK}
SPACE = lk.KnobSpace.of("temperature:0.5,1", "guidance_scale:1,2")
PASSAGE, QUESTION = {"role": "user", "content": "Tom has a ball."}, {"role": "user", "content": "What has he?"}


def rendered(chatml: Any, *messages: Any) -> tuple[int, ...]:
    return tuple(chatml.apply_chat_template(list(messages), add_generation_prompt=True)["input_ids"])


def test_a_column_names_the_prompt_without_evidence(tokenizer):
    prompt, plain = make_prompts([ROW, FACT], tokenizer)
    assert prompt.second_ids == tuple(tokenizer("Story:" + ASK)["input_ids"]) and prompt.text == FACT + ASK
    assert plain.second_ids is None and prompt.columns["prompt_without_evidence"] == "Story:" + ASK
    assert second_prompts([prompt, plain], ("second_NV",)) == [prompt.second_ids, plain.ids[-1:]]
    assert second_prompts([prompt], ("previous_NL",)) is None and second_prompts([plain], ("second_NV",)) is None


def test_marks_in_messages_name_it_too(chatml):
    marked = [PASSAGE | {"evidence": True}, QUESTION | {"evidence": False}]
    parts = [{"type": "text", "text": "Tom has a ball. ", "evidence": True}, {"type": "text", "text": "What has he?"}]
    by_message, by_part, by_column = make_prompts(
        [
            {"prompt": marked},
            {"prompt": [{"role": "user", "content": parts}]},
            {"prompt": [PASSAGE, QUESTION], "prompt_without_evidence": [QUESTION]},
        ],
        chatml,
    )
    assert by_message.second_ids == by_part.second_ids == by_column.second_ids == rendered(chatml, QUESTION)
    assert by_message.ids == by_column.ids == rendered(chatml, PASSAGE, QUESTION) and by_message.messages == (PASSAGE, QUESTION)
    assert by_part.ids == rendered(chatml, {"role": "user", "content": "Tom has a ball. What has he?"})
    whole = {"role": "user", "content": parts[:1]}
    assert make_prompts([{"prompt": [whole, QUESTION]}], chatml)[0].second_ids == by_message.second_ids


REFUSED = {
    "nothing is left": ({"prompt": FACT, "prompt_without_evidence": ""}, r"without its evidence in 0 \(in '<s>'\)"),
    "no text": ({"prompt": FACT, "prompt_without_evidence": 3}, "Prompt 1 without its evidence is 3; it must be text"),
    "another end": (
        {"prompt": FACT + " Answer:", "prompt_without_evidence": "Story: Answer"},
        r"Prompt 1 ends in the token \d+ \(in '.*:'\), and without its evidence in \d+ .* End both in the same words",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_evidence_that_cannot_be_left_out_is_refused(tokenizer, what):
    row, message = REFUSED[what]
    with pytest.raises(DataError, match=message):
        make_prompts([row], tokenizer)


def test_marks_that_cannot_be_read_are_refused(chatml):
    with pytest.raises(DataError, match="Prompt 1 holds the mark 'evidence': 'yes'; it must be true or false"):
        make_prompts([{"prompt": [PASSAGE | {"evidence": "yes"}, QUESTION]}], chatml)
    with pytest.raises(DataError, match="marks the evidence in its messages and has a column prompt_without_evidence"):
        make_prompts([{"prompt": [PASSAGE | {"evidence": True}, QUESTION], "prompt_without_evidence": [QUESTION]}], chatml)
    with pytest.raises(DataError, match="without its evidence is a conversation without messages"):
        make_prompts([{"prompt": [PASSAGE | {"evidence": True}]}], chatml)


def test_a_prompt_without_evidence_must_fit_the_context_too(tokenizer):
    (prompt,) = make_prompts([{"prompt": ASK, "prompt_without_evidence": FACT + ASK}], tokenizer)
    check_lengths([prompt], 4, len(prompt.second_ids) + 4)
    with pytest.raises(DataError, match=f"Prompt 1 without its evidence has {len(prompt.second_ids)} tokens"):
        check_lengths([prompt], 5, len(prompt.second_ids) + 4)


def test_some_prompts_with_evidence_and_some_without_are_refused_where_it_is_read(tokenizer):
    prompts = make_prompts([ROW, FACT], tokenizer)
    check_evidence(prompts, ())
    message = r"'Story: Tom has a ball\.' has no prompt_without_evidence, and 'Story: Tom has a ball\. Tom"
    with pytest.raises(DataError, match=message):
        roll_out(testbed.load_model(), tokenizer, prompts, UniformPolicy(SPACE, Every(1)), max_new_tokens=2, batch_size=2, seed=0)
    with pytest.raises(DataError, match="Add the column to all prompts, or to none"):
        lk.train(knobs=["guidance_scale:1,2"], prompts=[ROW, FACT], eval_prompts=["Story: He"], max_new_tokens=2)
    roll_out(testbed.load_model(), tokenizer, prompts, GreedyPolicy(), max_new_tokens=2, batch_size=2, seed=0)


def test_runs_notice_that_the_evidence_changed(tokenizer):
    without, with_it, other = make_prompts(
        [{"prompt": FACT + ASK}, ROW, ROW | {"prompt_without_evidence": "Story: He" + ASK}], tokenizer
    )
    assert len({model_input([prompt]) for prompt in (without, with_it, other)}) == 3


def test_features_and_rollouts_read_the_same_evidence(tokenizer):
    """The log-probability of each token in a record is the entry of its option in the table that heads are trained on."""
    model = testbed.load_model().double()
    longer = {"prompt": "Story: Lily saw a dog and Tom" + ASK, "prompt_without_evidence": "Story: Sam and Lily saw it." + ASK}
    rows = [ROW, longer]
    prompts, policy = make_prompts(rows, tokenizer), UniformPolicy(SPACE, Every(1))
    rollouts = roll_out(model, tokenizer, prompts, policy, copies=3, max_new_tokens=8, batch_size=4, seed=1)
    unaware = roll_out(
        model, tokenizer, make_prompts([row["prompt"] for row in rows], tokenizer), policy, copies=3, max_new_tokens=8,
        batch_size=4, seed=1,
    )  # fmt: skip
    assert rollouts != unaware
    engine = TransformersEngine(model, tokenizer)
    cache = featurise(engine, prompts, rollouts, SPACE, policy.segmenter, ("entropy",), batch_size=5).cache
    with Attached(model, policy) as knobs:
        for r, rollout in enumerate(rollouts):
            prompt = prompts[rollout.prompt]
            ids_1L, second_1P = torch.tensor([[*prompt.ids, *rollout.ids]]), torch.tensor([prompt.second_ids])
            record = knobs.record(ids_1L, len(prompt.ids), negative_prompt_ids=second_1P)
            table_TK = cache.columns["logps_NK"][int(cache.start_R1[r]) : int(cache.start_R1[r + 1])]
            expected_T = table_TK.gather(-1, record.option_BT[0].unsqueeze(-1)).squeeze(-1)
            assert torch.allclose(record.logps_BT[0], expected_T, rtol=0, atol=1e-9)


def test_evidence_is_left_out_on_the_command_line(tmp_path):
    command = ["generate", "--policy", "cfg:scale=3,temperature=0", "--max-new-tokens", "8", "--prompt", FACT + ASK]
    found = [CliRunner().invoke(cli, [*command, *more]) for more in ([], ["--without-evidence", "Story:" + ASK])]
    assert [one.exit_code for one in found] == [0, 0], found[1].output
    assert found[0].stdout != found[1].stdout
    refused = CliRunner().invoke(cli, [*command, *["--without-evidence", "Story:" + ASK] * 2])
    assert refused.exit_code == 2 and "There are 1 --prompt and 2 --without-evidence. Give one for each prompt" in refused.stderr

"""`train` on preferences from elsewhere, in TRL's format: what replaces the rollouts, and what is refused or left out."""

import json
import re

import pytest
from click.testing import CliRunner

import latentknobs as lk
from latentknobs.cli import cli
from latentknobs.data.prompts import is_held_out
from latentknobs.errors import ConfigError, UnreachableTokenError

SMALL = {
    "train_prompts": 40, "rollouts": 2, "eval_size": 4, "eval_seeds": 1, "tune_size": 3, "max_new_tokens": 24, "steps": 8,
    "hidden": 8, "pairs_per_step": 4, "level": "sequence",
}  # fmt: skip
ROWS = [
    {"prompt": f"Story: Once upon a time, {name} had a {thing}", "chosen": " and was happy.", "rejected": " and was and was."}
    for name in ("Lily", "Tom", "Ben", "Anna", "Max")
    for thing in ("dog", "ball", "cat", "boat", "kite", "hat")
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("given")
    return lk.train(knobs=["temperature:0.5,1"], preferences=ROWS, reward="repetition", output_dir=path, **SMALL)


def test_the_given_pairs_are_what_is_learned_from_and_nothing_is_rolled_out_for_them(trained):
    played = [json.loads(line) for line in (trained.path / "round-1" / "rollouts" / "00000.jsonl").read_text().splitlines()]
    assert {row["text"] for row in played} == {" and was happy.", " and was and was."}
    assert {option for row in played for option in row["options"]} == {-1}
    assert not (trained.path / "round-1" / "scores").exists()


def test_their_held_out_prompts_judge_and_do_not_train(trained):
    prompts = [json.loads(line)["text"] for line in (trained.path / "round-1" / "prompts.jsonl").read_text().splitlines()]
    wanted = {row["prompt"] for row in ROWS if not is_held_out(row["prompt"])}
    assert set(prompts) == wanted and 0 < len(wanted) < len(ROWS)
    assert trained.report.rewards["learned head"].shape == (1, 4)


def test_a_second_round_samples_for_itself(tmp_path):
    settings = SMALL | {"eval_size": 0, "rounds": 2, "reward": "word_surprise", "train_prompts": 20}
    run = lk.train(knobs=["temperature:0.5,1"], preferences=ROWS, output_dir=tmp_path, **settings)
    played = [json.loads(line) for line in (run.path / "round-2" / "rollouts" / "00000.jsonl").read_text().splitlines()]
    assert {option for row in played for option in row["options"]} <= {0, 1}


def test_pairs_that_no_option_can_produce_are_left_out_counted_and_explained(tmp_path, capsys):
    strange = [row | {"rejected": " xylophone zebra qzx!"} for row in ROWS[:10]]
    settings = SMALL | {"eval_size": 0, "output_dir": tmp_path}
    with pytest.raises(UnreachableTokenError, match=r"holds a token that no option can produce\. Add an option"):
        lk.train(knobs=["top_k:1,2"], preferences=ROWS, **settings)
    lk.train(knobs=["top_k:20,400"], preferences=[*ROWS[10:], *strange], **settings)
    told = re.search(r"(\d+) of (\d+) examples are left out: they hold a token", capsys.readouterr().err)
    lost = sum(not is_held_out(row["prompt"]) for row in strange)
    assert told and int(told[1]) == lost < int(told[2])
    lk.train(knobs=["top_k:20,400"], preferences=[*ROWS[10:], *strange], floor=-20, **settings)
    assert "Every token of the" in capsys.readouterr().err


@pytest.mark.parametrize("objective", ["tokens_separate", "tokens", "nll"])
def test_objectives_that_need_the_sampled_options_refuse(tmp_path, objective):
    with pytest.raises(ConfigError, match=f"The objective '{objective}' learns from the options"):
        lk.train(knobs=["temperature"], preferences=ROWS, objective=objective, output_dir=tmp_path, **SMALL)


def test_what_one_run_exports_another_learns_from_token_by_token(tmp_path):
    settings = SMALL | {"eval_size": 0, "train_prompts": 12, "rollouts": 4}
    first = lk.train(knobs=["temperature:0.5,1"], prompts="testbed:stories", output_dir=tmp_path / "a", **settings)
    file = tmp_path / "pairs.jsonl"
    shown = CliRunner().invoke(cli, ["export", str(first.path), "--to", str(file)])
    assert shown.exit_code == 0, shown.output
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    again = CliRunner().invoke(
        cli, ["train", "--knobs=temperature:0.5,1", f"--preferences={file}", f"--output-dir={tmp_path / 'b'}", *flags]
    )
    assert again.exit_code == 0, again.output

    def pairs(run):
        rollouts = [json.loads(line) for line in (run / "round-1" / "rollouts" / "00000.jsonl").read_text().splitlines()]
        prompts = [json.loads(line)["text"] for line in (run / "round-1" / "prompts.jsonl").read_text().splitlines()]
        found = [json.loads(line) for line in (run / "round-1" / "examples.jsonl").read_text().splitlines()]
        return {(prompts[e["prompt"]], *(tuple(rollouts[n]["ids"]) for n in e["responses"])) for e in found}

    kept = {row for row in pairs(first.path) if not is_held_out(row[0])}
    assert pairs(tmp_path / "b") == kept != set()


def test_likelihood_learns_from_a_plain_file_of_texts_and_other_objectives_refuse_it(tmp_path, capsys):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"prompt": row["prompt"], "completion": row["chosen"]}) + "\n" for row in ROWS))
    settings = SMALL | {"knobs": ["temperature:0.5,1"], "preferences": path, "reward": "repetition", "level": "token"}
    ours = {"learner": "end_to_end", "objective": "likelihood"}
    run = lk.train(output_dir=tmp_path / "run", **settings | ours | {"eval_size": 0})
    read = [json.loads(line) for line in (run.path / "round-1" / "rollouts" / "00000.jsonl").read_text().splitlines()]
    examples = [json.loads(line) for line in (run.path / "round-1" / "examples.jsonl").read_text().splitlines()]
    assert {row["text"] for row in read} == {" and was happy."} and all(len(one["responses"]) == 1 for one in examples)
    kept = sum(not is_held_out(row["prompt"]) for row in ROWS)
    assert f"{kept} usable responses of {kept} prompts." in capsys.readouterr().err
    for wrong in ({}, {"learner": "end_to_end", "objective": "preference"}):
        with pytest.raises(ConfigError, match=rf"{kept} of {kept} rows of the preferences have a `completion` and nothing to"):
            lk.train(output_dir=tmp_path / "no", **settings | wrong)
    assert not (tmp_path / "no").exists()

"""Several training seeds, and runs that come after others."""

import json

import pytest
from click.testing import CliRunner

import latentknobs as lk
from latentknobs.cli import cli
from latentknobs.errors import ConfigError, RunError
from latentknobs.evaluation.report import HEAD, Report

SMALL = {
    "train_prompts": 8, "rollouts": 4, "eval_size": 5, "eval_seeds": 2, "tune_size": 4, "max_new_tokens": 6, "steps": 3,
    "hidden": 16, "knobs": ["temperature:0,1"], "keep_head": True,
}  # fmt: skip


def length(prompts, completions, **columns):
    return [float(len(text)) for text in completions]


length.version = "1"


def test_two_seeds_are_two_runs_on_the_same_held_out_prompts_with_one_report(tmp_path, capsys):
    run = lk.train(**SMALL, reward=length, seeds=2, output_dir=tmp_path, account=True)
    assert [one.path for one in run.runs] == [tmp_path / "seed-0", tmp_path / "seed-1"] and run.report.runs == 2
    one, other = (one.report for one in run.runs)
    assert (one.rewards["temperature 1"] == other.rewards["temperature 1"]).all(), "the same draws"
    assert run.report.rewards[HEAD].shape == (4, 5) and "2 training seeds" in run.report.verdict()
    assert Report.from_dict(json.loads((tmp_path / "evaluation" / "summary.json").read_text())).runs == 2
    assert lk.KnobAdapter.from_pretrained(tmp_path / "adapter").space == run.adapter.space
    page = run.report_path.read_text()
    assert run.report_path == tmp_path / "report.html" and "2 training seeds" in page and "the first of 2" in page
    told = CliRunner().invoke(cli, ["report", str(tmp_path / "seed-1"), str(tmp_path / "seed-0")])
    assert told.exit_code == 0, told.output
    assert "2 training seeds" in (tmp_path / "seed-1" / "report-seeds.html").read_text()
    told = CliRunner().invoke(cli, ["report", str(tmp_path / "seed-1"), str(tmp_path / "seed-0" / ".." / "seed-1")])
    assert told.exit_code == 2 and "have the same training seed, 1" in told.output
    told = CliRunner().invoke(cli, ["report", str(tmp_path)])
    assert told.exit_code == 0 and (tmp_path / "report.html").read_text() == page
    times = [json.loads(line) for line in (tmp_path / "seed-1" / "manifest.jsonl").read_text().splitlines()]
    constants = [row for row in times if row["file"].startswith("evaluation/rollouts/temperature")]
    assert constants and all(row["seconds"] == 0 for row in constants), "copied from the first seed"
    assert "What each policy trades" in page and run.report.accounts[HEAD].runs == 2
    assert lk.account(tmp_path) == run.report.accounts
    rollouts = [(one.path / "round-1/rollouts/00000.jsonl").read_text() for one in run.runs]
    assert rollouts[0] != rollouts[1]


def test_a_run_after_another_copies_what_is_the_same(tmp_path):
    first = lk.train(**SMALL, reward=length, output_dir=tmp_path / "a")
    again = lk.train(**SMALL, reward=length, output_dir=tmp_path / "b", after=tmp_path / "a", beta=0.3)
    rows = [json.loads(line) for line in (tmp_path / "b" / "manifest.jsonl").read_text().splitlines()]
    told = CliRunner().invoke(cli, ["report", str(tmp_path / "a"), str(tmp_path / "b")])
    assert told.exit_code == 2 and "have the same training seed" in told.output
    config = tmp_path / "b" / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 1"))
    told = CliRunner().invoke(cli, ["report", str(tmp_path / "a"), str(tmp_path / "b")])
    assert told.exit_code == 2 and "not training seeds of one training: beta is 0.1 and 0.3" in told.output
    made = {row["stage"] for row in rows if row["seconds"] > 0}
    assert "round-1/heads" in made and not {"round-1/rollouts", "round-1/features", "tuning/rollouts"} & made
    assert (first.report.rewards["temperature 1"] == again.report.rewards["temperature 1"]).all()


def test_what_is_not_a_run_and_what_is_not_a_number_of_seeds_is_refused(tmp_path):
    with pytest.raises(RunError, match="no run in"):
        lk.train(**SMALL, after=tmp_path)
    with pytest.raises(ConfigError, match="not a number of training seeds"):
        lk.train(**SMALL, seeds=0, output_dir=tmp_path)

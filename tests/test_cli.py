"""The command line: options come from the config, flags win over YAML, and wrong input ends with one paragraph."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from latentknobs.cli import cli
from latentknobs.config import OBJECT, flat, read_yaml
from latentknobs.evaluation.report import GREEDY, HEAD
from latentknobs.training.round_data import load_round

TINY = {"train_prompts": 8, "rollouts": 4, "eval_size": 4, "eval_seeds": 1, "tune_size": 4, "steps": 5, "max_new_tokens": 8,
        "pairs_per_step": 4, "hidden": 8, "knobs": ["temperature:0.2,1.5"], "prompts": "testbed:stories"}  # fmt: skip


def latent(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def refused(*args: object) -> str:
    """The message of a command that must end with exit code 2, one paragraph, and no traceback."""
    result = latent(*args)
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert isinstance(result.exception, SystemExit) and "Traceback" not in result.output
    error = next(line for line in result.stderr.splitlines() if line.startswith("Error: "))
    assert result.stderr.rstrip().endswith(error)
    return error


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write to runs/ of the working directory by default."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A tiny run, made with a YAML file and flags that win over it."""
    folder = tmp_path_factory.mktemp("cli")
    config = folder / "tiny.yaml"
    config.write_text(json.dumps(TINY | {"seed": 3, "steps": 7}))
    result = latent("train", "--config", config, "--steps", 5, "--output-dir", folder / "run")
    assert result.exit_code == 0, result.output + repr(result.exception)
    return folder / "run", result


class TestTrain:
    def test_results_go_to_stdout_and_progress_to_stderr(self, trained: tuple[Path, Result]) -> None:
        path, result = trained
        assert "learned head" in result.stdout and "temperature 0.2" in result.stdout
        assert f"Report:  {path / 'report.html'}" in result.stdout
        assert "rollouts" in result.stderr and "learned head" not in result.stderr

    def test_flags_win_over_yaml_and_yaml_over_defaults(self, trained: tuple[Path, Result]) -> None:
        settings = flat(read_yaml(trained[0] / "config.yaml"))
        assert (settings["steps"], settings["seed"], settings["beta"]) == (5, 3, 0.1)

    def test_report_has_the_heat_map(self, trained: tuple[Path, Result]) -> None:
        html = (trained[0] / "report.html").read_text(encoding="utf-8")
        assert re.search(r'title="temperature (0\.2|1\.5) · option \d · token 1"', html)

    def test_saved_config_gives_the_same_run_again(self, trained: tuple[Path, Result]) -> None:
        result = latent("train", "--config", trained[0] / "config.yaml")
        assert result.exit_code == 0 and result.stderr.count("already done, reused") == 15
        assert result.stdout == trained[1].stdout

    def test_interrupt_says_how_to_go_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def stop(**_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("latentknobs.training.train.train", stop)
        result = latent("train")
        assert result.exit_code == 130 and "the same command resumes" in result.stderr and not result.stdout


class TestSavedRuns:
    def test_report_prints_the_table_again_and_draws_the_picture(self, trained: tuple[Path, Result], tmp_path: Path) -> None:
        result = latent("report", trained[0], "--picture", tmp_path / "heat.png")
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[:5] == trained[1].stdout.splitlines()[:5]
        assert (tmp_path / "heat.png").stat().st_size > 1000

    @pytest.mark.parametrize("folder", [".", "adapter"])
    def test_generate_prints_prompts_and_plain_responses(self, trained: tuple[Path, Result], folder: str) -> None:
        prompts = ("--prompt", "Story: Once", "--prompt", r"Problem: 1 + 1\nAnswer:")
        result = latent("generate", trained[0] / folder, *prompts, "--max-new-tokens", 6)
        assert result.exit_code == 0, result.output + repr(result.exception)
        assert "Story: Once " in result.stdout and "Problem: 1 + 1\nAnswer:" in result.stdout
        assert len(result.stdout.split()) > 8 and "\x1b[" not in result.stdout

    def test_generate_is_the_same_for_the_same_seed_only(self, trained: tuple[Path, Result]) -> None:
        one, two, other = (latent("generate", trained[0], "--pick", "sample", "--seed", seed).stdout for seed in (1, 1, 2))
        assert one == two != other and one.count("Story: ") == 2  # a prompt of each task of the testbed

    def test_generate_colours_a_terminal(self, trained: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm-256color"}.items():
            monkeypatch.setenv(name, value)
        result = latent("generate", trained[0], "--prompt", "Story: Once")
        assert "\x1b[2mStory: Once\x1b[0m\x1b[30;48;2;" in result.stdout
        assert result.stdout.splitlines()[-1].startswith("temperature")

    def test_generate_takes_a_policy_by_name_instead_of_an_adapter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        words = ("generate", "--prompt", "Story: Once", "--max-new-tokens", 12, "--policy")
        edt, again, greedy = (
            latent(*words, spec).stdout for spec in ("edt:base=1.4,theta=0.5", "edt:base=1.4,theta=0.5", "greedy")
        )
        assert edt == again != greedy and edt.startswith("Story: Once ")
        for name, value in {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm-256color"}.items():
            monkeypatch.setenv(name, value)
        last = latent(*words, "mirostat:tau=2").stdout.splitlines()[-1]
        assert last.startswith("epsilon_cutoff"), "values that come from no grid have a legend too"

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--policy", "edtt:base=1"), "no policy 'edtt'. Did you mean \"edt\"?"),
            (("nowhere", "--policy", "greedy"), "Name one of the two: an adapter or run directory, or --policy NAME"),
            ((), "Name one of the two"),
        ],
    )
    def test_generate_refuses_what_names_no_policy(self, words: tuple[str, ...], message: str) -> None:
        result = latent("generate", *words)
        assert result.exit_code == 2 and message in result.stderr

    def test_evaluate_uses_the_settings_of_the_run(self, trained: tuple[Path, Result], tmp_path: Path) -> None:
        result = latent("evaluate", trained[0], "--json", tmp_path / "r.json")
        assert result.exit_code == 0, result.output + repr(result.exception)
        again, first = (json.loads(path.read_text()) for path in (tmp_path / "r.json", trained[0] / "evaluation/summary.json"))
        choice = first["notes"].pop("choice")  # of the training; evaluate judges what it finds
        assert choice and first["verdict"].startswith(again["verdict"])
        assert again | {"verdict": ""} == first | {"verdict": ""}
        page = (tmp_path / "runs/evaluation/report.html").read_text(encoding="utf-8")
        assert "All settings of this evaluation" in page and "runs/evaluation/report.html" in result.stdout
        assert latent("report", "runs/evaluation").stdout.split("Report:")[0] == result.stdout.split("Report:")[0]
        assert "holds a run" in refused("evaluate", trained[0], "--output-dir", trained[0])

    def test_evaluate_against_policies_by_name_and_adapters(self, trained: tuple[Path, Result], tmp_path: Path) -> None:
        names = ["edt:base=1.4,theta=3", "greedy", str(trained[0] / "adapter")]
        flags = [word for name in names for word in ("--against", name)]
        result = latent("evaluate", trained[0], "--json", tmp_path / "r.json", *flags)
        assert result.exit_code == 0, result.output + repr(result.exception)
        rewards, plain = (
            json.loads(p.read_text())["rewards"] for p in (tmp_path / "r.json", trained[0] / "evaluation/summary.json")
        )
        assert [*rewards] == [*plain, *names] and "edt:base=1.4" in result.stdout
        assert rewards == plain | dict(zip(names, (rewards[names[0]], plain[GREEDY], plain[HEAD]), strict=True))
        assert rewards[names[0]] not in plain.values()
        assert "Did you mean" in refused("evaluate", trained[0], "--against", "edtt")

    def test_evaluate_on_other_prompts(self, trained: tuple[Path, Result], tmp_path: Path) -> None:
        for name, word in (("tune", "cat"), ("test", "dog")):
            rows = [{"prompt": f"Story: A {word} {n}", "task": "stories"} for n in range(3)]
            (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = ("--prompts", tmp_path / "tune", "--eval-prompts", tmp_path / "test")
        result = latent("evaluate", trained[0] / "adapter", *files, "--seeds", 2)
        assert result.exit_code == 0, result.output + repr(result.exception)
        assert "3 held-out prompts x 2 responses" in result.stdout

    def test_an_adapter_outside_of_its_run_remembers_enough(self, trained: tuple[Path, Result], tmp_path: Path) -> None:
        adapter = shutil.copytree(trained[0] / "adapter", tmp_path / "moved")
        result = latent("evaluate", adapter, "--eval-size", 2, "--seeds", 1, "--tune-size", 2)
        assert result.exit_code == 0, result.output + repr(result.exception)
        assert "2 held-out prompts x 1 response " in result.stdout and "Mean reward by task" not in result.stdout
        assert latent("generate", adapter).stdout == latent("generate", trained[0]).stdout

    @pytest.mark.parametrize("reward", ["command:run=touch pwned", ["repetition", "command:run=touch pwned"], "score.py:pwned"])
    def test_a_program_named_in_a_folder_is_not_started(
        self, trained: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reward: Any
    ) -> None:
        adapter = shutil.copytree(trained[0] / "adapter", tmp_path / "run" / "adapter")
        saved = json.loads((adapter / "knob_config.json").read_text())
        saved["training"]["reward"] = reward if isinstance(reward, str) else json.dumps(reward)
        (adapter / "knob_config.json").write_text(json.dumps(saved))
        monkeypatch.chdir(tmp_path)
        (tmp_path / "score.py").write_text("open('pwned', 'w').close()")
        flag = f"--reward {shlex.quote(reward if isinstance(reward, str) else reward[1])}"
        assert flag in refused("evaluate", adapter)
        (tmp_path / "run" / "config.yaml").write_text(json.dumps({"reward": reward}))
        assert flag in refused("evaluate", tmp_path / "run")
        assert not (tmp_path / "pwned").exists()

    @pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: bytes(range(256)), lambda data: b"[1]"])
    @pytest.mark.parametrize(
        ("file", "command"),
        [
            ("adapter/knob_config.json", ("generate", "--prompt", "Story:")),
            ("adapter/knob_head.safetensors", ("generate", "--prompt", "Story:")),
            ("plan.json", ("status",)),
            ("evaluation/summary.json", ("report",)),
            ("evaluation/samples.json", ("report",)),
        ],
    )
    def test_a_damaged_file_of_a_run_is_named_in_one_paragraph(
        self, trained: tuple[Path, Result], tmp_path: Path, file: str, command: tuple[str, ...], damage: Any
    ) -> None:
        run = shutil.copytree(trained[0], tmp_path / "run")
        (run / file).write_bytes(damage((run / file).read_bytes()))
        error = refused(command[0], run, *command[1:])
        assert Path(file).name in error and "codec" not in error and len(error) < 600

    def test_several_rewards_are_remembered_with_their_weights(self, trained: tuple[Path, Result], tmp_path: Path) -> None:
        adapter = shutil.copytree(trained[0] / "adapter", tmp_path / "moved")
        sizes = ("--eval-size", 2, "--seeds", 1, "--tune-size", 2)
        given_here = ("--reward", "repetition:n=1", "--reward", "testbed", "--reward-weights", "1,0.5")
        expected = latent("evaluate", adapter, *sizes, *given_here)
        saved = json.loads((adapter / "knob_config.json").read_text())
        saved["training"] |= {"reward": '["repetition:n=1", "testbed"]', "reward_weights": "[1.0, 0.5]"}
        (adapter / "knob_config.json").write_text(json.dumps(saved))
        result = latent("evaluate", adapter, *sizes)
        assert result.exit_code == 0 and result.stdout == expected.stdout
        assert latent("evaluate", adapter, *sizes, "--reward", "repetition").exit_code == 0

    def test_a_run_on_python_objects_asks_for_names(self, trained: tuple[Path, Result], tmp_path: Path) -> None:
        shutil.copytree(trained[0] / "adapter", tmp_path / "adapter")
        (tmp_path / "config.yaml").write_text(f"reward: my_reward {OBJECT}\n")
        assert "my_reward" in (message := refused("evaluate", tmp_path)) and "--reward" in message


class TestTerminals:
    """What a run has cost is not lost because a terminal lacks a character."""

    @pytest.mark.parametrize("encoding", ["ascii", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cp1252", "utf-8"))])
    def test_characters_that_an_encoding_lacks_are_escaped(self, trained: tuple[Path, Result], encoding: str) -> None:
        command = [sys.executable, "-m", "latentknobs", "generate", trained[0], "--max-new-tokens", "3"]
        environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C"}
        done = subprocess.run([*command, "--prompt", "Story: caf\u00e9 \u2192 \U0001f600"], env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        shown = "Story: caf\u00e9 \u2192 \U0001f600".encode(encoding, errors="backslashreplace")
        assert shown in done.stdout and b"Traceback" not in done.stderr

    def test_bytes_that_are_not_text_are_refused_by_prompt(self, trained: tuple[Path, Result]) -> None:
        assert "Prompt 2 holds half a character" in refused("generate", trained[0], "--prompt", "So", "--prompt", "So \udcff")

    def test_a_file_that_cannot_be_written_is_refused_before_the_work(self, trained: tuple[Path, Result], tmp_path: Path) -> None:
        for path, words in ((tmp_path, "it is a folder"), (tmp_path / "no" / "r.json", "its folder does not exist")):
            assert words in refused("evaluate", trained[0], "--json", path)
        (tmp_path / "file").write_text("")
        assert "cannot be written" in refused("report", trained[0], "--picture", tmp_path / "file" / "heat.png")
        assert "cannot be written" in refused("export", trained[0], "--to", tmp_path / "file" / "p.jsonl")

    def test_a_tilde_is_the_home_folder(
        self, trained: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        shutil.copytree(trained[0], tmp_path / "mine")
        for arguments in (
            ("report", "~/mine", "--picture=~/heat.png"),
            ("export", "~/mine", "--to=~/p.jsonl"),
            ("status", "~/mine"),
        ):
            result = latent(*arguments)
            assert result.exit_code == 0, result.output + repr(result.exception)
        assert {"heat.png", "p.jsonl"} <= {path.name for path in tmp_path.iterdir()} and not (tmp_path / "~").exists()


class TestNotesOfAnotherKind:
    """An adapter may have come from anywhere, and its notes may say anything."""

    @pytest.mark.parametrize("notes", [[1, 2], "steps", 3, None])
    def test_notes_that_are_not_a_mapping(self, trained: tuple[Path, Result], tmp_path: Path, notes: Any) -> None:
        assert "training is" in refused("generate", noted(trained[0], tmp_path, notes), "--prompt", "So")

    @pytest.mark.parametrize("note", [[1, 2], {"a": 1}, [["repetition"]]])
    @pytest.mark.parametrize("name", ["reward", "seed", "prompts", "reward_weights"])
    def test_a_note_that_is_not_a_setting(self, trained: tuple[Path, Result], tmp_path: Path, name: str, note: Any) -> None:
        told = refused("evaluate", noted(trained[0], tmp_path, {name: note}))
        assert f"notes {name}=" in told and f"Give --{name.replace('_', '-')} here" in told

    @pytest.mark.parametrize("notes", [{"seed": "many"}, {"batch_size": -1}, {"max_new_tokens": 1e400}, {"pick": "best"}])
    def test_a_setting_with_a_value_that_it_cannot_have(self, trained: tuple[Path, Result], tmp_path: Path, notes: Any) -> None:
        assert f"{next(iter(notes))}=" in refused("generate", noted(trained[0], tmp_path, notes), "--prompt", "So")


def noted(run: Path, folder: Path, notes: Any) -> Path:
    """The run's adapter outside of it, with other notes."""
    adapter = shutil.copytree(run / "adapter", folder / "moved")
    saved = json.loads((adapter / "knob_config.json").read_text()) | {"training": notes}
    (adapter / "knob_config.json").write_text(json.dumps(saved))
    return adapter


class TestExport:
    def test_pairs_of_a_run_train_another_with_the_same_tokens(self, trained: tuple[Path, Result], tmp_path: Path) -> None:
        result = latent("export", trained[0], "--to", tmp_path / "p.jsonl")
        assert result.exit_code == 0, result.output + repr(result.exception)
        rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
        assert result.stdout == f"Preferences: {tmp_path / 'p.jsonl'} ({len(rows)} pairs)\n"
        assert all({"prompt", "chosen", "rejected", "task"} <= set(row) for row in rows)
        assert all(row["score_chosen"] > row["score_rejected"] for row in rows)
        settings = [item for name in TINY for item in (f"--{name.replace('_', '-')}", TINY[name]) if name != "knobs"]
        again = latent("train", *settings, "--knobs", "temperature:0.2,1.5", "--preferences", tmp_path / "p.jsonl",
                       "--eval-size", 0, "--output-dir", tmp_path / "run")  # fmt: skip
        assert again.exit_code == 0, again.output + repr(again.exception)
        assert f"{len(rows)} usable pairs of {len(rows)} prompts." in again.stderr
        assert pairs_of(tmp_path / "run") == pairs_of(trained[0])

    def test_standard_output_by_default(self, trained: tuple[Path, Result]) -> None:
        result = latent("export", trained[0], "--round", 1)
        assert result.exit_code == 0 and {"chosen_ids"} <= set(json.loads(result.stdout.splitlines()[0]))

    def test_a_round_that_is_not_there(self, trained: tuple[Path, Result]) -> None:
        assert "There is no round 7 in" in refused("export", trained[0], "--round", 7)
        assert "There is no round in 'nowhere'" in refused("export", "nowhere")


def pairs_of(run: Path) -> list[tuple[Any, ...]]:
    """The tokens of a run's pairs."""
    played = load_round(run)
    ids = [rollout.ids for rollout in played.rollouts]
    return [(played.prompts[pair.prompt].ids, ids[pair.chosen], ids[pair.rejected]) for pair in played.pairs]


def test_a_saved_run_never_switches_remote_code_on(trained: tuple[Path, Result]) -> None:
    from latentknobs.commands.saved import open_saved, settings_of

    config = trained[0] / "config.yaml"
    before = config.read_text()
    config.write_text(before.replace("trust_remote_code: false", "trust_remote_code: true"))
    try:
        assert "trust_remote_code: true" in config.read_text()
        assert settings_of(*open_saved(trained[0]), ("trust_remote_code", "batch_size")).keys() == {"batch_size"}
    finally:
        config.write_text(before)

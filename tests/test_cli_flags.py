"""The command line without any run: flags as settings, lists of what is installed, help, and wrong input."""

import re
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from test_cli import latent, refused

import latentknobs
from latentknobs import entry_points
from latentknobs.cli import COMMANDS
from latentknobs.commands.settings import parse_flags
from latentknobs.config import every_field, make_config
from latentknobs.knobs import registry
from latentknobs.testing import KNOBS


class TestBadInput:
    @pytest.mark.parametrize(
        "args, words",
        [
            (("train", "--knobs", "temprature"), 'no knob .temprature.*Did you mean "temperature"'),
            (("train", "--knobs", "temperature:1,0"), "1, 0.*temperature"),
            (("train", "--knobs", "temperature:-1,0"), "temperature"),
            (("train", "--knobs", "top_p:0.5,1.5"), "1.5.*top_p"),
            (("train", "--steps", "many"), "steps='many'.*integer"),
            (("train", "--beta", "-1"), "beta=-1.*greater than 0"),
            (("train", "--objective", "best"), "objective='best'.*latent"),
            (("train", "--level", "word"), "word"),
            (("train", "--reward", "nice"), "nice"),
            (("train", "--prompts", "nowhere.jsonl"), r"nowhere\.jsonl.*cannot be read"),
            (("train", "--prompts", "testbed:maths"), 'maths.*Did you mean "math"'),
            (("train", "--config", "nowhere.yaml"), r"nowhere\.yaml.*cannot be read"),
            (("generate", "nowhere"), "no adapter in 'nowhere'"),
            (("evaluate", "nowhere"), "no adapter in 'nowhere'"),
            (("report", "nowhere"), "no evaluation in 'nowhere'"),
        ],
    )
    def test_one_paragraph(self, args: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert re.search(words, refused(*args), flags=re.IGNORECASE)

    def test_unknown_setting_in_yaml(self, tmp_path: Path) -> None:
        (tmp_path / "c.yaml").write_text("step: 3\n")
        assert 'Did you mean "steps"' in refused("train", "--config", tmp_path / "c.yaml")

    def test_malformed_prompts_name_the_line(self, tmp_path: Path) -> None:
        (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
        assert "Line 2" in refused("train", "--prompts", tmp_path / "p.jsonl", "--output-dir", tmp_path / "run")

    def test_unknown_option_and_command(self) -> None:
        assert "--rollouts" in refused("train", "--rollout", "4")
        assert "evaluat" in refused("evaluat")

    def test_a_bug_is_not_hidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(**_: Any) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr("latentknobs.training.train.train", broken)
        assert isinstance(latent("train").exception, ZeroDivisionError)


class TestSettings:
    def test_help_shows_every_field_with_its_text_and_default(self) -> None:
        text = " ".join(latent("train", "--help").stdout.split())
        for name, settings in every_field().items():
            assert f"--{name.replace('_', '-')} " in text, name
            for setting in settings.values():
                assert " ".join(str(setting.info.description).split())[:25] in text, name
        assert "[default: 0.001; reinforce: 0.01]" in text and "(lpo, end_to_end) Sharpness" in text
        assert "latent|tokens_separate|tokens_printed|tokens|nll" in text

    def test_settings_of_every_learner_are_options(self) -> None:
        flags = {"learner": "reinforce", "estimator": "score", "baseline": "none", "token_budgets": "16,32", "max_prob": "0.9"}
        own = make_config(parse_flags(flags))["learner"].model_dump()
        assert own["estimator"] == "score" and own["baseline"] == "none"
        assert own["token_budgets"] == (16, 32) and own["max_prob"] == 0.9
        assert "setting of the learner 'reinforce'" in refused("train", "--estimator", "score")

    def test_help_of_saved_runs_says_where_defaults_come_from(self) -> None:
        for command in ("evaluate", "generate"):
            assert "[default: as in training]" in " ".join(latent(command, "--help").stdout.split())

    @pytest.mark.parametrize(
        "texts, expected",
        [
            (("temperature",), ["temperature"]),
            (("temperature", "top_p:0.5,0.9,1"), ["temperature", "top_p:0.5,0.9,1"]),
            (("temperature:0,1,top_p:0.5,1,min_p",), ["temperature:0,1", "top_p:0.5,1", "min_p"]),
            (("kl_half_life:0.5,inf,temperature:0,1",), ["kl_half_life:0.5,inf", "temperature:0,1"]),
            (("{top_p: [0.5, 1]}",), [{"top_p": [0.5, 1]}]),
            (("[temperature, {top_p: [0.5, 1]}]",), ["temperature", {"top_p": [0.5, 1]}]),
        ],
    )
    def test_knobs_are_repeated_or_in_a_list(self, texts: tuple[str, ...], expected: list[Any]) -> None:
        assert parse_flags({"knobs": texts})["knobs"] == expected

    @pytest.mark.parametrize(
        "texts, expected",
        [
            (("repetition",), "repetition"),
            (("command:run=python score.py --a b,c,timeout=3",), "command:run=python score.py --a b,c,timeout=3"),
            (("word_surprise:scale=3,offset=9", "repetition"), ["word_surprise:scale=3,offset=9", "repetition"]),
            (("[repetition, 'repetition:n=1']",), ["repetition", "repetition:n=1"]),
        ],
    )
    def test_a_reward_is_one_option_with_its_commas(self, texts: tuple[str, ...], expected: Any) -> None:
        assert parse_flags({"reward": texts})["reward"] == expected
        reward = make_config(parse_flags({"reward": texts})).reward
        assert reward == (tuple(expected) if isinstance(expected, list) else expected)

    def test_weights_of_rewards_are_a_list_of_numbers(self) -> None:
        assert make_config(parse_flags({"reward_weights": ("1,-0.5",)})).reward_weights == (1.0, -0.5)
        assert make_config(parse_flags({"reward_weights": ("1", "[2, 3]")})).reward_weights == (1.0, 2.0, 3.0)
        assert make_config(parse_flags({"reward_weights": ("none",)})).reward_weights is None
        assert "reward_weights='much'" in refused("train", "--reward-weights", "much")

    def test_values_get_the_type_of_their_field(self) -> None:
        flags = {
            "model": "1e3",
            "steps": "12",
            "learning_rate": "1e-4",
            "eval_prompts": "null",
            "floor": "-5",
            "factorised": True,
        }
        config = make_config(parse_flags(flags))
        assert (config.model, config.steps, config.learning_rate) == ("1e3", 12, 1e-4)
        assert (config.eval_prompts, config.floor, config.factorised) == (None, -5.0, True)

    def test_an_order_is_an_engine_or_names(self) -> None:
        assert parse_flags({"order": ("vllm",)}) == {"order": "vllm"}
        assert parse_flags({"order": ("top_p,temperature",)}) == {"order": ["top_p", "temperature"]}

    def test_what_was_not_given_is_left_to_yaml(self) -> None:
        assert parse_flags({"steps": None, "knobs": (), "factorised": None}) == {}


class TestInstalled:
    def test_list_says_where_each_knob_is_from_and_what_it_means(self) -> None:
        lines = latent("knobs", "list").stdout.splitlines()
        row = next(line for line in lines if line.lstrip().startswith("temperature"))
        assert f"latentknobs {latentknobs.__version__}" in row and "scale" in row and "Divides logits" in row

    def test_a_broken_plugin_is_a_row_and_others_still_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        broken = EntryPoint("wobble", "no_such_module:Wobble", registry.GROUP)
        real = registry.entry_points
        monkeypatch.setattr(registry, "entry_points", lambda group: [*real(group=group), broken])
        result = latent("knobs", "list")
        text = " ".join(result.stdout.split())
        assert result.exit_code == 0 and "wobble" in text and "broken:" in text and "Divides logits" in text

    def test_rewards_are_listed_with_their_settings_and_a_broken_one_is_a_row(self, monkeypatch: pytest.MonkeyPatch) -> None:
        broken = EntryPoint("wobble", "no_such_module:Wobble", "latentknobs.rewards")
        real = entry_points.entry_points

        def found(group: str, name: str | None = None) -> list[EntryPoint]:
            return [point for point in (*real(group=group), broken) if name in (None, point.name)]

        monkeypatch.setattr(entry_points, "entry_points", found)
        lines = latent("rewards", "list").stdout.splitlines()
        row = next(line for line in lines if line.startswith("repetition"))
        assert f"latentknobs {latentknobs.__version__}" in row and "n=3" in row and "minus the share of" in row
        assert "wobble" in " ".join(lines) and "broken:" in " ".join(lines)

    @pytest.mark.parametrize(("arguments", "code", "text"), [
        (("knobs", "check", "top_p:0.5,1"), 0, f"{len(KNOBS.checks)} of {len(KNOBS.checks)} checks passed."),
        (("knobs", "check", "topp"), 2, 'Did you mean "top_p"'),
        (("rewards", "check", "exact_match", "--columns", '{"answer": [72, 42]}'), 0, "11 of 11 checks passed."),
        (("rewards", "check", "exact_match"), 0, "11 of 11 checks passed."),
        (("rewards", "check", "testbed"), 0, "11 of 11 checks passed."),
        (("rewards", "check", "exact_match", "--columns", '{"other": 1}'), 1, "FAIL  can_be_called"),
        (("policies", "check", "balanced"), 0, "BalancedPolicy of KnobSpace(temperature[0.5, 1]"),
    ])  # fmt: skip
    def test_check_runs_the_conformance_suite_of_the_kind(self, arguments: tuple[str, ...], code: int, text: str) -> None:
        result = latent(*arguments)
        assert result.exit_code == code and text in result.output


class TestOverview:
    def test_every_command_is_listed_and_has_help(self) -> None:
        text = latent("--help").stdout
        for name in COMMANDS:
            assert f"  {name} " in text
            assert latent(name, "--help").exit_code == 0

    def test_version(self) -> None:
        assert latent("--version").stdout == f"latentknobs, version {latentknobs.__version__}\n"

"""Settings: one model behind Python, YAML and the command line."""

import time
from typing import ClassVar, Literal, get_args, get_origin

import numpy as np
import pytest
import torch
import yaml
from pydantic import BaseModel

from latentknobs import KnobSpace, entry_points
from latentknobs.config import SECTIONS, TrainConfig, fields, flat, make_config, read_yaml, write_yaml
from latentknobs.errors import ConfigError
from latentknobs.knobs import registry
from latentknobs.knobs.knob import ScalingKnob
from latentknobs.stages import Enters, Stage
from latentknobs.training.train import _spec


def test_every_setting_is_documented_and_has_a_default():
    for name, setting in fields().items():
        assert setting.info.description, name
        assert not setting.info.is_required(), name


def test_every_setting_is_in_a_key_or_says_why_not():
    """Forgotten is not an answer: without a word, a setting is in the keys of its section's stages."""
    outside = {name: one.enters for name, one in fields().items() if not one.enters.stages}
    assert {name for name, enters in outside.items() if not enters.by_content} == {
        "trust_remote_code", "device", "device_map", "tp_plan", "read_batch", "feature_ram", "checkpoint_every", "trackers",
        "account", "output_dir",
    }  # fmt: skip
    assert all(section.stages for section in SECTIONS.values() if section is not None)


def other(setting):
    """Another value of a setting that fits it."""
    default = setting.info.default
    kinds = [kind for kind in get_args(setting.info.annotation) or (setting.info.annotation,) if kind is not type(None)]
    if get_origin(setting.info.annotation) is Literal:
        return next(value for value in kinds if value != default)
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float) or kinds[0] in (int, float):
        return next(v for v in (default or 0) + np.array([1, 0.25, -1]) if fits(setting, kinds[0](v)) and kinds[0](v) != default)
    return ["entropy"] if setting.alias in ("features", "rival_features") else "other"


def fits(setting, value):
    try:
        return make_config({setting.alias: value}) is not None
    except ConfigError:
        return False


STAGES = get_args(Stage)


@pytest.mark.parametrize("name", [name for name in fields() if name not in ("learner", "engine")])
def test_another_value_changes_the_keys_of_exactly_the_stages_that_it_enters(name):
    setting = fields()[name]
    if setting.enters.stages:
        one, two = make_config({}), make_config({name: other(setting)})
        assert {stage for stage in STAGES if one.digest(stage) != two.digest(stage)} == set(setting.enters.stages)
        assert one.digest() != two.digest()


def test_the_learner_and_its_settings_enter_every_stage_that_a_learner_decides_on():
    assert fields()["learner"].enters == Enters("examples", "features", "fit")
    assert fields()["engine"].enters.by_content  # `Engine.identity`


def test_a_written_config_reads_back_the_same(tmp_path):
    config = make_config({"knobs": ["temperature", {"top_p": [0.5, 1]}], "beta": 0.3, "level": "delimiter:.!", "floor": -20})
    write_yaml(config, tmp_path / "c.yaml")
    assert make_config(read_yaml(tmp_path / "c.yaml")) == config
    assert "# Sharpness of the preference loss." in (tmp_path / "c.yaml").read_text()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"knob": ["temperature"]}, "no setting 'knob'. Did you mean \"knobs\""),
        ({"beta": 0}, "beta=0"),
        ({"rollouts": 1}, "rollouts=1"),
        ({"objective": "dpo"}, "objective='dpo'"),
        ({"beta": "warm"}, "beta='warm'"),
    ],
)
def test_bad_settings_are_named(settings, told):
    with pytest.raises(ConfigError, match=told):
        make_config(settings)


@pytest.mark.parametrize(("text", "told"), [("a: [1", "is not YAML"), ("- a", "setting: value"), (None, "cannot be read")])
def test_bad_files_are_named(tmp_path, text, told):
    file = tmp_path / "c.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_yaml(file)


def test_an_empty_file_is_all_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert make_config(read_yaml(tmp_path / "c.yaml")) == TrainConfig()


def test_yaml_numbers_keep_their_meaning(tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"learning_rate": 1e-5}))
    assert make_config(read_yaml(tmp_path / "c.yaml")).learning_rate == 1e-5


def test_the_digest_depends_on_what_came_before():
    config = make_config({})
    assert config.digest("fit", "a") != config.digest("fit", "b")


FLAT = {"model": "a/b", "dtype": "float32", "knobs": ["temperature"], "beta": 0.3, "steps": 7, "pick": "sample", "seed": 4}
NESTED = {
    "model": {"name": "a/b", "dtype": "float32"}, "space": {"knobs": ["temperature"]}, "learner": {"name": "lpo", "beta": 0.3},
    "fit": {"steps": 7}, "evaluate": {"pick": "sample"}, "run": {"seed": 4},
}  # fmt: skip


def test_flat_names_and_sections_say_the_same():
    config = make_config(FLAT)
    assert config == make_config(NESTED) == TrainConfig(**FLAT) == TrainConfig(**NESTED)
    assert config.changed == set(FLAT) | {"learner"} and config.chosen() == FLAT | {"learner": "lpo"}
    assert {name: getattr(config, name) for name in FLAT} == FLAT | {"knobs": ("temperature",)}
    assert (config["learner"].beta, config["fit"].steps) == (0.3, 7)
    assert flat(FLAT) == FLAT and flat(NESTED) == FLAT | {"learner": "lpo"}


def test_later_layers_win_in_either_form():
    assert make_config(NESTED, {"beta": 0.4}).beta == make_config(FLAT, {"learner": {"beta": 0.4}}).beta == 0.4
    config = make_config(NESTED, {"learner": "lpo", "fit": {"warmup": 2}}).replace(seed=5)
    assert (config.beta, config.steps, config.warmup, config.seed) == (0.3, 7, 2, 5)


def test_a_file_of_the_first_edition_is_still_a_config(tmp_path):
    """As it was written then: flat, all settings."""
    old = {name: value for name, value in TrainConfig().flat().items() if name not in ("learner", "engine")} | {"beta": 0.3}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(old))
    assert make_config(read_yaml(tmp_path / "c.yaml")) == make_config({"beta": 0.3})


def test_a_learner_brings_settings_of_its_own(monkeypatch):
    class Settings(BaseModel):
        warmth: float = 1.0
        """How warm."""
        steps: int = 3

    class Learner:
        pass

    Learner.Settings = Settings
    load = entry_points.load
    monkeypatch.setattr(entry_points, "load", lambda kind, name: Learner if name == "warm" else load(kind, name))
    for config in (make_config({"learner": "warm:warmth=2"}), make_config({"learner": {"name": "warm"}, "warmth": 2})):
        assert (config.learner, config["learner"], config.warmth) == ("warm", Settings(warmth=2.0), 2.0)
        assert config.steps == 300, "a flat name is that of the other section where it stands in both"
        assert config.digest("features") != make_config({"learner": "warm"}).digest("features")
    assert make_config({"learner": {"name": "warm", "steps": 5}})["learner"].steps == 5
    assert make_config({"learner": {"name": "lpo", "beta": 0.2}}, {"learner": "warm"})["learner"] == Settings()
    with pytest.raises(ConfigError, match="no setting 'beta' with the learner 'warm'"):
        make_config({"learner": "warm", "beta": 0.2})


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(AttributeError):
        TrainConfig().beta = 0.2


def test_paths_are_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ("model", "prompts", "eval_prompts", "preferences", "output_dir")
    config = make_config(dict.fromkeys(names, "~/a"))
    assert {getattr(config, name) for name in names} == {f"{tmp_path}/a"}
    (tmp_path / "c.yaml").write_text("beta: 0.3")
    assert make_config(read_yaml("~/c.yaml")).beta == 0.3


def bomb(leaf, join):
    lines = [f"knobs:\n - &a [{leaf}]"]
    lines += [f" - &{c} {join(p)}" for p, c in zip("abcdefg", "bcdefgh", strict=True)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("text", [
    bomb("x,x,x,x,x,x,x,x,x,x", lambda p: f"[{','.join(['*' + p] * 10)}]"),
    "a: &a {x: 1}\n"
    + "".join(f"{c}: &{c} {{<<: [{','.join(['*' + p] * 9)}]}}\n" for p, c in zip("abcdefg", "bcdefgh", strict=True)),
    "knobs: &a [*a]",
    "knobs: " + "[" * 5000 + "]" * 5000,
    "knobs: [" + "1, " * 50_000 + "]",
    f"seed: {'1' * 5000}",
    "knobs: " + "x" * 2_000_000,
])  # fmt: skip
def test_a_file_that_unfolds_is_refused_in_a_short_paragraph(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    started = time.monotonic()
    with pytest.raises(ConfigError) as error:
        make_config(read_yaml(tmp_path / "c.yaml"))
    assert len(str(error.value)) < 600 and time.monotonic() - started < 10


def test_aliases_of_ordinary_size_work(tmp_path):
    (tmp_path / "c.yaml").write_text("run: {seed: 3}\nspace: {knobs: [&t temperature, *t]}\n")
    assert make_config(read_yaml(tmp_path / "c.yaml")).knobs == ("temperature", "temperature")


@pytest.mark.parametrize("value", ["x" * 10_000, [["x"] * 1000] * 1000, {"a": "b" * 10_000}])
def test_a_large_value_is_shortened_in_the_message(value):
    with pytest.raises(ConfigError) as error:
        make_config({"beta": value})
    assert len(str(error.value)) < 600


def test_a_knob_object_with_settings_of_its_own_is_written_so_that_it_comes_back(tmp_path, monkeypatch):
    class Lift(ScalingKnob):
        name: ClassVar[str] = "lift"
        neutral: ClassVar[float] = 0.0
        options: tuple[float, ...] = (0.0, 0.5)
        weight: float = 2.0

        def temperature(self, value_N: torch.Tensor) -> torch.Tensor:
            return 1 + self.weight * value_N

    monkeypatch.setattr(registry, "_registered", {})
    registry.register(Lift)
    given = Lift(options=(0.0, 0.25), weight=3.0)
    write_yaml(make_config({"knobs": [_spec(given), "temperature:0.5,1"]}), tmp_path / "config.yaml")
    read = make_config(read_yaml(tmp_path / "config.yaml"))
    again = KnobSpace.of(*read.knobs).knobs[0]
    assert again == given and again.weight == 3.0


@pytest.mark.parametrize(
    "setting",
    [{"steps": 10**30}, {"rounds": 10**6}, {"rollouts": 10**8}, {"hidden": 10**9}, {"rank": 10**9}, {"eval_seeds": 10**6}],
)
def test_numbers_by_mistake_are_refused(setting):
    with pytest.raises(ConfigError, match=f"do not fit: {next(iter(setting))}=1000.*less than"):
        make_config(setting)


def test_true_is_not_a_number():
    with pytest.raises(ConfigError, match="The setting steps=True is not a number"):
        make_config({"steps": True})
    with pytest.raises(ConfigError, match="The setting hidden=False is not a number"):
        make_config({"head": {"hidden": False}})

"""Settings: one model behind Python, YAML and the command line."""

from typing import ClassVar

import pytest
import torch
import yaml

from latentknobs import KnobSpace
from latentknobs.config import TrainConfig, make_config, read_yaml, write_yaml
from latentknobs.errors import ConfigError
from latentknobs.knobs import registry
from latentknobs.knobs.knob import ScalingKnob
from latentknobs.training.train import _spec


def test_every_setting_is_documented_and_has_a_default():
    for name, field in TrainConfig.model_fields.items():
        assert field.description, name
        assert not field.is_required(), name


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


def test_the_digest_depends_on_the_named_settings_alone():
    one, two = make_config({"beta": 0.1, "steps": 5}), make_config({"beta": 0.2, "steps": 5})
    assert one.digest("steps") == two.digest("steps")
    assert one.digest("beta") != two.digest("beta")
    assert one.digest("steps", then="a") != one.digest("steps", then="b")


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

"""Rewards by name."""

from importlib.metadata import EntryPoint

import pytest

from latentknobs import entry_points
from latentknobs.errors import ConfigError, PluginError, UnknownNameError
from latentknobs.rewards import ExactMatch, NgramRepetition, resolve_reward, reward_names

GROUP = "latentknobs.rewards"
POINTS = [
    EntryPoint("repetition", "latentknobs.rewards.repetition:NgramRepetition", GROUP),
    EntryPoint("exact_match", "latentknobs.rewards.answer:ExactMatch", GROUP),
    EntryPoint("testbed", "latentknobs.testbed.reward:testbed_reward", GROUP),
    EntryPoint("broken", "latentknobs_no_such_module:Reward", GROUP),
    EntryPoint("twice", "latentknobs.rewards.answer:ExactMatch", GROUP),
    EntryPoint("twice", "latentknobs.rewards.repetition:NgramRepetition", GROUP),
]


@pytest.fixture
def points(monkeypatch):
    def fake(group, name=None):
        return [point for point in POINTS if group == GROUP and name in (None, point.name)]

    monkeypatch.setattr(entry_points, "entry_points", fake)


@pytest.mark.usefixtures("points")
class TestByName:
    def test_class_without_settings(self):
        assert isinstance(resolve_reward("exact_match"), ExactMatch)

    def test_settings_after_the_colon(self):
        reward = resolve_reward("repetition:n=4")
        assert isinstance(reward, NgramRepetition)
        assert reward.n == 4
        assert resolve_reward("exact_match:marker=So").marker == "So"

    def test_a_setting_that_is_a_text_stays_one(self):
        assert resolve_reward("exact_match:marker=5").marker == "5"
        assert resolve_reward("exact_match:marker=true").marker == "true"

    def test_function(self):
        assert resolve_reward("testbed").__name__ == "testbed_reward"
        with pytest.raises(ConfigError, match="takes no settings"):
            resolve_reward("testbed:a=1")

    def test_unknown_name_suggests_the_nearest(self):
        with pytest.raises(UnknownNameError, match=r"'repetitoin'.*mean \"repetition\".*exact_match"):
            resolve_reward("repetitoin")

    def test_unknown_setting(self):
        with pytest.raises(ConfigError, match=r"repetition:m=4.*'m'"):
            resolve_reward("repetition:m=4")

    def test_malformed_setting(self):
        with pytest.raises(ConfigError, match="key=value"):
            resolve_reward("repetition:4")

    def test_broken_plugin_names_its_entry_point_and_harms_no_other(self):
        with pytest.raises(PluginError, match=r"broken = latentknobs_no_such_module:Reward"):
            resolve_reward("broken")
        assert "broken" in reward_names()

    def test_clash_names_both(self):
        with pytest.raises(PluginError, match=r"ExactMatch.*NgramRepetition"):
            resolve_reward("twice")


def test_callables_pass_through():
    def mine(prompts, completions):
        return [0.0] * len(completions)

    assert resolve_reward(mine) is mine


def test_neither_name_nor_callable():
    with pytest.raises(ConfigError, match="42"):
        resolve_reward(42)


@pytest.mark.parametrize("name", ["repetition", "exact_match", "sentence_constraint", "word_surprise", "testbed"])
def test_installed_entry_points_load(name):
    assert callable(resolve_reward(name))
